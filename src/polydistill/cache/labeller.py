"""From texts to the bytes of a shard: a pure function of the texts, the teachers and the codec.

Whoever runs it, in this process, in several, or on a cluster, gets the same bytes: batches are made of neighbours in
the order of the data, never of what happens to be there.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import zstandard
from jaxtyping import Int

from polydistill.cache.background import Backgrounds, Tails
from polydistill.cache.codec import DICTIONARY, LEVEL, NUMBERS, Codec
from polydistill.cache.hidden import FORMS, HiddenForm
from polydistill.cache.label import Noted, Selection, note
from polydistill.cache.manifest import Plan
from polydistill.cache.shard import Coded, key_of, shard_bytes
from polydistill.logprobs import HiddenStates, Informed, TeacherOutput
from polydistill.teachers import TeacherSource


@dataclass(frozen=True)
class Text:
    """One example: token ids without padding, and the index of its task."""

    tokens: Int[np.ndarray, " T"]
    task: int = 0


@dataclass(frozen=True)
class ShardTask:
    """What one shard is made of."""

    index: int
    texts: Sequence[Text]


class Labeller:
    """Teachers that are asked about texts.

    Args:
        teachers: in the order of the plan.
        plan: what is stored.
        device: where token ids are put.
        tokenizer: of the teacher, where the texts are its own.
    """

    tokenizer = b""

    def __init__(
        self, teachers: Sequence[TeacherSource], plan: Plan, device: str = "cpu", tokenizer: bytes = b""
    ) -> None:
        if [t.name for t in teachers] != plan.names:
            raise ValueError(f"the plan has the teachers {plan.names}, given are {[t.name for t in teachers]}")
        self.teachers, self.plan, self.device, self.tokenizer = list(teachers), plan, device, tokenizer
        self.selection = Selection(plan.mass, plan.cap, plan.least)
        self.bits = [FORMS[teacher.form] for teacher in plan.teachers]
        self.sparse = tuple(place for place, bits in enumerate(self.bits) if not bits)

    def heard(self, texts: Sequence[Text]) -> Iterator[tuple[Text, list[TeacherOutput], Int[torch.Tensor, " P"]]]:
        """Every text, what the teachers say about its batch, and the text's positions in that."""
        for start in range(0, len(texts), self.plan.batch):
            batch = texts[start : start + self.plan.batch]
            length = max(len(text.tokens) for text in batch)
            ids = torch.zeros(len(batch), length, dtype=torch.int64)
            mask = torch.zeros(len(batch), length, dtype=torch.int64)
            for b, text in enumerate(batch):
                ids[b, : len(text.tokens)] = torch.as_tensor(text.tokens)
                mask[b, : len(text.tokens)] = 1
            predicts = torch.zeros_like(mask)
            predicts[:, :-1] = mask[:, 1:]
            rows = predicts.flatten().nonzero().squeeze(1).to(self.device)
            ids, mask = ids.to(self.device), mask.to(self.device)
            said = [_plain(teacher.speak(ids, mask, rows)) for teacher in self.teachers]
            begin = 0
            for text in batch:
                number = len(text.tokens) - 1
                yield text, said, torch.arange(begin, begin + number, device=self.device)
                begin += number

    def noted(
        self,
        texts: Sequence[Text],
        tails: Tails | None = None,
        backgrounds: Backgrounds | None = None,
    ) -> Iterator[tuple[Text, Noted]]:
        """Every text, and what is noted of it."""
        for text, said, positions in self.heard(texts):
            label = torch.as_tensor(text.tokens[1:], device=self.device)
            noted = note(
                said,
                positions,
                label,
                self.selection,
                self.sparse,
                tails=tails,
                backgrounds=backgrounds,
            )
            yield text, noted

    def calibrated(self, texts: Sequence[Text]) -> Codec:
        """The codec that fits these texts."""
        plan = self.plan
        tails = Tails(len(self.sparse), plan.vocabulary, sum(len(text.tokens) - 1 for text in texts))
        noted = list(self.noted(texts, tails))
        log_background, names = tails.backgrounds(plan.backgrounds)
        hidden = {
            place: HiddenForm(noted[0][1].hidden[place].shape[1], bits) for place, bits in enumerate(self.bits) if bits
        }
        bare = Codec(
            order=tails.order() if self.sparse else _by_frequency(texts, plan.vocabulary),
            log_background=log_background,
            step=plan.step,
            signal_step=plan.signal_step,
            sparse=self.sparse,
            hidden=hidden,
            teachers=len(plan.teachers),
            dictionaries={},
            tokenizer=self.tokenizer,
        )
        samples: dict[str, list[bytes]] = {name: [] for name in NUMBERS}
        begin = 0
        for text, one in noted:
            if names.shape[1]:
                one = replace(one, background=names[:, begin : begin + len(one)])
            begin += len(one)
            for name, symbols in bare.symbols(one, text.tokens)[0].items():
                samples[name].append(symbols.tobytes())
        made = {name: _dictionary(parts) for name, parts in samples.items()}
        return replace(bare, dictionaries={name: data for name, data in made.items() if data})

    def shard(self, task: ShardTask, codec: Codec) -> bytes:
        """The file of a shard."""
        log_p = torch.from_numpy(codec.log_background)
        backgrounds = Backgrounds(log_p) if log_p.shape[1] > 1 else None
        coded = [
            Coded(key_of(text.tokens), len(text.tokens), text.task, codec.encode(noted, text.tokens))
            for text, noted in self.noted(task.texts, backgrounds=backgrounds)
        ]
        return shard_bytes(coded, self.plan.fingerprint, task.index)


