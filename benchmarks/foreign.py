"""What a teacher with a tokenizer of its own costs beside one of the same size with the student's, on CPU.

    python benchmarks/foreign.py --json benchmarks/results/foreign.json

Models have the demo's size and random weights; the tokenizers are the demo's. Processor seconds of one batch: hidden
states, and all distributions over the student's vocabulary; of text that the teacher meets for the first time, and of
the same text again, as in every later epoch.

    python benchmarks/foreign.py --expand 0 4

is about bounds instead: of the demo's own specialists (trained once and kept, minutes) on held-out text, by tokens of
`expand`; at all positions, and at a few that are looked at closely. With `--student 512 2048 8192` for students of
other vocabularies, byte pairs learned from the same text as the demo's.

    python benchmarks/foreign.py --stored entries hidden8 hidden16

is about caches of the same specialists on the same text: bytes per position, the mean bound and the part of it that is
the cache's, and how far what is read is from what the live teacher says.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polydistill.cache import Cache, CachedForeignTeacher, Here, Labeller, Plan, Text, build
from polydistill.cache.manifest import OWN, DataPlan, TeacherPlan
from polydistill.config.cache import CacheConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.cross import teacher_settings
from polydistill.demo.passages import draw, train_tokenizer
from polydistill.demo.teachers import TeacherSettings, small_llama, specialists
from polydistill.demo.tokenizers import own_tokenizers
from polydistill.logprobs import logits_of
from polydistill.run.cache import label_with, own_texts
from polydistill.teachers import ForeignTeacher, LocalTeacher
from polydistill.weighting.token import EXACT

ROUNDS = 3
LENGTH = 128

Experts = Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
"""Teacher -> its model, and its own tokenizer."""

Texts = Mapping[str, torch.Tensor]
"""Kind -> passages in the student's tokens."""


def seconds(teacher: LocalTeacher, ids: torch.Tensor) -> float:
    """One batch."""
    rows = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
    start = process_time()
    said = teacher.speak(ids, torch.ones_like(ids), rows)
    logits_of(said, torch.arange(len(rows))).log_softmax(-1)
    return process_time() - start


def compared(student: PreTrainedTokenizerFast, own: PreTrainedTokenizerFast, ids: torch.Tensor) -> dict[str, float]:
    """Seconds of both, and the ratio of text that is met again."""
    settings = TeacherSettings()
    plain = LocalTeacher("plain", small_llama(settings.size, student, settings.length, 0), student)
    foreign = ForeignTeacher("foreign", small_llama(settings.size, own, settings.length, 0), own)
    for teacher in (plain, foreign):
        teacher.agree_with(student, len(student))
    first = seconds(foreign, ids)
    again = min(seconds(foreign, ids) for _ in range(ROUNDS))
    same = min(seconds(plain, ids) for _ in range(ROUNDS))
    return {"first": first, "again": again, "same_tokenizer": same, "ratio": again / same}


def demo_experts() -> tuple[Experts, PreTrainedTokenizerFast]:
    """The demo's specialists, and its student's tokenizer."""
    found = specialists(teacher_settings(), read_corpus(), own=True)
    load = PreTrainedTokenizerFast.from_pretrained
    return {domain: (model, load(found.folder / domain)) for domain, model in found.models.items()}, found.tokenizer


def demo_texts(student: PreTrainedTokenizerFast, passages: int, *, apart: bool) -> Texts:
    """Held-out passages of the demo: by domain, or all together with those that change it."""
    drawn = draw(read_corpus().documents["held_out"], student, LENGTH, passages, 0 if apart else passages, 0)
    if not apart:
        return {"all": drawn.ids}
    return {domain: drawn.ids[drawn.domain[:, 0] == index] for index, domain in enumerate(DOMAINS)}


