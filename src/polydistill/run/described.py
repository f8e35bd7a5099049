"""The configuration of a trainer that was made in Python: what of it can be written down, and what cannot."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel

from polydistill import objective as o
from polydistill import weighting as w
from polydistill.cache import CachedForeignTeacher, CachedTeacher
from polydistill.config.file import NOT_REBUILT, as_yaml
from polydistill.config.run import OWN
from polydistill.data.context import COLUMNS
from polydistill.records import CONFIG, write_whole
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.teachers import LocalTeacher, Teacher
from polydistill.teachers.served import ServedForeignTeacher, ServedTeacher
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.sampled import SampledLinearPool, SampledLogPool
from polydistill.training.taught import Taught
from polydistill.weighting import signals as s
from polydistill.weighting.operator import Weighed
from polydistill.weighting.token import ByFidelity

HELD_OUT = "held-out.jsonl"
"""The evaluation data of a run that Python began."""

SIGNALS: dict[type[s.Signal], str] = {
    s.Entropy: "entropy",
    s.LabelLikelihood: "label_likelihood",
    s.Consensus: "consensus",
    s.StudentGap: "student_gap",
    s.Margin: "margin",
    s.Fidelity: "fidelity",
}


class _NotWrittenError(ValueError):
    """There are no words for it in a configuration."""


def describe(trainer: Taught, student: str, folder: Path) -> None:
    """Write `config.yaml`, and the held-out rows beside it; what a file cannot say stands under `not_rebuilt`.

    Args:
        trainer: as it was made.
        student: where its weights came from.
        folder: of the run.
    """
    tree: dict[str, Any] = {name: {} for name in ("output", "student", "teachers", "data", "training")}
    tree["output"], tree["student"] = str(folder), {"model": student}
    lacking = {"data.train": "the training data is a data set in Python"}

    def put(place: str, made: Callable[[], Any]) -> None:
        section, _, key = place.rpartition(".")
        try:
            value = made()
        except _NotWrittenError as error:
            lacking[place] = str(error)
            return
        if value is not None:
            (tree[section] if section else tree)[key] = value

    for teacher in trainer.given:
        put(f"teachers.{teacher.name}", partial(_teacher, teacher))
    for name, place in OWN.items():
        if place not in ("output", "data.loss") and name != "per_device_eval_batch_size":
            put(place, partial(_argument, getattr(trainer.args, name, None)))
    put("student.lora", partial(_lora, trainer.model))
    put("data.evaluation", partial(_held_out, trainer.eval_dataset, folder))
    put("tasks", lambda: list(trainer.pipeline.tasks))
    put("weighting", partial(factors_of, trainer.pipeline.stack))
    put("floor", lambda: trainer.pipeline.floor)
    put("safety", partial(_safety, trainer))
    put("objective", partial(_objective, trainer.objective))
    put("training.skip_below", lambda: trainer.skip_below)
    if isinstance(trainer, OnPolicyPolyDistillTrainer):
        args: Any = trainer.args
        tree["data"]["max_length"] = trainer.max_length
        tree["training"] |= {"mode": "on_policy", "lambda": trainer.fixed_share}
        tree["training"] |= {"completion_length": args.max_completion_length, "sampling_temperature": args.temperature}
    write_whole(folder / CONFIG, as_yaml({**tree, NOT_REBUILT: lacking}))


def _argument(value: Any) -> Any:
    """Of trl's arguments; a number that Transformers takes as a share, and what is not set, is left out."""
    value = getattr(value, "value", value)
    return value if isinstance(value, bool | int | float | str | list) else None


def _lora(student: Any) -> dict[str, Any] | None:
    config = student.active_peft_config if isinstance(student, PeftModel) else None
    if config is None:
        return None
    if not isinstance(config, LoraConfig):
        raise _NotWrittenError(f"its adapter is {config.peft_type.value}, and a configuration knows LoRA alone")
    modules = config.target_modules
    modules = modules if isinstance(modules, str) else sorted(modules or ())
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout, "target_modules": modules}


def _teacher(teacher: Teacher) -> dict[str, Any]:
    if isinstance(teacher, LocalTeacher) and teacher.source is not None:
        return teacher.source
    if isinstance(teacher, CachedForeignTeacher):
        return _teacher(teacher.stored) | {"positions": teacher.positions}
    if isinstance(teacher, CachedTeacher):
        return {"cache": teacher.cache.files.address, "teacher": teacher.cache.names[teacher.place]}
    if isinstance(teacher, ServedTeacher):
        address = teacher.address
        more: dict[str, Any] = {"on_outage": teacher.on_outage, "tempered": teacher.tempered}
        more |= {"api_key_env": address.api_key_env, "proxy": address.proxy}
        if isinstance(teacher, ServedForeignTeacher):
            more |= {"tokenizer": teacher.tokenizer.name_or_path, "positions": teacher.positions}
        return {"url": address.url, "model": teacher.model, "top_logprobs": teacher.k, **more}
    raise _NotWrittenError("it is an object in Python; name its folder instead, and it can be loaded again")


def _held_out(dataset: Any, folder: Path) -> str | None:
    """Rows as they were made ready, in a file of the run's own."""
    if dataset is None:
        return None
    if not isinstance(dataset, Dataset):
        raise _NotWrittenError("the held-out data is a stream, or several data sets by name")
    wanted = {"input_ids", "labels", "prompt", "completion", *COLUMNS}
    dataset.select_columns([name for name in dataset.column_names if name in wanted]).to_json(folder / HELD_OUT)
    return str(folder / HELD_OUT)


