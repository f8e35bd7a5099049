"""Three tasks for the EleutherAI harness from the demo's held-out text: nothing is downloaded.

demo_text         bits per byte of code, prose and dialogues
demo_code         which of four lines goes on a piece of code
demo_arithmetic   which of four answers is right
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polydistill.demo.corpus import DOMAINS, Corpus, Document, read_corpus

NAMES = ("demo_text", "demo_code", "demo_arithmetic")
CHARACTERS = 400_000
"""Of the corpus, per domain."""
LENGTH = 400
"""Characters of a passage."""

_CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{before}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
_TEXT = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
metadata: {{version: 1.0}}
"""


def write_tasks(folder: Path, documents: int = 100) -> None:
    """Write the tasks and their data into a folder, for `--include`.

    Args:
        folder: is made.
        documents: of each task, at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(characters=CHARACTERS)
    made = {"demo_text": _passages(corpus), "demo_code": _code(corpus), "demo_arithmetic": _arithmetic(corpus)}
    for name, rows in made.items():
        kept = [row for row, _ in zip(rows, range(documents), strict=False)]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        text = (_TEXT if name == "demo_text" else _CHOICE).format(name=name, file=json.dumps(str(data.resolve())))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _held_out(corpus: Corpus, domain: str) -> tuple[Document, ...]:
    return corpus.documents["held_out"][domain]


def _passages(corpus: Corpus) -> Iterator[dict[str, Any]]:
    for documents in zip(*(_held_out(corpus, domain) for domain in DOMAINS), strict=False):
        yield from ({"text": document.text[:LENGTH]} for document in documents)


def _code(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """A place in the middle of a file: the line that stands there among lines of other files."""
    draw = random.Random(0)
    files = [[line for line in d.text.splitlines() if len(line.strip()) > 8] for d in _held_out(corpus, "code")]
    others = [line for lines in files for line in lines]
    for lines in (lines for lines in files if len(lines) > 8):
        at = draw.randrange(6, len(lines))
        wrong = draw.sample([line for line in others if line not in lines], 3)
        yield _question("\n".join(lines[at - 6 : at]) + "\n", lines[at], wrong, draw)


def _arithmetic(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """The first problem of a dialogue, with its working; wrong answers differ in the last number."""
    draw = random.Random(0)
    for document in _held_out(corpus, "arithmetic"):
        question, answer = document.text.splitlines()[:2]
        tutor, working = answer.split(":", 1)
        number = re.findall(r"\d+", working)[-1]
        head, tail = working.rsplit(number, 1)
        wrong = [f"{head}{int(number) + step}{tail}" for step in draw.sample((1, 2, 3, 10, 11, 20), 3)]
        yield _question(f"{question}\n{tutor}:", working, wrong, draw)


def _question(before: str, right: str, wrong: list[str], draw: random.Random) -> dict[str, Any]:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return {"before": before, "choices": choices, "answer": choices.index(right)}
