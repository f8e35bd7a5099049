"""The configuration of a run: inert, strict, saved whole with every run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from polydistill.config.cache import CacheConfig
from polydistill.config.objective import ObjectiveConfig
from polydistill.config.safety import AnySafety
from polydistill.config.section import Section, moved
from polydistill.config.served import POSITIONS, ServedTeacherConfig
from polydistill.config.weighting import AnyFactor


class ModelConfig(Section):
    """A causal language model: hub id or local folder."""

    model: str = Field(description="hub id or local folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of its weights; auto: as they are stored, float32 for a student trained in full"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(default=False, description="run Python code that the model's repository brings")
    device_map: str | None = Field(default=None, description="as in Transformers; teachers only")

    @model_validator(mode="after")
    def _pinned(self) -> "ModelConfig":
        """Code that is run is code that somebody could have read."""
        if self.trust_remote_code and self.revision is None and not Path(self.model).is_dir():
            raise ValueError(
                "trust_remote_code runs what the repository holds that day: give the `revision` that you have read, "
                "best a commit"
            )
        return self

    @property
    def source(self) -> str:
        """Where it comes from."""
        return self.model


class LocalTeacherConfig(ModelConfig):
    """A teacher that is a model in this process."""

    tokenizer: Literal["student", "own"] = Field(
        default="student", description="the student's, or its own, whose tokens are translated through their bytes"
    )
    expand: int = Field(
        default=0,
        ge=0,
        description="with a tokenizer of its own: tokens per position, on average, behind which it is run one token "
        "further; more of them make the bound of the translation smaller, and cost as many tokens of the teacher",
    )
    positions: Literal["all", "bound", "strict"] = POSITIONS

    @model_validator(mode="after")
    def _is_translated(self) -> "LocalTeacherConfig":
        for name in ("expand", "positions"):
            if getattr(self, name) != type(self).model_fields[name].default and self.tokenizer != "own":
                raise ValueError(f"`{name}` is there for teachers with `tokenizer: own`: nothing else is translated")
        return self


class CachedTeacherConfig(Section):
    """A teacher that was heard before: what it said is read from a cache, and no model is loaded."""

    gone: ClassVar[dict[str, str]] = {
        "expand": "runs the model itself, which a cache has not: leave it out, or name the model instead",
        "tokenizer": "is told by the cache: leave it out",
    }

    cache: str = Field(description="folder or fsspec address that `polydistill cache build` wrote")
    teacher: str | None = Field(default=None, description="its name in the cache; by default its name in this run")
    verify: Literal["all", "touched"] = Field(
        default="all", description="hash every shard before the run, or each one before its first use"
    )
    positions: Literal["all", "bound", "strict"] = POSITIONS

    @property
    def source(self) -> str:
        """Where it comes from."""
        return self.cache


TEACHERS: dict[str, type[Section]] = {
    "a model": LocalTeacherConfig,
    "a cache": CachedTeacherConfig,
    "a server": ServedTeacherConfig,
}
"""Kinds of teachers by the word that an error has for them; each is told by a key that the others lack."""


def kind_of_teacher(section: Any) -> str:
    """Which of `TEACHERS` a section of the file, or one that was read, describes."""
    if isinstance(section, Mapping):
        return "a cache" if "cache" in section else "a server" if "url" in section else "a model"
    return next((kind for kind, model in TEACHERS.items() if isinstance(section, model)), "a model")


AnyTeacher = Annotated[
    Annotated[LocalTeacherConfig, Tag("a model")]
    | Annotated[CachedTeacherConfig, Tag("a cache")]
    | Annotated[ServedTeacherConfig, Tag("a server")],
    Discriminator(kind_of_teacher),
]


class LoraConfig(Section):
    """A LoRA student through peft."""

    r: int = Field(default=16, ge=1, description="rank of the adapters")
    alpha: int = Field(default=32, ge=1, description="they are scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what goes into an adapter")
    target_modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear", description="names of the layers that get one"
    )


class StudentConfig(ModelConfig):
    """The student, in full or with LoRA adapters; `dtype: auto` is float32 where it is trained in full."""

    lora: LoraConfig | None = Field(
        default=None, description="train adapters instead of the whole model; they are merged"
    )
    chat_template: str | None = Field(
        default=None, description="of its tokenizer, instead of its own: a folder with a tokenizer, or a Jinja file"
    )

    @field_validator("device_map")
    @classmethod
    def _placed_by_the_trainer(cls, device_map: str | None) -> str | None:
        if device_map is not None:
            raise ValueError("a device_map is for teachers; the student is where Accelerate trains it: leave it out")
        return device_map


class SourceConfig(Section):
    """One of several sources of training data."""

    data: str = Field(description="a file, a pattern of files, or the id of a hub data set")
    split: str = Field(default="train", description="of a hub data set")
    name: str | None = Field(default=None, description="configuration of a hub data set that has several")
    task: str | None = Field(default=None, description="of all of its rows; by default their own column")
    share: float | None = Field(
        default=None, gt=0, description="of the mixture, relative to the others'; by default all rows once"
    )
    streaming: bool = Field(default=False, description="read rows as they are needed; the whole mixture then is")


class DataConfig(Section):
    """Training and held-out data in any of TRL's formats: `text`, `messages`, or `prompt` and `completion`."""

    train: str | list[SourceConfig] = Field(
        description="a .jsonl, .json, .parquet or .csv file (also .gz, .bz2, .xz, .zst), a pattern of such files, or "
        "the id of a hub data set; or a list of such sources"
    )
    streaming: bool = Field(
        default=False, description="read training rows as they are needed, without a copy on disk; needs max_steps"
    )
    name: str | None = Field(default=None, description="configuration of hub data sets that have several")
    evaluation: str | None = Field(default=None, description="held-out data, likewise")
    train_split: str = Field(default="train", description="of a hub data set")
    evaluation_split: str = Field(default="test", description="of a hub data set")
    text_field: str = Field(default="text", description="column of the text")
    loss: Literal["all", "completion", "assistant"] | None = Field(
        default=None, description="which tokens are learned; by default completions where the data has them, else all"
    )
    max_length: int | None = Field(default=1024, ge=2, description="tokens; longer examples are cut")

    @property
    def sources(self) -> list[SourceConfig]:
        """What is trained on, as a list."""
        if isinstance(self.train, str):
            return [SourceConfig(data=self.train, split=self.train_split, name=self.name, streaming=self.streaming)]
        return [source.model_copy(update={"streaming": self.streaming or source.streaming}) for source in self.train]

    @property
    def streamed(self) -> bool:
        """Whether the training rows are a stream."""
        return any(source.streaming for source in self.sources)


