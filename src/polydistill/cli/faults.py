"""From exceptions to one sentence and an exit code. Imports nothing heavy: it runs before anything else does."""

import errno
import os
import sys
import traceback
from typing import NoReturn

from polydistill.visible import visible

CONFIG, DATA, TEACHER, NUMERICS, LOCKED, STORAGE = 2, 3, 4, 5, 6, 7

CODES = {
    "ConfigError": CONFIG,
    "DataError": DATA,
    "DataStorageError": STORAGE,
    "TaskFailedError": DATA,
    "CheckpointError": DATA,
    "VocabularyMismatchError": DATA,
    "RecordError": DATA,
    "CacheError": DATA,
    "SchemaVersionError": DATA,
    "TeacherUnavailableError": TEACHER,
    "ModelRefusedError": CONFIG,
    "NonFiniteValueError": NUMERICS,
    "NonFiniteError": NUMERICS,
    "DivergedError": NUMERICS,
    "InfeasibleError": NUMERICS,
    "StudentDiffersError": NUMERICS,
    "LockedError": LOCKED,
    "StorageError": STORAGE,
    "PushError": STORAGE,
}
"""Exit code by the name of the error, so that no room has to be imported to fail in its words."""

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
"""Where our own lines are."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


def code_of(error: BaseException) -> int | None:
    """Exit code of an error that is the user's to mend; None for a fault of our own."""
    if type(error).__name__ == "InterruptedRunError":
        return 128 + int(vars(error)["number"])
    for kind in type(error).__mro__:
        if kind.__name__ in CODES:
            return CODES[kind.__name__]
    if isinstance(error, OSError):
        return STORAGE if error.errno in FULL else DATA
    module = next((k.__module__ for k in type(error).__mro__ if k in (ValueError, TypeError)), None)
    return CONFIG if module is not None and _ours(error) else None


def _ours(error: BaseException) -> bool:
    """Raised by one of our own lines: a sentence written for the user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE)


def leave(error: BaseException) -> NoReturn:
    """Print the sentence and exit; a fault of our own shows its traceback and exits with 1."""
    code = code_of(error)
    if code is None or os.environ.get("POLYDISTILL_TRACEBACK"):
        traceback.print_exception(error)
    if code is None:
        print("polydistill: this is a fault of polydistill's own; the traceback above says where", file=sys.stderr)
        raise SystemExit(1)
    said = [*(str(error).splitlines() or [type(error).__name__]), *getattr(error, "__notes__", ())]
    for sentence in said:
        print(f"polydistill: {visible(sentence)}", file=sys.stderr)
    raise SystemExit(code)
