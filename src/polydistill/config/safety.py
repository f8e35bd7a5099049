"""The `safety:` section: who is safer, where it matters, and limits on the student."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from polydistill.config.section import Section

if TYPE_CHECKING:
    from polydistill.safety import Order


class ColumnSeverity(Section):
    """The data says how critical a context is, in a column of numbers from 0 to 1, or of lists, one number a token."""

    kind: Literal["column"]
    name: str = Field(default="severity", description="of the column")


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

    name: str = Field(description="in reports")
    limit: float = Field(gt=0, description="that the student's expectation must not exceed")


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
    teacher: str = Field(description="name of the teacher")
    severity: float = Field(default=0.5, ge=0, le=1, description="contexts from this severity on")


class TaskLossConfig(ConstraintConfig):
    """Cap on the loss of a protected task, nats per token."""

    kind: Literal["task_loss"]
    task: str = Field(description="as the data names it")
    step: float = Field(default=0.1, gt=0, description="nats that count as one unit of violation")


class GeneratedRateConfig(ConstraintConfig):
    """Share of generated texts that a pattern or a classifier flags: evaluated, not differentiated."""

    kind: Literal["generated_rate"]
    follows: str = Field(description="constraint whose gradient carries this one's multiplier")
    prompts: str = Field(description="text file, one prompt a line")
    pattern: str | None = Field(default=None, description="flagged when it is found in the continuation")
    model: str | None = Field(default=None, description="or: text-classification model")
    label: str | None = Field(default=None, description="its label that counts as flagged")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="score from which the model flags a text")
    every: int = Field(default=50, ge=1, description="optimizer steps between two evaluations")

    @model_validator(mode="after")
    def _one_of(self) -> "GeneratedRateConfig":
        if (self.pattern is None) == (self.model is None) or (self.model is None) != (self.label is None):
            raise ValueError("a generated_rate needs either `pattern`, or `model` and `label`")
        return self


AnyConstraint = Annotated[
    UnsafeMassConfig | KLToTeacherConfig | TaskLossConfig | GeneratedRateConfig, Field(discriminator="kind")
]


class ExpertSafetyConfig(Section):
    """Gains of the constraints' multipliers; the defaults suit limits that are met within a few hundred steps."""

    gone: ClassVar[dict[str, str]] = {
        "augmentation": "is gone: multipliers rise by `integral` and `proportional` alone, so leave it out"
    }

    integral: float = Field(default=0.02, gt=0, description="rise per step at an error of one scale")
    proportional: float = Field(default=0.2, ge=0, description="part of the multiplier that follows the error at once")
    smoothing: float = Field(default=0.9, ge=0, lt=1, description="share of the past in the running mean of values")
    most: float = Field(default=100.0, gt=0, description="greatest multiplier, in scales")
    window: int = Field(default=50, ge=1, description="steps over which values are averaged")
    patience: int = Field(default=200, ge=1, description="steps without progress until a constraint is given up")
    tolerance: float = Field(default=0.1, ge=0, description="share of the scale by which a limit may be missed")


class SafetySection(Section):
    """What every kind of `safety` has: where it matters, and limits on the student."""

    gone: ClassVar[dict[str, str]] = {"dual": "is now safety.expert, with the same keys"}

    severity: AnySeverity | None = Field(
        default=None, description="where it matters; by default the column `severity` of the data"
    )
    constraints: list[AnyConstraint] = Field(default=[], description="limits on the student, kept by dual ascent")
    infeasible: Literal["report", "fail"] = Field(
        default="report", description="`fail` ends a run whose constraints are not met with exit code 5"
    )
    safest: str | None = Field(default=None, description="teacher whose own feasibility is measured")
    expert: ExpertSafetyConfig = Field(default=ExpertSafetyConfig(), description="gains of the multipliers")


class OrderSection(SafetySection):
    """Who is safer: scores, or tiers from the least to the most safe."""

    scores: dict[str, float] = Field(default={}, description="teacher -> safety score; larger is safer")
    tiers: list[list[str]] = Field(default=[], description="instead of scores: least safe first, ties allowed")
    probe: str | None = Field(default=None, description="data that the teachers' safety is measured on")
    measured: str | None = Field(
        default=None,
        description="what `polydistill safety measure` wrote; by default measured.json in the run's folder",
    )
    wrong_order: Literal["fail", "warn"] = Field(
        default="fail", description="what happens when a teacher declared safer was measured less safe"
    )

    @model_validator(mode="after")
    def _one_order(self) -> "OrderSection":
        if bool(self.scores) == bool(self.tiers):
            raise ValueError("a safety order needs either `scores` or `tiers`")
        return self


class TiltConfig(OrderSection):
    """Safer teachers gain `severity * strength * score` nats."""

    kind: Literal["tilt"]
    strength: float = Field(default=3.0, ge=0, description="nats per unit of score at severity 1")


class OrderedConfig(OrderSection):
    """Weights are projected onto the order of the scores from severity `critical` on, and into bounds."""

    kind: Literal["ordered"]
    critical: float = Field(default=0.5, gt=0, le=1, description="severity from which it is enforced")
    low: float | None = Field(default=None, gt=0, lt=1, description="least weight of any teacher")
    high: float = Field(default=1.0, gt=0, le=1, description="greatest weight of any teacher; needs `low`")


class VetoConfig(OrderSection):
    """Teachers with a score below `least` are out from severity `critical` on."""

    kind: Literal["veto"]
    least: float = Field(default=1.0, description="score below which a teacher is out")
    critical: float = Field(default=0.5, gt=0, le=1, description="severity from which it is enforced")


class ConstraintsOnlyConfig(SafetySection):
    """No order among the teachers, only limits on the student."""

    kind: Literal["limits_only"]


AnySafety = TiltConfig | OrderedConfig | VetoConfig | ConstraintsOnlyConfig


def build_safety(section: AnySafety | None) -> "Order | None":
    """The enforcement, unbound; None where nothing orders the teachers."""
    from polydistill.safety import Ordered, Tilt, Veto, scores_of

    match section:
        case TiltConfig():
            return Tilt(section.scores or scores_of(section.tiers), section.strength)
        case OrderedConfig():
            scores = section.scores or scores_of(section.tiers)
            return Ordered(scores, section.critical, low=section.low, high=section.high)
        case VetoConfig():
            return Veto(section.scores or scores_of(section.tiers), section.least, section.critical)
    return None
