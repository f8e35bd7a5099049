"""Planted problems: texts whose law is known, and teachers that are right about a known part of it.

The next token depends on the token before it and on hidden facts (domain, convention). A teacher is a table: what it
takes for the law, given the token before. So nothing has to be trained but the students, every teacher's fault is put
there on purpose, and the least loss that any student can have is known.

* (a) `documents`: every text has one domain, one teacher for each.
* (b) `switches`: the domain changes within texts, every 4 to 64 tokens.
* (c) `kinds`: one domain; one teacher knows the numbers, another the words, and each is vague about the rest.
* (d) `conventions`: short labelled texts. Two ways to label, one per task; nothing before the label tells which way.
* (e) `everything`: a teacher for each combination of domain, kind and convention.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Dense
from polydistill.training import Batch

VOCABULARY = 64
LENGTH = 64
FIRST_WORD, FIRST_NUMBER, FIRST_KEY, FIRST_ANSWER, TAGS = 0, 20, 40, 50, 60
"""Words, numbers, keys (what is labelled), answers (labels), one tag per task."""
WRONG = 0.02
"""Share of every law, true or believed, that is uniform over everything: nothing is impossible."""


@dataclass(frozen=True)
class Texts:
    """Texts with what is hidden in them.

    Attributes:
        ids: tokens.
        expert: index of the teacher that knows the law of the token at that place.
        task: index of its task, as far as it is told; -1 where there are none.
        start: whether a document begins there.
        given: whether the token is drawn freely: nobody could predict it, and nobody learns it.
    """

    ids: Int[Tensor, "n T"]
    expert: Int[Tensor, "n T"]
    task: Int[Tensor, "n T"]
    start: Bool[Tensor, "n T"]
    given: Bool[Tensor, "n T"]

    def take(self, rows: Int[Tensor, " m"]) -> "Texts":
        """Some of them."""
        return Texts(self.ids[rows], self.expert[rows], self.task[rows], self.start[rows], self.given[rows])

    def batch(self) -> Batch:
        """As a step wants them; the expert of each position is the teacher that data may name."""
        # A position predicts the next token, so what is told about it is told of the next one.
        expert = torch.cat([self.expert[:, 1:], self.expert[:, -1:]], 1)
        return Batch(
            self.ids,
            torch.ones_like(self.ids),
            self.ids.masked_fill(self.given, -100),
            task=self.task,
            teacher=expert,
            document_start=self.start.long(),
        )


@dataclass(frozen=True)
class Planted:
    """A teacher that is a table.

    Attributes:
        name: in the stack.
        log_p: of every next token, given the token before.
    """

    name: str
    log_p: Float[Tensor, "V V"]

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Dense:
        """Its row for every token that is asked about."""
        return Dense(self.log_p[input_ids.flatten()[rows]])


@dataclass(frozen=True)
class Problem:
    """A law, teachers, and a way to draw texts.

    Attributes:
        name: of the problem.
        teachers: in order.
        tasks: names; empty when nobody tells any.
        draw: how many, generator -> texts.
        scale: the scale that is planted, in words.
        laws: of the experts, where not every one is among the teachers.
        later: what the teachers are from the middle of training on; the same when empty.
    """

    name: str
    teachers: tuple[Planted, ...]
    tasks: tuple[str, ...]
    draw: Callable[[int, torch.Generator], Texts]
    scale: str
    laws: Float[Tensor, "E V V"] | None = None
    later: tuple[Planted, ...] = ()

    def law(self, texts: Texts) -> Float[Tensor, "n T V"]:
        """The true law of every next token: its expert's."""
        expert = texts.batch().teacher
        assert expert is not None
        tables = torch.stack([teacher.log_p for teacher in self.teachers]) if self.laws is None else self.laws
        return tables[expert, texts.ids]

    def with_teachers(self, *teachers: Planted) -> "Problem":
        """The same texts under other teachers; those that know the law stay in front."""
        return replace(self, teachers=teachers)


