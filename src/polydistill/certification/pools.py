"""Holding a user's own aggregator to the fifteen laws of pools."""

import torch

from polydistill.axioms.pools import Aggregator, PoolLaws, Scene


def certify_pool(aggregator: Aggregator, *, cases: int = 1500, seed: int = 0) -> PoolLaws:
    """Search for cases in which an aggregator breaks a law of pools.

    Args:
        aggregator: `(weights [n, K], log_p [n, K, V]) -> log_p [n, V]`.
        cases: at each number of teachers.
        seed: of the cases.

    Raises:
        ValueError: what it returns is no log-distribution for every case, or differs from call to call.
    """
    scene = Scene.drawn(8, 3, 5, torch.Generator().manual_seed(seed))
    made, again = (aggregator(scene.w.clone(), scene.log_p.clone()) for _ in range(2))
    if tuple(made.shape) != (8, 5):
        raise ValueError(f"an aggregator returns [n, V], here [8, 5]; got {list(made.shape)}")
    mass = made.exp().sum(-1)
    if not torch.allclose(mass, torch.ones_like(mass), atol=1e-4):
        worst = float(mass[(mass - 1).abs().argmax()])
        raise ValueError(f"an aggregator returns log-probabilities; those of a case have mass {worst:g}")
    if not torch.equal(made, again):
        raise ValueError("the aggregator gives another pool when it is asked twice; fix its random numbers")
    return PoolLaws.of(aggregator, cases=cases, seed=seed)