def passages_of(file: str, student: PreTrainedTokenizerFast, passages: int) -> torch.Tensor:
    """Evenly spaced passages of a text, each behind the student's first token."""
    size = LENGTH - 1
    ids = student(Path(file).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    if len(ids) < size * passages:
        raise SystemExit(f"{file}: {len(ids)} tokens of the student's are too few for {passages} passages of {size}")
    starts = [number * (len(ids) // passages) for number in range(passages)]
    return torch.tensor([[student.bos_token_id, *ids[start : start + size]] for start in starts])


def bounded(experts: Experts, student: PreTrainedTokenizerFast, texts: Texts, expand: list[int]) -> dict[str, Any]:
    """Teacher -> text -> tokens of `expand` -> bytes of a token of the student's and of its own, median bound, mean
    bound, share of positions where it is 0, medians by term, both at a few positions that were looked at closely,
    seconds of both times.
    """
    found: dict[str, Any] = {}
    for name, (model, own) in experts.items():
        found[name] = {kind: {} for kind in texts}
        for kind, most in product(texts, expand):
            ids, teacher = texts[kind], ForeignTeacher(name, model, own, expand=most)
            teacher.agree_with(student, len(student))
            first, again = seconds(teacher, ids), seconds(teacher, ids)
            errors = {term: float(values.median()) for term, values in teacher.errors().items()}
            bound = teacher.errors()["all"]
            near = teacher.look_closer(ids, torch.ones_like(ids), torch.arange(len(ids) * 3) * 42 + 3)
            written = student.batch_decode(ids[:, 1:])
            errors |= {"mean": float(bound.mean()), "exact": float((bound <= EXACT).float().mean())}
            errors |= {"bytes, student": _bytes(student, written), "bytes, own": _bytes(own, written)}
            errors |= {"closely": float(near.median()), "closely, mean": float(near.mean())}
            found[name][kind][str(most)] = {**errors, "first": first, "again": again}
            print(name, kind, most, found[name][kind][str(most)], file=stderr, flush=True)
    return found


def stored(forms: list[str], passages: int) -> dict[str, dict[str, dict[str, float]]]:
    """Specialist -> form -> bytes per position, mean bounds live and cached, its term `stored`, distance to live."""
    (experts, student), found = demo_experts(), {}
    ids = demo_texts(student, passages, apart=False)["all"]
    rows = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
    for domain, (model, own) in experts.items():
        live = ForeignTeacher(domain, model, own)
        live.agree_with(student, len(student))
        q = logits_of(live.speak(ids, torch.ones_like(ids), rows), torch.arange(len(rows))).softmax(-1)
        found[domain] = {}
        for form in forms:
            with TemporaryDirectory() as folder:
                size = cached(live, form, [row.tolist() for row in ids], folder)
                teacher = CachedForeignTeacher(domain, Cache(folder))
                teacher.agree_with(student, len(student))
                teacher.pair = live.pair  # whose tables are filled
                said = teacher.speak(ids, torch.ones_like(ids), rows)
                p = logits_of(said, torch.arange(len(rows))).softmax(-1)
            found[domain][form] = {
                "bytes": size,
                "live": float(live.errors()["all"].mean()),
                "bound": float(teacher.errors()["all"].mean()),
                "stored": float(teacher.errors()["stored"].mean()),
                "stored, median": float(teacher.errors()["stored"].median()),
                "distance": float((p - q).abs().sum(-1).mean() / 2),
            }
            print(domain, form, found[domain][form], file=stderr, flush=True)
    return found


def cached(teacher: ForeignTeacher, form: str, texts: list[list[int]], folder: str) -> float:
    """A cache of some texts in a folder; bytes per position."""
    ours = own_texts(teacher, [Text(np.array(text)) for text in texts])
    positions = sum(len(text.tokens) - 1 for text in ours)
    plan = Plan(
        tokenizer="",
        template=OWN,
        vocabulary=teacher.pair.heard,
        data=DataPlan(sources=[], examples=len(ours), positions=positions, xxh3=""),
        tasks=[],
        teachers=[TeacherPlan(name=teacher.name, source="", dtype="", weights="", form=form)],
        examples_per_shard=256,
        batch=8,
        **CacheConfig().coding(),
    )
    labeller = Labeller([teacher.plain()], plan, tokenizer=teacher.carried())
    make = partial(partial, label_with, labeller)
    made = build(folder, plan, ours, lambda: labeller, make, Here(), command="")
    return made.size / made.positions


def _bytes(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Of a token, on average."""
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return sum(len(text.encode()) for text in texts) / tokens


def timed(passages: int) -> dict[str, object]:
    """By the kind of the teacher's tokenizer."""
    corpus = read_corpus(characters=400_000)
    student = train_tokenizer(corpus, TeacherSettings().vocabulary)
    ids = draw(corpus.documents["student"], student, 128, passages, passages, 0).ids
    found = {domain: compared(student, own, ids) for domain, own in own_tokenizers(corpus).items() if domain in DOMAINS}
    return {"positions": ids.numel() - len(ids), "seconds": found}


def bounds(given: argparse.Namespace, named: str) -> dict[str, Any]:
    """Of the teachers and texts that are named, or of the demo's, with one student."""
    experts, student = demo_experts()
    if not named.isdigit():
        student = AutoTokenizer.from_pretrained(named)
    elif int(named) != len(student):
        student = train_tokenizer(read_corpus(), int(named))
    if given.teachers:
        read = [LocalTeacher.load(*one.split("=", 1)) for one in given.teachers]
        experts = {teacher.name: (teacher.model, teacher.tokenizer) for teacher in read}
    texts = demo_texts(student, given.passages, apart=bool(given.teachers))
    if given.texts:
        files = dict(one.split("=", 1) for one in given.texts)
        texts = {kind: passages_of(file, student, given.passages) for kind, file in files.items()}
    return bounded(experts, student, texts, given.expand)


def main() -> None:
    """Every kind of the demo's tokenizers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--passages", type=int, default=1, help="of every domain and change of domain")
    parser.add_argument("--expand", type=int, nargs="*", default=[], help="bounds with so many tokens per position")
    parser.add_argument(
        "--student", nargs="*", default=["2048"], help="entries of its vocabulary, or its folder or name"
    )
    parser.add_argument("--teachers", nargs="*", default=[], help="NAME=FOLDER, or a name on the hub, for bounds")
    parser.add_argument("--texts", nargs="*", default=[], help="KIND=FILE of text, for bounds")
    parser.add_argument("--stored", nargs="*", default=[], help="caches that store teachers so")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if given.expand:
        found["bounds"] = {student: bounds(given, student) for student in given.student}
    if given.stored:
        found["stored"] = stored(given.stored, given.passages)
    found = found or timed(given.passages)
    text = json.dumps({"torch": torch.__version__, **found}, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
