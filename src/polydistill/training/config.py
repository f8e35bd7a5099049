"""The configuration of a run: inert, strict, saved whole with every run."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A section of the file: frozen, and a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """A causal language model: hub id or local folder."""

    model: str = Field(description="hub id or local folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(default=False, description="run Python code that the model's repository brings")
    device_map: str | None = Field(default=None, description="as in Transformers; teachers only")


class LoraConfig(Section):
    """A LoRA student through peft."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class StudentConfig(ModelConfig):
    """The student, in full or with LoRA adapters."""

    lora: LoraConfig | None = None


class DataConfig(Section):
    """Training and held-out data in any of TRL's formats: `text`, `messages`, or `prompt` and `completion`."""

    train: str = Field(description="a .jsonl, .json, .parquet or .csv file, or the id of a hub data set")
    evaluation: str | None = Field(default=None, description="held-out data, likewise")
    train_split: str = "train"
    evaluation_split: str = "test"
    text_field: str = "text"
    loss: Literal["all", "completion", "assistant"] | None = Field(
        default=None, description="which tokens are learned; by default completions where the data has them, else all"
    )
    max_length: int | None = Field(default=1024, ge=2, description="tokens; longer examples are cut")


SignalName = Literal["entropy", "label_likelihood", "consensus", "student_gap", "student_gap_hard_first", "margin"]


class Factor(Section):
    """One factor of the weighting, raised to a power."""

    power: float = Field(default=1.0, description="exponent of this factor's weights")


class SoftmaxFactor(Factor):
    """Softmax of a signal at temperature `temperature`."""

    kind: Literal["softmax"]
    signal: SignalName = "entropy"
    temperature: float = Field(default=2.0, gt=0)
    spread: float = Field(default=4.0, gt=0, description="evidence is clipped to this spread, nats")


class TaskPriorFactor(Factor):
    """Fixed weights per task, from a table or from held-out losses."""

    kind: Literal["task_prior"]
    table: dict[str, dict[str, float]] | None = Field(default=None, description="task -> teacher -> weight")
    losses: dict[str, dict[str, float]] | None = Field(
        default=None, description="task -> teacher -> held-out loss, nats"
    )
    temperature: float = Field(default=0.5, gt=0, description="of the losses")

    @model_validator(mode="after")
    def _one_of(self) -> "TaskPriorFactor":
        if (self.table is None) == (self.losses is None):
            raise ValueError("a task_prior needs either `table` or `losses`")
        return self


class TaskRouterFactor(Factor):
    """Each task is handed to one teacher."""

    kind: Literal["task_router"]
    route: dict[str, str]
    strength: float = Field(default=4.0, ge=0, description="lead of the named teacher, nats")


class TeacherRouterFactor(Factor):
    """The data's `teacher_id` leads."""

    kind: Literal["teacher_router"]
    strength: float = Field(default=4.0, ge=0, description="lead of the named teacher, nats")


class HedgeFactor(Factor):
    """Multiplicative weights per task, learned from earlier steps."""

    kind: Literal["hedge"]
    signal: SignalName = "label_likelihood"
    rate: float = Field(default=0.5, gt=0)
    share: float = Field(default=0.02, gt=0, le=1)
    spread: float = Field(default=4.0, gt=0)


class PrefixPosteriorFactor(Factor):
    """Fixed-share posterior over teachers given the text so far."""

    kind: Literal["prefix_posterior"]
    share: float = Field(default=0.02, gt=0, le=1, description="chance per token that another teacher takes over")


class DiscountedPosteriorFactor(Factor):
    """Posterior that forgets geometrically."""

    kind: Literal["discounted_posterior"]
    discount: float = Field(default=0.8, ge=0, lt=1)
    spread: float = Field(default=8.0, gt=0)


class ClippedPosteriorFactor(Factor):
    """Posterior whose log-odds never exceed `spread`."""

    kind: Literal["clipped_posterior"]
    spread: float = Field(default=8.0, gt=0)


