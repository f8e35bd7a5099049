"""From a configuration to what it describes: the stack, the objective, the trainer."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from peft import LoraConfig as PeftLoraConfig
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from trl import DistillationConfig, SFTConfig

from polydistill.cache import Cache, CachedForeignTeacher, CachedTeacher
from polydistill.config import run as c
from polydistill.config.file import ConfigError
from polydistill.config.safety import build_safety
from polydistill.config.served import ServedTeacherConfig
from polydistill.config.weighting import build_stack
from polydistill.data.load import Part, load_data, load_mixture
from polydistill.objective import Divergence
from polydistill.run.build_safety import build_constraints, build_severity
from polydistill.run.student import DTYPES, build_student, refuse_targets
from polydistill.teachers import ForeignTeacher, LocalTeacher, Teacher
from polydistill.teachers.local import reason_of
from polydistill.teachers.served import Patience, ServedForeignTeacher, ServedTeacher
from polydistill.training.gradient.across_groups import AcrossGroups, Critical, Labels
from polydistill.training.gradient.across_teachers import AcrossTeachers
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.placement import Copied, Offloaded, Sharded
from polydistill.training.sampled import SampledLinearPool, SampledLogPool
from polydistill.training.taught import Observer, Taught

Arguments = TypeVar("Arguments", SFTConfig, DistillationConfig)

SAMPLED: dict[str, type[SampledLogPool] | type[SampledLinearPool]] = {
    "sampled_log_pool": SampledLogPool,
    "sampled_linear_pool": SampledLinearPool,
}

PLACEMENTS: dict[str, type[Copied] | type[Sharded] | type[Offloaded]] = {
    "copied": Copied,
    "sharded": Sharded,
    "offloaded": Offloaded,
}


def build_gradient(config: c.RunConfig) -> AcrossTeachers | AcrossGroups | None:
    """The modification of the gradient, or None.

    Raises:
        ConfigError: the run is on-policy.
        GradientRefusedError: the method gives no weights.
        GradientsMissingError: torchjd is not installed.
    """
    section = config.gradient
    if section is None:
        return None
    if config.training.mode == "on_policy":
        raise ConfigError("gradient: it is there for off-policy runs only; leave `gradient` or `mode: on_policy` out")
    if section.across == "teachers":
        return AcrossTeachers(section.method, section.share, section.expert.sample)
    return AcrossGroups(section.method, Labels() if section.across == "labels" else Critical(section.critical))


def build_objective(section: c.ObjectiveConfig) -> Divergence:
    """The divergence.

    Raises:
        ConfigError: a sampled objective outside an on-policy run.
    """
    if section.sampled:
        raise ConfigError(f"objective.kind: {section.kind} needs text that the student sampled; use mode: on_policy")
    return section.build()


def build_teachers(config: c.RunConfig) -> dict[str, Teacher]:
    """Every teacher, loaded or opened.

    Raises:
        ConfigError: a teacher that was heard before, in a run on text that is yet to be written.
    """
    opened: dict[str, Cache] = {}
    return {name: _teacher(name, section, config, opened) for name, section in config.teachers.items()}


def _teacher(name: str, section: c.AnyTeacher, config: c.RunConfig, opened: dict[str, Cache]) -> Teacher:
    if isinstance(section, c.CachedTeacherConfig):
        if config.training.mode == "on_policy":
            raise ConfigError(f"teachers.{name}: a cache knows nothing about text that the student is yet to write")
        if section.cache not in opened:
            opened[section.cache] = Cache(section.cache, section.verify)
        cache = opened[section.cache]
        if cache.plan.own:
            return CachedForeignTeacher(name, cache, section.teacher, section.positions)
        if section.positions != "all":
            raise ConfigError(
                f"teachers.{name}.positions: it is for teachers with tokenizers of their own, and {section.cache} was "
                "built with the student's; leave it out"
            )
        return CachedTeacher(name, cache, section.teacher)
    if isinstance(section, ServedTeacherConfig):
        return _served(name, section)
    foreign = section.tokenizer == "own"
    options: dict[str, Any] = {
        "dtype": DTYPES[section.dtype],
        "revision": section.revision,
        "trust_remote_code": section.trust_remote_code,
        **({} if section.device_map is None else {"device_map": section.device_map}),
    }
    if foreign:
        return ForeignTeacher.load(name, section.model, expand=section.expand, positions=section.positions, **options)
    return LocalTeacher.load(name, section.model, **options)


def _served(name: str, section: ServedTeacherConfig) -> ServedTeacher:
    options: dict[str, Any] = {
        "top_logprobs": section.top_logprobs,
        "api_key_env": section.api_key_env,
        "proxy": section.proxy,
        "on_outage": section.on_outage,
        "tempered": section.tempered,
        "patience": Patience(**section.expert.model_dump()),
        "concurrency": section.concurrency,
        "body_limit": section.body_limit_mib * 2**20,
    }
    if section.own is None:
        return ServedTeacher(name, section.url, section.model, **options)
    options |= {"tokenizer": section.own, "positions": section.positions}
    return ServedForeignTeacher(name, section.url, section.model, **options)


def sft_config(config: c.RunConfig) -> SFTConfig:
    """TRL's arguments; ours are where users know them, `training.extra` passes the rest."""
    data = config.data
    wanted = {
        **loop_arguments(config),
        "max_length": data.max_length,
        "dataset_text_field": data.text_field,
        "completion_only_loss": {"completion": True, "all": False}.get(str(data.loss)),
        "assistant_only_loss": data.loss == "assistant",
    }
    refuse_extra(config.training.extra, wanted)
    return _arguments(SFTConfig, {**wanted, "shuffle_dataset": data.streamed, **config.training.extra})


