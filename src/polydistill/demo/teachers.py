"""Three specialists, one per domain: trained once, then kept in the user's cache folder."""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polydistill.demo.corpus import DOMAINS, Corpus
from polydistill.demo.passages import train_tokenizer, windows
from polydistill.demo.tokenizers import SIZES, own_tokenizers
from polydistill.logprobs import HiddenStates
from polydistill.run.progress import Steps
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.checkpoint import verify, write_manifest


@dataclass(frozen=True)
class ModelSize:
    """A Llama-type model; `intermediate` is the width of the feed-forward part."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class TeacherSettings:
    """Everything that a teacher follows from, besides its text.

    Attributes:
        vocabulary: entries of the tokenizer.
        length: tokens per sequence, `T`.
        size: of each teacher.
        steps, batch: optimizer steps of `batch` sequences.
        learning_rate: peak, reached after 5% of the steps; then a cosine to 5% of it.
        seed: initial weights and order of the texts.
    """

    vocabulary: int = 2048
    length: int = 128
    size: ModelSize = ModelSize(hidden=128, layers=2, heads=4, intermediate=384)
    steps: int = 1100
    batch: int = 8
    learning_rate: float = 4e-3
    seed: int = 0


@dataclass(frozen=True)
class Specialists:
    """The teachers, and the tokenizer of the students.

    Attributes:
        tokenizer: of the students, and of teachers that have none of their own.
        models: by domain, in the order of `DOMAINS`.
        folder: where they are kept.
        seconds: spent on training them now; 0 when they were found.
    """

    tokenizer: PreTrainedTokenizerFast
    models: Mapping[str, LlamaForCausalLM]
    folder: Path
    seconds: float


def cache_folder() -> Path:
    """Where the teachers are kept: `POLYDISTILL_CACHE`, or this platform's place for caches."""
    if given := os.environ.get("POLYDISTILL_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "polydistill"


def key_of(settings: TeacherSettings, corpus: Corpus, *, own: bool = False) -> str:
    """Changes with the settings, the text, and the libraries' versions that training depends on; of teachers with
    tokenizers of their own, with the sizes of those.
    """
    parts = {
        "settings": asdict(settings),
        "corpus": corpus.fingerprint,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        **({"own": dict(SIZES)} if own else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def specialists(
    settings: TeacherSettings,
    corpus: Corpus,
    console: Console | None = None,
    folder: Path | None = None,
    *,
    own: bool = False,
) -> Specialists:
    """The teachers from the cache, or trained now and put there.

    A cached folder is used only when every file in it is as it was written; otherwise it is trained anew.

    Args:
        settings: of teachers and tokenizer.
        corpus: its `teacher` split is learned from.
        console: for the progress of their training; silent when None.
        folder: of the cache; `cache_folder()` when None.
        own: every teacher has a tokenizer of its own kind and size.
    """
    root = cache_folder() if folder is None else folder
    kept = root / f"demo-teachers-{'own-' if own else ''}{key_of(settings, corpus, own=own)}"
    seconds = 0.0
    if verify(kept) is not None:
        start = perf_counter()
        with finished_folder(kept) as unfinished:
            learned = train_tokenizer(corpus, settings.vocabulary)
            learned.save_pretrained(unfinished)
            tokenizers_of = own_tokenizers(corpus) if own else dict.fromkeys(DOMAINS, learned)
            with Steps(
                console or Console(quiet=True), "teachers (once, then kept)", len(DOMAINS) * settings.steps
            ) as steps:
                for index, domain in enumerate(DOMAINS):
                    model = _train(settings, corpus, tokenizers_of[domain], index, steps.update)
                    model.save_pretrained(unfinished / domain)
                    tokenizers_of[domain].save_pretrained(unfinished / domain)
        seconds = perf_counter() - start
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
    models = {domain: LlamaForCausalLM.from_pretrained(kept / domain) for domain in DOMAINS}
    return Specialists(tokenizer, models, kept, seconds)


@contextmanager
def finished_folder(place: Path) -> Iterator[Path]:
    """A temporary folder that becomes `place`, whole and with a manifest, when the block ends without an error.

    Whatever is at `place` is replaced, unless another process has finished it in the meantime.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        yield unfinished
        write_manifest(unfinished)
        unfinished.chmod(0o755)
        if verify(place) is not None:
            shutil.rmtree(place, ignore_errors=True)
            try:
                unfinished.rename(place)
            except OSError:
                if verify(place) is not None:
                    raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def small_llama(size: ModelSize, tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> LlamaForCausalLM:
    """A Llama-type model with weights drawn from the seed.

    Args:
        size: width and depth.
        tokenizer: gives the vocabulary and the special tokens.
        length: tokens per sequence in training; it can be used at four times that.
        seed: of the weights; the global random state is left as it was.
    """
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=4 * length,
        # The usual 0.02 is meant for widths of thousands; here it costs 0.3 nats at this number of steps.
        initializer_range=0.5 * size.hidden**-0.5,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special, do_sample=True, max_new_tokens=64)
    return model


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with decay 0.1 on matrices and none on vectors; its learning rate is set at every step."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def cosine(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up over 5% of the steps, then a cosine to 5% of the peak."""
    warm = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
    return peak * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """One optimizer step from the gradients that are there, clipped to norm 1; they are then dropped."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def token_losses(model: LlamaForCausalLM, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """`-log p(next token)`, nats, at every position but the last."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    # Row by row: along the middle dimension of a transposed tensor the softmax takes twice as long.
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def _train(
    settings: TeacherSettings,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    index: int,
    progress: Callable[[int, str], None],
) -> LlamaForCausalLM:
    domain = DOMAINS[index]
    rows = windows(corpus.documents["teacher"][domain], tokenizer, settings.length - 1)
    if not len(rows):
        raise ValueError(f"no {domain} text is {settings.length - 1} tokens long; use shorter sequences")
    ids = torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)
    generator = torch.Generator().manual_seed(settings.seed)
    needed = settings.steps * settings.batch
    order = torch.cat([torch.randperm(len(ids), generator=generator) for _ in range(-(-needed // len(ids)))])
    model = small_llama(settings.size, tokenizer, settings.length, settings.seed * len(DOMAINS) + index).train()
    optimizer = adamw(model)
    for step in range(settings.steps):
        batch = ids[order[step * settings.batch : (step + 1) * settings.batch]]
        token_losses(model, batch).mean().backward()
        update(model, optimizer, cosine(step, settings.steps, settings.learning_rate))
        progress(index * settings.steps + step + 1, f"teacher {domain}")
    return model.eval()


class Remembered:
    """A teacher whose hidden states of a fixed set of texts are kept: several students ask for the same ones.

    Args:
        name: of the teacher.
        model: that is asked once.
        ids: everything that will be asked for.
        mask: 1 for real tokens.
    """

    def __init__(self, name: str, model: LlamaForCausalLM, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> None:
        self.name, self.head = name, head_of(model)
        self.row = {tuple(row): i for i, row in enumerate(ids.tolist())}
        with torch.no_grad():
            parts = [
                last_hidden_state(model, input_ids=some, attention_mask=real)
                for some, real in zip(ids.split(64), mask.split(64), strict=True)
            ]
        self.hidden: Float[Tensor, "B T D"] = torch.cat(parts)

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> HiddenStates:
        """Hidden states of the flattened positions `rows`, and the head."""
        kept = self.hidden[[self.row[tuple(ids)] for ids in input_ids.tolist()]]
        return HiddenStates(kept.flatten(0, 1)[rows], self.head)
