"""The command line: `polydistill COMMAND`.

Exit codes: 0 fine, 2 configuration, 3 data or integrity, 4 a teacher is not available, 5 numbers that are not finite,
6 the run folder is locked, 7 storage.
"""

from polydistill.cli.main import main

__all__ = ["main"]
