"""A text-classification model of Transformers as a source of severity, or as judge of what was written."""

from typing import Any

import torch
import xxhash
from transformers import pipeline

from polydistill.data.context import DataError
from polydistill.data.severity import FromClassifier


def text_classifier(model: str, label: str, batch_size: int = 16) -> FromClassifier:
    """Any Transformers text-classification model, local or from the hub.

    Raises:
        DataError: it cannot be loaded, or has no such label.
    """
    try:
        run: Any = pipeline("text-classification", model=model, top_k=None)
    except (OSError, ValueError) as error:
        raise DataError(f"severity classifier {model!r} could not be loaded: {str(error).splitlines()[0]}") from error
    labels = list(run.model.config.id2label.values())
    if label not in labels:
        raise DataError(f"severity classifier {model!r} has no label {label!r}; it has {', '.join(labels)}")

    def classify(texts: list[str]) -> list[float]:
        scores = run(texts, batch_size=batch_size, truncation=True)
        return [next(entry["score"] for entry in row if entry["label"] == label) for row in scores]

    return FromClassifier(classify, f"{label}:{_content(run.model, run.tokenizer)}")


def _content(model: Any, tokenizer: Any) -> str:
    """Hash of weights, configuration and vocabulary: a model trained again under its old name is another one."""
    digest = xxhash.xxh3_64(model.config.to_json_string().encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
