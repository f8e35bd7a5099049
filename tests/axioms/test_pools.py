"""Laws of pools: who has which, with witnesses that break them, and what is refused."""

import math
from pathlib import Path

import pytest
import torch

from polydistill.axioms.pools import POOL_LAWS, POOLS, Scene, linear_pool, log_pool, power_pool, product
from polydistill.certification import RefutedError, certify_pool
from polydistill.certification.pools import ALWAYS
from polydistill.certification.published_pools import PUBLISHED_POOLS, routed

KEPT = {
    "linear (`forward_kl`)": set(POOL_LAWS) - {"log-ratio", "temper", "factor"},
    "log (`reverse_kl`)": {"unanimity", "zero", "nearer", "log-ratio", "temper", "rank", "factor"},
    "power mean 1/2 (`alpha`)": {"unanimity", "positivity", "zero", "nearer", "rank"},
    "product of experts": {"zero", "temper", "rank"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_has_the_laws_that_it_is_said_to_have_and_no_others(name):
    certificate = certify_pool(POOLS[name], effort=1.0 if "alpha" in name else 0.3)  # its order breaks rarely
    assert certificate.kept - {"F", "N"} == KEPT[name]
    assert certificate.exit_ok == (name != "product of experts")
    for finding in certificate.findings:
        assert finding.refuted == (finding.law in finding.says)


def test_published_counterexamples():
    twice = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]], dtype=torch.float64).log()
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert product(half, twice).exp()[0, 0] == pytest.approx(0.36 / 0.52)
    p = torch.tensor([[[1 / 2, 1 / 3, 1 / 6], [1 / 6, 1 / 3, 1 / 2]]], dtype=torch.float64).log()
    middles = [float(pool(half, p).exp()[0, 1]) for pool in (linear_pool, log_pool, power_pool(0.5), power_pool(2.0))]
    assert middles == pytest.approx([1 / 3, 0.366, 0.349, 0.309], abs=1e-3)


@pytest.mark.slow
def test_a_witness_has_few_teachers_and_round_numbers_and_is_shown_with_what_was_made_of_it():
    unanimity = certify_pool(product, effort=0.1).finding("unanimity")
    (weights,) = unanimity.case["w"]
    assert len(weights) == len(unanimity.case["log_p"][0]) == 2
    assert weights == pytest.approx([round(w, 1) for w in weights])
    assert unanimity.says.startswith("unanimity fails by 0.")
    assert "(Teachers that agree are what the pool says)" in unanimity.says
    with pytest.raises(RefutedError, match="product:\nunanimity fails"):
        certify_pool(product, effort=0.1).raise_on_refuted()
    assert certify_pool(product, effort=0.1, without=["unanimity"]).exit_ok
    assert not certify_pool(log_pool, effort=0.1, laws=["hull"]).exit_ok


def without_weight_of_zero(w, log_p):
    return (w.log()[..., None] * (log_p - log_p.mean(1, keepdim=True))).sum(1).log_softmax(-1)


def written_into(w, log_p):
    return linear_pool(w, log_p.clone()) + 0 * log_p.zero_().sum(1)


def of_the_batch(w, log_p):
    return linear_pool(w, log_p.mean(0, keepdim=True).expand_as(log_p).log_softmax(-1))


def heavy(w, log_p):
    return linear_pool(w, log_p) + 1e-4


def wrong_for_six(w, log_p):
    return linear_pool(w.roll(1, -1) if w.shape[1] == 6 else w, log_p)


def raising(w, log_p):
    if log_p.shape[1] > 4:
        raise KeyError("five")
    return linear_pool(w, log_p)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flawed", "law"),
    [
        (without_weight_of_zero, "N"),
        (written_into, "F"),
        (of_the_batch, "F"),
        (lambda w, log_p: (linear_pool(w, log_p) + 0.1 * torch.rand(log_p.shape[-1])).log_softmax(-1), "F"),
        (lambda w, p: linear_pool(w, p) * (1.0 if p.dtype == torch.float64 else math.nan), "F"),
        (lambda w, p: linear_pool(w, p) * (1.0 if len(p) > 1 else math.nan), "F"),
        (heavy, "N"),
        (raising, "N"),
        (wrong_for_six, "TV in teachers"),
    ],
)
def test_flaws_of_an_aggregator_are_found(flawed, law):
    assert certify_pool(flawed, effort=0.1, laws=["TV in teachers"]).finding(law).refuted


def test_no_number_is_no_mass():
    def lost(w, log_p):
        return torch.where(log_p.isinf().any(1), torch.nan, linear_pool(w, log_p))

    assert certify_pool(lost, effort=0.1, laws=["positivity"]).finding("positivity").refuted


@pytest.mark.slow
def test_a_single_precision_aggregator_and_a_module_are_not_refuted_for_rounding():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.power = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, w, log_p):
            return ((w.log()[..., None] + self.power * log_p).logsumexp(1) / self.power).log_softmax(-1)

    assert certify_pool(Half(), effort=0.1).kept >= {*ALWAYS, "positivity"}
    in_float32 = certify_pool(lambda w, p: linear_pool(w.float(), p.float()), effort=0.1)
    assert in_float32.kept == KEPT["linear (`forward_kl`)"] | {"F", "N"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda w, log_p: w.log(), r"returns \[n, V\], here \[8, 5\]; got \[8, 3\]"),
        (lambda w, log_p: log_p.sum(1), "log-probabilities"),
        (lambda w: w, "it says TypeError"),
    ],
)
def test_what_is_no_aggregator_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        certify_pool(what)
    with pytest.raises(ValueError, match="there are no laws X of pools"):
        certify_pool(linear_pool, laws="X")


@pytest.mark.slow
def test_the_page_has_the_table_of_today():
    """By the cells that a quick look refutes as well: what is "yes" on the page is not refuted here."""
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
    head = next(line for line in page.splitlines() if line.startswith("| law | linear"))
    names = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert names == [*POOLS, *PUBLISHED_POOLS]
    found = [certify_pool(pool, effort=0.1, seed=2) for pool in (POOLS | PUBLISHED_POOLS).values()]
    for law in ("F", "N", *POOL_LAWS):
        listed = next(line for line in page.splitlines() if line.startswith(f"| {law}: "))
        shown = [cell.strip().split()[0] for cell in listed.strip("|").split("|")[1:]]
        refuted = [name for one, name in zip(found, names, strict=True) if one.finding(law).refuted]
        assert set(refuted) <= {name for name, cell in zip(names, shown, strict=True) if cell == "no"}, law


def test_the_heaviest_teacher_alone_is_a_mixture_that_jumps():
    certificate = certify_pool(routed, effort=0.1)
    assert "hull" in certificate.kept
    assert certificate.finding("TV in weights").refuted


def test_scenes_are_what_they_say():
    scene = Scene.drawn(50, 3, 4, torch.Generator().manual_seed(0))
    assert (scene.more[:, 0] > scene.w[:, 0]).all()
    torch.testing.assert_close(scene.more.sum(-1), torch.ones(50, dtype=torch.float64))
