"""What tests pay for and nobody looks at: left out here, in test processes and in what they fork."""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch

INNER = 3
"""How often a function inside another is made with its annotations checked: 3 ms at every call of the outer one."""


def install() -> None:
    """Before the package is imported, where annotations are checked."""
    jaxtyping.jaxtyped = _seldom(jaxtyping.jaxtyped)
    if not torch.cuda.is_available():
        # Every seed is queued for devices that never come, with the stack as text: 3 ms each, three times a test.
        for device in (torch.cuda, torch.xpu, torch.mtia):
            device._lazy_call = lambda *_, **__: None


def without_fingerprints() -> None:
    """Where runs are made: data named by pickling what made them, and packages looked for again by their files."""
    import accelerate.utils.imports
    import datasets.arrow_dataset
    import datasets.fingerprint

    for module in (datasets.fingerprint, datasets.arrow_dataset):
        module.update_fingerprint = lambda *_: os.urandom(8).hex()
    accelerate.utils.imports._is_package_available = functools.cache(accelerate.utils.imports._is_package_available)


def _seldom(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    made: Counter[Any] = Counter()

    @functools.wraps(jaxtyped)
    def decorator(*function: Any, **how: Any) -> Any:
        decorate = jaxtyped(*function, **how)
        if function:
            return decorate

        def decorated(inner: Any) -> Any:
            if "<locals>" in getattr(inner, "__qualname__", ""):
                code = getattr(inner, "__code__", None)
                made[code] += 1
                if made[code] > INNER:
                    return inner
            return decorate(inner)

        return decorated

    return decorator
