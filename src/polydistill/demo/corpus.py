"""Three kinds of text that every machine with Python holds, split by source.

`code` is the standard library's source without docstrings and comments, `prose` the English of docstrings
(standard library, numpy, scipy) and of the interpreter's help topics, `arithmetic` generated dialogues. A
*source* is one file, one help topic, or one generated dialogue. All of it falls into one split, so nobody is
judged on a source that it or a teacher has seen:

    teacher   what the three teachers learn from (about 70%)
    student   what the students learn from (about 15%)
    held_out  what everybody is judged on (about 15%)
"""

import ast
import hashlib
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from polydistill.demo.dialogues import dialogue

DOMAINS = ("code", "prose", "arithmetic")
SPLITS = ("teacher", "student", "held_out")

_SHARES = {"teacher": 70, "student": 15, "held_out": 15}
_PROSE_PACKAGES = ("numpy", "scipy")
# Test suites and site folders, which some Python distributions leave out, and tables, which are neither domain.
_SKIPPED = {
    *("__phello__", "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib"),
    *("lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"),
}
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Document:
    """One source's text in one domain; `source` names the file, topic or dialogue that it came from."""

    source: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents by split and domain: `documents[split][domain]`."""

    documents: Mapping[str, Mapping[str, tuple[Document, ...]]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every split, source and text: equal exactly when the corpora are equal."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for domain in DOMAINS:
                for document in self.documents[split][domain]:
                    digest.update(f"{split}\0{domain}\0{document.source}\0{document.text}\0".encode())
        return digest.hexdigest()


def read_corpus(seed: int = 0, characters: int = 2_000_000) -> Corpus:
    """Read this machine's corpus.

    Args:
        seed: decides the split of the sources and the generated dialogues.
        characters: the most text kept per domain, over all splits.

    Raises:
        FileNotFoundError: the standard library's sources are not on this machine.
        ValueError: `characters` is too small to leave every split of every domain with a document.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    files = _python_files(standard, "python")
    if not files:
        raise FileNotFoundError(
            f"the standard library in {standard} has no .py files; the demo learns from them, so run it with "
            "a Python that ships its sources"
        )
    prose_files = files | _help_topics()
    for package in _PROSE_PACKAGES:
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            prose_files |= _python_files(Path(found.origin).parent, package)
    by_domain = {
        "code": tuple(_within(characters, _code_documents(files, seed))),
        "prose": tuple(_within(characters, _prose_documents(prose_files, seed))),
        "arithmetic": tuple(_within(characters, _dialogues(seed))),
    }
    documents = {
        split: {
            domain: tuple(document for document in kept if split_of(document.source, seed) == split)
            for domain, kept in by_domain.items()
        }
        for split in SPLITS
    }
    for split in SPLITS:
        for domain in DOMAINS:
            if not documents[split][domain]:
                raise ValueError(
                    f"the corpus has no {domain} text for the {split} split with characters={characters}: "
                    "allow more characters"
                )
    return Corpus(documents)


def split_of(source: str, seed: int = 0) -> str:
    """The split that a source belongs to: a function of its name and the seed only."""
    place = _order(source, seed) % 100
    for split in SPLITS:
        if place < _SHARES[split]:
            return split
        place -= _SHARES[split]
    raise AssertionError("the shares sum to 100")


def _order(source: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8], "big")


def _within(characters: int, documents: Iterator[Document]) -> Iterator[Document]:
    """Documents until `characters` are reached; none takes more than 2% of them."""
    total = 0
    for document in documents:
        text = document.text[: max(characters // 50, 1)]
        total += len(text)
        if total > characters:
            return
        yield Document(document.source, text)


def _code_documents(files: Mapping[str, Path | str], seed: int) -> Iterator[Document]:
    """Python code without docstrings and comments, in an order given by the seed."""
    for source in sorted(files, key=lambda name: _order(f"code:{name}", seed)):
        tree = _parsed(_text_of(files[source]))
        if tree is not None and (text := ast.unparse(_without_docstrings(tree))):
            yield Document(source, text)


def _prose_documents(files: Mapping[str, Path | str], seed: int) -> Iterator[Document]:
    """English paragraphs, in an order given by the seed; one met again in another source is left out."""
    seen: set[str] = set()
    for source in sorted(files, key=lambda name: _order(f"prose:{name}", seed)):
        text = _text_of(files[source])
        paragraphs = _prose_paragraphs(text) if source.startswith("topic/") else _docstring_paragraphs(text)
        fresh = [p for p in dict.fromkeys(paragraphs) if p not in seen]
        seen.update(fresh)
        if fresh:
            yield Document(source, "\n\n".join(fresh))


def _dialogues(seed: int) -> Iterator[Document]:
    for number in count():
        source = f"dialogue/{number}"
        # A problem's operands depend on the split, so that no held-out problem was ever seen.
        residue = SPLITS.index(split_of(source, seed))
        yield Document(source, dialogue(f"{seed}:{source}", residue, len(SPLITS)))


def _python_files(root: Path, name: str) -> dict[str, Path | str]:
    """Every .py file under `root` by the name of the source."""
    found: dict[str, Path | str] = {}
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _SKIPPED and not name.startswith("config-"))
        parts = Path(folder).relative_to(root).parts
        found |= {"/".join((name, *parts, file)): Path(folder, file) for file in files if file.endswith(".py")}
    return found


def _help_topics() -> dict[str, Path | str]:
    if importlib.util.find_spec("pydoc_data") is None:
        return {}
    from pydoc_data.topics import topics

    return {f"topic/{name}": text for name, text in topics.items()}


def _text_of(place: Path | str) -> str:
    return place.read_text("utf-8", errors="ignore") if isinstance(place, Path) else place


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _blocks(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and the statements under it, not the expressions, which are most of a syntax tree."""
    yield node
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, field, None)
        for statement in inner if isinstance(inner, list) else ():
            yield from _blocks(statement)


def _docstring_paragraphs(text: str) -> Iterator[str]:
    tree = _parsed(text) if '"""' in text else None
    for node in _blocks(tree) if tree else ():
        if isinstance(node, _SCOPES) and (docstring := ast.get_docstring(node)):
            yield from _prose_paragraphs(docstring)


def _prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of `text` that are English sentences: mostly letters, no prompt, not a table."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        letters = sum(c.isalpha() or c == " " for c in paragraph)
        if len(paragraph) >= 60 and letters > 0.9 * len(paragraph) and ">>>" not in paragraph:
            yield paragraph


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The same code without bare strings (`ast.unparse` drops the comments by itself)."""
    for node in list(_blocks(tree)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and _is_string(s.value))]
            node.body = kept or ([] if isinstance(node, ast.Module) else [ast.Pass()])  # type: ignore[attr-defined]
    return tree


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
