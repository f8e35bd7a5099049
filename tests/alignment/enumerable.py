"""Teachers whose law over texts can be written down whole, in float64: the slow twin of the push-forward."""

import itertools
import math
import random
from collections import defaultdict

import torch
from made import wrapped
from tokenizers import Tokenizer, decoders, models

from polydistill.alignment import Aligned, Branches, Pair, Reader, Spelling, branch, evidence, joined, lay, pack, walk
from polydistill.logprobs import Dense

LETTERS = "ab"
LONGEST = 5
SPECIAL = ("<s>", "</s>")


def bpe(seed, merges):
    """A byte-pair vocabulary of random merges over two letters."""
    draw, made = random.Random(seed), list(LETTERS)
    joined = []
    while len(joined) < merges:
        a, b = draw.choice(made), draw.choice(made)
        if a + b not in made and len(a + b) <= 4:
            made.append(a + b)
            joined.append((a, b))
    draw.shuffle(order := list(range(len(made) + 2)))
    vocabulary = dict(zip([*SPECIAL, *made], order, strict=True))
    return _finished(models.BPE(vocabulary, joined))


def unigram(seed, merges):
    draw = random.Random(seed)
    pieces = {*LETTERS}
    while len(pieces) < merges + 2:
        pieces.add("".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 4))))
    scored = [(piece, -draw.uniform(1, 4) - 2 * (len(piece) == 1)) for piece in sorted(pieces)]
    return _finished(models.Unigram([("<unk>", -99.0), *((one, -99.0) for one in SPECIAL), *scored], unk_id=0))


def word_piece(seed, merges):
    draw = random.Random(seed)
    pieces = {*LETTERS}
    while len(pieces) < merges + 2:
        pieces.add("".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 3))))
    both = [*sorted(pieces), *("##" + piece for piece in sorted(pieces))]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *SPECIAL, *both])}
    return _finished(models.WordPiece(vocabulary, unk_token="<unk>"))


def _finished(model):
    raw = Tokenizer(model)
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(list(SPECIAL))
    return wrapped(raw, {"bos_token": "<s>", "eos_token": "</s>"})


class Enumerated:
    """A teacher that writes only what its tokenizer would, at most `LONGEST` tokens, and then ends."""

    def __init__(self, tokenizer, student, seed, sharp=1.5):
        self.spelling, self.student = Spelling(tokenizer, ("a", "ab")), Spelling(student, ("a", "ab"))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.seed, self.sharp = seed, sharp
        self.size = len(self.spelling.spelled)
        self.pair = Pair(Reader(self.spelling, self.size), Reader(self.student, len(self.student.spelled)))
        self.known = {}

    def text(self, tokens):
        return (self.spelling.join(tokens) or b"").decode()

    def following(self, tokens):
        """Probabilities of the next token, [V_T], float64."""
        tokens = tuple(tokens)
        if tokens not in self.known:
            p = torch.zeros(self.size, dtype=torch.float64)
            draw = random.Random(f"{self.seed} {self.text(tokens)} {tokens}")
            for token in range(self.size):
                score = math.exp(self.sharp * draw.gauss(0, 1))
                more = len(tokens) < LONGEST and self.spelling.spelled[token]
                if token == self.eos or (
                    more and self.spelling.read(self.text((*tokens, token)))[0] == [*tokens, token]
                ):
                    p[token] = score
            self.known[tokens] = p / p.sum()
        return self.known[tokens]

    def texts(self):
        """Every text and its probability."""
        found, open_ = {}, {(): 1.0}
        while open_:
            tokens, mass = open_.popitem()
            p = self.following(tokens)
            found[tokens] = mass * float(p[self.eos])
            open_ |= {(*tokens, t): mass * float(p[t]) for t in range(self.size) if t != self.eos and p[t] > 0}
        return found

    def truth(self):
        """Student tokens so far -> the law of the next one."""
        law = defaultdict(lambda: torch.zeros(len(self.student.spelled), dtype=torch.float64))
        eos = self.pair.same[self.eos]
        for tokens, mass in self.texts().items():
            ids = [*self.student.read(self.text(tokens))[0], eos] if tokens else [eos]
            for i, u in enumerate(ids):
                law[tuple(ids[:i])][u] += mass
        return law

    def aligned(self, ids, expand=0):
        """The push-forward along one row of student tokens, and its evidence."""
        text, found = pack(self.pair, walk(self.pair, ids, [])), Branches()
        if expand:
            text, found = branch(self.pair, text, expand, self.ask)
        says, layout = self.ask(text.tokens, found.rows, found.tokens), lay([text], [len(found.rows)])
        known = evidence(says, layout, self.pair, joined([found], [len(text.tokens)]))
        room = torch.full((len(ids), 5), torch.nan), torch.ones(len(ids))
        return Aligned(says, layout, torch.arange(len(ids)), self.pair, known, *room), known.mass, known.told

    def ask(self, tokens, rows, said):
        """What it says at every row of a text, and of those that are branched off."""
        p, before = [self.rows(tokens)], [tuple(tokens[1 : i + 1]) for i in range(len(tokens))]
        for row, token in zip(rows, said, strict=True):
            before.append((*before[row], token))
            p.append(self.following(before[-1])[None] if self.eos not in before[-1] else p[0][:1])
        return Dense(torch.cat(p).clamp_min(1e-40).log())

    def rows(self, tokens):
        """What it says after every token of a text, [M, V_T]; nothing is asked behind the end."""
        p = [self.following(tokens[1 : i + 1]) if self.eos not in tokens[: i + 1] else None for i in range(len(tokens))]
        return torch.stack([torch.full((self.size,), 1.0 / self.size).double() if x is None else x for x in p])


