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
from functools import partial
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from polydistill.cache import Cache, CachedForeignTeacher, Here, Labeller, Plan, Text, build
from polydistill.cache.manifest import OWN, DataPlan, TeacherPlan
from polydistill.config.cache import CacheConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.passages import draw, train_tokenizer
from polydistill.demo.teachers import TeacherSettings, small_llama, specialists
from polydistill.demo.tokenizers import own_tokenizers
from polydistill.logprobs import logits_of
from polydistill.run.cache import label_with, own_texts
from polydistill.teachers import ForeignTeacher, LocalTeacher
from polydistill.weighting.token import EXACT

ROUNDS = 3


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


def bounded(expand: list[int], passages: int, size: int) -> dict[str, dict[str, dict[str, float]]]:
    """Specialist -> tokens of `expand` -> bytes of a token of the student's and of its own, median bound, mean bound,
    share of positions where it is 0, medians by term, both at a few positions that were looked at closely, seconds of
    both times.
    """
    corpus, found = read_corpus(), {}
    experts = specialists(TeacherSettings(), corpus, own=True)
    student = experts.tokenizer if size == len(experts.tokenizer) else train_tokenizer(corpus, size)
    ids = draw(corpus.documents["held_out"], student, 128, passages, passages, 0).ids
    texts = student.batch_decode(ids[:, 1:])
    for domain, model in experts.models.items():
        own = PreTrainedTokenizerFast.from_pretrained(experts.folder / domain)
        found[domain] = {}
        for most in expand:
            teacher = ForeignTeacher(domain, model, own, expand=most)
            teacher.agree_with(student, len(student))
            first, again = seconds(teacher, ids), seconds(teacher, ids)
            errors = {term: float(values.median()) for term, values in teacher.errors().items()}
            bound = teacher.errors()["all"]
            near = teacher.look_closer(ids, torch.ones_like(ids), torch.arange(len(ids) * 3) * 42 + 3)
            errors |= {"mean": float(bound.mean()), "exact": float((bound <= EXACT).float().mean())}
            errors |= {"bytes, student": _bytes(student, texts), "bytes, own": _bytes(own, texts)}
            errors |= {"closely": float(near.median()), "closely, mean": float(near.mean())}
            found[domain][str(most)] = {**errors, "first": first, "again": again}
            print(domain, most, found[domain][str(most)], file=stderr, flush=True)
    return found


def stored(forms: list[str], passages: int) -> dict[str, dict[str, dict[str, float]]]:
    """Specialist -> form -> bytes per position, mean bounds live and cached, its term `stored`, distance to live."""
    corpus, found = read_corpus(), {}
    experts = specialists(TeacherSettings(), corpus, own=True)
    ids = draw(corpus.documents["held_out"], experts.tokenizer, 128, passages, passages, 0).ids
    rows = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
    for domain, model in experts.models.items():
        live = ForeignTeacher(domain, model, PreTrainedTokenizerFast.from_pretrained(experts.folder / domain))
        live.agree_with(experts.tokenizer, len(experts.tokenizer))
        q = logits_of(live.speak(ids, torch.ones_like(ids), rows), torch.arange(len(rows))).softmax(-1)
        found[domain] = {}
        for form in forms:
            with TemporaryDirectory() as folder:
                size = cached(live, form, [row.tolist() for row in ids], folder)
                teacher = CachedForeignTeacher(domain, Cache(folder))
                teacher.agree_with(experts.tokenizer, len(experts.tokenizer))
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


def main() -> None:
    """Every kind of the demo's tokenizers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--passages", type=int, default=1, help="of every domain and change of domain")
    parser.add_argument("--expand", type=int, nargs="*", default=[], help="bounds with so many tokens per position")
    parser.add_argument("--student", type=int, nargs="*", default=[2048], help="entries of its vocabulary, for bounds")
    parser.add_argument("--stored", nargs="*", default=[], help="caches that store teachers so")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if given.expand:
        found["bounds"] = {size: bounded(given.expand, given.passages, size) for size in given.student}
    if given.stored:
        found["stored"] = stored(given.stored, given.passages)
    found = found or timed(given.passages)
    text = json.dumps({"torch": torch.__version__, **found}, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
