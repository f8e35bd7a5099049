"""The texts of a run's caches: the very token ids that training will ask about."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import SequentialSampler

from polydistill.cache import Cache, CachedForeignTeacher, Text
from polydistill.cache.build import distinct
from polydistill.cache.foreign import END
from polydistill.cache.shard import key_of
from polydistill.cache.teacher import CachedTeacher
from polydistill.logprobs import UNKNOWN
from polydistill.teachers import ForeignTeacher, TeacherUnavailableError
from polydistill.training.taught import Taught, parts

OTHER = "(none)"
"""Name of the task of texts that have none."""


def texts_of(trainer: Taught, *, read: bool = False) -> tuple[list[Text], list[str]]:
    """Every text that the trainer may make batches of, once, and the names of the tasks.

    Args:
        trainer: of the run.
        read: of the training data only what the run's steps read.
    """
    tasks = [*trainer.pipeline.tasks, OTHER]
    chosen = rows_read(trainer) if read else None
    rows = [*rows_of(trainer, trainer.train_dataset, chosen), *rows_of(trainer, trainer.eval_dataset)]
    return distinct([Text(tokens, len(tasks) - 1 if task == UNKNOWN else task) for _, tokens, task in rows]), tasks


def own_texts(teacher: ForeignTeacher, texts: Sequence[Text]) -> list[Text]:
    """The same texts in a teacher's own tokens, each once."""
    read = [(teacher.reading(text.tokens.tolist()).tokens, text.task) for text in texts]
    return distinct([Text(np.array([*tokens, END]), task) for tokens, task in read])


def rows_of(
    trainer: Taught, dataset: Any, chosen: Sequence[int] | None = None
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Index of the row, token ids as the collator makes them, and the task, of every document.

    Args:
        trainer: of the run.
        dataset: one, several by name, or None.
        chosen: the rows that are wanted; all when None.
    """
    for part in parts(dataset):
        for row in range(len(part)) if chosen is None else chosen:
            batch = trainer.batch_of(trainer.data_collator([part[row]])).apart()
            for document, real in enumerate(batch.attention_mask.bool()):
                task = UNKNOWN if batch.task is None else int(batch.task[document, 0])
                yield row, batch.input_ids[document][real].numpy().astype(np.int64), task


def rows_read(trainer: Taught) -> Sequence[int]:
    """Indices of the training rows that the run's batches are made of, in the order in which they are first read.

    All rows where the run ends after epochs, or where its order is drawn while it trains.
    """
    data: Any = trainer.train_dataset
    loader: Any = trainer.get_train_dataloader()
    batches = trainer.args.max_steps * trainer.args.gradient_accumulation_steps
    if batches <= 0 or not isinstance(loader.get_sampler(), SeedableRandomSampler | SequentialSampler):
        return range(len(data))
    read: dict[int, None] = {}
    for epoch in count():
        loader.set_epoch(epoch)
        for batch in loader.batch_sampler:
            if batches == 0 or len(read) == len(data):
                return list(read)
            read |= dict.fromkeys(batch)
            batches -= 1
    raise AssertionError("a run of steps ends")


def refuse_unheard(trainer: Taught) -> None:
    """Every text that a run reads must be in the caches that it is taught from, before the first step.

    Raises:
        TeacherUnavailableError: naming the first that is not, and the likely reasons.
    """
    caches: dict[str, Cache] = {
        t.cache.files.address: t.cache for t in trainer.teachers if isinstance(t, CachedTeacher)
    }
    own = [teacher for teacher in trainer.teachers if isinstance(teacher, CachedForeignTeacher)]
    if not caches and not own:
        return
    for which, dataset in (("training", trainer.train_dataset), ("held-out", trainer.eval_dataset)):
        if dataset is None or not hasattr(dataset, "__len__"):  # a stream's rows are looked for as they come
            continue
        rows = list(rows_of(trainer, dataset, sorted(rows_read(trainer)) if which == "training" else None))
        for teacher in own:
            heard = [(row, tokens.tolist()) for row, tokens, _ in rows if len(tokens) > 1]
            lacking = [(row, why) for row, text in heard if (why := teacher.lacks(text))]
            if lacking:
                row, why = lacking[0]
                raise TeacherUnavailableError(
                    f"teacher {teacher.name!r} was not heard on {len(lacking):,} of the {len(heard):,} {which} texts, "
                    f"the first being row {row + 1}: {why}"
                )
        keys = [(row, key_of(tokens)) for row, tokens, _ in rows if len(tokens) > 1]
        for address, cache in caches.items():
            missing = [row for row, key in keys if key not in cache]
            if missing:
                raise TeacherUnavailableError(
                    f"{address} lacks {len(missing):,} of the {len(keys):,} {which} texts, the first being row "
                    f"{missing[0] + 1}; it was built from {', '.join(cache.plan.data.sources)}: the data, the chat "
                    "template or data.max_length differ; build a cache for this run with `polydistill cache build`"
                )