def sampled(teacher, seed, most=40, expand=0):
    """As `positions`, along random tokens of the student, as it may sample them: the law of texts that go on behind
    the bytes, given the student's tokens since the last of them that its tokenizer would have written otherwise; and
    the place of that one. Truth is None where nothing is said.
    """
    ours, draw, law = teacher.pair.ours, random.Random(seed), defaultdict(float)
    for tokens, mass in teacher.texts().items():
        law[teacher.text(tokens).encode()] += mass
    bos, eos = teacher.pair.same[teacher.bos], teacher.pair.same[teacher.eos]
    pieces = [i for i, piece in enumerate(teacher.student.spelled) if piece]
    teacher.pair.sampled = True
    for _ in range(most):
        ids = tuple(draw.choice(pieces) for _ in range(draw.randint(1, LONGEST)))
        aligned, _, _ = teacher.aligned([bos, *ids, eos], expand)
        out = torch.zeros(len(ids) + 2, aligned.vocabulary)
        aligned.write(slice(None), out)
        for i in range(len(ids) + 1):
            since = next(m for m in range(i + 1) if ours.writes(ids[m:i]))
            before, string = len(ours.bytes_of(ids[:since])), ours.bytes_of(ids[:i])
            truth = torch.zeros(len(teacher.student.spelled), dtype=torch.float64)
            for text, mass in law.items():
                then = (*ours.read(text[before:]), eos)
                if text.startswith(string) and then[: i - since] == ids[since:i]:
                    truth[then[i - since]] += mass
            if truth.sum() > 1e-12:
                said = float(aligned.fidelity[i]) > 0.0
                yield since, truth / truth.sum() if said else None, out[i].double().softmax(-1), float(aligned.error[i])


def positions(teacher, most=40, expand=0):
    """Student prefixes with truth, push-forward and bound at every position of likely texts."""
    law = teacher.truth()
    bos, eos = teacher.pair.same[teacher.bos], teacher.pair.same[teacher.eos]
    likely = sorted(teacher.texts().items(), key=lambda kv: -kv[1])
    for tokens, _ in itertools.islice(likely, most):
        ids = [bos, *(teacher.student.read(teacher.text(tokens))[0] if tokens else []), eos]
        aligned, _, _ = teacher.aligned(ids, expand)
        out = torch.zeros(len(ids), aligned.vocabulary)
        aligned.write(slice(None), out)
        for i in range(len(ids) - 1):
            truth = law[tuple(ids[1 : i + 1])]
            yield ids[: i + 1], truth / truth.sum(), out[i].double().softmax(-1), float(aligned.error[i])


def main():
    """Mean error and mean bound by `expand`, as in docs/tokenizers.md."""
    for first, second, seeds in ((bpe, bpe, (0, 1, 2)), (unigram, bpe, (1, 3)), (bpe, unigram, (1, 3))):
        teachers = [Enumerated(first(seed, 3), second(seed + 100, 3), seed) for seed in seeds]
        for most in (0, 2, 8):
            found = [
                (float((truth - q).abs().sum() / 2), error)
                for teacher in teachers
                for _, truth, q, error in positions(teacher, 12, most)
            ]
            apart, bound = torch.tensor(found).double().mean(0).tolist()
            print(
                f"{first.__name__}, {second.__name__}: {len(found)} positions, expand {most}: {apart:.3f}, {bound:.3f}"
            )


if __name__ == "__main__":
    main()
