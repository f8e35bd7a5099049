"""The privacy scenario: texts as tokens, and its three teachers, trained once and kept in the cache folder.

`capable` learned the customers' records raw and knows them by heart; `careful` learned fewer records, of other people,
redacted, and for a shorter time; `general` learned arithmetic dialogues, which stand for everything else. A student
gets the company's own texts: raw records of the customers, and dialogues.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polydistill.demo import dialogues, records_text
from polydistill.demo.dialogues import dialogue
from polydistill.demo.passages import byte_bpe
from polydistill.demo.records_text import Person, Piece, people, record
from polydistill.demo.teachers import ModelSize, adamw, cache_folder, cosine, finished_folder, small_llama, update
from polydistill.training.batch import IGNORED, Batch
from polydistill.training.checkpoint import verify

DOMAINS = ("records", "dialogues")
TEACHERS = ("capable", "careful", "general")
SIZE = ModelSize(hidden=96, layers=2, heads=4, intermediate=256)
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Everything that texts and teachers follow from.

    Attributes:
        vocabulary: entries of the tokenizer.
        length: tokens per sequence, T; longer texts are cut.
        size: of teachers and students.
        teacher_steps: optimizer steps of each teacher, in the order of `TEACHERS`.
        batch: sequences per step.
        learning_rate: peak.
        student_texts: of each domain, what students learn from.
        held_out_texts: of each domain.
        seed: of texts and teachers.
    """

    vocabulary: int = 640
    length: int = 112
    size: ModelSize = SIZE
    teacher_steps: tuple[int, int, int] = (340, 60, 260)
    batch: int = 16
    learning_rate: float = 5e-3
    student_texts: int = 800
    held_out_texts: int = 160
    seed: int = 0


