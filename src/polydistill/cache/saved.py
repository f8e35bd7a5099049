"""The codec as a file: rank of every entry, backgrounds, dictionaries, and the settings in the metadata."""

from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import zstandard

from polydistill.cache.codec import Codec, CodecError
from polydistill.cache.container import header_of, sealed
from polydistill.cache.hidden import HiddenForm
from polydistill.logprobs import Head

DICTIONARY = "dictionary."


def codec_bytes(codec: Codec, build: str) -> bytes:
    """The file; `order` [V] u32, `log_background` [K, C, V] float16, `dictionary.STREAM` bytes, `tokenizer` in zstd."""
    tensors: dict[str, np.ndarray] = {
        "order": codec.order.astype(np.uint32),
        "log_background": codec.log_background.astype(np.float16),
        **{DICTIONARY + name: np.frombuffer(data, np.uint8) for name, data in codec.dictionaries.items()},
    }
    if codec.tokenizer:
        tensors["tokenizer"] = np.frombuffer(zstandard.compress(codec.tokenizer, 19), np.uint8)
    settings = {
        "step": codec.step,
        "signal_step": codec.signal_step,
        "draws": 0,
        "sparse": list(codec.sparse),
        "hidden": {str(place): [form.width, form.bits] for place, form in codec.hidden.items()},
        "teachers": codec.teachers,
    }
    return sealed(lambda header: safetensors.numpy.save(tensors, header), {"build": build, "codec": settings})


def build_of(data: bytes) -> str:
    """Fingerprint of the build that a file of ours belongs to; empty when it is none."""
    try:
        return str(header_of(data)[0]["build"])
    except (ValueError, KeyError):
        return ""


def head_bytes(head: Head, build: str) -> bytes:
    """A head: `weight` [V, D] of the visible entries, `bias` and `masked`; scale and soft cap in the metadata."""
    tensors = {"weight": head.weight[: head.vocabulary].detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias[: head.vocabulary].detach().cpu().contiguous()
    settings: dict[str, Any] = {"scale": head.scale, "softcap": head.softcap}
    if head.masked is not None:
        tensors["masked"], settings["visible"] = head.masked.cpu(), head.vocabulary
    return sealed(lambda header: safetensors.torch.save(tensors, header), {"build": build, "head": settings})


def head_from(data: bytes) -> Head:
    """A head from its file."""
    settings = header_of(data)[0]["head"]
    tensors = safetensors.torch.load(data)
    shaping = settings["scale"], settings["softcap"], settings.get("visible")
    return Head(tensors["weight"], tensors.get("bias"), *shaping, masked=tensors.get("masked"))


def codec_of(data: bytes) -> Codec:
    """A codec from its file.

    Raises:
        CodecError: this is no such file.
    """
    try:
        settings: dict[str, Any] = header_of(data)[0]["codec"]
        tensors = safetensors.numpy.load(data)
        return Codec(
            order=tensors["order"].astype(np.int64),
            log_background=_normalised(tensors["log_background"].astype(np.float32)),
            step=settings["step"],
            signal_step=settings["signal_step"],
            sparse=tuple(settings["sparse"]),
            hidden={int(place): HiddenForm(*form) for place, form in settings["hidden"].items()},
            teachers=settings["teachers"],
            dictionaries={
                name.removeprefix(DICTIONARY): tensor.tobytes()
                for name, tensor in tensors.items()
                if name.startswith(DICTIONARY)
            },
            tokenizer=zstandard.decompress(tensors["tokenizer"].tobytes()) if "tokenizer" in tensors else b"",
        )
    except Exception as error:  # safetensors raises its own types, json and numpy theirs
        raise CodecError(f"this is not the codec of a cache, or it is damaged: {error}") from error


def _normalised(log_b: np.ndarray) -> np.ndarray:
    """Rounding to 16 bits costs a background its mass of exactly 1."""
    if not log_b.size:
        return log_b
    return log_b - np.log(np.exp(log_b.astype(np.float64)).sum(-1, keepdims=True)).astype(np.float32)
