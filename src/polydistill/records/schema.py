"""The schema of the records of a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
"""Raised by one whenever a field changes its meaning or goes away."""

ByTask = dict[str, float]
"""Task or domain -> number."""
ByTeacher = dict[str, float]
"""Teacher -> number."""


class Record(BaseModel):
    """What all records have in common: frozen, strict about unknown keys, of one schema version."""

    # NaN and infinities are written as strings: bare NaN is not JSON, and null would read as "not measured".
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1


class ConstraintRecord(BaseModel):
    """How a constraint on the student stands.

    Attributes:
        limit: in the unit of the measure.
        value: of the measure, averaged over the last steps; None before anything was seen.
        multiplier: lambda, per unit of the measure.
        weight: `lambda / (1 + lambda)`, the multiplier as a task-scale weight.
        slackness: `lambda |value - limit|`; 0 at a solution.
        movement: mean change of the multiplier per step; 0 once it has converged.
        best: least value attained.
        safest: the safest teacher's own value.
        met: the limit is met, within the tolerance.
        infeasible: it was given up.
        held_out: the student's value on held-out text, or on texts written by the finished student; None when not
            measured.
        says: the same in one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    limit: float
    value: float | None = None
    multiplier: float = 0.0
    weight: float = 0.0
    slackness: float | None = None
    movement: float | None = None
    best: float | None = None
    safest: float | None = None
    met: bool | None = None
    infeasible: bool = False
    held_out: float | None = None
    says: str = ""


class StepRecord(Record):
    """One optimizer step of one student.

    Attributes:
        step: counted from 1; the number of updates done after it.
        student: which student, where a run trains several.
        epoch: passes over the data so far.
        tokens: positions with loss seen so far, all ranks together.
        loss: `(1 - ce) divergence + ce cross_entropy`, mean over the step's positions with loss.
        divergence: `sum_k w_k D(p_k, q)`, mean.
        cross_entropy: of the labels, mean.
        learning_rate: of this step.
        weights: task -> teacher -> mean weight over the step's positions with loss.
        raw_weights: the same before the safety order; empty without one.
        constraints: name -> how it stands.
        diagnostics: name -> value, as `polydistill.diagnostics.summarise` names them.
        seconds: wall-clock time of this step by part.
    """

    kind: Literal["step"] = "step"
    step: int = Field(ge=0)
    student: str = "student"
    epoch: float = 0.0
    tokens: int = Field(default=0, ge=0)
    loss: float
    divergence: float | None = None
    cross_entropy: float | None = None
    learning_rate: float | None = None
    weights: dict[str, ByTeacher] = {}
    raw_weights: dict[str, ByTeacher] = {}
    constraints: dict[str, ConstraintRecord] = {}
    diagnostics: dict[str, float] = {}
    seconds: dict[str, float] = {}


class EvaluationRecord(Record):
    """Held-out text after some step of one student.

    Attributes:
        step: updates done before the evaluation.
        student: which student.
        losses: task or domain -> student's cross-entropy, nats per token.
        tokens: task or domain -> positions evaluated.
        teacher_losses: teacher -> task or domain -> cross-entropy.
        kl_to_teacher: teacher -> task or domain -> `KL(p_k || q)`.
        kl_to_pool: task or domain -> `KL(pool || q)`, the pool under the weights that training uses.
        constraints: constraint -> student's value; those that the text has positions for.
        texts: of every text, in order, the student's summed cross-entropy and the positions; for paired differences.
    """

    kind: Literal["evaluation"] = "evaluation"
    step: int = Field(ge=0)
    student: str = "student"
    losses: ByTask
    tokens: dict[str, int] = {}
    teacher_losses: dict[str, ByTask] = {}
    kl_to_teacher: dict[str, ByTask] = {}
    kl_to_pool: ByTask = {}
    constraints: dict[str, float] = {}
    texts: list[tuple[float, int]] = []


class ResumeRecord(Record):
    """The run went on from a checkpoint; what was recorded beyond `step` before this line did not happen."""

    kind: Literal["resume"] = "resume"
    step: int = Field(ge=0)


class Ribbon(Record):
    """A held-out text, token by token, with the trust that each token's prediction was given.

    Attributes:
        name: shown as its heading.
        teachers: names, in the order of the weights.
        tokens: the text, cut into tokens; joined they are the text.
        weights: `[n, K]`; how much each teacher counted where this token was predicted; None where nobody was asked
            (the first token of a document).
        loss: student's cross-entropy of each token in nats, None where there is none; empty when not measured.
        expected: teacher of the domain that each token truly comes from, where that is known; empty otherwise.
        off: bound on what the target of each token's prediction is off by, total variation, where teachers are
            translated; empty otherwise.
        student: which student the loss is of.
    """

    kind: Literal["ribbon"] = "ribbon"
    name: str
    teachers: list[str] = Field(min_length=1)
    tokens: list[str] = Field(min_length=1)
    weights: list[list[float] | None]
    loss: list[float | None] = []
    expected: list[str | None] = []
    off: list[float | None] = []
    student: str = "student"

    @model_validator(mode="after")
    def _lengths(self) -> "Ribbon":
        n, teachers = len(self.tokens), len(self.teachers)
        if len(self.weights) != n:
            raise ValueError(f"ribbon {self.name!r} has {n} tokens and weights for {len(self.weights)}")
        if any(row is not None and len(row) != teachers for row in self.weights):
            raise ValueError(f"ribbon {self.name!r} has {teachers} teachers and a row of weights of another length")
        for name, values in (("loss", self.loss), ("expected", self.expected), ("off", self.off)):
            if values and len(values) != n:
                raise ValueError(f"ribbon {self.name!r} has {n} tokens and {len(values)} entries in {name}")
        return self