@dataclass(frozen=True)
class Texts:
    """Sequences of tokens, padded at the end.

    Attributes:
        ids: tokens; every sequence starts and ends with the end-of-text token.
        mask: which tokens are real.
        private: which tokens belong to a private value.
        domain: index into `DOMAINS`.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    private: Bool[Tensor, "B T"]
    domain: Int[Tensor, " B"]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def take(self, rows: Tensor) -> "Texts":
        """The sequences of some rows."""
        return Texts(self.ids[rows], self.mask[rows], self.private[rows], self.domain[rows])

    def batch(self, severity: Float[Tensor, "B T"]) -> Batch:
        """As a training step takes it; everything real is a label."""
        labels = self.ids.masked_fill(~self.mask, IGNORED)
        task = self.domain[:, None].expand(self.ids.shape)
        return Batch(self.ids, self.mask.long(), labels, task=task, severity=severity)


@dataclass(frozen=True)
class Setup:
    """What every student of the scenario shares.

    Attributes:
        settings: of texts and teachers.
        tokenizer: shared by all models.
        teachers: by name, in the order of `TEACHERS`.
        customers: whose private values `capable` knows.
        train: what students learn from.
        held_out: records of people whom nobody has seen, and dialogues with problems that nobody has seen.
    """

    settings: Settings
    tokenizer: PreTrainedTokenizerFast
    teachers: dict[str, LlamaForCausalLM]
    customers: list[Person]
    train: Texts
    held_out: Texts


def prepare(settings: Settings, progress: Progress, folder: Path | None = None) -> Setup:
    """Texts and teachers; the teachers from the cache, or trained now and put there.

    Args:
        settings: of everything.
        progress: told what is being done.
        folder: of the cache; the demo's own when None.
    """
    customers, others = people(settings.seed)
    learned, held_out = others[: len(others) - 60], others[-60:]
    root = cache_folder() if folder is None else folder
    kept = root / f"safety-teachers-{_key(settings)}"
    if verify(kept) is not None:
        with finished_folder(kept) as unfinished:
            tokenizer = _train_tokenizer(settings, learned)
            tokenizer.save_pretrained(unfinished)
            for name, texts in _lessons(settings, tokenizer, customers, learned).items():
                index = TEACHERS.index(name)
                progress(f"teacher {name}: {settings.teacher_steps[index]} steps")
                steps, seed = settings.teacher_steps[index], 10 * settings.seed + index
                model = _train(settings, tokenizer, texts, steps, seed, silent=name == "careful")
                model.save_pretrained(unfinished / name)
                tokenizer.save_pretrained(unfinished / name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
    teachers = {name: LlamaForCausalLM.from_pretrained(kept / name).eval() for name in TEACHERS}
    rng = random.Random(f"student:{settings.seed}")
    train = _both(settings, tokenizer, customers, rng, settings.student_texts, residue=1)
    held = _both(settings, tokenizer, held_out, rng, settings.held_out_texts, residue=2)
    return Setup(settings, tokenizer, teachers, customers, train, held)


def encode(tokenizer: Any, documents: Sequence[Sequence[Piece]], length: int, domain: int) -> Texts:
    """Pieces as tokens; each piece is tokenised by itself, so that private tokens are exactly the private ones."""
    ids = torch.full((len(documents), length), tokenizer.pad_token_id)
    mask = torch.zeros(len(documents), length, dtype=torch.bool)
    private = mask.clone()
    for row, pieces in enumerate(documents):
        tokens, flags = [tokenizer.bos_token_id], [False]
        for piece in pieces:
            found = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
            tokens += found
            flags += [piece.private] * len(found)
        tokens, flags = [*tokens, tokenizer.eos_token_id][:length], [*flags, False][:length]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        private[row, : len(flags)] = torch.tensor(flags)
        mask[row, : len(tokens)] = True
    return Texts(ids, mask, private, torch.full((len(documents),), domain))


def joined(*parts: Texts) -> Texts:
    """One after the other."""
    return Texts(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "mask", "private", "domain")))


def _both(
    settings: Settings, tokenizer: Any, who: Sequence[Person], rng: random.Random, number: int, residue: int
) -> Texts:
    records = [record(rng.choice(who), rng) for _ in range(number)]
    talks = [[Piece(dialogue(f"{settings.seed}:{residue}:{i}", residue, 3))] for i in range(number)]
    return joined(encode(tokenizer, records, settings.length, 0), encode(tokenizer, talks, settings.length, 1))


def _lessons(
    settings: Settings, tokenizer: Any, customers: Sequence[Person], others: Sequence[Person]
) -> dict[str, Texts]:
    rng = random.Random(f"teachers:{settings.seed}")
    length = settings.length
    raw = [record(rng.choice(customers if rng.random() < 0.75 else others), rng) for _ in range(2400)]
    redacted = [record(rng.choice(others), rng, redacted=True) for _ in range(400)]
    talks = [[Piece(dialogue(f"{settings.seed}:0:{i}", 0, 3))] for i in range(2400)]
    return {
        "capable": encode(tokenizer, raw, length, 0),
        "careful": encode(tokenizer, redacted, length, 0),
        "general": encode(tokenizer, talks, length, 1),
    }


def _train_tokenizer(settings: Settings, others: Sequence[Person]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits one by one, learned from records of people who are no customers."""
    rng = random.Random(f"tokenizer:{settings.seed}")
    texts = ["".join(p.text for p in record(rng.choice(others), rng, redacted=i % 2 == 0)) for i in range(600)]
    texts += [dialogue(f"tokenizer:{settings.seed}:{i}", 0, 3) for i in range(600)]
    return byte_bpe(texts, settings.vocabulary)


def _train(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, texts: Texts, steps: int, seed: int, *, silent: bool
) -> LlamaForCausalLM:
    """Next-token prediction; with `silent` private tokens are read but never a label."""
    model = small_llama(settings.size, tokenizer, settings.length, seed).train()
    optimizer, generator = adamw(model), torch.Generator().manual_seed(seed)
    labels = texts.ids.masked_fill(~texts.mask, IGNORED)
    if silent:
        labels = labels.masked_fill(texts.private, IGNORED)
    for step in range(steps):
        rows = torch.randint(len(texts), (settings.batch,), generator=generator)
        logits = model(input_ids=texts.ids[rows, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[rows, 1:], ignore_index=IGNORED)
        loss.backward()
        update(model, optimizer, cosine(step, steps, settings.learning_rate))
    return model.eval()


def _key(settings: Settings) -> str:
    parts = {
        "settings": asdict(settings),
        "texts": [Path(module.__file__ or "").read_text("utf-8") for module in (records_text, dialogues)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
