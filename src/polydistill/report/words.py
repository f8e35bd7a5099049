"""Names of diagnostics in a reader's words, and the colours of teachers and students."""

from dataclasses import dataclass

# Okabe and Ito's palette, told apart with every common kind of colour blindness; yellow and black are left out because
# one of the two page themes swallows them.
TEACHER_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f7f7f")

# Tol's muted palette, so that a student's line never looks like a teacher's.
STUDENT_COLOURS = ("#cc6677", "#6f63bb", "#44aa99", "#b39a3c", "#7a9cc6", "#aa4499", "#8a8f98", "#117733")

UNDERLINES = ("solid", "dashed", "dotted", "double", "wavy")
"""Second mark of a teacher beside its colour, in the order of teachers."""


@dataclass(frozen=True)
class Diagnostic:
    """How a diagnostic is shown.

    Attributes:
        title: above its plot.
        explanation: one sentence.
        unit: of the axis.
    """

    title: str
    explanation: str
    unit: str = ""


DIAGNOSTICS = {
    "effective_teachers": Diagnostic(
        "Effective number of teachers", "exp of the entropy of the weights: 1 when one teacher has it all."
    ),
    "largest_weight": Diagnostic("Largest weight", "Mean over positions of the most trusted teacher's weight."),
    "least_mean_weight": Diagnostic("Least trusted teacher", "Mean weight of the teacher that is trusted least."),
    "starved_teachers": Diagnostic(
        "Starved teachers", "Teachers that get half of a fair share on fewer than 1% of the positions."
    ),
    "at_floor": Diagnostic("At the floor", "Share of positions with a teacher at the least weight promised."),
    "at_ceiling": Diagnostic("At the ceiling", "Share of positions with a teacher at the greatest weight promised."),
    "likelihood_spread": Diagnostic(
        "Spread of the teachers' likelihoods", "Best minus worst log-likelihood of the next token, mean.", "nats"
    ),
    "disagreement": Diagnostic(
        "Disagreement", "Jensen-Shannon divergence of the teachers under uniform weights.", "nats"
    ),
    "conflict": Diagnostic("Conflict", "Share of sampled positions where two teachers pull the student apart."),
    "drift": Diagnostic(
        "Weight drift", "How far the weights of a fixed probe batch moved in a step (l1); a diagnostic, not a bound."
    ),
    "normalisation_error": Diagnostic("Normalisation error", "Greatest distance of the sum of weights from 1."),
    "range_realised": Diagnostic("Range realised", "Greatest log-ratio of two teachers' weights.", "nats"),
    "range_used": Diagnostic("Share of the promised range", "Realised range over the promised one; never above 1."),
    "modulus_used": Diagnostic(
        "Share of the promised modulus", "How far weights moved under perturbed evidence, over what is promised."
    ),
    "order_inverted": Diagnostic(
        "Safety order inverted", "Share of positions of severity above 0 where a safer teacher weighs less."
    ),
    "order_residual": Diagnostic(
        "Order residual", "Greatest lead of a less safe teacher where the safety order is promised.", "nats"
    ),
    "critical_share": Diagnostic("Critical contexts", "Share of positions of severity above 0."),
    "enforced_share": Diagnostic("Enforced", "Share of positions whose weights the safety order moved."),
    "enforced_shift": Diagnostic(
        "Shift by enforcement", "Mean total variation between weights before and after, in critical contexts."
    ),
    "enforced_largest_shift": Diagnostic("Largest shift by enforcement", "Greatest total variation over positions."),
    "drift_total": Diagnostic("Weight drift, summed", "V_T: the drift of all steps so far; a diagnostic, not a bound."),
    "timescales": Diagnostic(
        "Weights against student",
        "What the weights' movement did to the probe's loss, over what the student's steps did; above 0.5 they are not "
        "slow against it.",
    ),
    "regret": Diagnostic(
        "Regret of Hedge", "By how much the best teacher of a task beat the task's learned weights so far.", "nats"
    ),
    "regret_used": Diagnostic("Share of the regret's bound", "Regret over what it cannot exceed; never above 1."),
    "gradient_range": Diagnostic(
        "Range of the gradient's coefficients", "Greatest log-ratio of two teachers' coefficients.", "nats"
    ),
    "gradient_scale": Diagnostic(
        "Scale of the coefficients", "Sum of the aggregator's own coefficients, before it was set to that of none."
    ),
    "gradient_negative": Diagnostic(
        "Negative coefficients", "Teachers to which the aggregator gave less than nothing; they count as 0."
    ),
    "gradient_cosine": Diagnostic("Angle of the groups", "Cosine between the gradients of the two groups."),
    "gradient_residual": Diagnostic(
        "Residual of the groups", "Share of the modified gradient that no weighting of the two groups explains."
    ),
    "gradient_share_labels": Diagnostic(
        "Effective share of labels", "Share of cross-entropy that the modified gradient amounts to."
    ),
}


BY_TEACHER = {
    "teacher_token_frac": Diagnostic("Trusted most", "Share of the tokens on which a teacher has the greatest weight."),
    "overlap": Diagnostic("Overlap", "Share of the student's 16 likeliest tokens that are among the teacher's."),
    "overlap_mass": Diagnostic(
        "Overlapping mass", "The student's probability of the likeliest tokens that both have, not renormalised."
    ),
    "entropy_gap": Diagnostic(
        "Entropy gap", "The student's entropy less the teacher's; below 0 the student is surer.", "nats"
    ),
}
"""Those that are logged as `kind/teacher`; a line for each teacher."""


def diagnostic(name: str) -> Diagnostic:
    """How to show a diagnostic; one that is not known here is shown by its name."""
    return DIAGNOSTICS.get(name, Diagnostic(name.replace("_", " ").capitalize(), ""))


def teacher_colour(index: int) -> str:
    """Colour of the teacher at some place in the order of teachers."""
    return TEACHER_COLOURS[index % len(TEACHER_COLOURS)]


def student_colour(index: int) -> str:
    """Colour of the student at some place in the order of students."""
    return STUDENT_COLOURS[index % len(STUDENT_COLOURS)]


def duration(seconds: float) -> str:
    """Seconds in words: `7.3 s`, `4 min 5 s`, `2 h 13 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
