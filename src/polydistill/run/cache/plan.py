"""From a run's configuration to the plans of its caches, and who labels."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from urllib.parse import quote

import torch
import xxhash

from polydistill.cache import Engine, Here, Labeller, Plan, Text
from polydistill.cache.build import data_of
from polydistill.cache.files import Files
from polydistill.cache.labeller import Label
from polydistill.cache.manifest import MANIFEST, NAME, OWN, PLAN, TeacherPlan
from polydistill.cache.saved import codec_of
from polydistill.cache.teacher import tokenizer_fingerprint
from polydistill.config import run as c
from polydistill.config.file import ConfigError
from polydistill.run.build import build_teachers, build_trainer
from polydistill.run.cache.texts import own_texts, texts_of
from polydistill.run.says import reading_says
from polydistill.run.student import build_student
from polydistill.teachers import ForeignTeacher, LocalTeacher, Teacher
from polydistill.teachers.vocabulary import tokens_by_id
from polydistill.training.taught import Taught

FOLDER = "cache"
"""Of a cache inside a run's folder, unless the configuration or the command says another place."""


def address_of(config: c.RunConfig, to: str | None = None) -> str:
    """Where a run's cache is."""
    return to or config.cache.path or f"{config.output.rstrip('/')}/{FOLDER}"


def addresses(config: c.RunConfig, to: str | None = None) -> dict[str, str]:
    """Where each teacher's cache is: those with tokenizers of their own have folders inside, named after them.

    An address that holds such a cache means the one that it is inside.
    """
    base = address_of(config, to).rstrip("/")
    own = {
        name: _folder(name)
        for name, section in config.teachers.items()
        if isinstance(section, c.LocalTeacherConfig) and section.tokenizer == "own"
    }
    inside = next((name for name in own.values() if base.endswith(f"/{name}")), None)
    if inside is not None and _holds_own(base):
        base = base.removesuffix(f"/{inside}")
    return {name: f"{base}/{own[name]}" if name in own else base for name in config.teachers}


def _folder(name: str) -> str:
    """A teacher's folder inside a cache: its name, encoded where it is none of a folder or one of the cache's files."""
    folder = quote(name, safe="")
    if folder in ("", ".", "..", MANIFEST, PLAN) or re.match(NAME, folder):
        return f"%{folder[:1].encode().hex().upper()}{folder[1:]}"
    return folder


def _holds_own(address: str) -> bool:
    """Whether a cache there, finished or not, is in a teacher's own tokens."""
    files = Files(address)
    for name in (MANIFEST, PLAN):
        with suppress(FileNotFoundError, ValueError, AttributeError):
            written = json.loads(files.read(name))
            return bool(written.get("plan", written).get("template") == OWN)
    return False


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
        if isinstance(section, c.LocalTeacherConfig) and section.expand:
            raise ConfigError(
                f"teachers.{name}.expand: it runs the teacher behind tokens that no text holds, for which the model "
                "itself is needed while a student learns; leave it out to store what the teacher says of the texts"
            )
        if isinstance(section, c.ServedTeacherConfig) and section.own is not None:
            raise ConfigError(
                f"teachers.{name}.tokenizer: what a server says in tokens of its own is not stored; name the model, or "
                "ask the server in every run"
            )
    if unknown := sorted(set(config.cache.expert.forms) - set(config.teachers)):
        known = ", ".join(config.teachers)
        raise ConfigError(f"cache.expert.forms: there is no teacher {unknown[0]!r}; there are {known}")


class Caching:
    """What building, repairing and verifying a cache have in common: its texts, its plan, its teachers."""

    def __init__(
        self, config: c.RunConfig, address: str, engine: Engine, texts: list[Text], plan: Plan, labeller: Labeller
    ) -> None:
        self.config, self.address, self.engine = config, address, engine
        self.texts, self.plan, self.labeller = texts, plan, labeller

    def make(self, codec: bytes) -> Callable[[], Label]:
        """What makes a worker's labelling function; workers read the configuration again, teachers do not travel."""
        if isinstance(self.engine, Here):
            return partial(label_with, self.labeller, codec)
        return partial(worker, self.config.model_dump_json(by_alias=True), self.plan, codec, torch.get_num_threads())


