"""A finished student, handed on: its files, its card and its certificate, as one commit on the Hub."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from polydistill.config.file import SECRET, ConfigError, load_config
from polydistill.config.run import ModelConfig
from polydistill.records import BENCHMARKS, CERTIFICATE, CONFIG, SUMMARY
from polydistill.records.seal import refuse_broken
from polydistill.run.card import CARD, edited, fingerprints_of, on_hub, renew_card
from polydistill.run.train import STUDENT, finished, locked

KINDS = {".safetensors", ".json", ".jinja", ".txt", ".model"}
"""Of the files that Transformers writes; nothing else in the student's folder is anybody's business."""

DATA = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
"""Text in which a token may look like a key."""


class PushError(RuntimeError):
    """The Hub did not take it; nothing there has changed but that the repository may exist now."""


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, handed on.

    Attributes:
        files: name in the repository -> where it lies here.
        left: files of the student's folder that are not handed on.
        address: of the commit; None without one.
    """

    files: dict[str, Path]
    left: list[str]
    address: str | None = None


def push_run(
    run: Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Write the card anew and push the student with it; checkpoints, data and reports stay here.

    Args:
        run: folder of a finished run.
        repo: `name` or `owner/name`; it is made where it does not exist.
        private: of the repository; one that is there and public is refused then.
        dry_run: ask nobody, push nothing.
        api: of the Hub; by default with the token that `hf auth login` or HF_TOKEN gave.
        told: hears what is going on.

    Raises:
        ConfigError: it is no finished run or no name of a repository, a file holds a secret, or the Hub refuses.
        RecordError: a file is not what the run wrote.
        PushError: the Hub could not be reached, or failed.
    """
    if finished(run) is None or not (run / CONFIG).is_file():
        raise ConfigError(f"{run} is not a finished run: it needs {CONFIG}, a summary and the folder {STUDENT}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"REPO: {str(error).splitlines()[0]}") from None
    refuse_broken(run, [STUDENT, CONFIG, SUMMARY, CERTIFICATE])
    if not dry_run:
        _read_cards(run)
    with locked(run):
        if edited(run / STUDENT / CARD):
            told(f"{run / STUDENT / CARD} was edited since; it is pushed as it is")
        renew_card(run, repo)
        found = _chosen(run)
        for path in found.files.values():
            _refuse_secret(path)
        if dry_run:
            return found
        return Pushed(found.files, found.left, _committed(api or HfApi(), repo, private, found))


def _chosen(run: Path) -> Pushed:
    there = sorted(path for path in (run / STUDENT).iterdir())
    files = {path.name: path for path in there if path.is_file() and (path.suffix in KINDS or path.name == CARD)}
    files |= {name: run / name for name in (CERTIFICATE, BENCHMARKS) if (run / name).is_file()}
    return Pushed(files, [path.name for path in there if path.name not in files])


def _refuse_secret(path: Path) -> None:
    """What is published cannot be taken back."""
    if path.suffix == ".safetensors" or path.name in DATA:
        return
    if SECRET.search(path.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(f"{path} holds what looks like a key, a token or an address with a password; take it out")


def _read_cards(run: Path) -> None:
    """Cards of the Hub's models, for their licences; they are not downloaded with the weights."""
    try:
        config, known = load_config(run / CONFIG), fingerprints_of(run)
    except ConfigError:  # of a trainer in Python that no file can say; its card is left as it is
        return
    teachers = {f"teacher {name!r}": section for name, section in config.teachers.items()}
    for name, section in {"the student": config.student, **teachers}.items():
        if isinstance(section, ModelConfig) and on_hub(section.model, known.get(name, "")):
            try:
                hf_hub_download(section.model, CARD, revision=section.revision)
            except (OSError, ValueError, httpx2.HTTPError, OfflineModeIsEnabled):
                continue  # the card says that it is not known


def _committed(api: HfApi, repo: str, private: bool, found: Pushed) -> str:
    try:
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise ConfigError(f"--private: {made.repo_id} is there and public; nothing was pushed")
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in found.files.items()]
        done = api.create_commit(made.repo_id, operations, commit_message="Upload a student of polydistill")
    except ConfigError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = str(error).strip().splitlines()[0]
        if status in (400, 401, 403, 404, 409):
            advice = "; `hf auth login`, or HF_TOKEN, gives a token that may write" if status in (401, 403) else ""
            raise ConfigError(f"the Hub refuses {repo!r}: {said}{advice}") from error
        raise PushError(f"the Hub failed: {said}; give the same command again") from error
    except ValueError as error:  # the card's front matter, or a token that cannot be one
        raise ConfigError(f"the Hub refuses {repo!r}: {str(error).strip().splitlines()[0]}") from error
    except (OSError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise PushError(f"the Hub cannot be reached: {str(error).splitlines()[0]}") from error
    return str(done.commit_url)
