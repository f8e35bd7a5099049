"""The calculus in Python and the theorems in Coq say the same: names, constants, and the index that ships."""

import json
import math
import sys
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

import pytest

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee
from polydistill.safety import Tilt
from polydistill.theory.posterior import switching_bound

PROOFS = Path(__file__).parents[2] / "proofs"
sys.path.insert(0, str(PROOFS))
import instances  # noqa: E402


def bounded(range: float, teachers: int = 3, modulus: float = 1.0) -> Guarantee:
    """Something with a range and a modulus."""
    return calculus.softmax(teachers, 1.0 / modulus, range / modulus, "evidence")


def framed(floor: float = 0.0, ceiling: float = 1.0) -> Guarantee:
    """Something with a floor and a ceiling."""
    step = calculus.Step(calculus.UNDECLARED, "", math.inf)
    return Guarantee(3, math.inf, floor, ceiling, (), step)


def first(guarantee: Guarantee) -> calculus.Modulus:
    return guarantee.moduli[0]


def threshold(range: float, strength: float, gap: float) -> float:
    tilt = Tilt({"safe": gap}, strength).bind(("other", "safe"))
    return tilt.ordered_from(bounded(range, 2))


IN_PYTHON: dict[str, Callable[..., float]] = {
    "softmax_range": lambda clip, temperature: calculus.softmax(3, temperature, clip, "e").range,
    "softmax_modulus": lambda temperature: first(calculus.softmax(3, temperature, 1.0, "e")).once,
    "product_range": lambda range, range2: calculus.product(bounded(range), bounded(range2)).range,
    "product_modulus": lambda modulus, modulus2, spread, spread2: sum(
        m.once * osc
        for m, osc in zip(
            calculus.product(bounded(1.0, modulus=modulus), bounded(1.0, modulus=modulus2)).moduli,
            (spread, spread2),
            strict=True,
        )
    ),
    "power_range": lambda exponent, range: calculus.power(bounded(range), exponent).range,
    "power_modulus": lambda exponent, modulus: first(calculus.power(bounded(1.0, modulus=modulus), exponent)).once,
    "floor_weight": lambda K, range: calculus.floor_of(range, K),
    "ceiling_weight": lambda K, range: calculus.ceiling_of(range, K),
    "mix_range": lambda K, share, range: calculus.mix_range(range, K, share),
    "mix_range_unbounded": lambda K, share: calculus.mix_range(math.inf, K, share),
    "mix_modulus_birkhoff": lambda K, share: calculus.mix_modulus(math.inf, K, share),
    "mix_modulus_ceiling": lambda K, share, ceiling: _mix_by_ceiling(K, share, ceiling),
    "mix_modulus": lambda K, share, ceiling: calculus.mix_modulus(_range_of(K, ceiling), K, share),
    "mix_weight": lambda K, share, weight: calculus.mix(_with(framed(floor=weight), K), share).floor,
    "kl_clip_range": lambda low, high: calculus.kl_clip(framed(), low, high).range,
    "tilt_range": lambda range, severity, strength, spread: (
        calculus.tilt(bounded(range), severity * strength, spread).range
    ),
    "tilt_severity_modulus": lambda strength, spread: calculus.tilt(bounded(1.0), strength, spread).severity_modulus,
    "tilt_threshold": threshold,
    "tilt_floor": lambda floor, lift: calculus.tilt(framed(floor=floor), 1.0, lift).floor,
    "tilt_ceiling": lambda ceiling, lift: calculus.tilt(framed(ceiling=ceiling), 1.0, lift).ceiling,
    "ramp_severity_modulus": lambda range, critical: calculus.isotonic(bounded(range), critical).severity_modulus,
    "fixed_share_range": lambda K, share: calculus.fixed_share(K, share).range,
    "fixed_share_modulus_one": lambda K, share: first(calculus.fixed_share(K, share)).once,
    "fixed_share_modulus_all": lambda K, share: first(calculus.fixed_share(K, share)).sustained,
    "discounted_range": lambda spread, discount: calculus.discounted(3, discount, spread).range,
    "discounted_modulus": lambda discount: first(calculus.discounted(3, discount, 1.0)).sustained,
    "clipped_range": lambda clip: calculus.clipped(3, clip).range,
    "tv": lambda distance: bounded(math.inf).weight_shift(distance / 2.0),
    "weight_shift": lambda error, modulus, range: bounded(range, modulus=modulus).weight_shift(error),
    "pool_tv": lambda tv, diameter: calculus.target_shift(tv, diameter),
    "replace": lambda ceiling, tv: framed(ceiling=ceiling).target_shift_if_corrupted(tv),
    "logit_gradient": lambda tv, temperature: calculus.gradient_shift(tv, temperature),
    "fixed_share_regret": lambda K, T, switches, share: switching_bound(K, T, switches, share),
}
"""What the package computes for each rule of `proofs/instances.toml`."""


def _range_of(teachers: int, ceiling: float) -> float:
    return math.log(ceiling * (teachers - 1) / (1.0 - ceiling))


def _mix_by_ceiling(teachers: int, share: float, ceiling: float) -> float:
    heaviest = (1.0 - share) * ceiling
    both = calculus.mix_modulus(_range_of(teachers, ceiling), teachers, share)
    assert both <= heaviest / (heaviest + share / teachers) + 1e-12
    return heaviest / (heaviest + share / teachers)


def _with(guarantee: Guarantee, teachers: int) -> Guarantee:
    step = guarantee.step
    return Guarantee(teachers, guarantee.range, guarantee.floor, guarantee.ceiling, (), step)


def rules() -> Iterable[Derivation]:
    """Every rule that a module of the package defines."""
    found = {
        id(value): value
        for name, module in list(sys.modules.items())
        if name.startswith("polydistill")
        for value in vars(module).values()
        if isinstance(value, Derivation)
    }
    return found.values()


def theorems() -> set[str]:
    return {entry["theorem"] for entry in json.loads((PROOFS / "index.json").read_text())}


@pytest.mark.parametrize(("rule", "inputs", "value"), instances.table())
def test_python_computes_what_coq_proved_at_every_instance(rule: str, inputs: dict, value: float) -> None:
    assert IN_PYTHON[rule](**inputs) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_every_rule_names_a_theorem_that_is_proved_or_says_that_it_is_derived() -> None:
    proved = theorems()
    assert len(list(rules())) >= 12
    for rule in rules():
        assert bool(rule.theorems) != rule.derived, f"{rule.name}: name its theorems, or mark it derived"
        assert set(rule.theorems) <= proved, f"{rule.name}: {set(rule.theorems) - proved} is not in proofs/index.json"


def test_the_index_that_ships_is_the_one_that_was_checked() -> None:
    shipped = resources.files("polydistill").joinpath("proofs_index.json").read_bytes()
    assert shipped == (PROOFS / "index.json").read_bytes()


def test_the_coq_file_of_instances_is_made_from_the_same_table() -> None:
    lemmas = [line for line in (PROOFS / "Instances.v").read_text().splitlines() if line.startswith("Lemma point_")]
    assert [line.split("_", 2)[2].split(" ")[0] for line in lemmas] == [rule for rule, _, _ in instances.table()]


def test_a_constant_off_by_one_percent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = calculus.mix_range
    monkeypatch.setattr(calculus, "mix_range", lambda *arguments: 1.01 * plain(*arguments))
    wrong = [
        rule
        for rule, inputs, value in instances.table()
        if IN_PYTHON[rule](**inputs) != pytest.approx(value, rel=1e-9, abs=1e-12)
    ]
    assert {"mix_range", "mix_range_unbounded", "fixed_share_range"} <= set(wrong)
