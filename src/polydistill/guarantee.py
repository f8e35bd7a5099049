"""The calculus of guarantees: what a stack of operators promises, derived from what its parts promise.

An operator maps evidence `e [..., K]` to weights. Its *range* R bounds `osc(log w)` for every evidence (axiom B); its
*moduli* bound how far the weights move, `d(W(e), W(e')) <= sum_s L_s osc(e_s - e'_s)` in Hilbert distance (axiom C).
Both compose by the rules below; each rule is a function of numbers, names the theorem it rests on, and leaves a
node in the derivation, so that a certificate can show where every constant comes from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

INFINITY = math.inf


@dataclass(frozen=True)
class Derivation:
    """One rule of the calculus.

    Attributes:
        name: of the rule.
        formula: range and modulus it gives, in words of the design.
        theorems: names in `proofs/index.json`.
        derived: the rule is derived on paper only, so that nothing that uses it is called proved.
    """

    name: str
    formula: str
    theorems: tuple[str, ...] = ()
    derived: bool = False


@dataclass(frozen=True)
class Modulus:
    """How evidence of one name moves the weights.

    Attributes:
        evidence: which evidence, e.g. `entropy` or `prefix likelihood`.
        once: Hilbert distance per nat of osc when one position's evidence is off.
        sustained: the same when the evidence of every position of the prefix is off; equal to `once` for operators
            that read one position only.
    """

    evidence: str
    once: float
    sustained: float

    def scaled(self, factor: float) -> "Modulus":
        """Both numbers times `factor`; 0 times infinity is 0."""
        return Modulus(self.evidence, *(0.0 if factor == 0.0 else factor * x for x in (self.once, self.sustained)))


@dataclass(frozen=True)
class Step:
    """A node of a derivation: a rule, what it was applied to, and the range that follows."""

    rule: Derivation
    detail: str
    range: float
    premises: tuple["Step", ...] = ()

    def lines(self, depth: int = 0) -> list[str]:
        """The derivation as an indented tree."""
        cite = f"  [{', '.join(self.rule.theorems)}]" if self.rule.theorems else ""
        own = f"{'  ' * depth}{self.rule.name}: {self.detail}; range {_number(self.range)} nats{cite}"
        return [own, *(line for premise in self.premises for line in premise.lines(depth + 1))]

    def rules(self) -> set[Derivation]:
        """Every rule used in the tree."""
        return {self.rule}.union(*(premise.rules() for premise in self.premises))


@dataclass(frozen=True)
class Guarantee:
    """What holds for every evidence.

    Attributes:
        teachers: K.
        range: R, bound on `osc(log w)` over the active teachers, nats.
        floor: least weight of any active teacher.
        ceiling: greatest weight of any teacher.
        moduli: one per evidence that is read.
        severity_modulus: Hilbert distance per unit of severity.
        step: the derivation.
        vetoes: contexts of severity above 0 take teachers out, whatever the evidence; those are not active there.

    >>> from polydistill import Entropy, Pipeline, Softmax
    >>> promised = Pipeline.of(Softmax(2.0)(Entropy(spread=4)), ["code", "maths"], floor=0.02).guarantee()
    >>> promised.floor > 0.01, promised.weight_shift(0.1) < 0.05
    (True, True)
    """

    teachers: int
    range: float
    floor: float
    ceiling: float
    moduli: tuple[Modulus, ...]
    step: Step
    severity_modulus: float = 0.0
    vetoes: bool = False

    def lines(self, depth: int = 0) -> list[str]:
        """The derivation, and under it what two stacks are compared by: range and moduli."""
        moduli = [
            f"{m.evidence} {_number(m.once)}"
            + (f" ({_number(m.sustained)} sustained)" if m.sustained != m.once else "")
            for m in self.moduli
        ]
        if self.severity_modulus:
            moduli.append(f"severity {_number(self.severity_modulus)}")
        said = f"range {_number(self.range)} nats; moduli: {', '.join(moduli) or 'none'}"
        return [*self.step.lines(depth), f"{'  ' * depth}{said}"]

    def distance(self, error: float, *, sustained: bool = False) -> float:
        """Greatest Hilbert distance that the weights move when every teacher's evidence is off by at most `error` nats:
        `2 error sum_s L_s`, and never more than the range allows, `2 R`.

        Args:
            error: nats, per teacher, in every evidence that the stack reads.
            sustained: the evidence of every position is off, not that of one only.
        """
        total = sum(m.sustained if sustained else m.once for m in self.moduli)
        return 0.0 if error == 0.0 or total == 0.0 else min(2.0 * error * total, 2.0 * self.range)

    def weight_shift(self, error: float, *, sustained: bool = False) -> float:
        """Greatest total variation of the weights then, `tanh(d / 4)` (T2); arguments as for `distance`."""
        return math.tanh(self.distance(error, sustained=sustained) / 4.0)

    def target_shift_if_corrupted(self, change: float = 1.0) -> float:
        """Linear pool: how far the target moves, in total variation, when one teacher's distribution moves by `change`
        (1: becomes anything else) and the weights do not read it (T5)."""
        return self.ceiling * change

    def proved(self) -> bool:
        """Every rule of the derivation names a theorem."""
        return all(rule.theorems for rule in self.step.rules())


def floor_of(range: float, teachers: int) -> float:
    """`1 / (1 + (K-1) e^R)`: the least weight that a range allows (T1)."""
    return 1.0 if teachers == 1 else math.exp(-range) / (math.exp(-range) + teachers - 1)


def ceiling_of(range: float, teachers: int) -> float:
    """`e^R / (e^R + K - 1)`: the greatest weight that a range allows (T1)."""
    return 1.0 / (1.0 + (teachers - 1) * math.exp(-range))


def mix_range(range: float, teachers: int, share: float) -> float:
    """Range after mixing with uniform weights, share in (0, 1]; attained (T3).

    `log(((1-lam) e^R + lam S/K) / ((1-lam) + lam S/K))` with `S = e^R + K - 1`, divided through by `e^R` so that a
    large range does not overflow; `log(1 + K (1-lam) / lam)` in the limit.
    """
    decay = math.exp(-range)
    pooled = share * (1.0 + (teachers - 1) * decay) / teachers
    return math.log((1.0 - share + pooled) / ((1.0 - share) * decay + pooled))


def mix_modulus(range: float, teachers: int, share: float) -> float:
    """Contraction of the Hilbert distance by mixing with uniform weights, share in (0, 1] (T3).

    The smaller of Birkhoff's `tanh(Delta / 4)`, `Delta = 2 log(1 + K (1-lam) / lam)`, and
    `(1-lam) M / ((1-lam) M + lam / K)` with M the ceiling before.
    """
    birkhoff = math.tanh(math.log1p(teachers * (1.0 - share) / share) / 2.0)
    heaviest = (1.0 - share) * ceiling_of(range, teachers)
    return min(birkhoff, heaviest / (heaviest + share / teachers))


def target_shift(weight_shift: float, disagreement: float = 1.0) -> float:
    """Linear pool: total variation of the target when that of the weights is `weight_shift` and no two teachers are
    further apart than `disagreement` (T4)."""
    return weight_shift * disagreement


def gradient_shift(target_shift: float, temperature: float = 1.0) -> float:
    """l1 distance that the logit gradient of forward KL moves when the target moves by `target_shift` (T4)."""
    return 2.0 * target_shift / temperature


STATIC = Derivation("static", "R = osc(log w); no modulus", ("T1_static",))
SOFTMAX = Derivation(
    "softmax", "R = spread / temperature; L = 1 / temperature", ("T1_softmax_range", "T1_softmax_modulus")
)
PRODUCT = Derivation(
    "product", "R = sum of ranges; the moduli are listed together", ("T1_product_range", "T1_product_modulus")
)
POWER = Derivation("power", "R = |a| R; L = |a| L", ("T1_power_range", "T1_power_modulus"))
MIX = Derivation(
    "floor",
    "R = log(((1-lam) e^R + lam S/K) / ((1-lam) + lam S/K))",
    ("T3_mix_range", "T3_mix_modulus", "T3_mix_weights"),
)
ISOTONIC = Derivation(
    "log-isotonic projection",
    "R and L not larger; 2 R / critical in severity",
    ("T12_ramp_range", "T12_tiers_modulus", "T12_ramp_modulus", "T12_ramp_severity", "T12_ramp_floor"),
)
KL_CLIP = Derivation(
    "KL clipping",
    "R = log(high / low) at most; L not larger",
    ("T12_clip_range", "T12_clip_modulus", "T12_clip_weights"),
)
TILT = Derivation(
    "safety tilt",
    "R + kappa beta osc(sigma); L unchanged; beta osc(sigma) in severity",
    ("T11_tilt_range", "T11_tilt_modulus", "T11_tilt_severity", "T11_tilt_weights"),
)
FIXED_SHARE = Derivation(
    "fixed-share posterior",
    "R = log(1 + K (1-a) / a)",
    ("T7_fixed_share_range", "T7_fixed_share_modulus", "T7_fixed_share_weights"),
)
DISCOUNTED = Derivation("discounted posterior", "R = c / (1 - gamma)", ("T7_discounted_range", "T7_discounted_modulus"))
CLIPPED = Derivation("spread-clipped posterior", "R = c", ("T7_clipped_range", "T7_clipped_modulus"))
TAKEN_OUT = Derivation("taken out", "evidence sets weights to 0, and nothing is promised", derived=True)
UNDECLARED = Derivation("undeclared", "nothing is promised", derived=True)


def _bounded(teachers: int, range: float, moduli: Sequence[Modulus], step: Step) -> Guarantee:
    return Guarantee(teachers, range, floor_of(range, teachers), ceiling_of(range, teachers), tuple(moduli), step)


def static(teachers: int, range: float, detail: str = "constant weights") -> Guarantee:
    """Weights that no evidence moves; `range` is their osc in nats."""
    return _bounded(teachers, range, (), Step(STATIC, detail, range))


def softmax(teachers: int, temperature: float, spread: float, evidence: str) -> Guarantee:
    """`softmax(clip(e) / temperature)` of evidence clipped to `spread` nats."""
    range = spread / temperature if teachers > 1 else 0.0
    detail = f"{evidence} clipped to a spread of {_number(spread)} nats, temperature {temperature:g}"
    modulus = Modulus(evidence, 1.0 / temperature, 1.0 / temperature)
    return _bounded(teachers, range, (modulus,), Step(SOFTMAX, detail, range))


def product(*factors: Guarantee) -> Guarantee:
    """Composition by product: ranges add, moduli are kept one per evidence (T1)."""
    if len(factors) == 1:
        return factors[0]
    range = sum(factor.range for factor in factors)
    step = Step(PRODUCT, f"{len(factors)} factors", range, tuple(factor.step for factor in factors))
    moduli = [modulus for factor in factors for modulus in factor.moduli]
    together = _bounded(factors[0].teachers, range, moduli, step)
    return replace(together, severity_modulus=sum(factor.severity_modulus for factor in factors))


def power(base: Guarantee, exponent: float) -> Guarantee:
    """`w ** a`: range and moduli times `|a|`, 0 for a = 0."""
    size = abs(exponent)
    range = 0.0 if size == 0.0 else size * base.range
    moduli = [modulus.scaled(size) for modulus in base.moduli]
    powered = _bounded(base.teachers, range, moduli, Step(POWER, f"to the power {exponent:g}", range, (base.step,)))
    return replace(powered, severity_modulus=size * base.severity_modulus)


def _silences(step: Step) -> bool:
    """Whether weights of 0 go into it."""
    return (step.rule in (STATIC, TAKEN_OUT) and math.isinf(step.range)) or any(map(_silences, step.premises))


def mix(base: Guarantee, share: float) -> Guarantee:
    """The floor: a share of uniform weights mixed in (T3). The floor `(1-lam) floor + lam / K` is exact.

    A weight of 0 takes its teacher out, and no floor brings it back: then nothing is gained.
    """
    if share == 0.0:
        return base
    if _silences(base.step):  # who is at 0 stays there: the floor is for the others, and how many they are varies
        detail = f"uniform share {share:g} among teachers that have a weight"
        return replace(base, step=Step(MIX, detail, base.range, (base.step,)))
    teachers = base.teachers
    range = mix_range(base.range, teachers, share)
    factor = mix_modulus(base.range, teachers, share)
    step = Step(MIX, f"uniform share {share:g}, contraction {factor:.3f}", range, (base.step,))
    return Guarantee(
        teachers,
        range,
        (1.0 - share) * base.floor + share / teachers,
        (1.0 - share) * base.ceiling + share / teachers,
        tuple(modulus.scaled(factor) for modulus in base.moduli),
        step,
        factor * base.severity_modulus,
    )


def tilt(base: Guarantee, strength: float, tier_spread: float) -> Guarantee:
    """`log w + kappa strength sigma` with severity `kappa <= 1` and `osc(sigma) = tier_spread` (T11)."""
    lift = strength * tier_spread
    range = base.range + lift
    step = Step(TILT, f"at most {_number(lift)} nats between the least and the most safe", range, (base.step,))
    grown = math.exp(-lift)
    return Guarantee(
        base.teachers,
        range,
        base.floor * grown / (base.floor * grown + 1.0 - base.floor),
        base.ceiling / (base.ceiling + (1.0 - base.ceiling) * grown),
        base.moduli,
        step,
        base.severity_modulus + lift,
    )


def isotonic(base: Guarantee, critical: float) -> Guarantee:
    """Log-isotonic projection, ramped in up to the severity `critical`: monotone and commuting with constants, so
    nothing grows (T12); blending moves log-weights by at most 2 R over the ramp. A floor survives, a ceiling need not
    (`T12_isotonic_ceiling_fails`): only that of the range is left."""
    step = Step(ISOTONIC, f"ordered by tier from severity {critical:g} on", base.range, (base.step,))
    return replace(
        base,
        step=step,
        ceiling=ceiling_of(base.range, base.teachers),
        severity_modulus=base.severity_modulus + 2.0 * base.range / critical,
    )


def kl_clip(base: Guarantee, low: float, high: float) -> Guarantee:
    """KL clipping to `[low, high]` (T12)."""
    range = min(base.range, math.log(high / low))
    step = Step(KL_CLIP, f"weights within [{low:g}, {high:g}]", range, (base.step,))
    return replace(base, range=range, floor=max(low, base.floor), ceiling=min(high, base.ceiling), step=step)


def fixed_share(teachers: int, share: float, evidence: str = "prefix likelihood", rate: float = 1.0) -> Guarantee:
    """Fixed-share posterior (Herbster and Warmuth 1998): `w <- (1-a) w p(y) / Z + a / K` after each token (T7).

    One token's error is contracted by rho once it is mixed; errors at every token sum to `rho / (1 - rho)`. With
    evidence multiplied by `rate` (Hedge) both are multiplied by it.
    """
    if share >= 1.0 or teachers == 1:
        return replace(static(teachers, 0.0), step=Step(FIXED_SHARE, f"share {share:g}", 0.0))
    range = mix_range(INFINITY, teachers, share)
    rho = mix_modulus(INFINITY, teachers, share)
    detail = f"share {share:g}, contraction {rho:.3f} a token"
    modulus = Modulus(evidence, rate * rho, rate * rho / (1.0 - rho))
    bounded = _bounded(teachers, range, (modulus,), Step(FIXED_SHARE, detail, range))
    return replace(bounded, floor=share / teachers, ceiling=1.0 - share + share / teachers)


def discounted(teachers: int, discount: float, spread: float, evidence: str = "prefix likelihood") -> Guarantee:
    """`L <- discount L + clip(log p(y))` with per-token evidence clipped to `spread` nats (T7)."""
    range = spread / (1.0 - discount) if teachers > 1 else 0.0
    detail = f"discount {discount:g}, {_number(spread)} nats a token"
    return _bounded(teachers, range, (Modulus(evidence, 1.0, 1.0 / (1.0 - discount)),), Step(DISCOUNTED, detail, range))


def clipped(teachers: int, spread: float, evidence: str = "prefix likelihood") -> Guarantee:
    """`L <- clip(L + log p(y))` to a spread of `spread` nats (T7); errors at every token add up without bound."""
    range = spread if teachers > 1 else 0.0
    step = Step(CLIPPED, f"spread {_number(spread)} nats", range)
    return _bounded(teachers, range, (Modulus(evidence, 1.0, INFINITY),), step)


def undeclared(teachers: int, evidence: str, detail: str, rule: Derivation = UNDECLARED) -> Guarantee:
    """A user's own rule: weights are weights, nothing more is promised until `certify` has looked."""
    moduli = (Modulus(evidence, INFINITY, INFINITY),)
    return Guarantee(teachers, INFINITY, 0.0, 1.0, moduli, Step(rule, detail, INFINITY))


def taken_out(teachers: int, evidence: str, detail: str) -> Guarantee:
    """Evidence decides who weighs anything at all; no floor brings those who do not back."""
    return undeclared(teachers, evidence, detail, TAKEN_OUT)


def _number(x: float) -> str:
    return "unbounded" if math.isinf(x) else f"{x:.3g}"
