"""The section `weighting:`, a list of factors, and the stack that they describe."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from polydistill.config.section import ConfigError, Section

if TYPE_CHECKING:
    from polydistill.weighting import Operator
    from polydistill.weighting.signals import Signal

SignalName = Literal[
    "entropy", "label_likelihood", "consensus", "student_gap", "student_gap_hard_first", "margin", "fidelity"
]


class Factor(Section):
    """One factor of the weighting, raised to a power."""

    power: float | Literal["learned"] = Field(
        default=1.0,
        description="exponent of this factor's weights; `learned`: between 0 and 2, by how well the text is predicted",
    )


class UniformFactor(Factor):
    """Plain averaging."""

    kind: Literal["uniform"]


class FixedFactor(Factor):
    """The same weights everywhere: one teacher alone, or a mixture that was tuned."""

    kind: Literal["fixed"]
    weights: dict[str, float] = Field(description="teacher -> weight; a teacher that is left out gets 0")


class SoftmaxFactor(Factor):
    """Softmax of a signal at temperature `temperature`."""

    kind: Literal["softmax"]
    signal: SignalName = Field(default="entropy", description="what is noticed of each teacher at a position")
    temperature: float = Field(default=2.0, gt=0, description="of the softmax; smaller is sharper")
    spread: float = Field(default=4.0, gt=0, description="evidence is clipped to this spread, nats")


class TaskPriorFactor(Factor):
    """Fixed weights per task, from a table or from held-out losses."""

    kind: Literal["task_prior"]
    table: dict[str, dict[str, float]] | None = Field(
        default=None, description="task -> teacher -> weight; who is left out gets the row's least"
    )
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
    route: dict[str, str] = Field(description="task -> teacher")
    strength: float = Field(default=4.0, ge=0, description="lead of the named teacher, nats")


class TeacherRouterFactor(Factor):
    """The data's `teacher_id` leads."""

    kind: Literal["teacher_router"]
    strength: float = Field(default=4.0, ge=0, description="lead of the named teacher, nats")


class HedgeFactor(Factor):
    """Multiplicative weights per task, learned from earlier steps."""

    kind: Literal["hedge"]
    signal: SignalName = Field(default="label_likelihood", description="what is noticed of each teacher")
    rate: float = Field(default=0.5, gt=0, description="of learning, per step")
    share: float = Field(default=0.02, gt=0, le=1, description="of uniform weights mixed in at every step")
    spread: float = Field(default=4.0, gt=0, description="evidence is clipped to this spread, nats")


class GateFactor(Factor):
    """Learned gate on signals of the position, trained on the likelihood of the pooled target."""

    kind: Literal["gate"]
    signals: list[SignalName] = Field(default=["entropy"], min_length=1, description="that the gate reads")
    bound: float = Field(default=4.0, gt=0, description="range of its weights, nats")
    modulus: float = Field(default=1.0, gt=0, description="its log-odds move at most this per nat of evidence")
    rate: float = Field(default=0.1, gt=0, description="learning rate per optimizer step")
    spread: float = Field(default=4.0, gt=0, description="evidence is clipped to this spread, nats")


class PrefixPosteriorFactor(Factor):
    """Fixed-share posterior over teachers given the text so far."""

    kind: Literal["prefix_posterior"]
    share: float = Field(default=0.02, gt=0, le=1, description="chance per token that another teacher takes over")


class DiscountedPosteriorFactor(Factor):
    """Posterior that forgets geometrically."""

    kind: Literal["discounted_posterior"]
    discount: float = Field(default=0.8, ge=0, lt=1, description="share of the past that is kept per token")
    spread: float = Field(default=8.0, gt=0, description="bound on what one token says, nats")


class ClippedPosteriorFactor(Factor):
    """Posterior whose log-odds never exceed `spread`."""

    kind: Literal["clipped_posterior"]
    spread: float = Field(default=8.0, gt=0, description="bound on its log-odds, nats")