class ExpertGradientConfig(Section):
    """What the coefficients between teachers are made from."""

    sample: int = Field(default=128, ge=1, description="teachers: positions whose inner products are taken")


class GradientConfig(Section):
    """What an aggregator of torchjd makes of gradients that conflict; needs the extra `gradients`."""

    gone: ClassVar[dict[str, str]] = moved("gradient", ExpertGradientConfig)

    method: Literal["upgrad", "mgda", "pcgrad", "cagrad", "imtl_g", "nash_mtl", "graddrop"] = Field(
        default="upgrad", description="aggregator of torchjd"
    )
    across: Literal["teachers", "labels", "severity"] = Field(
        default="teachers",
        description="between teachers (in logit space), distillation and labels, or critical contexts and the others",
    )
    share: float = Field(default=0.05, gt=0, le=1, description="teachers: share of uniform weights in the coefficients")
    critical: float = Field(default=0.5, gt=0, le=1, description="severity: from which a context is critical")
    expert: ExpertGradientConfig = Field(default=ExpertGradientConfig(), description="what coefficients are made from")


class CompletionsConfig(Section):
    """What the student writes, for the report and the trackers; teachers in this process say what they make of it."""

    every: int | None = Field(default=None, ge=1, description="steps between; after the last one always")
    prompts: int = Field(
        default=4, ge=0, description="from the held-out data, or the training data without any; 0 writes nothing"
    )
    tokens: int = Field(default=48, ge=1, description="written at most after each")


OWN = {
    "output_dir": "output",
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "lr_scheduler_type": "training.schedule",
    "data_seed": "training.seed",
    "logging_steps": "training.log_steps",
    "save_total_limit": "training.keep_checkpoints",
    "use_cpu": "training.cpu",
    "eval_steps": "training.evaluation_steps",
    "max_length": "data.max_length",
    "dataset_text_field": "data.text_field",
    "completion_only_loss": "data.loss",
    "assistant_only_loss": "data.loss",
    **{
        name: f"training.{name}"
        for name in (
            "max_steps", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16",
            "gradient_checkpointing", "save_steps", "report_to",
        )
    },
}  # fmt: skip
"""Arguments of trl that have a place of their own."""


