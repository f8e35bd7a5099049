"""The flaw of each published rule is found by one call."""

import pytest
import torch

from polydistill.certification import certify_published
from polydistill.certification.published_rules import PUBLISHED


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_table_has_a_row_for_each_rule_its_flaw_and_a_witness_for_each_failure():
    table = certify_published(effort=0.02)
    text = table.to_markdown()
    assert tuple(rule for rule, _ in table.rows) == tuple(PUBLISHED)
    for rule, certificate in table.rows:
        assert set(rule.breaks) <= {finding.axiom for finding in certificate.findings if finding.refuted}
        assert f"| {rule.name} |" in text
        assert rule.paper in text
    assert text.count("**fails**") - 1 == sum(f.refuted for _, c in table.rows for f in c.findings)
    assert table.vocabulary_mass == pytest.approx(1.8)


def test_confidence_aware_weights_never_exceed_one_over_k_minus_one():
    rule = next(rule for rule in PUBLISHED if rule.name == "CA-MKD")
    weights = rule.function(-torch.tensor([[0.01, 20.0, 20.0, 20.0, 20.0]]))
    assert weights.max() <= 1 / 4
    assert weights.sum().item() == pytest.approx(1.0)