class CustomFactor(Factor):
    """Your own Python: `module:name` of a function from evidence `[n, K]` to weights, or of an operator."""

    kind: Literal["custom"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$", description="module:name, importable where the run starts")
    signal: SignalName = "entropy"
    spread: float = Field(default=4.0, gt=0)


AnyFactor = Annotated[
    SoftmaxFactor
    | TaskPriorFactor
    | TaskRouterFactor
    | TeacherRouterFactor
    | HedgeFactor
    | PrefixPosteriorFactor
    | DiscountedPosteriorFactor
    | ClippedPosteriorFactor
    | CustomFactor,
    Field(discriminator="kind"),
]


class ColumnSeverity(Section):
    """The data says how critical a context is, in a column of numbers from 0 to 1, or of lists, one number a token."""

    kind: Literal["column"]
    name: str = "severity"


class RulesSeverity(Section):
    """Regular expressions or word lists, in a file of their own."""

    kind: Literal["rules"]
    file: str = Field(description="YAML: a list of {pattern | words | words_file, severity, until}")
    scope: Literal["prompt", "prefix"] = Field(
        default="prompt", description="one severity per example from its prompt, or one per token from its prefix"
    )


class ClassifierSeverity(Section):
    """The score that a text-classification model gives to the prompt."""

    kind: Literal["classifier"]
    model: str = Field(description="hub id or local folder of a sequence classification model")
    label: str = Field(description="label whose score is the severity")


AnySeverity = Annotated[ColumnSeverity | RulesSeverity | ClassifierSeverity, Field(discriminator="kind")]


class ConstraintConfig(Section):
    """A limit on the student's expectation of something."""

    name: str
    limit: float = Field(gt=0)


class UnsafeMassConfig(ConstraintConfig):
    """Probability mass on forbidden tokens and on completing forbidden token sequences."""

    kind: Literal["unsafe_mass"]
    strings: list[str] = Field(default=[], description="forbidden text; tokenised, several tokens are a sequence")
    tokens_matching: str | None = Field(default=None, description="every token whose text this pattern matches")
    severity: float = Field(default=0.5, ge=0, le=1, description="contexts from this severity on")

    @model_validator(mode="after")
    def _something(self) -> "UnsafeMassConfig":
        if not self.strings and self.tokens_matching is None:
            raise ValueError("an unsafe_mass constraint needs `strings` or `tokens_matching`")
        return self


class KLToTeacherConfig(ConstraintConfig):
    """KL divergence from a teacher, usually the safest."""

    kind: Literal["kl_to_teacher"]
    teacher: str
    severity: float = Field(default=0.5, ge=0, le=1, description="contexts from this severity on")


class TaskLossConfig(ConstraintConfig):
    """Cap on the loss of a protected task, nats per token."""

    kind: Literal["task_loss"]
    task: str
    step: float = Field(default=0.1, gt=0, description="nats that count as one unit of violation")


class GeneratedRateConfig(ConstraintConfig):
    """Share of generated texts that a pattern or a classifier flags: evaluated, not differentiated."""

    kind: Literal["generated_rate"]
    follows: str = Field(description="constraint whose gradient carries this one's multiplier")
    prompts: str = Field(description="text file, one prompt a line")
    pattern: str | None = Field(default=None, description="flagged when it is found in the continuation")
    model: str | None = Field(default=None, description="or: text-classification model")
    label: str | None = Field(default=None, description="its label that counts as flagged")
    threshold: float = Field(default=0.5, gt=0, lt=1)
    every: int = Field(default=50, ge=1, description="optimizer steps between two evaluations")

    @model_validator(mode="after")
    def _one_of(self) -> "GeneratedRateConfig":
        if (self.pattern is None) == (self.model is None) or (self.model is None) != (self.label is None):
            raise ValueError("a generated_rate needs either `pattern`, or `model` and `label`")
        return self


AnyConstraint = Annotated[
    UnsafeMassConfig | KLToTeacherConfig | TaskLossConfig | GeneratedRateConfig, Field(discriminator="kind")
]


class DualConfig(Section):
    """Gains of the multipliers; the defaults suit limits that are met within a few hundred steps."""

    integral: float = Field(default=0.02, gt=0, description="rise per step at an error of one scale")
    proportional: float = Field(default=0.2, ge=0)
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    augmentation: float = Field(default=0.0, ge=0)
    most: float = Field(default=100.0, gt=0, description="greatest multiplier, in scales")
    window: int = Field(default=50, ge=1, description="steps over which values are averaged")
    patience: int = Field(default=200, ge=1, description="steps without progress until a constraint is given up")
    tolerance: float = Field(default=0.1, ge=0, description="share of the scale by which a limit may be missed")


class SafetySection(Section):
    """What every kind of `safety` has: where it matters, and limits on the student."""

    severity: AnySeverity | None = None
    constraints: list[AnyConstraint] = []
    dual: DualConfig = DualConfig()
    infeasible: Literal["report", "fail"] = Field(
        default="report", description="`fail` ends a run whose constraints are not met with exit code 5"
    )
    safest: str | None = Field(default=None, description="teacher whose own feasibility is measured")


class OrderSection(SafetySection):
    """Who is safer: scores, or tiers from the least to the most safe."""

    scores: dict[str, float] = Field(default={}, description="teacher -> safety score; larger is safer")
    tiers: list[list[str]] = Field(default=[], description="instead of scores: least safe first, ties allowed")

    @model_validator(mode="after")
    def _one_order(self) -> "OrderSection":
        if bool(self.scores) == bool(self.tiers):
            raise ValueError("a safety order needs either `scores` or `tiers`")
        return self


class TiltConfig(OrderSection):
    """Safer teachers gain `severity * strength * score` nats."""

    kind: Literal["tilt"]
    strength: float = Field(default=3.0, ge=0)


class OrderedConfig(OrderSection):
    """Weights are projected onto the order of the scores from severity `critical` on, and into bounds."""

    kind: Literal["ordered"]
    critical: float = Field(default=0.5, gt=0, le=1)
    low: float | None = Field(default=None, gt=0, lt=1, description="least weight of any teacher")
    high: float = Field(default=1.0, gt=0, le=1, description="greatest weight of any teacher; needs `low`")


class VetoConfig(OrderSection):
    """Teachers with a score below `least` are out from severity `critical` on."""

    kind: Literal["veto"]
    least: float = 1.0
    critical: float = Field(default=0.5, gt=0, le=1)


class ConstraintsOnlyConfig(SafetySection):
    """No order among the teachers, only limits on the student."""

    kind: Literal["constraints"]


AnySafety = TiltConfig | OrderedConfig | VetoConfig | ConstraintsOnlyConfig


class ObjectiveConfig(Section):
    """What is learned from the teachers."""

    kind: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    temperature: float = Field(default=1.0, gt=0)
    ce: float = Field(default=0.1, ge=0, le=1, description="share of cross-entropy on the labels")
    temperature_squared: bool = False


class TrainingConfig(Section):
    """The loop; `extra` goes to `trl.SFTConfig` as it is."""

    max_steps: int = Field(default=-1, description="optimizer steps; -1: `epochs` decides")
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1, description="sequences per device and forward")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: str = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    log_steps: int = Field(default=10, ge=1)
    evaluation_steps: int | None = Field(
        default=None, ge=1, description="evaluate every so many steps; at the end always"
    )
    save_steps: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    cpu: bool = Field(default=False, description="stay on the CPU even if there is a GPU")
    threads: int | None = Field(default=None, ge=1, description="torch threads of this process")
    loss_mib: int | None = Field(default=None, ge=1, description="memory of the objective's chunks, MiB")
    report_to: list[str] = []
    extra: dict[str, Any] = {}


class RunConfig(Section):
    """A run: one student, its teachers, the data, and whom to trust."""

    output: str = Field(description="folder of the run")
    student: StudentConfig
    teachers: dict[str, ModelConfig] = Field(
        min_length=1, description="name -> model; the order is the order of weights"
    )
    data: DataConfig
    tasks: list[str] | None = Field(default=None, description="names of the tasks; found in the data when left out")
    weighting: list[AnyFactor] = Field(min_length=1, description="factors, multiplied")
    floor: float = Field(default=0.02, ge=0, le=1, description="share of uniform weights mixed in after composition")
    safety: Annotated[AnySafety, Field(discriminator="kind")] | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()

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
