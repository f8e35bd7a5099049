"""Ask Coq for every theorem's statement and for the axioms that they rest on; write index.json.

Usage, from check.sh, after compilation: `python3 index.py coqchk.txt`, where coqchk.txt is the report of the
independent checker. Exits non-zero when a theorem, or the checker's report, rests on an axiom beyond those of
the standard real numbers, or when a theorem's name does not begin with the T-number of its statement.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The real numbers of Coq's standard library are built from Dedekind cuts with these four.
ALLOWED = {
    "Coq.Logic.Classical_Prop.classic",
    "Coq.Logic.FunctionalExtensionality.functional_extensionality_dep",
    "Coq.Reals.ClassicalDedekindReals.sig_forall_dec",
    "Coq.Reals.ClassicalDedekindReals.sig_not_dec",
}
MARK = "@@theorem "


def sources():
    lines = (HERE / "_CoqProject").read_text().splitlines()
    return [line.strip() for line in lines if line.strip().endswith(".v")]


def theorems():
    """(name, T-number, file), every `Theorem` of every source file."""
    found = []
    for file in sources():
        text = strip_comments((HERE / file).read_text())
        for name in re.findall(r"^\s*(?:Theorem|Corollary|Proposition)\s+(\w+)", text, re.MULTILINE):
            number = re.match(r"(T\d+)_\w+$", name)
            if not number:
                sys.exit(f"proofs: {file}: {name} does not begin with a T-number; call it a Lemma or rename it")
            found.append((name, number.group(1), file))
    names = [name for name, _, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        sys.exit(f"proofs: defined twice: {', '.join(twice)}")
    return sorted(found)


def strip_comments(text):
    out, depth, i = [], 0, 0
    while i < len(text):
        if text.startswith("(*", i):
            depth, i = depth + 1, i + 2
        elif text.startswith("*)", i) and depth:
            depth, i = depth - 1, i + 2
        else:
            if not depth:
                out.append(text[i])
            i += 1
    return "".join(out)


def ask_coq(found):
    """Coq's own words: {theorem: statement}, and the axioms of all theorems together.

    One question for all: following a proof down through the real numbers takes most of a second each time.
    """
    modules = " ".join(Path(file).stem for file in sources())
    lines = [
        "Require Import Reals.",
        f"From Proofs Require {modules}.",
        "Import Finite Rules.",
        "Open Scope R_scope.",
        "Set Printing Width 100.",
    ]
    everything = "tt"
    for name, _, file in found:
        full = f"{Path(file).stem}.{name}"
        lines += [f'Goal True. idtac "{MARK}{name}". Abort.', f"Check {full}."]
        everything = f"(@{full}, {everything})"
    lines += [
        f"Definition everything := {everything}.",
        f'Goal True. idtac "{MARK}". Abort.',
        "Print Assumptions everything.",
    ]
    query = HERE / "Index_query.v"
    query.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["coqtop", "-quiet", "-w", "none", "-Q", str(HERE), "Proofs", "-batch", "-l", str(query)],
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    query.unlink()
    if done.returncode:
        sys.exit(f"proofs: coqtop: {done.stderr.strip()[-500:]}")
    *parts, axioms = done.stdout.split(MARK)[1:]
    statements = {}
    for part in parts:
        name, _, says = part.partition("\n")
        statements[name.strip()] = re.sub(r"\s+", " ", says.split(":", 1)[1]).strip()
    # `name : type` each, the type possibly on indented lines below
    axioms = axioms.partition("Axioms:\n")[2]
    return statements, {re.match(r"[\w.]+", line).group() for line in axioms.splitlines() if re.match(r"\w", line)}


def checked_axioms(report):
    """The axioms in the independent checker's report."""
    block = re.search(r"^\* Axioms:(.*?)(?=^\* |\Z)", report, re.MULTILINE | re.DOTALL).group(1)
    return sorted(line.split()[0] for line in block.splitlines() if line.strip() and line.strip() != "<none>")


def main():
    rests_on = checked_axioms(Path(sys.argv[1]).read_text())
    extra = sorted(set(rests_on) - ALLOWED)
    if extra:
        sys.exit(f"proofs: unexpected axioms: {', '.join(extra)}")
    found = theorems()
    cited = {
        name
        for rule in tomllib.loads((HERE / "instances.toml").read_text())["rules"].values()
        for name in rule["theorems"]
    }
    unknown = sorted(cited - {name for name, _, _ in found})
    if unknown:
        sys.exit(f"proofs: instances.toml cites what is not proved: {', '.join(unknown)}")
    statements, short = ask_coq(found)
    full = {name.rsplit(".", 1)[1]: name for name in ALLOWED}
    axioms = sorted(full.get(name.rsplit(".", 1)[-1], name) for name in short)
    extra = sorted(set(axioms) - ALLOWED)
    if extra:
        sys.exit(f"proofs: the theorems rest on {', '.join(extra)}")
    index = [
        {"theorem": name, "number": number, "file": file, "statement": statements[name], "axioms": axioms}
        for name, number, file in found
    ]
    (HERE / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    print(f"proofs: {len(index)} theorems in {len(sources())} files, resting on: {', '.join(rests_on)}")


if __name__ == "__main__":
    main()