def cachings(
    config: c.RunConfig,
    to: str | None = None,
    *,
    engine: Engine | None = None,
    read: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> list[Caching]:
    """The caches of a run: one of all teachers with the student's tokenizer, and one of each that has its own.

    Args:
        config: of the run; its teachers are models.
        to: folder or fsspec address.
        engine: where shards are made; this process when None.
        read: only the training rows that the run's steps read.
        told: about teachers whose own tokenizer would make other ids of the texts.

    Raises:
        ConfigError: the run is on-policy, or a teacher is a cache already.
    """
    refuse_uncachable(config)
    trainer, where = build_trainer(config), addresses(config, to)
    for sentence in reading_says(config, trainer):
        told(sentence)
    texts, tasks = texts_of(trainer, read=read)
    device, made = str(trainer.args.device), list[Caching]()

    def put(teachers: Sequence[Teacher], plan: Plan, texts: list[Text], tokenizer: bytes = b"") -> None:
        labeller = Labeller(teachers, plan, device, tokenizer)
        made.append(Caching(config, where[teachers[0].name], engine or Here(), texts, plan, labeller))

    own = [teacher for teacher in trainer.given if isinstance(teacher, ForeignTeacher)]
    if same := [teacher for teacher in trainer.teachers if teacher.name not in {one.name for one in own}]:
        put(same, plan_of(config, trainer, same, texts, tasks), texts)
    for teacher in own:
        if teacher not in trainer.teachers:  # it has the student's tokenizer, and other students may not
            teacher.agree_with(trainer.processing_class, trainer.visible)  # type: ignore[arg-type]
        theirs, tokenizer = own_texts(teacher, texts), teacher.carried()
        plan = plan_of(config, trainer, [teacher], theirs, tasks)
        named = {"tokenizer": xxhash.xxh3_128_hexdigest(tokenizer), "template": OWN, "vocabulary": teacher.heard}
        put([teacher.plain()], plan.model_copy(update=named), theirs, tokenizer)
    return made


def plan_of(
    config: c.RunConfig, trainer: Taught, teachers: Sequence[Teacher], texts: list[Text], tasks: list[str]
) -> Plan:
    """Everything that the files of a cache of some teachers follow from."""
    section, tokenizer = config.cache, trainer.processing_class
    template = getattr(tokenizer, "chat_template", None)
    sources = [f"{config.data.train}:{config.data.train_split}"]
    if config.data.evaluation is not None:
        sources.append(f"{config.data.evaluation}:{config.data.evaluation_split}")
    return Plan(
        tokenizer=tokenizer_fingerprint(tokenizer),  # type: ignore[arg-type]
        template="none" if template is None else xxhash.xxh3_128_hexdigest(str(template).encode()),
        vocabulary=trainer.visible,
        data=data_of(sources, texts),
        tasks=tasks,
        teachers=[_teacher(config, teacher) for teacher in teachers],
        examples_per_shard=section.examples_per_shard,
        batch=section.batch,
        **section.coding(),
    )


def _teacher(config: c.RunConfig, teacher: Teacher) -> TeacherPlan:
    section = config.teachers[teacher.name]
    local = isinstance(teacher, LocalTeacher)
    own = isinstance(section, c.LocalTeacherConfig) and section.tokenizer == "own"
    form = config.cache.form(teacher.name, local=local, own=own)
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


def worker(config: str, plan: Plan, codec: bytes, threads: int) -> Label:
    """What a worker labels with: the teachers of the run, loaded there."""
    torch.set_num_threads(threads)
    run = c.RunConfig.model_validate_json(config)
    run = run.model_copy(update={"teachers": {name: run.teachers[name] for name in plan.names}})
    device = "cuda" if torch.cuda.is_available() and not run.training.cpu else "cpu"
    model, tokenizer = build_student(run.student)
    visible = min(len(tokens_by_id(tokenizer)), model.get_output_embeddings().weight.shape[0])
    teachers = list(build_teachers(run).values())
    for teacher in teachers:
        teacher.agree_with(tokenizer, visible)
    teachers = [t.plain() if isinstance(t, ForeignTeacher) else t for t in teachers]
    for teacher in teachers:
        if isinstance(teacher, LocalTeacher) and getattr(teacher.model, "hf_device_map", None) is None:
            teacher.model.to(device)
    return label_with(Labeller(teachers, plan, device), codec)


def label_with(labeller: Labeller, codec: bytes) -> Label:
    """What labels in this process, or in a worker."""
    return partial(labeller.shard, codec=codec_of(codec))
