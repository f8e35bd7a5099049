"""From a run's configuration to its caches: the very token ids that training will ask about, and the teachers."""

from polydistill.run.cache.commands import build_cache, frontiers, repair_cache, verify_cache
from polydistill.run.cache.plan import address_of, addresses, label_with, refuse_uncachable
from polydistill.run.cache.texts import own_texts, refuse_unheard, rows_read, texts_of

__all__ = [
    "address_of",
    "addresses",
    "build_cache",
    "frontiers",
    "label_with",
    "own_texts",
    "refuse_uncachable",
    "refuse_unheard",
    "repair_cache",
    "rows_read",
    "texts_of",
    "verify_cache",
]
