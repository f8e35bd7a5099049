"""Which factors of a stack need labels; text that the student generates has none."""

from polydistill.weighting.operator import Operator, Power, Product
from polydistill.weighting.task import HedgeOf


def label_readers(stack: Operator) -> list[str]:
    """Factors whose weights need labels, as they were written."""
    found = []
    for module in stack.modules():
        if not isinstance(module, Operator) or isinstance(module, Product | Power):
            continue
        learns = isinstance(module, HedgeOf) and module.signal.reads_label
        if module.reads_label or learns or any(signal.reads_label for signal in module.signals):
            found.append(repr(module))
    return found


def refuse_label_readers(stack: Operator) -> None:
    """Generated text has no labels.

    Raises:
        ValueError: naming the factors.
    """
    if found := label_readers(stack):
        raise ValueError(
            f"{' and '.join(found)} needs labels, and text that the student generates has none; use Entropy(), "
            "Margin(), Consensus(), StudentGap(), a router, a prior, or PrefixPosterior (which reads what the student "
            "wrote so far)"
        )