def _plain(says: TeacherOutput) -> TeacherOutput:
    return says.says if isinstance(says, Informed) and isinstance(says.says, HiddenStates) else says


def _by_frequency(texts: Sequence[Text], vocabulary: int) -> Int[np.ndarray, " V"]:
    counts = np.bincount(np.concatenate([text.tokens for text in texts]), minlength=vocabulary)
    return np.argsort(-counts, kind="stable")


def _dictionary(parts: Sequence[bytes]) -> bytes:
    """A zstd dictionary for samples of one stream; empty where there is too little to learn from."""
    kept: list[bytes | bytearray | memoryview[int]] = [part for part in parts if len(part) >= 8]
    if len(kept) < 8 or sum(map(len, kept)) < 2 * DICTIONARY:
        return b""
    try:
        return zstandard.train_dictionary(DICTIONARY, kept, level=LEVEL).as_bytes()
    except zstandard.ZstdError:  # samples that are all the same, or nearly
        return b""


Label = Callable[[ShardTask], bytes]
"""From what a shard is made of to its file."""


@runtime_checkable
class Engine(Protocol):
    """Runs the labelling of many shards somewhere."""

    def run(self, make: Callable[[], Label], tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        """Index and file of every shard, as they are finished.

        Args:
            make: makes what labels, once per worker; can be pickled.
            tasks: shards to make.
        """
        ...


class Here:
    """One shard after the other, in this process."""

    def run(self, make: Callable[[], Label], tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        """As `Engine.run`."""
        label = make()
        for task in tasks:
            yield task.index, label(task)


@dataclass(frozen=True)
class Processes:
    """Several processes of this machine, each with its own copy of the teachers.

    Attributes:
        workers: number of processes.
    """

    workers: int

    def run(self, make: Callable[[], Label], tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bytes]]:
        """As `Engine.run`; at most two shards per worker are under way, whatever their number."""
        waiting: dict[Future[bytes], int] = {}
        with ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (make, os.getpid())) as pool:
            for task in tasks:
                waiting[pool.submit(_label, task)] = task.index
                if len(waiting) >= 2 * self.workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)


def _finished(waiting: dict[Future[bytes], int]) -> Iterator[tuple[int, bytes]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


_of_worker: list[Label] = []


def _begin(make: Callable[[], Label], parent: int) -> None:
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the command ends, and this with it
    _of_worker[:] = [make()]


def _leave_with(parent: int) -> None:
    """End when the command has ended, however: a worker holds its teachers, and the queue's other end itself."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _label(task: ShardTask) -> bytes:
    return _of_worker[0](task)