def smoothed(table: Float[Tensor, "V V"]) -> Float[Tensor, "V V"]:
    """Log-probabilities of a table of probabilities, a little of everything mixed in; rows of nothing become even."""
    table = torch.where(table.sum(-1, keepdim=True) > 0, table, 1.0 / VOCABULARY)
    return ((1.0 - WRONG) * table + WRONG / VOCABULARY).log()


def chain(generator: torch.Generator, rows: range, successors: range, likely: int = 4) -> Float[Tensor, "V V"]:
    """A Markov chain: every token of `rows` has a few likely successors, with uneven odds; other rows are 0."""
    table = torch.zeros(VOCABULARY, VOCABULARY)
    for row in rows:
        chosen = successors.start + torch.randperm(len(successors), generator=generator)[:likely]
        odds = torch.rand(likely, generator=generator).add(0.05)
        table[row, chosen] = odds / odds.sum()
    return table


def sample(
    tables: Float[Tensor, "E V V"], expert: Int[Tensor, "n T"], first: Int[Tensor, " n"], generator: torch.Generator
) -> Int[Tensor, "n T"]:
    """Texts token by token, each from the law of its expert."""
    ids = torch.empty_like(expert)
    ids[:, 0] = first
    for t in range(1, expert.shape[1]):
        law = tables[expert[:, t], ids[:, t - 1]].exp()
        ids[:, t] = torch.multinomial(law, 1, generator=generator).squeeze(1)
    return ids


def segments(n: int, length: int, states: int, least: int, most: int, generator: torch.Generator) -> Int[Tensor, "n T"]:
    """A hidden state per token, which changes every `least` to `most` tokens."""
    state = torch.empty(n, length, dtype=torch.int64)
    for row in state:
        place = 0
        while place < length:
            size = int(torch.randint(least, most + 1, (), generator=generator))
            row[place : place + size] = int(torch.randint(states, (), generator=generator))
            place += size
    return state


def every(size: int, n: int, place: int = 0) -> Bool[Tensor, "n T"]:
    """True at one place of every document of `size` tokens."""
    return (torch.arange(LENGTH) % size == place).expand(n, -1)


def domains(
    name: str, seed: int, least: int, most: int, count: int = 3, *, hidden: float = 0.0, noise: bool = False
) -> Problem:
    """(a) and (b): as many domains as teachers, each sure of its own law everywhere.

    Args:
        name: of the problem.
        seed: of the laws.
        least, most: tokens until the domain may change.
        count: of domains.
        hidden: share of texts from one more domain, which no teacher knows.
        noise: there every token is as likely as any other, so that nobody can know it.
    """
    generator = torch.Generator().manual_seed(seed)
    everything = range(VOCABULARY)
    tables = torch.stack([smoothed(chain(generator, everything, everything)) for _ in range(count + 1)])
    if noise:
        tables[count] = smoothed(torch.zeros_like(tables[count]))

    def draw(n: int, generator: torch.Generator) -> Texts:
        expert = segments(n, LENGTH, count, least, most, generator)
        expert[torch.rand(n, generator=generator) < hidden] = count
        ids = sample(tables, expert, torch.randint(VOCABULARY, (n,), generator=generator), generator)
        start = every(LENGTH, n)
        return Texts(ids, expert, torch.full_like(ids, -1), start, start)

    teachers = tuple(Planted(f"domain{d}", tables[d]) for d in range(count))
    return Problem(name, teachers, (), draw, "context", tables)