def _safety(trainer: Taught) -> dict[str, Any] | None:
    if trainer.constraints is not None:
        raise _NotWrittenError("its constraints are objects in Python")
    order = trainer.pipeline.safety
    match order:
        case None:
            return None
        case Tilt():
            return {"kind": "tilt", "scores": dict(order.scores), "strength": order.strength}
        case Ordered():
            more = {"critical": order.critical, "low": order.low, "high": order.high}
            return {"kind": "ordered", "scores": dict(order.scores), **more}
        case Veto():
            more = {"least": order.least, "critical": order.critical}
            return {"kind": "veto", "scores": dict(order.scores), **more}
    raise _NotWrittenError(f"{type(order).__name__} is an order of your own")


def _objective(objective: Any) -> dict[str, Any]:
    """The kind and its numbers; a divergence's fields have the configuration's names."""
    if isinstance(objective, SampledLogPool | SampledLinearPool):
        return {"kind": "sampled_log_pool" if isinstance(objective, SampledLogPool) else "sampled_linear_pool"}
    kinds: dict[type[Any], str] = {o.ForwardKL: "forward_kl", o.ReverseKL: "reverse_kl", o.Alpha: "alpha"}
    kinds |= {o.Mixed: "mixed", o.JSD: "jsd", o.SkewForward: "skew_forward", o.SkewReverse: "skew_reverse"}
    said = {field.name: getattr(objective, field.name) for field in fields(objective)}
    pair = said.pop("pair", None)
    kind = kinds.get(type(objective if pair is None else pair))
    if kind is None:
        raise _NotWrittenError(f"{objective!r} is no kind that a configuration knows")
    if pair is not None:
        said |= {field.name: getattr(pair, field.name) for field in fields(pair)}
        said["pooling"] = "pool_then_divide" if isinstance(objective, o.PoolThenDivide) else "divide_then_pool"
    return {"kind": kind, **said}


def factors_of(stack: w.Operator) -> list[dict[str, Any]]:
    """The section `weighting:` that builds the stack again.

    Raises:
        ValueError: an operator has no words there.
    """
    parts = stack.factors if isinstance(stack, w.Product) else [stack]
    return [factor for part in parts if not isinstance(part, ByFidelity) for factor in _factors(part)]


def _factors(part: w.Operator) -> list[dict[str, Any]]:
    if not isinstance(part, w.WeightedProduct):
        return [_factor(part)]
    found = [_factor(factor) for factor in part.product.factors]
    if repr(part) != repr(w.WeightedProduct(part.product.factors)) or any("power" in factor for factor in found):
        raise _NotWrittenError(f"{part!r} has settings that a configuration does not know")
    return [{**factor, "power": "learned"} for factor in found]


def _factor(part: w.Operator) -> dict[str, Any]:
    match part:
        case w.Power():
            inner = _factor(part.base)
            return {**inner, "power": inner.get("power", 1.0) * part.exponent}
        case w.Uniform():
            return {"kind": "uniform"}
        case w.Fixed():
            return {"kind": "fixed", "weights": part.weights}
        case w.TaskPrior():
            return {"kind": "task_prior", "table": part.table}
        case w.TaskRouter():
            return {"kind": "task_router", "route": part.route, "strength": part.strength}
        case w.TeacherRouter():
            return {"kind": "teacher_router", "strength": part.strength}
        case w.PrefixPosterior():
            return {"kind": "prefix_posterior", "share": part.share}
        case w.DiscountedPosterior():
            return {"kind": "discounted_posterior", "discount": part.discount, "spread": part.spread}
        case w.ClippedPosterior():
            return {"kind": "clipped_posterior", "spread": part.spread}
        case w.Gate():
            read = [_signal(signal) for signal in part.signals]
            if len({one["spread"] for one in read}) > 1:
                raise _NotWrittenError(f"the signals of {part!r} have different spreads")
            more = {"bound": part.bound, "modulus": part.modulus, "rate": part.rate, "spread": read[0]["spread"]}
            return {"kind": "gate", "signals": [one["signal"] for one in read], **more}
        case Weighed():
            return {**_weighting(part.weighting), **_signal(part.signal)}
    raise _NotWrittenError(f"{part!r} is no factor that a configuration knows")


def _weighting(weighting: w.Weighting) -> dict[str, Any]:
    match weighting:
        case w.Softmax():
            return {"kind": "softmax", "temperature": weighting.temperature}
        case w.Hedge():
            return {"kind": "hedge", "rate": weighting.rate, "share": weighting.share}
        case w.Custom():
            return {"kind": "custom", "function": _importable(weighting.function)}
    raise _NotWrittenError(f"{weighting!r} is no factor that a configuration knows")


def _signal(signal: s.Signal) -> dict[str, Any]:
    if type(signal) not in SIGNALS:
        raise _NotWrittenError(f"{signal!r} is no signal that a configuration knows")
    name = SIGNALS[type(signal)]
    name += "_hard_first" if isinstance(signal, s.StudentGap) and signal.hard_first else ""
    return {"signal": name, "spread": signal.spread}


def _importable(function: Any) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<none>")
    if module in (None, "__main__") or "<" in name:
        raise _NotWrittenError(f"{function!r} cannot be imported; put it into a module")
    return f"{module}:{name}"