def _arguments(kind: type[Arguments], wanted: dict[str, Any]) -> Arguments:
    try:  # Of pinned memory torch warns where there is nothing to copy to.
        args = kind(**{"dataloader_pin_memory": torch.accelerator.is_available(), **wanted})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {str(error).strip().splitlines()[0]}") from error
    refuse_unready(args)
    return args


def distillation_config(config: c.RunConfig) -> DistillationConfig:
    """TRL's arguments for a run whose student writes.

    Raises:
        ConfigError: trl refuses one of them, or a key of `data` means nothing here.
    """
    t = config.training
    if config.data.loss is not None:
        raise ConfigError(
            f"data.loss: {config.data.loss} is not read in mode: on_policy, which learns what the student wrote "
            "and, with lambda, the data's completions; leave it out"
        )
    wanted = {
        **loop_arguments(config),
        "max_completion_length": t.completion_length,
        "temperature": t.sampling_temperature,
    }
    refuse_extra(t.extra, wanted)
    return _arguments(DistillationConfig, {**wanted, **t.extra})


def refuse_extra(extra: dict[str, Any], own: dict[str, Any]) -> None:
    """`training.extra` is for what has no key of its own.

    Raises:
        ConfigError: it overrules a key.
    """
    for name in sorted(set(extra) & set(own)):
        raise ConfigError(f"training.extra.{name}: the configuration has a key of its own for it; use that one")


def refuse_unready(args: Any) -> None:
    """Trackers, optimizer and schedule are made once for nothing, before models are loaded.

    Raises:
        ConfigError: a package is not installed, a name is unknown, or a schedule needs arguments.
    """
    nothing = torch.nn.Linear(1, 1)
    tries: dict[str, Callable[[], Any]] = {
        "training.report_to": lambda: [made() for made in get_reporting_integration_callbacks(args.report_to)],
        "training.extra.optim": lambda: Trainer.get_optimizer_cls_and_kwargs(args, nothing),  # type: ignore[arg-type]
        "training.schedule": lambda: get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD(nothing.parameters(), 1e-3),
            num_warmup_steps=1,
            num_training_steps=2,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        ),
    }
    for key, attempt in tries.items():
        try:
            attempt()
        except Exception as error:  # whatever a tracker or an optimizer raises
            raise ConfigError(f"{key}: {reason_of(error)}") from error


def refuse_environment(bf16: bool) -> None:
    """The precision that the environment brings along is the one of the run, or the run does not start.

    Raises:
        ConfigError: they differ.
    """
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if given not in ("no", "bf16" if bf16 else "no"):
        raise ConfigError(
            f"training.bf16 is {str(bf16).lower()}, and the environment says ACCELERATE_MIXED_PRECISION={given}, which "
            "would win; launch with --mixed_precision no, or set training.bf16"
        )


