"""What we tell: the records of a run as one page that opens offline.

>>> import tempfile
>>> from polydistill.records import METRICS, RecordWriter, StepRecord
>>> with tempfile.TemporaryDirectory() as folder:
...     with RecordWriter(f"{folder}/{METRICS}") as writer:
...         writer.write(StepRecord(step=1, loss=4.0))
...     write_report(folder).name
'report.html'
"""

from polydistill.report.folder import Run, read_run
from polydistill.report.page import render, write_report

__all__ = ["Run", "read_run", "render", "write_report"]
