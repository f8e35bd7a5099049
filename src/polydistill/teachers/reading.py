"""Where a teacher's own tokenizer would make other ids of the run's text; a fact, since the student's ids are used.

Equal vocabularies do not mean equal text: one tokenizer begins a text with a token of its own, lowercases it, ends it
with another token, or writes a conversation in another template. A teacher was trained on what its own one makes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Sample = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation."""


def samples_of(rows: Iterable[Mapping[str, Any]], tokenizer: Any, text_field: str = "text") -> list[Sample]:
    """What rows of any format say, as a text or a conversation."""
    made: list[Sample] = []
    for row in rows:
        said = row.get("messages") or row.get("prompt") or row.get(text_field)
        if said is None:
            said = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
        more = row.get("completion") if row.get("prompt") else None
        made.append(said + more if more and isinstance(more, type(said)) else said)
    return made


def reads_otherwise(name: str, student: Any, teacher: Any, samples: Sequence[Sample]) -> list[str]:
    """Sentences about the first text and the first conversation that a teacher reads otherwise, and the end token.

    Args:
        name: the teacher's.
        student, teacher: tokenizers with one vocabulary.
        samples: texts and conversations of the run.
    """
    said: list[str] = []
    for kind, what in ((str, "text"), (list, "conversations")):
        some = [(number, sample) for number, sample in enumerate(samples, 1) if isinstance(sample, kind)]
        found = next(filter(None, (_first(number, sample, student, teacher) for number, sample in some)), None)
        if found is not None:
            said.append(
                f"teacher {name!r}: its own tokenizer makes other ids of the run's {what}: {found}; it is asked about "
                "the student's ids all the same"
            )
    if student.eos_token_id != teacher.eos_token_id:
        said.append(
            f"teacher {name!r} ends a text with {teacher.eos_token!r}, and the student with {student.eos_token!r}"
        )
    return said


def _first(number: int, sample: Sample, student: Any, teacher: Any) -> str | None:
    """Where the ids of a sample part; None where they do not."""
    where = f"row {number}"
    if isinstance(sample, str):
        ours, theirs = student(sample)["input_ids"], teacher(sample)["input_ids"]
    elif teacher.chat_template is None:
        return f"{where}: it has no chat template"
    else:
        rendered = _rendered(student, sample), _rendered(teacher, sample)
        if isinstance(rendered[1], Exception):
            return f"{where}: its chat template refuses it ({rendered[1]})"
        if isinstance(rendered[0], Exception):
            return None
        ours, theirs = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for tokenizer, text in zip((student, teacher), rendered, strict=True)
        )
    if ours == theirs:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    own, other = (_named(tokenizer, ids, at) for tokenizer, ids in ((student, ours), (teacher, theirs)))
    return f"{where}, token {at + 1} is {other} to it and {own} to the student"


def _rendered(tokenizer: Any, conversation: Sequence[Mapping[str, Any]]) -> str | Exception:
    try:
        return str(tokenizer.apply_chat_template(list(conversation), tokenize=False))
    except Exception as error:  # whatever a template raises
        return error


def _named(tokenizer: Any, ids: Sequence[int], at: int) -> str:
    return "the end" if at >= len(ids) else f"{ids[at]} {tokenizer.convert_ids_to_tokens(ids[at])!r}"