class TrainingConfig(Section):
    """The loop; `extra` goes to `trl.SFTConfig` (on_policy: `trl.DistillationConfig`) as it is."""

    model_config = ConfigDict(populate_by_name=True)
    gone: ClassVar[dict[str, str]] = {
        "drop_teachers": "is gone: teachers whose weight is known before they speak are left out by `skip_below`"
    }

    mode: Literal["off_policy", "on_policy"] = Field(
        default="off_policy", description="whose text is learned on: the data's, or what the student writes"
    )
    fixed_share: float = Field(
        default=0.0, alias="lambda", ge=0, le=1, description="on_policy: share of steps on the data's completions"
    )
    completion_length: int = Field(
        default=256, ge=1, description="on_policy, `cache build --answers`: tokens that the student writes at most"
    )
    sampling_temperature: float = Field(
        default=1.0, gt=0, description="on_policy, `cache build --answers`: of the student's sampling"
    )
    skip_below: float | None = Field(
        default=0.0, ge=0, lt=1, description="teachers whose weight is known to be at most this in total need not run"
    )
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps; -1: `epochs` decides")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data")
    batch_size: int = Field(default=8, ge=1, description="sequences per device and forward")
    gradient_accumulation: int = Field(default=1, ge=1, description="forwards per optimizer step")
    learning_rate: float = Field(default=2e-5, gt=0, description="at its height")
    schedule: str = Field(default="cosine", description="of the learning rate, as in Transformers")
    warmup_steps: int = Field(default=0, ge=0, description="steps until the learning rate is at its height")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    seed: int = Field(default=0, ge=0, description="of everything that is drawn, the order of the data included")
    skip_spikes: bool = Field(
        default=True, description="leave out updates of steps whose loss is far above its level; often, and it stops"
    )
    bf16: bool = Field(default=False, description="compute in bfloat16, keep weights as they are")
    gradient_checkpointing: bool = Field(default=False, description="less memory for more time")
    log_steps: int = Field(default=10, ge=1, description="steps between two records")
    evaluation_steps: int | None = Field(
        default=None, ge=1, description="evaluate every so many steps; at the end always"
    )
    completions: CompletionsConfig = Field(
        default=CompletionsConfig(), description="what the student writes while it learns"
    )
    save_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="that are left on disk")
    cpu: bool = Field(default=False, description="stay on the CPU even if there is a GPU")
    placement: Literal["copied", "sharded", "offloaded"] = Field(
        default="copied", description="teachers: a copy on every rank, sharded over ranks, or in main memory"
    )
    threads: int | None = Field(default=None, ge=1, description="torch threads of this process")
    loss_mib: int | None = Field(default=None, ge=1, description="memory of the objective's chunks, MiB")
    report_to: list[str] = Field(
        default=[], description="trackers, as in Transformers: wandb, trackio, tensorboard, ..."
    )
    extra: dict[str, Any] = Field(default={}, description="further arguments of trl's configuration")

    @field_validator("extra")
    @classmethod
    def _adds(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """It adds to what the sections say, and takes nothing back: checkpoints stay in the run, and whole."""
        for name, place in OWN.items():
            if name in extra:
                raise ValueError(f"{name} is {place} here; say it there, where the rest of the run reads it")
        for name, value in extra.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} should be a finite number, got {value}")
        if extra.get("save_only_model"):
            raise ValueError("save_only_model leaves checkpoints that nothing can go on from; leave it out")
        return extra


class RunConfig(Section):
    """A run: one student, its teachers, the data, and whom to trust."""

    output: str = Field(description="folder of the run")
    student: StudentConfig = Field(description="hub id or folder, or a section")
    teachers: dict[str, AnyTeacher] = Field(
        min_length=1, description="name -> model, cache or server; the order is the order of weights"
    )
    data: DataConfig = Field(description="what is learned from, and what is held out")
    tasks: list[str] | None = Field(default=None, description="names of the tasks; found in the data when left out")
    weighting: list[AnyFactor] = Field(description="factors, multiplied; none is plain averaging")
    floor: float = Field(default=0.02, ge=0, le=1, description="share of uniform weights mixed in after composition")
    safety: Annotated[AnySafety, Field(discriminator="kind")] | None = Field(
        default=None, description="who is safer, where it matters, and limits on the student"
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="what is learned from the teachers")
    cache: CacheConfig = Field(default=CacheConfig(), description="how much `polydistill cache build` stores")
    gradient: GradientConfig | None = Field(default=None, description="what is made of gradients that conflict")
    training: TrainingConfig = Field(default=TrainingConfig(), description="the loop")

    @model_validator(mode="before")
    @classmethod
    def _on_policy_defaults(cls, values: Any) -> Any:
        """The student's own text is learned on by reverse KL unless another divergence is given."""
        training = values.get("training") if isinstance(values, Mapping) else None
        if not isinstance(training, Mapping) or training.get("mode") != "on_policy":
            return values
        given = values.get("objective")
        if given is not None and not isinstance(given, Mapping):
            return values
        return {**values, "objective": {"kind": "reverse_kl", **(given or {})}}

    @model_validator(mode="after")
    def _steps_of_a_stream(self) -> "RunConfig":
        if self.data.streamed and self.training.max_steps < 1:
            raise ValueError("data.streaming: a stream has no length; say with training.max_steps where the run ends")
        return self

    @field_validator("teachers", mode="before")
    @classmethod
    def _short(cls, teachers: Any) -> Any:
        """`name: folder` is short for `name: {model: folder}`."""
        if not isinstance(teachers, dict):
            return teachers
        return {name: {"model": value} if isinstance(value, str) else value for name, value in teachers.items()}

    @field_validator("student", mode="before")
    @classmethod
    def _short_student(cls, student: Any) -> Any:
        return {"model": student} if isinstance(student, str) else student
