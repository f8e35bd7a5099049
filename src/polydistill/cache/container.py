"""safetensors files whose bytes follow from their content.

safetensors keeps metadata in a hash map, which is written in another order every time; so all of ours are one JSON
string under one name.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

NAME = "polydistill"


def file_of(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file."""
    return safetensors.numpy.save(dict(tensors), {NAME: metadata_text(metadata)})


def sealed(save: Callable[[dict[str, str]], bytes], metadata: Mapping[str, Any]) -> bytes:
    """A file whose metadata have the xxh3_128 of all the rest, so that it tells by itself whether it is whole.

    Args:
        save: from safetensors' metadata to the file.
        metadata: ours.
    """
    digest = _digest(metadata, save({NAME: metadata_text(metadata)}))
    return save({NAME: metadata_text({**metadata, "xxh3": digest})})


def unchanged(data: bytes) -> bool:
    """Whether a sealed file is as it was written.

    Raises:
        ValueError: this is no file of ours.
    """
    metadata, _, _ = header_of(data)
    told = metadata.pop("xxh3", None)
    return told == _digest(metadata, data)


def _digest(metadata: Mapping[str, Any], data: bytes) -> str:
    _, described, begin = header_of(data)
    digest = xxhash.xxh3_128((metadata_text(metadata) + metadata_text(described)).encode())
    digest.update(memoryview(data)[begin:])
    return digest.hexdigest()


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """As it stands in a file."""
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))


def header_of(raw: np.ndarray | bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Metadata, tensors by name as safetensors describes them, and where their bytes begin.

    Raises:
        ValueError: this is no file of ours.
    """
    head = bytes(raw[:8])
    begin = 8 + int.from_bytes(head, "little")
    if len(head) < 8 or begin > len(raw):
        raise ValueError("the header is cut short")
    try:
        header: dict[str, Any] = json.loads(bytes(raw[8:begin]))
        return json.loads(header.pop("__metadata__")[NAME]), header, begin
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the header is not ours") from error
