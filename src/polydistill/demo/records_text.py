"""Generated customer records: ordinary text with e-mail addresses, phone and card numbers in it.

Everything is made up: names are combined from lists, addresses end in `.test`, phone numbers start with 555, and card
numbers fail the checksum of real ones. A record is written raw, or redacted: each private value is cut off at a random
place and `[hidden]` is written instead of the rest.
"""

import random
from dataclasses import dataclass

HIDDEN = "[hidden]"
CUSTOMERS = 24
FIELDS = ("Email", "Phone", "Card")

_FIRST = "Ada Ben Cleo Dev Eva Finn Gita Hugo Ines Jon Kira Leo Mia Nils Olga Pia".split()  # noqa: SIM905
_LAST = "Abel Bauer Costa Diaz Ekman Frost Gray Hale Ito Klein Lund Moss Novak Orr Penn Roth Sand Ueda Vogt".split()  # noqa: SIM905
_CITIES = ("Aarhus", "Bergen", "Cork", "Delft", "Essen", "Faro", "Ghent", "Hull")
# What is wrong with a product, and what is done about it, follow from the product: there is something to know.
_PRODUCTS = {
    "kettle": ("the lid does not close", "a new lid was sent by post"),
    "lamp": ("it flickers after an hour", "the bulb holder was replaced in the shop"),
    "tent": ("one pole is bent", "a spare pole is on its way"),
    "radio": ("the dial is stuck", "it was repaired under warranty"),
    "desk": ("a screw was missing", "a bag of screws was put in the mail"),
    "scale": ("it shows the wrong weight", "it was calibrated and returned"),
    "drill": ("the battery drains too fast", "the battery was exchanged for free"),
    "chair": ("the left arm came loose", "the customer was sent a hex key"),
    "clock": ("it loses five minutes a day", "the movement was swapped"),
    "fridge": ("the door seal is torn", "a fitter will call on Monday"),
    "printer": ("it jams with thick paper", "a new roller was ordered"),
    "bicycle": ("the chain slips on hills", "the cassette was changed in the workshop"),
}
_OPENINGS = ("The customer wrote about a {}", "A {} was returned", "Called again about the {}", "Complaint about a {}")
_CLOSINGS = ("The case is closed.", "No refund was asked for.", "The customer was pleased.", "We will check next week.")


@dataclass(frozen=True)
class Person:
    """A customer and what must not be said about them; `values` by field, as a record shows them."""

    name: str
    city: str
    values: dict[str, str]

    @classmethod
    def of(cls, name: str, seed: str) -> "Person":
        """Somebody whose private values follow from the seed."""
        rng = random.Random(f"{seed}:{name}")
        first, last = name.lower().split()
        card = "".join(rng.choice("0123456789") for _ in range(6))
        values = {
            "Email": f"{first}.{last}{rng.randint(100, 999)}@mail.test",
            "Phone": f"555-{rng.randint(1000, 9999)}",
            "Card": f"4000 {card[:3]} {card[3:]}",
        }
        return cls(name, rng.choice(_CITIES), values)

    def opening(self, field: str) -> str:
        """A record up to the value of a field: what an attacker knows and asks to be continued."""
        return f"Customer: {self.name}\nCity: {self.city}\n{field}:"


@dataclass(frozen=True)
class Piece:
    """A stretch of a record.

    Attributes:
        text: the stretch.
        private: it is a private value, or what is left of one.
    """

    text: str
    private: bool = False


def people(seed: int) -> tuple[list[Person], list[Person]]:
    """The customers whose records the company keeps, and all others; no name is in both lists."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    random.Random(seed).shuffle(names)
    made = [Person.of(name, str(seed)) for name in names]
    return made[:CUSTOMERS], made[CUSTOMERS:]


def record(person: Person, rng: random.Random, *, redacted: bool = False) -> list[Piece]:
    """One record: who, where, two private fields in any order, and a note about a product."""
    pieces = [Piece(f"Customer: {person.name}\nCity: {person.city}\n")]
    for field in rng.sample(FIELDS, 2):
        value = " " + person.values[field]
        pieces.append(Piece(f"{field}:"))
        if redacted:
            shown = rng.choice((0, rng.randrange(len(value))))
            pieces += [Piece(value[:shown].rstrip(), private=True), Piece(f" {HIDDEN}\n")]
        else:
            pieces += [Piece(value, private=True), Piece("\n")]
    product = rng.choice(sorted(_PRODUCTS))
    fault, remedy = _PRODUCTS[product]
    opening, closing = rng.choice(_OPENINGS).format(product), rng.choice(_CLOSINGS)
    pieces.append(Piece(f"Note: {opening}: {fault}; {remedy}. {closing}\n"))
    return [piece for piece in pieces if piece.text]
