"""The teacher: sequences to requests, answers to truncated distributions, in the order of the rows."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polydistill.logprobs import TAIL_STATISTICS, Informed, KnownStatistics, Sparse, TeacherOutput
from polydistill.teachers.served.address import Address, Patience
from polydistill.teachers.served.answer import Entries, OtherTokensError, read_entries, read_json
from polydistill.teachers.served.asked import Ask, probe_text, sequences
from polydistill.teachers.served.client import REASON, Client, OutageError, RefusedError
from polydistill.teachers.served.lost import TeacherLostError
from polydistill.teachers.source import TeacherUnavailableError
from polydistill.teachers.truncated import Completed, entropy_width, tempered_error
from polydistill.teachers.vocabulary import VocabularyMismatchError

logger = logging.getLogger(__name__)

PROBE = 256
"""Tokens of the text that is sent before the first step."""

EVERY = 64
"""Batches after which that text is sent again; also after every outage, since what comes back may be another model."""

OTHER = 0.1
"""Nats per token, on average, by which one model does not differ from itself, whatever the batch and the dtype."""

Outage = Literal["wait", "drop", "fail"]


@dataclass
class Tally:
    """What truncation and outages cost so far; sums over positions, and the worst.

    Attributes:
        positions: answered.
        lost: not answered, gone on without.
        tail, worst_tail: mass that is not named.
        entropy_width, worst_entropy_width: by which the entropy may be smaller than it is taken for, nats.
        tempered, worst_tempered: bound of the error that a temperature makes, total variation.
        foreign: entries that the student's vocabulary does not have.
    """

    positions: int = 0
    lost: int = 0
    tail: float = 0.0
    worst_tail: float = 0.0
    entropy_width: float = 0.0
    worst_entropy_width: float = 0.0
    tempered: float = 0.0
    worst_tempered: float = 0.0
    foreign: int = 0

    def mean(self, total: float) -> float:
        """Of a sum over the answered positions."""
        return total / max(self.positions, 1)


class ServedTeacher:
    """A teacher behind an OpenAI-compatible server; knows its k likeliest entries, the next token's, and the tail.

    Every answer is checked; what it cannot vouch for is an error before the update.

    Args:
        name: the teacher's name in the stack.
        url: of the server, up to and with `/v1`.
        model: as the server calls it.
        top_logprobs: k, entries per position; the server may limit it (vLLM: `--max-logprobs`, 20 by default).
        api_key_env: environment variable with the key.
        proxy: through which the server is asked.
        on_outage: `fail` ends the run; `wait` tries again for `patience.wait_s`, and what is learned then is what would
            have been without the outage; `drop` raises `TeacherLostError`, and the step goes on without it.
        tempered: `refuse` temperatures other than 1, or take the flattest completion for the truth (`bound`), with
            the bound in the tally.
        temperature: of the objective, for that bound.
        patience: deadlines and tries.
        concurrency: requests under way at most, one sequence each.
        body_limit: bytes of an answer that are read at most.

    >>> from polydistill import ServedTeacher
    >>> teacher = ServedTeacher("code", "http://localhost:8000/v1", "org/coder", on_outage="wait")
    >>> teacher.name, teacher.k  # nobody was asked yet
    ('code', 20)
    """

    unknown = TAIL_STATISTICS
    """Statistics that depend on what is not named, without a bound that is worth anything."""

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        url: str,
        model: str,
        *,
        top_logprobs: int = 20,
        api_key_env: str | None = None,
        proxy: str | None = None,
        on_outage: Outage = "fail",
        tempered: Literal["refuse", "bound"] = "refuse",
        temperature: float = 1.0,
        patience: Patience | None = None,
        concurrency: int = 8,
        body_limit: int = 2**26,
    ) -> None:
        if top_logprobs < 1:
            raise ValueError(f"top_logprobs must be at least 1, got {top_logprobs}")
        self.name, self.model, self.k = name, model, top_logprobs
        self.names = [model]
        self.on_outage, self.tempered, self.temperature = on_outage, tempered, temperature
        self.address = Address(url, api_key_env, proxy)
        self.client = Client(
            self.address,
            Patience() if patience is None else patience,
            concurrency=concurrency,
            body_limit=body_limit,
            waits=on_outage == "wait",
            told=self._told,
        )
        self.visible: int | None = None
        self.tally, self.probed = Tally(), _Probe()
        self.batches, self.outages = 0, 0

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """Ask the server for its models and for a text, which it has to read as the student's tokenizer does.

        Raises:
            VocabularyMismatchError: it reads other tokens.
            TeacherUnavailableError: it does not answer, has no such model, or gives no prompt log-probabilities.
        """
        self.visible = visible
        found = self._found()
        longest = found.get("max_model_len")
        longest = longest if isinstance(longest, int) and not isinstance(longest, bool) and longest > 2 else None
        if longest is not None and found.get("owned_by") != "polydistill":
            longest -= 1  # vLLM counts the one token that it must be let write
        text, ids = probe_text(tokenizer, visible, PROBE if longest is None else min(PROBE, longest // 2))
        clock = time.perf_counter()
        try:
            (body,) = self._sent([{"prompt": text, "add_special_tokens": False}])
            entries = self._read(body, ids)
        except OtherTokensError as error:
            raise VocabularyMismatchError(
                f"teacher {self.name!r} has another vocabulary than the student: {error}; teachers and student must "
                "share a tokenizer, or the teacher has `tokenizer: own`"
            ) from error
        except (OutageError, RefusedError) as error:
            raise self._named(error) from error
        self.probed = _Probe(len(ids), time.perf_counter() - clock, len(body), longest, text, ids, entries.follows)
        self._count(entries, torch.arange(len(ids) - 1))
        told, p = self.bounds(), self.probed
        self.tally = Tally()
        limit = "" if p.longest is None else f", which takes up to {p.longest:,}"
        return f"{told} (a probe of {p.tokens} tokens{limit}: {p.seconds:.2f} s, {p.bytes:,} bytes)"

    def reads_otherwise(self, tokenizer: PreTrainedTokenizerBase, samples: Iterable[Any]) -> str | None:
        """A sentence where the server makes other ids of a text than the student does, such as one more at its begin.

        Args:
            tokenizer: the student's.
            samples: of the run; the first text short enough is asked.

        Raises:
            TeacherUnavailableError: it does not answer.
        """
        limit = min(PROBE, self.probed.longest or PROBE) - 2
        text = next((s for s in samples if isinstance(s, str) and 0 < len(tokenizer(s)["input_ids"]) < limit), None)
        if text is None:
            return None
        try:
            (body,) = self._sent([{"prompt": text}])
            self._read(body, list(tokenizer(text)["input_ids"]))
        except OtherTokensError as error:
            return (
                f"teacher {self.name!r}: its server makes other ids of the run's text: {error.difference} (the "
                "student's); it is asked about the student's ids all the same"
            )
        except (OutageError, RefusedError) as error:
            raise self._named(error) from error
        return None

    def over(self, text: list[int]) -> int:
        """Tokens that the server would be sent of a text of the student's, where it takes fewer; else 0."""
        return len(text) if self.probed.longest is not None and len(text) > self.probed.longest else 0

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> TeacherOutput:
        """The named entries and the tail of every row, with what is known exactly beside them.

        Raises:
            TeacherUnavailableError: the server is out (and the run does not go on without it), or its answer cannot be
                used.
        """
        asked = sequences(input_ids, attention_mask, rows)
        heard = self._heard([one.ids for one in asked])
        self._same_model()
        return self._assembled(asked, heard, rows)

    def _heard(self, texts: Sequence[list[int]]) -> list[Entries]:
        """What the server says of each text."""
        try:
            bodies = self._sent([{"prompt": ids} for ids in texts])
        except OutageError as error:
            if self.on_outage != "drop":
                raise self._named(error) from error
            raise TeacherLostError(str(self._named(error)), self._visible(), self._lost) from error
        except TeacherUnavailableError as error:
            raise self._named(error) from error
        return [self._read(body, ids) for body, ids in zip(bodies, texts, strict=True)]

    def _same_model(self) -> None:
        """Ask the first text again now and then: what is served under a name can change.

        Raises:
            RefusedError: the answer is another model's.
        """
        self.batches += 1
        p, back = self.probed, self.client.counts.retries > self.outages
        self.outages = self.client.counts.retries
        if p.follows is None or (self.batches % EVERY and not back):
            return
        try:
            (body,) = self._sent([{"prompt": p.text, "add_special_tokens": False}])
            follows = self._read(body, p.ids).follows
        except OutageError:
            self.outages = -1  # asked with the next batch
            return
        gap = float((follows - p.follows).abs().mean())
        if gap > OTHER:
            raise self._named(
                RefusedError(
                    f"{self.address.url} answers the same text otherwise than before the first step, by {gap:.3g} "
                    f"nats per token: another model is served under {self.model!r} now; what was learned since the "
                    f"last such question, at most {EVERY} batches ago, may be its own: go on from an older checkpoint"
                )
            )

    def describe(self) -> str:
        """Where it is and what it is asked; the same at every time, so that a cache can tell it by this."""
        return (
            f"{self.model!r} served at {self.address.url}; {self.k} log-probabilities per position and the next "
            f"token's; on outage: {self.on_outage}"
        )

    def bounds(self) -> str:
        """What truncation leaves open, from the positions seen so far."""
        t = self.tally
        said = (
            f"teacher {self.name!r} is truncated: the mass that it does not name is {t.mean(t.tail):.2%} on average, "
            f"{t.worst_tail:.2%} at worst, and its distribution is off by at most that (total variation); label "
            f"likelihood, maximum{' and margin' if self.k > 1 else ''} are exact, its entropy may be smaller by "
            f"{t.mean(t.entropy_width):.3f} nats on average, {t.worst_entropy_width:.3f} at worst"
        )
        if self.temperature != 1.0 and self.tempered == "bound":
            said += (
                f"; at temperature {self.temperature:g} it is off by at most {t.mean(t.tempered):.2%} on average, "
                f"{t.worst_tempered:.2%} at worst"
            )
        if t.foreign:
            said += f"; {t.foreign} entries were outside the student's vocabulary and count as mass that is not named"
        return said

    def _found(self) -> dict[str, Any]:
        """The server's entry of the model."""
        try:
            body = self.client.get("models")
        except TeacherUnavailableError as error:
            raise self._named(error) from error

        def refuse(reason: str) -> RefusedError:
            return self._refusal("models", reason, body)

        content = read_json(body, refuse)
        data = content.get("data") if isinstance(content, dict) else None
        if not isinstance(data, list):
            raise refuse("it has no list of models")
        models = [entry for entry in data if isinstance(entry, dict)]
        mine = [entry for entry in models if entry.get("id") == self.model]
        if not mine:
            there = ", ".join(repr(entry.get("id")) for entry in models[:5]) or "none"
            raise refuse(f"there is no model {self.model!r}; there is {there}")
        # One model may be served under several names, and answers under the first; an adapter has a parent.
        root = mine[0].get("root")
        same = [e for e in models if root is not None and e.get("root") == root]
        same = [e for e in same if e.get("parent") == mine[0].get("parent")]
        self.names = [self.model, *(str(e.get("id")) for e in same)]
        return mine[0]

    def _sent(self, prompts: Sequence[dict[str, Any]]) -> list[bytes]:
        wanted = {
            "model": self.model,
            "prompt_logprobs": min(self.k, self._visible()),
            "max_tokens": 1,
            "temperature": 0.0,
            "return_token_ids": True,
        }
        return self.client.post("completions", [wanted | prompt for prompt in prompts])

    def _read(self, body: bytes, ids: Sequence[int]) -> Entries:
        def refuse(reason: str) -> RefusedError:
            return self._refusal("completions", reason, body)

        return read_entries(body, ids, self.names, self.k, self._visible(), refuse)

    def _assembled(self, asked: Sequence[Ask], heard: Sequence[Entries], rows: Int[Tensor, " N"]) -> TeacherOutput:
        """One truncated distribution over all rows, and the numbers beside it."""
        for one, entries in zip(asked, heard, strict=True):
            self._count(entries, one.wanted)
        order = torch.cat([one.places for one in asked]).argsort() if asked else rows.new_zeros(0).cpu()

        def column(values: list[Tensor]) -> Tensor:
            return torch.cat(values)[order].to(rows.device)

        if not asked:
            none = torch.zeros(0, 1, device=rows.device)
            return Sparse(none.long(), none, none[:, 0], self._visible())
        picked = list(zip(heard, (one.wanted for one in asked), strict=True))
        said = Sparse(
            column([e.said.ids[w] for e, w in picked]),
            column([e.said.log_p[w] for e, w in picked]),
            column([e.said.log_tail[w] for e, w in picked]),
            self._visible(),
        )
        best = column([e.best[w] for e, w in picked])
        known = KnownStatistics(
            label_log_prob=column([e.follows[w] for e, w in picked]),
            maximum=best[:, 0],
            margin=best[:, 0] - best[:, 1] if best.shape[1] > 1 else None,
        )
        return Informed(Completed(said) if self.tempered == "bound" else said, known)

    def _count(self, entries: Entries, wanted: Int[Tensor, " m"]) -> None:
        said, tail = entries.said, entries.tail[wanted]
        if not len(wanted):
            return
        said = Sparse(said.ids[wanted], said.log_p[wanted], said.log_tail[wanted], said.vocabulary)
        cap: Float[Tensor, " m"] = entries.log_cap[wanted]
        width = entropy_width(said, cap)
        t = self.tally
        t.positions += len(wanted)
        t.foreign += entries.foreign
        t.tail, t.worst_tail = t.tail + float(tail.double().sum()), max(t.worst_tail, float(tail.max()))
        t.entropy_width += float(width.double().sum())
        t.worst_entropy_width = max(t.worst_entropy_width, float(width.max()))
        if self.temperature != 1.0:
            error = tempered_error(said, cap, self.temperature)
            t.tempered += float(error.double().sum())
            t.worst_tempered = max(t.worst_tempered, float(error.max()))

    def _visible(self) -> int:
        if self.visible is None:
            raise TeacherUnavailableError(f"teacher {self.name!r}: agree_with the student's tokenizer first")
        return self.visible

    def _refusal(self, path: str, reason: str, body: bytes) -> RefusedError:
        return RefusedError(
            f"teacher {self.name!r}: the answer of {self.address.at(path)} cannot be used: "
            f"{self.address.shown(reason, REASON)}; it begins {self.client.shown(body)}"
        )

    def _named(self, error: TeacherUnavailableError) -> TeacherUnavailableError:
        advice = "; `on_outage: wait` waits for it" if isinstance(error, OutageError) else ""
        if self.on_outage == "wait" and isinstance(error, OutageError):
            advice = f"; waited for {self.client.patience.wait_s:g} s"
        who = f"teacher {self.name!r}: "
        return TeacherUnavailableError(f"{'' if str(error).startswith(who) else who}{error}{advice}")

    def _lost(self, positions: int) -> None:
        self.tally.lost += positions
        logger.warning("teacher %r is out: %d positions go on without it", self.name, positions)

    def _told(self, sentence: str) -> None:
        logger.warning("teacher %r: %s", self.name, sentence)


@dataclass(frozen=True)
class _Probe:
    tokens: int = 0
    seconds: float = 0.0
    bytes: int = 0
    longest: int | None = None
    text: str = ""
    ids: Sequence[int] = ()
    follows: Float[Tensor, " n"] | None = None
