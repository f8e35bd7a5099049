"""What a teacher with a tokenizer of its own costs beside one of the same size with the student's, on CPU.

    python benchmarks/foreign.py --json benchmarks/results/foreign.json

Models have the demo's size and random weights; the tokenizers are the demo's. Processor seconds of one batch: hidden
states, and all distributions over the student's vocabulary; of text that the teacher meets for the first time, and of
the same text again, as in every later epoch.

    python benchmarks/foreign.py --expand 0 4

is about bounds instead: of the demo's own specialists (trained once and kept, minutes) on held-out text, by tokens of
`expand`; at all positions, and at a few that are looked at closely. With `--student 512 2048 8192` for students of
other vocabularies, byte pairs learned from the same text as the demo's. Any teachers, student and texts:

    python benchmarks/foreign.py --expand 0 8 --teachers gemma=FOLDER code=HUB/NAME --student FOLDER --texts prose=FILE

Without `--texts` these are asked about the demo's held-out text, domain by domain. With `--learn 60`, or in its place,
students of the demo's size learn so many steps from the texts: from labels only, all teachers, and each alone.

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

from polydistill.alignment import Pair
from polydistill.cache import Cache, CachedForeignTeacher, Here, Labeller, Plan, Text, build
from polydistill.cache.manifest import OWN, DataPlan, TeacherPlan
from polydistill.config.cache import CacheConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.cross import Overheard, teacher_settings
from polydistill.demo.passages import draw, train_tokenizer
from polydistill.demo.students import FLOOR, Control, StudentSettings, adaptive
from polydistill.demo.teachers import TeacherSettings, cosine, small_llama, specialists, token_losses
from polydistill.demo.tokenizers import own_tokenizers
from polydistill.logprobs import logits_of
from polydistill.objective import ForwardKL
from polydistill.pipeline import Pipeline
from polydistill.run.cache import label_with, own_texts
from polydistill.teachers import ForeignTeacher, LocalTeacher
from polydistill.training import Batch
from polydistill.weighting import Uniform
from polydistill.weighting.token import EXACT

ROUNDS = 3
LENGTH = 128
BATCH = 8
HELD = 24
"""Passages of each kind that students are judged on."""

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


def demo_texts(student: PreTrainedTokenizerFast, passages: int, split: str = "held_out") -> Texts:
    """Passages of the demo, by domain."""
    drawn = draw(read_corpus().documents[split], student, LENGTH, passages, 0, 0)
    return {domain: drawn.ids[drawn.domain[:, 0] == index] for index, domain in enumerate(DOMAINS)}


def demo_mixture(student: PreTrainedTokenizerFast, passages: int) -> torch.Tensor:
    """Held-out passages of the demo, those that change their domain among them."""
    return draw(read_corpus().documents["held_out"], student, LENGTH, passages, passages, 0).ids


def passages_of(file: str, student: PreTrainedTokenizerFast, passages: int) -> torch.Tensor:
    """Evenly spaced passages of a text, each behind the student's first token."""
    size = LENGTH - 1
    ids = student(Path(file).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    if len(ids) < size * passages:
        raise SystemExit(f"{file}: {len(ids)} tokens of the student's are too few for {passages} passages of {size}")
    starts = [number * (len(ids) // passages) for number in range(passages)]
    return torch.tensor([[student.bos_token_id, *ids[start : start + size]] for start in starts])


def bounded(
    experts: Experts, student: PreTrainedTokenizerFast, texts: Texts, expand: list[int], looks: int
) -> dict[str, Any]:
    """Teacher -> text -> tokens of `expand` -> bytes of a token of the student's and of its own, median bound, mean
    bound, share of positions where it is 0 and of those without one, medians by term, both at so many positions of a
    passage, looked at closely, seconds of a passage: the first, the later ones, all met again, and as many tokens of
    the same model's own, where nothing is translated; what the first of them knows of the vocabularies, the others
    know too.
    """
    found: dict[str, Any] = {}
    for name, (model, own) in experts.items():
        found[name] = {kind: {} for kind in texts}
        pair: Pair | None = None
        plain = LocalTeacher(name, model, own)
        plain.agree_with(own, len(own))
        for kind, most in product(texts, expand):
            ids, teacher = texts[kind], ForeignTeacher(name, model, own, expand=most)
            teacher.agree_with(student, len(student))
            pair = teacher.pair = pair or teacher.pair  # whose tables cost most
            first, *later = [seconds(teacher, row[None]) for row in ids]
            taken = {"first": first, "later": sum(later) / len(later) if later else None}
            taken["again"] = seconds(teacher, ids) / len(ids)
            errors = {term: float(values.median()) for term, values in teacher.errors().items()}
            bound = teacher.errors()["all"]
            written = student.batch_decode(ids[:, 1:])
            errors |= {"mean": float(bound.mean()), "exact": float((bound <= EXACT).float().mean())}
            errors["no bound"] = float((teacher.errors()["boundary"] >= 1.0).float().mean())
            errors |= {"bytes, student": _bytes(student, written), "bytes, own": _bytes(own, written)}
            if looks:
                places = torch.arange(len(ids) * looks) * (LENGTH // looks) + 3
                near = teacher.look_closer(ids, torch.ones_like(ids), places)
                errors |= {"closely": float(near.median()), "closely, mean": float(near.mean())}
            taken["same_tokenizer"] = seconds(plain, ids % len(own)) / len(ids)
            found[name][kind][str(most)] = errors | taken
            print(name, kind, most, found[name][kind][str(most)], file=stderr, flush=True)
    return found


def taught(experts: Experts, student: PreTrainedTokenizerBase, texts: Texts, held: Texts, steps: int) -> dict[str, Any]:
    """Student of the demo's size -> kind of held-out text -> nats per token; from labels only, from all teachers as
    the demo weighs them and evenly, and from each alone. What teachers said of the texts was off by `bounds` at most.
    """
    asked = [Overheard(ForeignTeacher(name, model, own)) for name, (model, own) in experts.items()]
    for one in asked:
        one.teacher.agree_with(student, len(student))
    names, ids = tuple(experts), torch.cat([*texts.values()])
    start = small_llama(StudentSettings().size, student, LENGTH, 1000)
    stacks: dict[str, Pipeline | None] = {
        "labels only": None,
        "all, weighted": Pipeline.of(adaptive(), names, floor=FLOOR),
    }
    stacks |= {
        "all, evenly": Pipeline.of(Uniform(), names),
        **{name: Pipeline.of(Uniform(), (name,)) for name in names},
    }
    students = {name: Control(name, stack, start) for name, stack in stacks.items()}
    order = torch.cat([torch.randperm(len(ids), generator=torch.Generator().manual_seed(n)) for n in range(steps)])
    for number in range(steps):
        rows = ids[order[number * BATCH : (number + 1) * BATCH]]
        batch, rate = Batch(rows, torch.ones_like(rows), rows), cosine(number, steps, StudentSettings().learning_rate)
        for name, one in students.items():
            one.learn(batch, [t for t in asked if name not in names or t.name == name], ForwardKL(ce=0.1), rate)
    losses = {
        name: {kind: float(token_losses(one.model, some).mean()) for kind, some in held.items()}
        for name, one in students.items()
    }
    bounds = {one.name: {term: float(v.median()) for term, v in one.teacher.errors().items()} for one in asked}
    return {"students": losses, "bounds": bounds, "positions": ids.numel() - len(ids), "steps": steps}


def stored(forms: list[str], passages: int) -> dict[str, dict[str, dict[str, float]]]:
    """Specialist -> form -> bytes per position, mean bounds live and cached, its term `stored`, distance to live."""
    (experts, student), found = demo_experts(), {}
    ids = demo_mixture(student, passages)
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


def named_ones(given: argparse.Namespace, named: str) -> dict[str, Any]:
    """Bounds and students, of the teachers and texts that are named, or of the demo's."""
    if given.teachers:
        read = [LocalTeacher.load(name, source) for name, source in given.teachers.items()]
        experts: Experts = {teacher.name: (teacher.model, teacher.tokenizer) for teacher in read}
    else:
        experts, student = demo_experts()
    if not named.isdigit():
        student = AutoTokenizer.from_pretrained(named)
    elif given.teachers or int(named) != len(student):
        student = train_tokenizer(read_corpus(), int(named))
    found, many = {}, given.passages
    if given.expand:
        texts = {"all": demo_mixture(student, many)} if not given.teachers else demo_texts(student, many)
        texts = {kind: passages_of(file, student, many) for kind, file in given.texts.items()} or texts
        found["bounds"] = bounded(experts, student, texts, given.expand, given.closely)
    if given.learn:
        learned, held = demo_texts(student, many, "student"), demo_texts(student, HELD)
        if given.texts:
            whole = {kind: passages_of(file, student, many + HELD) for kind, file in given.texts.items()}
            learned = {kind: some[:many] for kind, some in whole.items()}
            held = {kind: some[many:] for kind, some in whole.items()}
        found["taught"] = taught(experts, student, learned, held, given.learn)
    return found


def _pair(said: str) -> list[str]:
    """A name, and what it is of."""
    if "=" not in said:
        raise argparse.ArgumentTypeError(f"{said!r} lacks a name: write NAME={said}")
    return said.split("=", 1)


def main() -> None:
    """Every kind of the demo's tokenizers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--passages", type=int, default=1, help="of every domain and change of domain")
    parser.add_argument("--closely", type=int, default=3, help="positions of a passage that are looked at closely")
    parser.add_argument("--expand", type=int, nargs="*", default=[], help="bounds with so many tokens per position")
    parser.add_argument(
        "--student", nargs="*", default=["2048"], help="entries of its vocabulary, or its folder or name"
    )
    parser.add_argument("--teachers", nargs="*", type=_pair, default=[], help="NAME=FOLDER, or a name on the hub")
    parser.add_argument("--texts", nargs="*", type=_pair, default=[], help="KIND=FILE of text")
    parser.add_argument("--learn", type=int, default=0, help="steps of students of these teachers")
    parser.add_argument("--stored", nargs="*", default=[], help="caches that store teachers so")
    given = parser.parse_args()
    if (given.teachers or given.texts) and not (given.expand or given.learn):
        parser.error("--teachers and --texts are for bounds and students: say --expand, as in --expand 0 8, or --learn")
    given.teachers, given.texts = dict(given.teachers), dict(given.texts)
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if given.expand or given.learn:
        found["students"] = {Path(student).name: named_ones(given, student) for student in given.student}
    if given.stored:
        found["stored"] = stored(given.stored, given.passages)
    found = found or timed(given.passages)
    text = json.dumps({"torch": torch.__version__, **found}, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
