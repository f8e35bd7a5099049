"""From a run's configuration to its cache: the very token ids that training will ask about, and the teachers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import SequentialSampler

from polydistill.cache import Cache, Engine, Here, Labeller, Manifest, Plan, Progress, ShardTask, Text
from polydistill.cache.build import build, data_fingerprint, distinct, refuse_other
from polydistill.cache.files import Files
from polydistill.cache.frontier import Point, frontier
from polydistill.cache.labeller import Label
from polydistill.cache.maintain import repair
from polydistill.cache.manifest import CODEC, DataPlan, TeacherPlan
from polydistill.cache.saved import codec_of
from polydistill.cache.shard import key_of
from polydistill.cache.store import Fault, read_manifest
from polydistill.cache.teacher import CachedTeacher, tokenizer_fingerprint
from polydistill.cache.verify import Compared, compare
from polydistill.config import run as c
from polydistill.config.file import ConfigError
from polydistill.logprobs import UNKNOWN
from polydistill.run.build import build_teachers, build_trainer
from polydistill.run.says import reading_says
from polydistill.run.student import build_student
from polydistill.teachers import LocalTeacher, Teacher, TeacherUnavailableError
from polydistill.teachers.vocabulary import tokens_by_id
from polydistill.training.taught import Taught, parts

FOLDER = "cache"
"""Of a cache inside a run's folder, unless the configuration or the command says another place."""

OTHER = "(none)"
"""Name of the task of texts that have none."""


def address_of(config: c.RunConfig, to: str | None = None) -> str:
    """Where a run's cache is."""
    return to or config.cache.path or f"{config.output.rstrip('/')}/{FOLDER}"


class Caching:
    """What building, repairing and verifying a run's cache have in common: its texts, its plan, its teachers.

    Args:
        config: of the run; its teachers are models.
        engine: where shards are made; this process when None.
        read: only the training rows that the run's steps read.

    Raises:
        ConfigError: the run is on-policy, or a teacher is a cache already.
    """

    def __init__(self, config: c.RunConfig, *, engine: Engine | None = None, read: bool = False) -> None:
        refuse_uncachable(config)
        self.config = config
        self.engine = Here() if engine is None else engine
        trainer = build_trainer(config)
        self.texts, tasks = texts_of(trainer, read=read)
        self.plan = plan_of(config, trainer, self.texts, tasks)
        self.said = reading_says(config, trainer)
        self.labeller = Labeller(trainer.teachers, self.plan, str(trainer.args.device))

    def make(self, codec: bytes) -> Callable[[], Label]:
        """What makes a worker's labelling function; workers read the configuration again, teachers do not travel."""
        if isinstance(self.engine, Here):
            return partial(_label_with, self.labeller, codec)
        return partial(worker, self.config.model_dump_json(by_alias=True), self.plan, codec, torch.get_num_threads())


