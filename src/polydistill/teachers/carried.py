"""A tokenizer as bytes, so that what a teacher said in its own tokens can be read without the teacher."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polydistill.alignment.spelling import ROLES


def tokenizer_bytes(tokenizer: PreTrainedTokenizerBase, opening: list[int]) -> bytes:
    """All that its texts follow from.

    Args:
        tokenizer: a fast one.
        opening: special tokens that it begins a text with.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told |= {"truncation": None, "padding": None}
    roles = {role: getattr(tokenizer, f"{role}_token", None) for role in ROLES}
    tree: dict[str, Any] = {"tokenizer": told, "opening": opening, "roles": {k: str(v) for k, v in roles.items() if v}}
    if template := getattr(tokenizer, "chat_template", None):
        tree["template"] = template
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def tokenizer_from(data: bytes) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """As `tokenizer_bytes` was given."""
    tree = json.loads(data)
    names = {f"{role}_token": token for role, token in tree["roles"].items()}
    raw = Tokenizer.from_str(json.dumps(tree["tokenizer"], ensure_ascii=False))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    made.chat_template = tree.get("template")
    return made, tree["opening"]
