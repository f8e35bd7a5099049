"""What a teacher with a tokenizer of its own costs beside one of the same size with the student's, on CPU.

    python benchmarks/foreign.py --json benchmarks/results/foreign.json

Models have the demo's size and random weights; the tokenizers are the demo's. Processor seconds of one batch: hidden
states, and all distributions over the student's vocabulary; of text that the teacher meets for the first time, and of
the same text again, as in every later epoch.

    python benchmarks/foreign.py --expand 0 4

is about bounds instead: of the demo's own specialists (trained once and kept, minutes) on held-out text, by tokens of
`expand`; at all positions, and at a few that are looked at closely.
"""

import argparse
import json
from pathlib import Path
from sys import stderr
from time import process_time

import torch
from transformers import PreTrainedTokenizerFast

from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.passages import draw, train_tokenizer
from polydistill.demo.teachers import TeacherSettings, small_llama, specialists
from polydistill.demo.tokenizers import own_tokenizers
from polydistill.logprobs import logits_of
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


def bounded(expand: list[int], passages: int) -> dict[str, dict[str, dict[str, float]]]:
    """Specialist -> tokens of `expand` -> median bound, mean bound, share of positions where it is 0, medians by term,
    both at a few positions that were looked at closely, seconds of both times.
    """
    corpus, found = read_corpus(), {}
    experts = specialists(TeacherSettings(), corpus, own=True)
    ids = draw(corpus.documents["held_out"], experts.tokenizer, 128, passages, passages, 0).ids
    for domain, model in experts.models.items():
        own = PreTrainedTokenizerFast.from_pretrained(experts.folder / domain)
        found[domain] = {}
        for most in expand:
            teacher = ForeignTeacher(domain, model, own, expand=most)
            teacher.agree_with(experts.tokenizer, len(experts.tokenizer))
            first, again = seconds(teacher, ids), seconds(teacher, ids)
            errors = {term: float(values.median()) for term, values in teacher.errors().items()}
            bound = teacher.errors()["all"]
            near = teacher.look_closer(ids, torch.ones_like(ids), torch.arange(len(ids) * 3) * 42 + 3)
            errors |= {"mean": float(bound.mean()), "exact": float((bound <= EXACT).float().mean())}
            errors |= {"closely": float(near.median()), "closely, mean": float(near.mean())}
            found[domain][str(most)] = {**errors, "first": first, "again": again}
            print(domain, most, found[domain][str(most)], file=stderr, flush=True)
    return found


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
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"bounds": bounded(given.expand, given.passages)} if given.expand else timed(given.passages)
    text = json.dumps({"torch": torch.__version__, **found}, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