def build_cache(
    config: c.RunConfig,
    to: str | None = None,
    *,
    engine: Engine | None = None,
    read: bool = False,
    codec_of: str | None = None,
    command: str = "polydistill cache build RUN.yaml",
    progress: Callable[[Progress], None] = lambda _: None,
    told: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Label the training and held-out data of a run with its teachers.

    Args:
        config: of the run.
        to: folder or fsspec address.
        engine: see `Caching`.
        read: see `Caching`.
        codec_of: address of a cache whose codec is taken over, so that the two can be merged.
        command: for messages.
        progress: told after every shard.
        told: about teachers whose own tokenizer would make other ids of the texts.

    Raises:
        FingerprintError: there is a cache of something else.
    """
    run = Caching(config, engine=engine, read=read)
    for sentence in run.said:
        told(sentence)
    plan, codec = run.plan, None
    if codec_of is not None:
        other = Cache(codec_of)
        if other.plan.coding != plan.coding:
            same = {"data": plan.data, "codec": plan.codec}
            refuse_other(codec_of, other.plan.model_copy(update=same), plan, command)
        codec = other.files.read(CODEC)
        run.plan = run.labeller.plan = plan = plan.model_copy(update={"codec": other.manifest.codec.xxh3})
    return build(
        address_of(config, to),
        plan,
        run.texts,
        lambda: run.labeller,
        run.make,
        run.engine,
        codec=codec,
        command=command,
        progress=progress,
    )


def repair_cache(
    config: c.RunConfig, to: str | None = None, *, command: str, told: Callable[[Fault], None] = lambda _: None
) -> list[Fault]:
    """Make the damaged files of a run's cache anew, and no other.

    Raises:
        FingerprintError: the cache is of something else.
    """
    where = address_of(config, to)
    runs: list[Caching] = []

    def run() -> Caching:
        if not runs:
            runs.append(Caching(config))
            _same_run(where, read_manifest(Files(where)).plan, runs[0], command)
        return runs[0]

    return repair(
        where, lambda: (run().texts, lambda: run().labeller), lambda codec: run().make(codec), Here(), told=told
    )


def verify_cache(config: c.RunConfig, to: str | None = None, *, texts: int, seed: int, command: str) -> list[Compared]:
    """Run the teachers again on a sample of the texts, and compare with what is stored.

    Raises:
        FingerprintError: the cache is of something else.
        CacheError: its files are damaged.
    """
    where = address_of(config, to)
    cache = Cache(where)
    run = Caching(config)
    _same_run(where, cache.plan, run, command)
    chosen = np.random.default_rng(seed).permutation(len(run.texts))[:texts]
    return compare(cache, run.labeller, [run.texts[int(i)] for i in sorted(chosen)])


def frontiers(
    config: c.RunConfig, *, texts: int, seed: int, told: Callable[[str, Point], None] = lambda *_: None
) -> dict[str, list[Point]]:
    """For each teacher of a run what several ways of storing it cost and lose, on the run's own text.

    Args:
        config: of the run; what the ways do not say is as its section `cache` has it.
        texts: taken at random; three of four make the codec, on the fourth it is measured.
        seed: of the sample.
        told: about every point when it is measured.

    Raises:
        ConfigError: there are too few texts.
    """
    run = Caching(config)
    chosen = [run.texts[int(i)] for i in np.random.default_rng(seed).permutation(len(run.texts))[:texts]]
    held, calibration = chosen[::4], [text for place, text in enumerate(chosen) if place % 4]
    if not calibration:
        raise ConfigError(f"data: {len(chosen)} texts are too few to measure on; at least 2 are needed")
    made: dict[str, list[Point]] = {}
    for teacher, described in zip(run.labeller.teachers, run.plan.teachers, strict=True):
        plan = run.plan.model_copy(update={"teachers": [described]})
        for point in frontier(teacher, plan, calibration, held, device=run.labeller.device):
            made.setdefault(teacher.name, []).append(point)
            told(teacher.name, point)
    return made


def _same_run(address: str, have: Plan, run: Caching, command: str) -> None:
    """A codec that was taken over is still this run's cache."""
    run.plan = run.plan.model_copy(update={"codec": have.codec})
    run.labeller.plan = run.plan
    refuse_other(address, have, run.plan, command)


def worker(config: str, plan: Plan, codec: bytes, threads: int) -> Label:
    """What a worker labels with: the teachers of the run, loaded there."""
    torch.set_num_threads(threads)
    run = c.RunConfig.model_validate_json(config)
    device = "cuda" if torch.cuda.is_available() and not run.training.cpu else "cpu"
    teachers = teachers_of(run)
    for teacher in teachers:
        if isinstance(teacher, LocalTeacher) and getattr(teacher.model, "hf_device_map", None) is None:
            teacher.model.to(device)
    return _label_with(Labeller(teachers, plan, device), codec)


def teachers_of(config: c.RunConfig) -> list[Teacher]:
    """Teachers of a run, checked against its tokenizer, without its student."""
    model, tokenizer = build_student(config.student)
    visible = min(len(tokens_by_id(tokenizer)), model.get_output_embeddings().weight.shape[0])
    teachers = list(build_teachers(config).values())
    for teacher in teachers:
        teacher.agree_with(tokenizer, visible)
    return teachers


def _label_with(labeller: Labeller, codec: bytes) -> Label:
    return partial(_shard, labeller, codec_of(codec))


def _shard(labeller: Labeller, codec: Any, task: ShardTask) -> bytes:
    return labeller.shard(task, codec)


def refuse_uncachable(config: c.RunConfig) -> None:
    """What has nothing to be stored.

    Raises:
        ConfigError: it says why.
    """
    if config.training.mode == "on_policy":
        raise ConfigError(
            "training.mode: on_policy trains on text that is yet to be written; there is nothing to store"
        )
    if config.data.streamed:
        raise ConfigError("data.streaming: a cache stores every text of the data, and a stream may have no end")
    for name, section in config.teachers.items():
        if isinstance(section, c.CachedTeacherConfig):
            raise ConfigError(f"teachers.{name}: it is a cache already; name the model that is to be heard")
        if isinstance(section, c.LocalTeacherConfig) and section.tokenizer == "own":
            raise ConfigError(f"teachers.{name}.tokenizer: a cache stores teachers with the student's tokenizer only")
    if unknown := sorted(set(config.cache.expert.forms) - set(config.teachers)):
        known = ", ".join(config.teachers)
        raise ConfigError(f"cache.expert.forms: there is no teacher {unknown[0]!r}; there are {known}")


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


def texts_of(trainer: Taught, *, read: bool = False) -> tuple[list[Text], list[str]]:
    """Every text that the trainer may make batches of, once, and the names of the tasks.

    Args:
        trainer: of the run.
        read: of the training data only what the run's steps read.
    """
    tasks = [*trainer.pipeline.tasks, OTHER]
    chosen = rows_read(trainer) if read else None
    rows = [*_rows(trainer, trainer.train_dataset, chosen), *_rows(trainer, trainer.eval_dataset)]
    return distinct([Text(tokens, len(tasks) - 1 if task == UNKNOWN else task) for _, tokens, task in rows]), tasks


def _rows(trainer: Taught, dataset: Any, chosen: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray, int]]:
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


