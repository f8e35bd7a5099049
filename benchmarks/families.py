"""Every family of causal language models, tiny, in every place where a model stands.

python benchmarks/families.py [NAME ...]    try all (five minutes of one core), or some again
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "families.md"
SECONDS = 240
"""For one family."""


def main(names: list[str]) -> None:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "families")]
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    warnings.simplefilter("ignore")
    import sweep
    import tiny_models
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found = json.loads(RESULTS.read_text()) if names else {}
    for name in names or tiny_models.NAMES:
        signal.alarm(SECONDS)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            found[name] = sweep.look(name)
        signal.alarm(0)
        print(name, *found[name].values(), sep=" | ", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    _write(found)


ARGUED = {
    "blt": "reads bytes, not tokens; there is nothing to pool with",
    "cpmant": "is made for padding on the left, and reads it on the right, where rows of a batch are padded",
    "dory": "multiplies every token's logits by a learned scale inside its head, which one matrix cannot say",
    "dots3_note": "no tiny configuration was found; `dots3_note_text` is tried",
    "emu3": "the text model that is saved has no place in AutoModelForCausalLM",
    "gemma3n": "needs Pillow, which is not installed here; `gemma3n_text` is tried",
    "gemma4_assistant": "a draft model, which reads another model's states",
    "gemma4_unified_assistant": "a draft model, which reads another model's states",
    "mllama": "the text model that is saved has no place in AutoModelForCausalLM",
    "musicgen": "writes codes of sound, not text",
    "musicgen_melody": "writes codes of sound, not text",
    "prophetnet": "its body returns two streams, of which its head reads one",
    "reformer": "trains on rows of multiples of its chunks only; it teaches",
}
"""Why a family is not right everywhere, in one line each."""

NOT_JUDGED = {
    "blt",
    "dots3_note",
    "gemma3n",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "musicgen",
    "musicgen_melody",
}

INTRO = """\
# Families of models

Every causal language model that Transformers {transformers} loads by `AutoModelForCausalLM`, tiny, with random
weights, soft caps and scales that show (`python benchmarks/families.py`; results in
`benchmarks/results/families.json`): read from a folder, one step as an off-policy student, one as an on-policy student
that writes after prompts of different lengths (so after padding on the left), and one as a teacher.
**right**: the loss of every text is that of the model's own logits on that text alone, to 0.002 nats per token.
**refused**: in one sentence, which names the class, before the first step.

{judged} families can be judged; {train} of them train, {teach} teach. Sparse attention that chooses its tokens by a
score (DeepSeek V3.2 and its relatives) is right as long as no two tokens tie for the last place, as they do with two
random heads.

"""


def _write(found: dict[str, dict[str, str]]) -> None:
    import transformers

    judged = {name: row for name, row in found.items() if name not in NOT_JUDGED}
    where = list(next(iter(found.values())))
    train = sum(all(judged[name][place] == "right" for place in where[:3]) for name in judged)
    teach = sum(row[where[3]] == "right" for row in judged.values())
    page = INTRO.format(transformers=transformers.__version__, judged=len(judged), train=train, teach=teach)
    wrong = [name for name, row in found.items() if any(value != "right" for value in row.values())]
    lines = ["| family | " + " | ".join(where) + " | why |", "|---|" + "---|" * (len(where) + 1)]
    for name in wrong:
        words = [_word(found[name][place]) if name in judged else "" for place in where]
        lines.append(f"| {name} | {' | '.join(words)} | {ARGUED.get(name, 'NOT ARGUED')} |")
    right = ", ".join(name for name in found if name not in wrong)
    PAGE.write_text(page + "\n".join(lines) + f"\n\nRight in all four: {right}.\n")


def _word(said: str) -> str:
    return said if said == "right" else "refused" if said.startswith("refused") else f"**{said}**"


if __name__ == "__main__":
    main(sys.argv[1:])
