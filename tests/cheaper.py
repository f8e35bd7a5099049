"""What tests pay for and nobody looks at: left out here, in test processes and in what they fork."""

import functools
import importlib.metadata
import inspect
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch

INNER = 3
"""How often a function inside another is made with its annotations checked: 3 ms at every call of the outer one."""
NO_PLAIN_FUNCTION = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def install() -> None:
    """Before the package is imported, where annotations are checked."""
    jaxtyping.jaxtyped = _late(jaxtyping.jaxtyped)
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
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


def _late(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """A function's checks are made at its first call, since most are never called: 1 ms each, 6 s a process."""
    made: Counter[Any] = Counter()

    @functools.wraps(jaxtyped)
    def decorator(*function: Any, **how: Any) -> Any:
        decorate = jaxtyped(*function, **how)
        if function:
            return decorate

        def decorated(inner: Any) -> Any:
            code = getattr(inner, "__code__", None)
            if code is None or code.co_flags & NO_PLAIN_FUNCTION:
                return decorate(inner)
            if "<locals>" in inner.__qualname__:
                made[code] += 1
                if made[code] > INNER:
                    return inner
            checked = None

            @functools.wraps(inner)
            def late(*arguments: Any, **named: Any) -> Any:
                nonlocal checked
                if torch.compiler.is_compiling():
                    return inner(*arguments, **named)
                if checked is None:
                    checked = decorate(inner)
                return checked(*arguments, **named)

            return late

        return decorated

    return decorator
