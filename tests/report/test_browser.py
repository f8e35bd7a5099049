"""The page in a real browser, with no network: plots are drawn, nothing is asked for, nothing in the data runs."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from system import need

from polydistill.records import (
    COMPLETIONS,
    METRICS,
    RIBBONS,
    SUMMARY,
    CompletionRecord,
    RecordWriter,
    Ribbon,
    RunSummary,
    StepRecord,
    write_ribbons,
    write_summary,
)
from polydistill.report import write_report

pytestmark = pytest.mark.slow

BROWSER = "not an origin"


@dataclass(frozen=True)
class Visit:
    """The document after its scripts ran, what the console said, and the hosts that were asked for anything."""

    dom: str
    console: list[str]
    hosts: set[str]


def visit(page: Path, scratch: Path) -> Visit:
    browser = need("browser")
    log = scratch / "net.json"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--proxy-server=127.0.0.1:9",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={scratch / 'profile'}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--window-size=1180,2000",
            "--virtual-time-budget=15000",
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text(errors="replace"))["events"]]
    # What the browser asks for on its own account has no origin.
    asked = [event["url"] for event in events if "url" in event and event.get("initiator", BROWSER) != BROWSER]
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    return Visit(done.stdout, console, hosts)


def drawn(dom: str) -> int:
    return len(re.findall(r'<div class="canvas js-plotly-plot"', dom))


def test_a_page_that_does_ask_and_complain_would_be_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://a.example.invalid/x.png"><script>fetch("https://b.example.invalid/")</script>')
    seen = visit(page, tmp_path)
    assert seen.hosts == {"a.example.invalid", "b.example.invalid"}
    assert "Failed to fetch" in seen.console[0]


def test_every_plot_of_the_page_is_drawn_and_nothing_is_asked_of_the_network(demo_run, tmp_path_factory):
    seen = visit(write_report(demo_run), tmp_path_factory.mktemp("browser"))
    assert seen.console == []
    assert seen.hosts == set()
    plots = int(re.search(r'<html[^>]* data-plots="(\d+)"', seen.dom)[1])
    assert plots == drawn(seen.dom) >= 14
    assert seen.dom.count('class="main-svg"') >= 2 * plots
    assert seen.dom.count('class="js-line"') >= plots


HOSTILE = (
    "<script>MARK</script>",
    "<img src=x onerror=MARK>",
    "<svg onload=MARK>",
    "<svg><script>MARK</script></svg>",
    "<iframe src='javascript:MARK'></iframe>",
    "<a href=javascript:MARK autofocus>x</a>",
    "<input autofocus onfocus=MARK>",
    "<details open ontoggle=MARK>",
    "<body onload=MARK>",
    "<math><mtext></mtext><script>MARK</script></math>",
    '"><script>MARK</script>',
    "' onmouseover='MARK' x='",
    "</textarea></title></style></script><script>MARK</script>",
    "--><script>MARK</script><!--",
    "]]><script>MARK</script>",
    "{{ MARK }}{% raw %}<script>MARK</script>",
    "\u202e<script>MARK</script>\u2066",
    "\x1b]0;MARK\x07<script>MARK</script>",
    "<meta http-equiv=refresh content='0;url=javascript:MARK'>",
    "\u2028</script \n><script\n>MARK</script\t>",
)
"""What would run if it were anything but text."""


def written_by(student: str, nasty: str, step: int) -> CompletionRecord:
    asked = {"teachers": [student, "b"], "weights": [[0.4, 0.6]], "log_prob": [[-1.0, -2.0]]}
    return CompletionRecord(step=step, student=student, prompt=nasty, tokens=[nasty], student_log_prob=[-1.0], **asked)


def test_a_script_in_the_data_does_not_run_and_is_shown_as_text(tmp_path, tmp_path_factory):
    mark = "document.documentElement.dataset.owned=1"
    nasty = f"</script><script>{mark}</script><img src=x onerror={mark}><b>&amp;</b>"
    with RecordWriter(tmp_path / METRICS) as writer:
        for step in (1, 2, 3):
            writer.write(
                StepRecord(
                    step=step,
                    loss=1.0 + step,
                    student=nasty,
                    weights={nasty: {nasty: 0.5, "b": 0.5}, "other": {nasty: 0.5, "b": 0.5}},
                    diagnostics={nasty: float(step)},
                )
            )
    hostile = [nasty, *(text.replace("MARK", mark) for text in HOSTILE)]
    write_summary(tmp_path / SUMMARY, RunSummary(title=nasty, teachers=[nasty, "b"], says=hostile))
    write_ribbons(tmp_path / RIBBONS, [Ribbon(name=nasty, teachers=[nasty, "b"], tokens=[nasty], weights=[[0.4, 0.6]])])
    with RecordWriter(tmp_path / COMPLETIONS) as writer:
        for step in (1, 2):
            for text in hostile:
                writer.write(written_by(nasty, text, step))
    seen = visit(write_report(tmp_path), tmp_path_factory.mktemp("browser"))
    assert "data-owned" not in seen.dom
    assert seen.console == []
    assert seen.hosts == set()
    assert drawn(seen.dom) == 4
    assert "javascript:" in seen.dom
    assert seen.dom.count("What it wrote before") == 6, "of twenty, six are shown"
    legend = re.search(r'class="legendtext"[^>]*>(.*?)</text>', seen.dom, re.DOTALL)[1]
    assert legend.startswith("&lt;/script&gt;&lt;script&gt;")


def test_nothing_is_wider_than_a_phone(demo_run, tmp_path_factory):
    """A window of a headless browser is never that narrow, a frame is."""
    scratch = tmp_path_factory.mktemp("browser")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(demo_run).read_text("utf-8"))
    script = """<script>setTimeout(() => {
      const root = document.documentElement;
      const wide = [...document.querySelectorAll(".main-svg, h1, h2, h3, p, li, table")].filter((e) =>
        e.getBoundingClientRect().right > 400 && !e.closest(".scroll, details:not([open])"));
      parent.postMessage([root.scrollWidth - root.clientWidth, ...wide.map((e) => e.outerHTML.slice(0, 80))], "*");
    }, 3000)</script></body>"""
    (scratch / "page.html").write_text(page.replace("</body>", script), encoding="utf-8")
    frame = scratch / "frame.html"
    frame.write_text(
        "<script>onmessage = (e) => { document.documentElement.dataset.said = JSON.stringify(e.data); }</script>"
        '<iframe src="page.html" style="width: 400px; height: 900px; border: 0"></iframe>'
    )
    seen = visit(frame, scratch)
    assert seen.console == []
    assert re.search(r'data-said="([^"]*)"', seen.dom)[1] == "[0]"


def test_a_token_is_reached_by_keyboard_and_says_its_weights(demo_run, tmp_path_factory):
    page = write_report(demo_run).read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    script = """<script>
      const here = document.querySelector('[aria-labelledby="h-ribbon"]');
      const text = here.querySelector(".text"), panel = here.querySelector(".panel");
      const press = (key) => text.dispatchEvent(new KeyboardEvent("keydown", { key }));
      const said = [];
      text.dispatchEvent(new FocusEvent("focus"));
      for (const key of ["ArrowRight", "End", "Home"]) { press(key); said.push(panel.textContent); }
      const last = text.querySelectorAll("[role=option]")[2];
      last.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      said.push(panel.textContent, text.getAttribute("aria-activedescendant"), String(text.tabIndex));
      const before = document.documentElement.dataset.theme;
      document.getElementById("theme").click();
      said.push(String(before), document.documentElement.dataset.theme);
      document.documentElement.dataset.said = JSON.stringify(said);
    </script></body>"""
    scratch = tmp_path_factory.mktemp("browser")
    copy = scratch / "page.html"
    copy.write_text(page.replace("</body>", script), encoding="utf-8")
    seen = visit(copy, scratch)
    assert seen.console == []
    said = json.loads(re.search(r'data-said="([^"]*)"', seen.dom)[1].replace("&quot;", '"').replace("&amp;", "&"))
    right, end, home, hover, active, tab, before, after = said
    assert re.match(
        r"“ mean” · \w+ [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+% · student's loss [\d.]+ nats · text of code", right
    )
    assert end.startswith("“⏎”")
    assert home.startswith("“def” · first token, nobody was asked")
    assert hover.startswith("“(”")
    assert (active, tab) == ("r3-2", "0")
    assert (before, after) == ("undefined", "dark")