class CompletionRecord(Record):
    """What one student wrote after a prompt, and what its teachers make of it.

    Attributes:
        step: updates done before.
        student: which student.
        prompt: as the student read it.
        task: of the prompt, where it has one.
        tokens: what was written, cut into tokens; joined they are the text.
        teachers: names, in the order of weights; empty where they were not asked.
        weights: `[n, K]`; how much each teacher would count where the token was written.
        log_prob: `[n, K]`; every teacher's log-probability of the token, nats.
        student_log_prob: `[n]`; the student's.
        disagreement: Jensen-Shannon divergence of the teachers along the completion, nats; None without any.
    """

    kind: Literal["completion"] = "completion"
    step: int = Field(ge=0)
    student: str = "student"
    prompt: str
    task: str | None = None
    tokens: list[str]
    teachers: list[str] = []
    weights: list[list[float]] = []
    log_prob: list[list[float]] = []
    student_log_prob: list[float] = []
    disagreement: float | None = None

    @model_validator(mode="after")
    def _lengths(self) -> "CompletionRecord":
        asked = len(self.tokens) if self.teachers else 0
        for name, rows in (("weights", self.weights), ("log_prob", self.log_prob)):
            if [len(row) for row in rows] != [len(self.teachers)] * asked:
                raise ValueError(f"a completion has {asked} tokens that teachers were asked about, and other {name}")
        if len(self.student_log_prob) != len(self.tokens):
            raise ValueError(f"a completion has {len(self.tokens)} tokens and {len(self.student_log_prob)} losses")
        return self


class Score(Record):
    """Held-out losses of one model.

    Attributes:
        name: of the student or teacher, as in the other records.
        role: what it is.
        label: how to show it; `name` when empty.
        losses: domain -> nats per token.
        mean: over all held-out text, nats per token.
    """

    name: str
    role: Literal["student", "teacher"]
    label: str = ""
    losses: ByTask
    mean: float | None = None


class FrontierPoint(BaseModel):
    """What one student's safety costs.

    Attributes:
        student: its name.
        family: students that differ in one strength only have the same.
        unsafe: mean unsafe mass on held-out text.
        kept: share of the utility that a student without any safety gains.
        note: in words, may be empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    student: str
    family: str
    unsafe: float
    kept: float
    note: str = ""


class RunSummary(Record):
    """What came out of a run.

    Attributes:
        title: of the report.
        command: that started the run.
        package_version: of polydistill.
        versions: of what it rides on.
        finished: the run reached its last step.
        hardware: in words.
        started: ISO 8601 date and time.
        steps: updates of each student.
        tokens: positions with loss, of each student.
        teachers: names, in order.
        domains: columns of the table of losses, in order.
        weighting: the stack as Python writes it.
        objective: likewise.
        learning: learning rate, schedule and batch in words.
        main_student: the student that the report puts first.
        scores: one row of the table each.
        gap_closed: share of the way from uniform weights to the oracle that the main student covers; 1 is all of it.
        constraints: name -> how it stands at the end.
        severity: how much of the training data is at which severity: interval -> share.
        frontier: one point per student, where a run compares ways of being safe.
        says: sentences for the head of the report, each measured or derived in this run.
        seconds: where the time went, by part, over the whole run.
        wall_seconds: from start to end.
    """

    kind: Literal["summary"] = "summary"
    title: str = "polydistill run"
    command: str = ""
    package_version: str = ""
    versions: dict[str, str] = {}
    finished: bool = True
    hardware: str = ""
    started: str = ""
    steps: int = 0
    tokens: int = 0
    teachers: list[str] = []
    domains: list[str] = []
    weighting: str = ""
    objective: str = ""
    learning: str = ""
    main_student: str = ""
    scores: list[Score] = []
    gap_closed: float | None = None
    constraints: dict[str, ConstraintRecord] = {}
    severity: dict[str, float] = {}
    frontier: list[FrontierPoint] = []
    says: list[str] = []
    seconds: dict[str, float] = {}
    wall_seconds: float | None = None


class BenchmarkScore(BaseModel):
    """One model on one task of the EleutherAI harness.

    Attributes:
        model: `student`, `before` or a teacher's name.
        task, metric: as the harness calls them.
        value: of the metric.
        stderr: its standard error: the harness's, else by bootstrap over documents; None when neither is known.
        documents: that were asked.
        higher_is_better: None when the task does not say.
        ahead: the student's value less this one's, on the same documents; None for the student itself, and for metrics
            that are no mean over documents.
        half: half-width of its 95% interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    model: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    documents: int = 0
    higher_is_better: bool | None = None
    ahead: float | None = None
    half: float | None = None

    @property
    def shown(self) -> str:
        """The value with the half-width of its 95% interval."""
        return f"{self.value:.4g}" + ("" if self.stderr is None else f" ± {1.96 * self.stderr:.2g}")

    @property
    def difference(self) -> str:
        """The student's lead with its interval; empty when there is none."""
        return "" if self.ahead is None or self.half is None else f"{self.ahead:+.4f} ± {self.half:.4f}"


class BenchmarkRecord(Record):
    """What `polydistill eval RUN --lm-eval` found.

    Attributes:
        version: of lm-eval.
        limit: documents per task that were asked for; None for all.
        seeds: as they were given to it.
        scores: a row per task, metric and model.
    """

    kind: Literal["benchmarks"] = "benchmarks"
    version: str
    limit: int | None = None
    seeds: dict[str, int] = {}
    scores: list[BenchmarkScore]