def loop_arguments(config: c.RunConfig) -> dict[str, Any]:
    """What trl's trainers have in common."""
    t, data = config.training, config.data
    refuse_environment(t.bf16)
    return {
        "output_dir": config.output,
        "max_steps": t.max_steps,
        "num_train_epochs": t.epochs,
        "per_device_train_batch_size": t.batch_size,
        "per_device_eval_batch_size": t.batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.schedule,
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "seed": t.seed,
        "data_seed": t.seed,
        "bf16": t.bf16,
        "gradient_checkpointing": t.gradient_checkpointing,
        "logging_steps": t.log_steps,
        "save_steps": t.save_steps,
        "save_total_limit": t.keep_checkpoints,
        "use_cpu": t.cpu,
        "report_to": t.report_to,
        "eval_strategy": "no" if t.evaluation_steps is None or data.evaluation is None else "steps",
        "eval_steps": t.evaluation_steps,
    }


def training_data(config: c.RunConfig) -> Any:
    """What a run is trained on: one data set, or several as one."""
    sources, seed = config.data.sources, config.training.seed
    rows = load_mixture([Part(**source.model_dump()) for source in sources], seed)
    # Off-policy a stream is shuffled once its rows are ready and their numbers told.
    return rows.shuffle(seed=seed) if config.data.streamed and config.training.mode == "on_policy" else rows


def _tasks(config: c.RunConfig) -> list[str] | None:
    """Those that are given; of a stream, whose rows cannot be read beforehand, those that its sources are."""
    named = [source.task for source in config.data.sources]
    if config.tasks is None and config.data.streamed and all(named):
        return sorted({str(task) for task in named})
    return config.tasks


def build_trainer(config: c.RunConfig, observers: list[Observer] | None = None) -> Taught:
    """Everything loaded and put together; data first, since it is the cheapest to get wrong."""
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    data, lora = config.data, config.student.lora
    stack = build_stack(config.weighting)
    tasks = _tasks(config)
    stack.bind(list(config.teachers), tasks) if tasks is not None else None
    train = training_data(config)
    held_out = None if data.evaluation is None else load_data(data.evaluation, data.evaluation_split, data.name)
    on_policy = config.training.mode == "on_policy"
    gradient = build_gradient(config)
    arguments = None if on_policy else sft_config(config)
    generation = distillation_config(config) if on_policy else None
    model, tokenizer = build_student(config.student)
    adapters = None
    if lora is not None:
        refuse_targets(model, lora.target_modules)
        adapters = PeftLoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        )
    mib = config.training.loss_mib
    common: dict[str, Any] = {
        "floor": config.floor,
        "safety": build_safety(config.safety),
        "constraints": build_constraints(config.safety, tokenizer),
        "severity": build_severity(config.safety),
        "tasks": tasks,
        "skip_below": config.training.skip_below,
        "loss_bytes": None if mib is None else mib * 2**20,
        "observers": observers or [],
        "placement": PLACEMENTS[config.training.placement](),
        "train_dataset": train,
        "eval_dataset": held_out,
        "processing_class": tokenizer,
        "peft_config": adapters,
    }
    if generation is None:
        trainer: Taught = PolyDistillTrainer(
            model,
            build_teachers(config),
            stack,
            args=arguments,
            objective=build_objective(config.objective),
            gradient=gradient,
            **common,
        )
    else:
        sampled = SAMPLED.get(config.objective.kind)
        trainer = OnPolicyPolyDistillTrainer(
            model,
            build_teachers(config),
            stack,
            args=generation,
            objective=build_objective(config.objective) if sampled is None else sampled(),
            fixed_share=config.training.fixed_share,
            max_length=data.max_length,
            **common,
        )
    trainer.masked += code_says(config)
    trainer.threads = config.training.threads
    if not config.training.skip_spikes:
        trainer.spikes = None
    return trainer


def code_says(config: c.RunConfig) -> list[str]:
    """Whose code is run beside ours."""
    models = {"student": config.student, **{f"teacher {name!r}": section for name, section in config.teachers.items()}}
    return [
        f"{who} runs Python code of {section.model} at revision {section.revision or 'as it lies there'}"
        for who, section in models.items()
        if isinstance(section, c.ModelConfig) and section.trust_remote_code
    ]
