"""The picture of a report: `python docs/picture.py runs/demo docs/report.png`, after `polydistill demo`.

Needs Chromium. What the picture shows is the page itself, with what `OUT` names left out.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from polydistill.report import write_report

HIDDEN = ("loss", "weights", "written", "promise", "time", "diag", "config")
OUT = [f"section[aria-labelledby=h-{name}]" for name in HIDDEN]
OUT += ["#theme", ".columns", ".columns ~ *", "section[aria-labelledby=h-ribbon] article ~ article", "footer"]
STYLE = f"<style>{', '.join(OUT)} {{ display: none }}</style></head>"
SIZE = (920, 2075)
MOST = 300_000
"""Bytes of the picture."""


def picture(run: Path, to: Path) -> None:
    """The run's report as a PNG."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("there is no Chromium on this machine")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(
            shutil.copytree(run, Path(folder) / run.name, ignore=shutil.ignore_patterns("models", "check*", "data"))
        )
        page = write_report(copy)
        page.write_text(page.read_text(encoding="utf-8").replace("</head>", STYLE, 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=15000"]
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = [browser, *flags, size, f"--user-data-dir={folder}/profile", f"--screenshot={to}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    if to.stat().st_size > MOST:
        sys.exit(f"{to} has {to.stat().st_size:,} bytes, more than {MOST:,}")


if __name__ == "__main__":
    picture(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
