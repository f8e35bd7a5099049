"""Data sets with stored teachers of other tools, read with a tokenizer into a cache."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from transformers import AutoTokenizer

from polydistill.cache.manifest import Manifest
from polydistill.cache.published import Layout, Source, import_cache, listed_rows, packed_rows
from polydistill.cache.teacher import tokenizer_fingerprint
from polydistill.config.file import ConfigError
from polydistill.data.context import DataError
from polydistill.data.load import load_data
from polydistill.teachers.vocabulary import tokens_by_id


def import_data(
    data: str, tokenizer: str, to: str, teacher: str, *, layout: Path | None, column: str, split: str, step: float
) -> Manifest:
    """A cache from a data set with stored positions.

    Args:
        data: file or hub id.
        tokenizer: hub id or folder.
        to: address of the cache.
        teacher: its name there.
        layout: DistillKit's settings; None reads a column of top-k log-probabilities.
        column: of those.
        split: of a hub data set.
        step: of the stored log-probabilities, nats.

    Raises:
        DataError: the data cannot be read, or lacks the columns.
        ConfigError: the tokenizer or the settings cannot be read.
        ImportRefusedError: a row is not what the format says.
    """
    try:
        words = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer: {tokenizer!r}: {str(error).strip().splitlines()[0]}") from error
    rows = load_data(data, split)
    needed = ["input_ids", "compressed_logprobs", "bytepacked_indices"] if layout else [column]
    if missing := [name for name in needed if name not in rows.column_names]:
        raise DataError(f"{data} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
    if layout is None:
        made = [listed_rows(row, _tokens(row, words, data), column, f"{data}, row {at}") for at, row in enumerate(rows)]
    else:
        settings = _layout(layout)
        made = [packed_rows(row, settings) for row in rows]
    vocabulary = len(tokens_by_id(words))
    return import_cache(to, Source(data, tokenizer_fingerprint(words), vocabulary, made), teacher, step=step)


def _tokens(row: dict[str, Any], tokenizer: Any, data: str) -> np.ndarray:
    """Ids of a row: as they are, or made from its messages or its text."""
    if row.get("input_ids") is not None:
        return np.asarray(row["input_ids"], np.int64)
    if row.get("messages") is not None:
        return np.asarray(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False), np.int64)
    if row.get("text") is not None:
        return np.asarray(tokenizer(row["text"]).input_ids, np.int64)
    raise DataError(f"{data} needs one of the columns input_ids, messages or text beside the log-probabilities")


def _layout(path: Path) -> Layout:
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise ConfigError(f"--layout: {path} cannot be read: {error}") from error
    tree = tree.get("logprob_compressor", tree) if isinstance(tree, dict) else tree
    try:
        return Layout.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"--layout: {path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