def one_law(name: str, seed: int, believed: Callable[[Tensor, torch.Generator], Sequence[Tensor]]) -> Problem:
    """One domain; nothing about the teachers changes from place to place.

    Args:
        name: of the problem.
        seed: of the law.
        believed: law, generator -> what every teacher takes for it, log-probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    law = smoothed(chain(generator, range(VOCABULARY), range(VOCABULARY)))
    teachers = [Planted(f"teacher{k}", table) for k, table in enumerate(believed(law, generator))]

    def draw(n: int, generator: torch.Generator) -> Texts:
        expert = torch.zeros(n, LENGTH, dtype=torch.int64)
        ids = sample(law[None], expert, torch.randint(VOCABULARY, (n,), generator=generator), generator)
        start = every(LENGTH, n)
        return Texts(ids, expert, torch.full_like(ids, -1), start, start)

    return Problem(name, tuple(teachers), (), draw, "none", law[None])


def alike(seed: int) -> Problem:
    """Every teacher is the law with errors of its own, as large as the others' and everywhere: averaging is right."""
    return one_law(
        "alike",
        seed,
        lambda law, generator: [(law + torch.randn(law.shape, generator=generator)).log_softmax(-1) for _ in range(3)],
    )


def one_knows(seed: int) -> Problem:
    """One teacher knows the law, and the others know another: the one is enough."""

    def believed(law: Tensor, generator: torch.Generator) -> list[Tensor]:
        others = [smoothed(chain(generator, range(VOCABULARY), range(VOCABULARY))) for _ in range(2)]
        return [law, *others]

    return one_law("one knows", seed, believed)


WORDS, NUMBERS = range(FIRST_WORD, FIRST_NUMBER), range(FIRST_NUMBER, FIRST_KEY)


def two_kinds(number_follows: Bool[Tensor, " V"], generator: torch.Generator) -> list[Float[Tensor, "V V"]]:
    """Probabilities of who knows the words, and of who knows the numbers; each is vague about the other kind."""
    known, vague = [], []
    for kind in (WORDS, NUMBERS):
        known.append(chain(generator, range(FIRST_KEY), kind))
        vague.append(torch.zeros(VOCABULARY, VOCABULARY))
        vague[-1][:FIRST_KEY, kind.start : kind.stop] = 1.0 / len(kind)
    follows = number_follows[:, None]
    return [torch.where(follows, vague[1], known[0]), torch.where(follows, known[1], vague[0])]


def kinds(seed: int) -> Problem:
    """(c): what follows is a word or a number, as the token before tells; each teacher knows one kind."""
    generator = torch.Generator().manual_seed(seed)
    number_follows = torch.rand(VOCABULARY, generator=generator) < 0.5
    tables = torch.stack([smoothed(table) for table in two_kinds(number_follows, generator)])
    truth = torch.where(number_follows[:, None], tables[1], tables[0])

    def draw(n: int, generator: torch.Generator) -> Texts:
        first = torch.randint(FIRST_KEY, (n,), generator=generator)
        ids = sample(truth[None], torch.zeros(n, LENGTH, dtype=torch.int64), first, generator)
        start = every(LENGTH, n)
        return Texts(ids, _after(number_follows, ids), torch.full_like(ids, -1), start, start)

    return Problem("kinds", (Planted("words", tables[0]), Planted("numbers", tables[1])), (), draw, "token")


def _after(number_follows: Bool[Tensor, " V"], ids: Int[Tensor, "n T"]) -> Int[Tensor, "n T"]:
    """1 where the token before calls for a number."""
    return number_follows[torch.cat([ids[:, :1], ids[:, :-1]], 1)].long()


def answers(generator: torch.Generator) -> Float[Tensor, "V V"]:
    """One answer per key."""
    table = torch.zeros(VOCABULARY, VOCABULARY)
    answer = FIRST_ANSWER + torch.randperm(TAGS - FIRST_ANSWER, generator=generator)
    table[torch.arange(FIRST_KEY, FIRST_ANSWER), answer] = 1.0
    return table


