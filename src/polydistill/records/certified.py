"""What of a certificate a report shows."""

from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator


class FindingRecord(BaseModel):
    """What a certificate says about one law, in words.

    Attributes:
        law: its letters.
        verdict: proved, derived, not refuted in n trials, refuted.
        detail: the numbers, or what the witness shows.
        title: its name.
        words: the statement.
        fails: a counterexample is known, whether the law is claimed or not.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    law: str
    verdict: str
    detail: str = ""
    title: str = ""
    words: str = ""
    fails: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_words(cls, given: Any) -> Any:
        """A finding as `polydistill.certify` writes it: basis, trials, bound, worst value and witness."""
        if not isinstance(given, dict) or "axiom" not in given:
            return given
        witness, trials, basis = given.get("witness"), given.get("trials", 0), given.get("basis", "none")
        tried = f"not refuted in {trials:,} trials"
        verdict = "refuted" if witness else "not applicable" if not trials else tried
        if basis in ("proved", "derived") and not witness and trials:
            verdict = f"{basis}; {tried}"
        if basis == "not claimed":
            verdict = "not claimed" + ("; a counterexample is known" if witness else f"; {tried}" if trials else "")
        numbers = [
            f"{name} {given[key]:.4g}"
            for name, key in (("worst found", "worst"), ("bound", "bound"))
            if isinstance(given.get(key), float | int)
        ]
        detail = witness["says"] if witness else "; ".join([*numbers, *filter(None, [given.get("note")])])
        named = {name: given.get(name) or "" for name in ("title", "words")}
        return {"law": given["axiom"], "verdict": verdict, "detail": detail, "fails": bool(witness), **named}


class CertificateRecord(BaseModel):
    """The part of `certificate.json` that a report shows; a certificate says more, and that is left alone.

    Attributes:
        promises: the guarantee in a user's words, one sentence each; `consequences` is read as well.
        derivation: the derivation as an indented tree, one line each.
        proved: every rule of the derivation names a theorem.
        floor: least weight of any teacher.
        ceiling: greatest weight of any teacher.
        range: bound on `osc(log w)`, nats.
        findings: law by law.
        state: of the weights when they were certified; empty when it is not said.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    promises: list[str] = Field(default=[], validation_alias=AliasChoices("promises", "consequences"))
    derivation: list[str] = []
    proved: bool | None = None
    floor: float | None = None
    ceiling: float | None = None
    range: float | None = None
    findings: list[FindingRecord] = []
    state: str = ""
