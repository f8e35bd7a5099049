"""`make docs` ends with an error where a link of the built site leads nowhere."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "links.py"


def test_a_dead_link_is_named_and_a_live_one_is_not(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "other page.html").write_text('<h1 id="here">x</h1><a href="../index.html#top">up</a>')
    (tmp_path / "index.html").write_text(
        '<a href="in/other%20page.html#here">a</a><a href="#docs/x.md">b</a><img src="no.png">'
        '<a href="in/other%20page.html#gone">c</a><a href="https://elsewhere.example/x">d</a>'
    )
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    dead = ("#docs/x.md", "no.png", "in/other%20page.html#gone")
    assert done.stderr.splitlines() == ["dead links:", *(f"index.html: {target}" for target in dead)]
    assert done.returncode == 1