def labelled(
    tables: Float[Tensor, "E V V"],
    expert: Int[Tensor, "n T"],
    way: Int[Tensor, "n T"],
    size: int,
    generator: torch.Generator,
) -> Int[Tensor, "n T"]:
    """Documents of `size` tokens: the tag of their task, text, a key, its answer."""
    ids = torch.empty_like(expert)
    for t in range(LENGTH):
        if t % size == 0:
            ids[:, t] = TAGS + way[:, t]
        elif t % size == size - 2:
            ids[:, t] = torch.randint(FIRST_KEY, FIRST_ANSWER, (len(ids),), generator=generator)
        else:
            ids[:, t] = torch.multinomial(tables[expert[:, t], ids[:, t - 1]].exp(), 1, generator=generator).squeeze(1)
    return ids


def ways(n: int, size: int, generator: torch.Generator) -> Int[Tensor, "n T"]:
    """The convention of every document of `size` tokens."""
    drawn = torch.randint(2, (n, -(-LENGTH // size)), generator=generator)
    return drawn.repeat_interleave(size, 1)[:, :LENGTH]


def conventions(seed: int, size: int = 8) -> Problem:
    """(d): short labelled documents; which answer a key has is the task's convention, and all else is common."""
    generator = torch.Generator().manual_seed(seed)
    common = chain(generator, range(FIRST_KEY), range(FIRST_KEY)) + chain(generator, range(TAGS, TAGS + 2), WORDS)
    tables = torch.stack([smoothed(common + answers(generator)) for _ in range(2)])

    def draw(n: int, generator: torch.Generator) -> Texts:
        way = ways(n, size, generator)
        given = every(size, n) | every(size, n, size - 2)
        return Texts(labelled(tables, way, way, size, generator), way, way, every(size, n), given)

    return Problem(
        "conventions", (Planted("this_way", tables[0]), Planted("that_way", tables[1])), ("this", "that"), draw, "task"
    )


def everything(seed: int, size: int = 16, hidden: float = 0.0) -> Problem:
    """(e): labelled documents, whose domain changes within them and whose kinds alternate; eight teachers.

    Args:
        seed: of the laws.
        size: of a document.
        hidden: share of texts from a third domain, which no teacher knows.
    """
    generator = torch.Generator().manual_seed(seed)
    number_follows = torch.rand(VOCABULARY, generator=generator) < 0.5
    tags = chain(generator, range(TAGS, TAGS + 2), WORDS)
    text = [table for _ in range(2) for table in two_kinds(number_follows, generator)]
    labels = [answers(generator) for _ in range(2)]
    text += two_kinds(number_follows, generator)
    tables = torch.stack([smoothed(table + tags + label) for table in text for label in labels])

    follows = number_follows[:, None]
    knowing = [(tables[4 * domain + way], tables[4 * domain + 2 + way]) for domain in range(3) for way in range(2)]
    truth = torch.stack([torch.where(follows, numbers, words) for words, numbers in knowing])

    def draw(n: int, generator: torch.Generator) -> Texts:
        way, domain = ways(n, size, generator), segments(n, LENGTH, 2, 4, size, generator)
        if hidden:
            domain[torch.rand(n, generator=generator) < hidden] = 2
        ids = labelled(truth, 2 * domain + way, way, size, generator)
        given = every(size, n) | every(size, n, size - 2)
        return Texts(ids, 4 * domain + 2 * _after(number_follows, ids) + way, way, every(size, n), given)

    names = [
        f"{domain}_{kind}_{way}"
        for domain in ("here", "there")
        for kind in ("words", "numbers")
        for way in ("this", "that")
    ]
    return Problem("everything", tuple(map(Planted, names, tables)), ("this", "that"), draw, "all three", tables)


def problems(seed: int) -> Mapping[str, Problem]:
    """All of them, drawn anew for every seed."""
    return {
        "a": domains("documents", seed, LENGTH, LENGTH),
        "b": domains("switches", seed, 4, LENGTH),
        "c": kinds(seed),
        "d": conventions(seed),
        "e": everything(seed),
    }