def plan_of(config: c.RunConfig, trainer: Taught, texts: list[Text], tasks: list[str]) -> Plan:
    """Everything that the cache's files follow from."""
    section, tokenizer = config.cache, trainer.processing_class
    template = getattr(tokenizer, "chat_template", None)
    sources = [f"{config.data.train}:{config.data.train_split}"]
    if config.data.evaluation is not None:
        sources.append(f"{config.data.evaluation}:{config.data.evaluation_split}")
    return Plan(
        tokenizer=tokenizer_fingerprint(tokenizer),  # type: ignore[arg-type]
        template="none" if template is None else xxhash.xxh3_128_hexdigest(str(template).encode()),
        vocabulary=trainer.visible,
        data=DataPlan(
            sources=sources,
            examples=len(texts),
            positions=sum(len(text.tokens) - 1 for text in texts),
            xxh3=data_fingerprint(texts),
        ),
        tasks=tasks,
        teachers=[_teacher(config, teacher) for teacher in trainer.teachers],
        examples_per_shard=section.examples_per_shard,
        batch=section.batch,
        **section.coding(),
    )


def _teacher(config: c.RunConfig, teacher: Teacher) -> TeacherPlan:
    section = config.teachers[teacher.name]
    form = config.cache.form(teacher.name, local=isinstance(teacher, LocalTeacher))
    if not isinstance(teacher, LocalTeacher):
        weights = xxhash.xxh3_128_hexdigest(teacher.describe().encode())
        return TeacherPlan(name=teacher.name, source=section.source, dtype="unknown", weights=weights, form=form)
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return TeacherPlan(
        name=teacher.name,
        source=section.source,
        revision=getattr(section, "revision", None),
        dtype=str(teacher.model.dtype).removeprefix("torch."),
        weights=digest.hexdigest(),
        form=form,
    )


def refuse_unheard(trainer: Taught) -> None:
    """Every text that a run reads must be in the caches that it is taught from, before the first step.

    Raises:
        TeacherUnavailableError: naming the first that is not, and the likely reasons.
    """
    caches: dict[str, Cache] = {
        t.cache.files.address: t.cache for t in trainer.teachers if isinstance(t, CachedTeacher)
    }
    if not caches:
        return
    for which, dataset in (("training", trainer.train_dataset), ("held-out", trainer.eval_dataset)):
        if dataset is None or not hasattr(dataset, "__len__"):  # a stream's rows are looked for as they come
            continue
        rows = _rows(trainer, dataset, sorted(rows_read(trainer)) if which == "training" else None)
        keys = [(row, key_of(tokens)) for row, tokens, _ in rows if len(tokens) > 1]
        for address, cache in caches.items():
            missing = [row for row, key in keys if key not in cache]
            if missing:
                raise TeacherUnavailableError(
                    f"{address} lacks {len(missing):,} of the {len(keys):,} {which} texts, the first being row "
                    f"{missing[0]}; it was built from {', '.join(cache.plan.data.sources)}: the data, the chat "
                    "template or data.max_length differ; build a cache for this run with `polydistill cache build`"
                )
