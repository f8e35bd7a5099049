import json
import math
import random
from pathlib import Path

import pytest

from polydistill.records import (
    CERTIFICATE,
    COMPLETIONS,
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    CompletionRecord,
    EvaluationRecord,
    RecordWriter,
    Ribbon,
    RunSummary,
    Score,
    StepRecord,
    write_ribbons,
    write_summary,
)

TEACHERS = ["code", "prose", "arithmetic"]
STUDENTS = {
    "adaptive": ("adaptive (task x context x token)", 3.74),
    "labels_only": ("labels only", 3.90),
    "uniform": ("uniform teachers", 4.65),
    "router": ("document router", 4.21),
    "oracle": ("oracle", 3.739),
    "entropy": ("entropy weights alone", 6.86),
}
DOMAINS = [*TEACHERS, "mixed"]


def write_demo_run(folder: Path, steps: int = 400) -> Path:
    """A run folder as the demo leaves one, with made-up numbers."""
    chance = random.Random(0)
    with RecordWriter(folder / METRICS) as writer:
        for step in range(1, steps + 1):
            for student, (_, final) in STUDENTS.items():
                loss = final + 4.4 * math.exp(-step / 60) + chance.gauss(0, 0.12)
                trust = 1 / (1 + math.exp(-step / 80))
                weights = {}
                for k, task in enumerate(TEACHERS):
                    raw = [
                        math.exp(4 * trust * (j == k) * (student == "adaptive") + chance.gauss(0, 0.2))
                        for j in range(3)
                    ]
                    weights[task] = {t: x / sum(raw) for t, x in zip(TEACHERS, raw, strict=True)}
                writer.write(
                    StepRecord(
                        step=step,
                        student=student,
                        epoch=step / steps,
                        tokens=step * 2048,
                        loss=loss,
                        divergence=loss - 1.1,
                        cross_entropy=loss + 0.1,
                        learning_rate=1e-3,
                        weights=weights,
                        diagnostics={
                            "effective_teachers": 1.2 + math.exp(-step / 90) + chance.gauss(0, 0.05),
                            "largest_weight": 0.9 - 0.4 * math.exp(-step / 90),
                            "at_floor": 0.3 + chance.gauss(0, 0.03),
                            "at_ceiling": 0.1,
                            "starved_teachers": 0.0,
                            "likelihood_spread": 3.0 + chance.gauss(0, 0.2),
                            "disagreement": 0.42 + chance.gauss(0, 0.02),
                            "normalisation_error": 2e-7,
                            "range_used": 0.93,
                            "modulus_used": 0.61 + chance.gauss(0, 0.02),
                            **{f"overlap/{t}": 0.7 - 0.2 * k + chance.gauss(0, 0.02) for k, t in enumerate(TEACHERS)},
                            **{f"entropy_gap/{t}": chance.gauss(k - 1, 0.05) for k, t in enumerate(TEACHERS)},
                        },
                        seconds={
                            "teachers": 0.11,
                            "student": 0.15,
                            "teacher heads": 0.05,
                            "signals and weights": 0.004,
                        },
                    )
                )
                if step % 50 == 0:
                    writer.write(
                        EvaluationRecord(
                            step=step,
                            student=student,
                            losses={d: final + 3 * math.exp(-step / 70) + 0.2 * i for i, d in enumerate(DOMAINS)},
                            kl_to_teacher={t: dict.fromkeys(DOMAINS, 1.5 + 0.3 * k) for k, t in enumerate(TEACHERS)},
                            kl_to_pool=dict.fromkeys(DOMAINS, 0.7 + math.exp(-step / 70)),
                            tokens=dict.fromkeys(DOMAINS, 1000),
                            texts=[(10.0 * (final + chance.gauss(0, 0.4)), 10) for _ in range(400)],
                        )
                    )
    scores = [
        Score(
            name=name,
            role="student",
            label=label,
            losses={d: final + 0.1 * (i - 1.5) for i, d in enumerate(DOMAINS)},
            mean=final,
        )
        for name, (label, final) in STUDENTS.items()
    ]
    scores += [
        Score(
            name=t,
            role="teacher",
            losses={d: 3.2 if d == t else 8.0 + k for d in DOMAINS},
            mean=6.2 + 0.2 * k,
        )
        for k, t in enumerate(TEACHERS)
    ]
    write_summary(
        folder / SUMMARY,
        RunSummary(
            title="Three specialists, one student",
            command="polydistill demo",
            package_version="0.1.0",
            hardware="2 CPU cores",
            started="2026-01-31 10:00",
            steps=steps,
            tokens=steps * 2048,
            learning="learning rate 0.001 (cosine), 16 sequences a step",
            teachers=TEACHERS,
            domains=DOMAINS,
            weighting="TaskPrior({...}) * PrefixPosterior(share=0.02) * Softmax(2)(Entropy(spread=4))",
            objective="ForwardKL(temperature=1.0, ce=0.1)",
            main_student="adaptive",
            scores=scores,
            gap_closed=0.991,
            says=[
                "Closes 99% of the gap between averaging and an oracle, without being told the domain.",
                "Entropy weights alone would have been ruinous here: 6.86 nats against 4.65 for uniform.",
            ],
            seconds={"student": 140.0, "teachers": 95.0, "teacher heads": 41.0, "signals and weights": 3.4},
            wall_seconds=301.0,
        ),
    )
    (folder / CERTIFICATE).write_text(
        json.dumps(
            {
                "promises": [
                    "no teacher ever weighs less than 0.43% or more than 93.1%",
                    "evidence wrong by at most 0.1 nat moves a target by at most 7.4% (total variation)",
                ],
                "derivation": [
                    "floor: uniform share 0.02, contraction 0.969; range 5.38 nats  [T3_mix_range, T3_mix_modulus]",
                    "  product: 2 factors; range 6.99 nats  [T1_product_range]",
                    "    fixed-share posterior: share 0.02; range 4.99 nats  [T7_fixed_share_range]",
                    "    softmax: entropy, spread 4 nats, temperature 2; range 2 nats  [T1_softmax_range]",
                ],
                "proved": True,
                "floor": 0.0043,
                "ceiling": 0.931,
                "range": 5.38,
                "findings": [
                    {
                        "axiom": "B",
                        "title": "boundedness",
                        "words": "The log-ratio of two weights never exceeds R.",
                        "basis": "proved",
                        "trials": 612,
                        "bound": 3.9,
                        "worst": 3.9,
                    },
                    {"axiom": "M", "title": "monotonicity", "basis": "not claimed", "witness": {"says": "it fell"}},
                ],
                "seed": 0,
            }
        )
    )
    (folder / CONFIG).write_text("students: 6\nteachers: [code, prose, arithmetic]\n")
    write_ribbons(folder / RIBBONS, [mixed_ribbon(chance)])
    with RecordWriter(folder / COMPLETIONS) as writer:
        for step in (steps // 2, steps):
            for number, prompt in enumerate(("def mean(values):\n", "The mean of a sequence", "What is 12 times 11?")):
                writer.write(completion(chance, step, prompt, 0.2 * number))
    return folder


def completion(chance: random.Random, step: int, prompt: str, disagreement: float) -> CompletionRecord:
    """What the student would have written."""
    tokens = ["    return", " sum", "(", "values", ")", " /", " len", "(", "values", ")", "\n", "<|end|>"]
    return CompletionRecord(
        step=step,
        student="adaptive",
        prompt=prompt,
        tokens=tokens,
        teachers=TEACHERS,
        weights=[[0.8, 0.15, 0.05]] * len(tokens),
        log_prob=[[-chance.random() - k for k in range(3)] for _ in tokens],
        student_log_prob=[-chance.random() for _ in tokens],
        disagreement=disagreement,
    )


def mixed_ribbon(chance: random.Random) -> Ribbon:
    parts = (
        ("def", " mean", "(", "values", "):", "\n", "    return", " sum", "(", "values", ")", " /", " len", "()", "\n"),
        ("The", " mean", " of", " a", " sequence", " is", " its", " sum", " divided", " by", " its", " length", "\n"),
        ("What", " is", " 1", "2", " times", " 1", "1", "?", "\n", "It", " is", " 1", "3", "2", ".", "\n"),
    )
    tokens, weights, expected = [], [], []
    state = [1 / 3] * 3
    for k, part in enumerate(parts):
        for token in part:
            tokens.append(token)
            expected.append(TEACHERS[k])
            weights.append(list(state) if len(tokens) > 1 else None)
            state = [0.75 * x + 0.25 * (j == k) for j, x in enumerate(state)]
            state = [max(0.02, x + chance.gauss(0, 0.01)) for x in state]
            state = [x / sum(state) for x in state]
    loss = [None, *(abs(chance.gauss(3, 1)) for _ in tokens[1:])]
    return Ribbon(
        name="code, then prose, then arithmetic",
        teachers=TEACHERS,
        tokens=tokens,
        weights=weights,
        loss=loss,
        expected=expected,
        student="adaptive",
    )


@pytest.fixture
def demo_run(tmp_path) -> Path:
    return write_demo_run(tmp_path, steps=100)
