"""Domain similarity: cosines of the prefix, equal to the obvious loop, blind to the current and later tokens."""

import cases
import pytest
import torch

from polydistill.certification import certify
from polydistill.weighting import Similarity

EMBEDDING = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
CENTROIDS = {"a": EMBEDDING[:8].mean(0), "b": EMBEDDING[8:16].mean(0), "c": EMBEDDING[16:].mean(0)}


def bound(temperature=0.2):
    return Similarity(EMBEDDING, CENTROIDS, temperature).bind(["a", "b", "c"])


def slowly(statistics, temperature=0.2):
    rows, prefix = [], []
    positions = statistics.positions
    for t in range(len(positions)):
        if positions.document_start[t]:
            prefix = []
        if prefix:
            mean = torch.stack(prefix).mean(0)
            cosine = torch.stack([torch.cosine_similarity(mean, CENTROIDS[name].double(), 0) for name in "abc"])
        else:
            cosine = torch.zeros(3, dtype=torch.float64)
        rows.append(torch.log_softmax(cosine / temperature, -1))
        if positions.has_target[t]:
            prefix.append(EMBEDDING[positions.target[t]].double())
    return torch.stack(rows)


def test_it_equals_the_loop_over_positions():
    statistics = cases.statistics(40, 3, documents=3)
    torch.testing.assert_close(bound()(statistics)[0].double(), slowly(statistics))


def test_chunks_with_a_carry_equal_the_whole():
    statistics, operator = cases.statistics(40, 3, documents=3), bound()
    first, carry = operator(statistics.at(slice(0, 17)))
    second, _ = operator(statistics.at(slice(17, 40)), carry)
    torch.testing.assert_close(torch.cat([first, second]), operator(statistics)[0])


def test_the_current_and_later_tokens_do_not_matter():
    statistics = cases.statistics(12, 3)
    before = bound()(statistics)[0]
    for t in range(12):
        changed = cases.statistics(12, 3)
        changed.positions.target[t:] = (changed.positions.target[t:] + 7) % 32
        torch.testing.assert_close(bound()(changed)[0][: t + 1], before[: t + 1])


def test_its_range_holds_for_every_token_and_is_attained_along_two_centroids_difference():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    embedding = torch.stack([a - b, b - a, a, b])
    operator = Similarity(embedding, {"a": a, "b": b}, 0.5).bind(["a", "b"])
    statistics = cases.statistics(2, 2)
    statistics.positions.target[:] = 0
    log_w = operator(statistics)[0]
    assert (log_w[1, 0] - log_w[1, 1]).item() == pytest.approx(operator.guarantee().range)


def test_it_is_not_refuted_and_reads_no_likelihood():
    certificate = certify(bound(), effort=0.1)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("C").worst == 0.0


def test_centroids_come_from_sample_text():
    tokens = torch.tensor([0, 0, 3])
    torch.testing.assert_close(Similarity.centroid(EMBEDDING, tokens), (2 * EMBEDDING[0] + EMBEDDING[3]) / 3)


def test_missing_and_wrong_centroids_are_refused():
    with pytest.raises(ValueError, match="the teacher 'd' has no centroid"):
        Similarity(EMBEDDING, CENTROIDS).bind(["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="names the teacher 'c'"):
        Similarity(EMBEDDING, CENTROIDS).bind(["a", "b"])
    with pytest.raises(ValueError, match="must be a vector of width 5 and not 0"):
        Similarity(EMBEDDING, {"a": torch.zeros(5)})
    with pytest.raises(ValueError, match="temperature must be > 0"):
        Similarity(EMBEDDING, CENTROIDS, 0.0)
