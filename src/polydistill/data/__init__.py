"""What a run reads: rows, what is known about each of them, and how critical their contexts are."""

from polydistill.data.context import ContextCollator, DataError
from polydistill.data.load import load_data

__all__ = ["ContextCollator", "DataError", "load_data"]
