"""Generated arithmetic dialogues: a domain whose answers can be worked out from what was said before."""

import random
import zlib

_PEOPLE = ("Ada", "Ben", "Cleo", "Dev", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kira", "Leo")
_THINGS = ("apples", "books", "coins", "eggs", "keys", "lamps", "pens", "shells", "stamps", "tiles")
_ASKS = ("What is {}?", "Can you work out {}?", "How much is {}?", "Please tell me {}.", "And {}?")
_THANKS = ("Thank you.", "I see.", "That makes sense.", "Good, another one.", "Right.")


def dialogue(seed: str, residue: int = 0, modulus: int = 1) -> str:
    """One dialogue of two people about four to eight problems.

    Args:
        seed: everything in the dialogue follows from it.
        residue, modulus: only problems are posed whose operands hash to `residue` modulo `modulus`, so that
            dialogues with different residues share no problem.
    """
    rng = random.Random(seed)
    pupil, tutor = rng.sample(_PEOPLE, 2)
    lines = []
    for _ in range(rng.randint(4, 8)):
        question, working = rng.choice((_sum, _difference, _product, _story))(rng, residue, modulus)
        lines += [f"{pupil}: {question}", f"{tutor}: {working}"]
        if rng.random() < 0.5:
            lines.append(f"{pupil}: {rng.choice(_THANKS)}")
    return "\n".join(lines) + "\n"


def _operands(rng: random.Random, most: int, residue: int, modulus: int) -> tuple[int, int]:
    while True:
        b, a = sorted((rng.randint(2, most), rng.randint(2, most)))
        if zlib.crc32(f"{a},{b}".encode()) % modulus == residue:
            return a, b


def _sum(rng: random.Random, residue: int, modulus: int) -> tuple[str, str]:
    a, b = _operands(rng, 999, residue, modulus)
    tens = b // 10 * 10
    working = f"{a} + {b} = {a} + {tens} + {b - tens} = {a + tens} + {b - tens} = {a + b}."
    return rng.choice(_ASKS).format(f"{a} plus {b}"), working


def _difference(rng: random.Random, residue: int, modulus: int) -> tuple[str, str]:
    a, b = _operands(rng, 999, residue, modulus)
    tens = b // 10 * 10
    working = f"{a} - {b} = {a} - {tens} - {b - tens} = {a - tens} - {b - tens} = {a - b}."
    return rng.choice(_ASKS).format(f"{a} minus {b}"), working


def _product(rng: random.Random, residue: int, modulus: int) -> tuple[str, str]:
    a, b = _operands(rng, 99, residue, modulus)
    tens, ones = b // 10 * 10, b % 10
    working = f"{a} * {b} = {a} * {tens} + {a} * {ones} = {a * tens} + {a * ones} = {a * b}."
    return rng.choice(_ASKS).format(f"{a} times {b}"), working


def _story(rng: random.Random, residue: int, modulus: int) -> tuple[str, str]:
    a, b = _operands(rng, 99, residue, modulus)
    who, thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    if rng.random() < 0.5:
        question = f"{who} has {a} {thing} and buys {b} more. How many {thing} does {who} have now?"
        return question, f"{a} + {b} = {a + b}, so {who} has {a + b} {thing}."
    question = f"{who} has {a} {thing} and gives away {b}. How many {thing} are left?"
    return question, f"{a} - {b} = {a - b}, so {a - b} {thing} are left."