class CustomFactor(Factor):
    """Your own Python: `module:name` of a function from evidence `[n, K]` to weights, or of an operator."""

    kind: Literal["custom"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$", description="module:name, importable where the run starts")
    signal: SignalName = Field(default="entropy", description="that the function reads")
    spread: float = Field(default=4.0, gt=0, description="evidence is clipped to this spread, nats")


AnyFactor = Annotated[
    UniformFactor
    | FixedFactor
    | SoftmaxFactor
    | TaskPriorFactor
    | TaskRouterFactor
    | TeacherRouterFactor
    | HedgeFactor
    | GateFactor
    | PrefixPosteriorFactor
    | DiscountedPosteriorFactor
    | ClippedPosteriorFactor
    | CustomFactor,
    Field(discriminator="kind"),
]


def build_stack(factors: Sequence[AnyFactor]) -> "Operator":
    """The product of the configured factors, unbound; of none, plain averaging."""
    from polydistill.weighting import Uniform, WeightedProduct

    made: list[Operator] = []
    learned = [_operator(factor) for factor in factors if factor.power == "learned"]
    for factor in factors:
        if factor.power != "learned":
            operator = _operator(factor)
            made.append(operator if factor.power == 1.0 else operator**factor.power)
        elif learned:
            made.append(WeightedProduct(learned))
            learned = []
    stack: Operator | None = None
    for operator in made:
        stack = operator if stack is None else stack * operator
    return Uniform() if stack is None else stack


def _operator(factor: AnyFactor) -> "Operator":
    from polydistill import weighting

    match factor:
        case UniformFactor():
            return weighting.Uniform()
        case FixedFactor():
            return weighting.Fixed(factor.weights)
        case SoftmaxFactor():
            return weighting.Softmax(factor.temperature)(_signal(factor.signal, factor.spread))
        case TaskPriorFactor(losses=dict(losses)):
            return weighting.TaskPrior.from_losses(losses, factor.temperature)
        case TaskPriorFactor():
            return weighting.TaskPrior(factor.table or {})
        case TaskRouterFactor():
            return weighting.TaskRouter(factor.route, factor.strength)
        case TeacherRouterFactor():
            return weighting.TeacherRouter(factor.strength)
        case HedgeFactor():
            return weighting.Hedge(factor.rate, factor.share)(_signal(factor.signal, factor.spread))
        case GateFactor():
            read = [_signal(name, factor.spread) for name in factor.signals]
            return weighting.Gate(read, factor.bound, factor.modulus, factor.rate)
        case PrefixPosteriorFactor():
            return weighting.PrefixPosterior(factor.share)
        case DiscountedPosteriorFactor():
            return weighting.DiscountedPosterior(factor.discount, factor.spread)
        case ClippedPosteriorFactor():
            return weighting.ClippedPosterior(factor.spread)
    return _custom(factor)


def _signal(name: SignalName, spread: float) -> "Signal":
    from polydistill.weighting import signals

    made: dict[str, Callable[[float], Signal]] = {
        "entropy": signals.Entropy,
        "label_likelihood": signals.LabelLikelihood,
        "consensus": signals.Consensus,
        "student_gap": signals.StudentGap,
        "student_gap_hard_first": lambda spread: signals.StudentGap(spread, hard_first=True),
        "margin": signals.Margin,
        "fidelity": signals.Fidelity,
    }
    return made[name](spread)


def _custom(factor: CustomFactor) -> "Operator":
    from polydistill.weighting import Custom, Operator

    thing = import_object(factor.function)
    if isinstance(thing, Operator):
        return thing
    if not callable(thing):
        raise ConfigError(f"weighting: {factor.function} is neither a function nor an operator, got {thing!r}")
    return Custom(thing)(_signal(factor.signal, factor.spread))


def import_object(name: str) -> Any:
    """The object `module:name`, with the current folder importable.

    Raises:
        ConfigError: there is no such module or name.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        thing = importlib.import_module(module_name)
        for part in attribute.split("."):
            thing = getattr(thing, part)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name}: there is no module {error.name!r} here or among the installed ones") from error
    except Exception as error:  # whatever a module of the user's raises
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise ConfigError(f"{name}: {error if isinstance(error, AttributeError) else why}") from error
    return thing
