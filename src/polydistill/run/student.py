"""The student: loaded; and when training is over whole on the main rank, saved, compared with what was trained."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from polydistill.config.file import ConfigError
from polydistill.config.run import StudentConfig
from polydistill.teachers.local import NotLoadedError, load_model, reason_of
from polydistill.training.taught import Taught
from polydistill.training.watch import unwrapped

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def refuse_targets(model: Any, names: list[str] | str) -> None:
    """Every name must be that of a layer, and not the head's, whose adapter would never be trained."""
    if isinstance(names, str):
        return
    layers, head = dict(model.named_modules()), model.get_output_embeddings()
    for name in names:
        hit = [module for path, module in layers.items() if path == name or path.endswith(f".{name}")]
        if not hit:
            there = sorted({path.rsplit(".", 1)[-1] for path, layer in layers.items() if isinstance(layer, nn.Linear)})
            raise ConfigError(f"student.lora.target_modules: no layer is called {name!r}; there are {', '.join(there)}")
        if any(module is head for module in hit):
            raise ConfigError(
                f"student.lora.target_modules: {name!r} is the head, which takes no adapter; leave it out"
            )


def build_student(section: StudentConfig) -> tuple[Any, Any]:
    """Student model and tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        model, tokenizer = load_model(
            section.model,
            # In bfloat16 the updates of an ordinary learning rate are rounded away.
            DTYPES[section.dtype] or (torch.float32 if section.lora is None else None),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )
    except NotLoadedError as error:
        raise ConfigError(f"student.model: {error}") from error
    for copied in ("_vocab", "_merges"):  # of the backend; `datasets` would pickle them for every map, seconds each
        vars(tokenizer).pop(copied, None)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if section.chat_template is not None:
        tokenizer.chat_template = _template(section.chat_template)
    return model, tokenizer


def _template(source: str) -> str:
    """The chat template of a tokenizer's folder, or that a file is.

    Raises:
        ConfigError: there is none.
    """
    try:
        if Path(source).is_file():
            return Path(source).read_text(encoding="utf-8")
        found = AutoTokenizer.from_pretrained(source).chat_template
    except (OSError, ValueError) as error:
        raise ConfigError(f"student.chat_template: {source!r} cannot be read: {reason_of(error)}") from error
    if not isinstance(found, str):
        raise ConfigError(f"student.chat_template: the tokenizer in {source!r} has no chat template, or several")
    return found


def whole_student(trainer: Taught) -> Any | None:
    """The student with all its parameters; to be called on every rank.

    A sharded student (FSDP, DeepSpeed ZeRO-3) is gathered into a plain copy in main memory, which goes to the device;
    ranks other than the main one then get None.

    Raises:
        RuntimeError: a parameter is missing from what was gathered.
    """
    student: Any = trainer.accelerator.unwrap_model(trainer.model)
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if not trainer.is_fsdp_enabled and (plugin is None or plugin.zero_stage < 3):
        return student
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    base = unwrapped(student)
    made: Any = type(base)(copy.deepcopy(base.config))
    made.generation_config = copy.deepcopy(base.generation_config)
    if isinstance(student, PeftModel):
        made = get_peft_model(made, student.peft_config["default"])
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        made = made.to(dtypes.pop())
    lacking = set(made.load_state_dict(state, strict=False).missing_keys)
    tied = set(getattr(base, "_tied_weights_keys", None) or ())
    if missing := sorted(name for name in lacking if not any(name.endswith(key) for key in tied)):
        raise RuntimeError(f"the gathered student lacks {len(missing)} parameters, the first being {missing[0]}")
    made.tie_weights()
    return made.eval().to(trainer.args.device)


class StudentDiffersError(RuntimeError):
    """The student that was saved does not say what the one that was trained says."""


def merged(model: Any, flags: Mapping[str, Any]) -> Any:
    """The student without adapters, which are merged into its weights.

    Args:
        model: as it was trained.
        flags: of its configuration, as the checkpoint had them.
    """
    model = model.merge_and_unload() if isinstance(model, PeftModel) else model
    for name, value in flags.items():
        setattr(model.config.get_text_config(), name, value)
    return model


@contextmanager
def as_saved(model: Any, flags: Mapping[str, Any]) -> Iterator[Any]:
    """The student as `merged` makes it, of one that somebody goes on with: adapters are merged in a copy."""
    if isinstance(model, PeftModel):
        device = model.device
        copied = copy.deepcopy(model.cpu())  # beside the optimizer there may be no room for two
        model.to(device)
        yield merged(copied, flags)
        return
    config = model.config.get_text_config()
    kept = {name: getattr(config, name) for name in flags}
    try:
        yield merged(model, flags)
    finally:
        vars(config).update(kept)


def save_student(model: Any, tokenizer: Any, trained: torch.Tensor, folder: Path) -> None:
    """Weights, tokenizer and generation config, loadable by plain Transformers.

    Args:
        model: without adapters.
        tokenizer: its own.
        trained: `few_logits` of the model that was trained.
        folder: to write into.

    Raises:
        StudentDiffersError: loaded again, it has other logits than those.
    """
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    apart = float((few_logits(saved) - trained).abs().max() / trained.abs().max().clamp_min(1e-6))
    # Autocast differs by a few hundredths; adapters that are merged into weights of half precision by up to 0.15.
    if not apart <= (0.1 if model.dtype == torch.float32 else 0.3):
        raise StudentDiffersError(
            f"the saved student does not say what the trained one says: its logits differ by {apart:.1%}; the "
            "weights of the last checkpoint are those that were trained"
        )


@torch.no_grad()
def few_logits(model: Any) -> torch.Tensor:
    """Logits of four tokens, in evaluation mode."""
    training = model.training
    ids = torch.arange(4, device=model.device)[None] + 4
    logits = model.eval()(input_ids=ids, use_cache=False).logits.float().cpu()
    model.train(training)
    return torch.as_tensor(logits)


def weights_hash(folder: Path) -> str:
    """xxh3 of the student's weight files, in order of their names."""
    digest = xxhash.xxh3_64()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
