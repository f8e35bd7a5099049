"""The divergence from the pool on held-out text: what it is, and the memory that it may take."""

import cases
import pytest
import torch

from polydistill.run import evaluate

N, VOCABULARY = 40, 50


def test_the_divergence_from_the_pool_is_made_within_the_budget(monkeypatch):
    outputs = cases.outputs(N, VOCABULARY, [8, 4, 6])
    head, hidden, where = cases.head(VOCABULARY, 8, seed=1), cases.hidden(N, 8, seed=1), cases.positions(N, VOCABULARY)
    log_w = torch.randn(N, 3).log_softmax(-1)
    rows: list[int] = []
    plain = evaluate.logits_of
    monkeypatch.setattr(evaluate, "logits_of", lambda says, at: rows.append(len(at)) or plain(says, at))
    budget = 10 * evaluate.ARRAYS * 4 * VOCABULARY
    found = evaluate._kl_to_pool(hidden, head, outputs, where, log_w, budget)
    assert max(rows) == 10
    log_q = head.logits(hidden).log_softmax(-1)
    log_p = torch.stack([plain(says, torch.arange(N)).log_softmax(-1) for says in outputs], -1)
    pooled = (log_p + log_w[:, None]).logsumexp(-1)
    torch.testing.assert_close(found, (pooled.exp() * (pooled - log_q)).sum(-1))
    assert evaluate._kl_to_pool(hidden, head, outputs, where, log_w, 1).tolist() == pytest.approx(found.tolist())
