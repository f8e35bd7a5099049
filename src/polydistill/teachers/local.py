"""Teachers that live in this process."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Int
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from polydistill.data.context import to_the_left
from polydistill.logprobs import HiddenStates
from polydistill.teachers.examine import ModelRefusedError, examine
from polydistill.teachers.head import head_of, last_hidden_state
from polydistill.teachers.source import Teacher, TeacherUnavailableError
from polydistill.teachers.vocabulary import agree, check_rows, named, refuse_in, reserved_ids


class NotLoadedError(ValueError):
    """A model cannot be loaded; the sentence begins with where it was looked for."""


def load_model(
    source: str,
    dtype: torch.dtype | str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer, whole; the folder of an adapter gives its base with the adapter merged, by PEFT.

    Transformers would put the adapter into the model itself, and could not save that one with every PEFT.

    Args:
        source: hub id or local folder.
        dtype: None takes that of the weights.
        revision, trust_remote_code, model_kwargs: as Transformers has them.

    Raises:
        NotLoadedError: it cannot be, or lacks weights, which Transformers would fill with random numbers.
    """
    _refuse_no_folder(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        there = find_adapter_config_file(source, revision=revision) is not None
        adapter = PeftConfig.from_pretrained(source, revision=revision) if there else None
        if adapter is not None and adapter.is_prompt_learning:
            raise ValueError(f"its {adapter.peft_type} adapter is no change of weights and cannot be merged")
        base = source if adapter is None else str(adapter.base_model_name_or_path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype or "auto",
            output_loading_info=True,
            revision=revision if adapter is None else adapter.revision,
            trust_remote_code=trust_remote_code,
            **model_kwargs,
        )
        model, info = loaded
        if adapter is not None:
            model = PeftModel.from_pretrained(model, source, revision=revision).merge_and_unload()
            model.requires_grad_(True)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        hint = "" if Path(source).exists() else "; it is neither a local folder nor a model that the hub gave"
        raise NotLoadedError(f"{source!r} could not be loaded: {reason_of(error)}{hint}") from error
    if missing := sorted(info["missing_keys"]):
        raise NotLoadedError(
            f"{source!r} lacks {len(missing)} of the weights that its config asks for, the first being {missing[0]}"
        )
    return model, tokenizer


def _refuse_no_folder(source: str, revision: str | None) -> None:
    """What can only be a path is not asked for at the hub, which would try again and again.

    Raises:
        NotLoadedError: nothing is there, and it is no hub id, or one whose first part is a folder here.
    """
    path = Path(source)
    if path.exists():
        return
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise NotLoadedError(f"{source!r} is not there, and is no name that the hub could have; correct the path")
    beside = len(path.parts) > 1 and path.parent.is_dir() and revision is None
    if beside and not isinstance(try_to_load_from_cache(source, "config.json"), str):
        raise NotLoadedError(
            f"{source!r} is not there, and the folder {str(path.parent)!r} is; correct the path, or give a `revision` "
            "if a model of the hub is meant"
        )


def reason_of(error: Exception) -> str:
    """Why a model could not be loaded, in one sentence."""
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle that would run code, or no weights at all; save it as safetensors"
    said = str(error).strip()
    if said.startswith("Couldn't instantiate the backend tokenizer"):
        return "there is no tokenizer with it; save one there (tokenizer.save_pretrained), or name another folder"
    return next(iter(said.splitlines()), type(error).__name__)


class LocalTeacher:
    """A Transformers causal language model: runs once per step, without gradients, in its own dtype and on its device.

    Args:
        name: the teacher's name in the stack.
        model: the model; put into evaluation mode.
        tokenizer: its own, compared with the student's; None when the model object came without one, in which case
            only the number of rows can be checked.

    Raises:
        TeacherUnavailableError: the model's logits are not those of its body and head.

    >>> from polydistill import LocalTeacher
    >>> teacher = LocalTeacher.load("code", "org/coder")  # a hub id or a folder
    >>> teacher.name, teacher.model.training
    ('code', False)
    """

    configured: ClassVar[str] = "student"  # whose tokenizer, as a configuration says it

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.name, self.model, self.tokenizer = name, model.eval().requires_grad_(False), tokenizer
        self.source: dict[str, Any] | None = None  # where it was loaded from, as a configuration says it
        self.visible: int | None = None
        self.masked: Int[Tensor, " M"] | None = None
        self.student_tokenizer: PreTrainedTokenizerBase | None = None
        try:
            examine(self.model)
        except (ModelRefusedError, TypeError) as error:
            raise TeacherUnavailableError(f"teacher {name!r}: {error}") from error

    @classmethod
    def load(
        cls,
        name: str,
        source: str,
        *,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **model_kwargs: Any,
    ) -> "LocalTeacher":
        """From a hub id or a local folder.

        Raises:
            TeacherUnavailableError: it cannot be loaded; the sentence says why.
        """
        more = {"revision": revision, "trust_remote_code": trust_remote_code, **model_kwargs}
        try:
            made = cls(name, *load_model(source, dtype, **more))
        except NotLoadedError as error:
            raise TeacherUnavailableError(f"teacher {name!r}: {error}") from error
        if set(model_kwargs) <= {"device_map"}:
            said = "auto" if dtype is None else str(dtype).removeprefix("torch.")
            made.source = {"model": source, "dtype": said, "tokenizer": cls.configured, **more}
        return made

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """Check the vocabulary against the student's; returns what is masked, in words, or None.

        Raises:
            VocabularyMismatchError: the vocabularies differ in more than reserved entries.
        """
        apart: set[int] = set()
        if self.tokenizer is not None:
            apart = {index for index in agree(tokenizer, self.tokenizer, self.name) if index < visible}
        rows = self.model.get_output_embeddings().weight.shape[0]
        spare = apart | (reserved_ids(self.tokenizer) if self.tokenizer is not None else set())
        said = [check_rows(rows, visible, f"teacher {self.name!r}", spare)]
        apart |= set(range(rows, visible))
        if apart:
            self.masked, self.student_tokenizer = torch.tensor(sorted(apart)), tokenizer
            said.append(
                f"teacher {self.name!r} shares all but {len(apart)} of the student's {visible:,} entries; masked are "
                f"{named(sorted(apart), tokenizer)}"
            )
        self.visible = visible
        return "; ".join(filter(None, said)) or None

    def agreed_as(self, other: "LocalTeacher") -> None:
        """Take over what was found about the same model."""
        self.visible, self.masked, self.student_tokenizer = other.visible, other.masked, other.student_tokenizer

    def known_ids(self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The ids, where a teacher that lacks some of them is asked about none of those; padding may be any id.

        Raises:
            VocabularyMismatchError: naming the first one that it lacks.
        """
        if self.masked is None or self.student_tokenizer is None:
            return input_ids
        lacking = torch.isin(input_ids, self.masked.to(input_ids.device))
        there, who = input_ids[lacking & attention_mask.bool()].tolist(), f"teacher {self.name!r}"
        refuse_in(there, self.masked.tolist(), who, self.student_tokenizer)
        return input_ids.masked_fill(lacking, 0)

    @torch.inference_mode()
    def speak(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> HiddenStates:
        """Last hidden states of the flattened positions `rows`, and the head.

        With `position_ids` no row is padded, and a document begins wherever they begin anew.
        """
        device = self.model.device
        input_ids = self.known_ids(input_ids, attention_mask)
        order = to_the_left(attention_mask)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        length = order.shape[1]
        rows = rows.to(order.device)
        rows = rows - rows % length + order.argsort(1).flatten()[rows]
        # A student trained under autocast must not pull the teachers into its dtype.
        inputs = {"attention_mask": attention_mask} if position_ids is None else {"position_ids": position_ids}
        with torch.autocast(device.type, enabled=False):
            hidden = last_hidden_state(
                self.model, input_ids=input_ids.to(device), **{name: value.to(device) for name, value in inputs.items()}
            )
        hidden = hidden.flatten(0, 1)[rows.to(hidden.device)]
        return HiddenStates(hidden, head_of(self.model, self.visible, self.masked))

    @property
    def quantised(self) -> bool:
        """Whether its weights are, as its own configuration says."""
        return getattr(self.model.config, "quantization_config", None) is not None

    def describe(self) -> str:
        """Size and dtype."""
        return f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {self.model.dtype}"


Teachers = Mapping[str, str | PreTrainedModel | Teacher] | Sequence[str | PreTrainedModel | Teacher]


def named_teachers(teachers: Teachers) -> list[Teacher]:
    """Teachers from what a user writes: name -> hub id, folder, model or source; or a list of them.

    In a list, teachers are named after their folder or hub id.

    Raises:
        ValueError: no teachers, or two of one name.
    """
    if isinstance(teachers, Mapping):
        pairs = list(teachers.items())
    else:
        pairs = [(_name_of(teacher), teacher) for teacher in teachers]
    if not pairs:
        raise ValueError("at least one teacher is needed")
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"teachers must have different names, got {names}; give them as a dictionary name -> model")
    return [_as_teacher(name, teacher) for name, teacher in pairs]


def _as_teacher(name: str, teacher: str | PreTrainedModel | Teacher) -> Teacher:
    if isinstance(teacher, Teacher):
        teacher.name = name
        return teacher
    if isinstance(teacher, str | Path):
        return LocalTeacher.load(name, str(teacher))
    folder = Path(getattr(teacher, "name_or_path", "") or "")
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return LocalTeacher(name, teacher, AutoTokenizer.from_pretrained(str(folder)) if has_tokenizer else None)


def _name_of(teacher: str | PreTrainedModel | Teacher) -> str:
    if isinstance(teacher, Teacher):
        return teacher.name
    source = str(teacher) if isinstance(teacher, str | Path) else str(getattr(teacher, "name_or_path", "") or "teacher")
    return source.rstrip("/").split("/")[-1]
