"""Stores of other tools, written here as they are described, and read into caches."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import saved, tokenizer
from typer.testing import CliRunner

from polydistill.cache import Cache, CachedTeacher
from polydistill.cache.published import ImportRefusedError, Layout, Source, import_cache, listed_rows, packed_rows
from polydistill.cli.main import app
from polydistill.logprobs import logits_of

VOCABULARY = len(tokenizer())


def bits_of(numbers: np.ndarray, width: int) -> bytes:
    """Most significant bit first, one number after the other: a string of digits, eight at a time."""
    digits = "".join(format(int(n), f"0{width}b") for n in numbers)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))


def packed(log_p: torch.Tensor, layout: Layout) -> tuple[bytes, bytes]:
    """One position as DistillKit's budget settings store it: bfloat16 values, float32 coefficients, packed ids."""
    top = log_p.topk(layout.k)
    exact = top.values[: layout.exact_k].to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    t = np.arange(layout.k - layout.exact_k, dtype=np.float64)
    basis = np.stack([np.sqrt(t) if term == "sqrt" else t**term for term in layout.terms], -1)
    rest = top.values[layout.exact_k :].double().numpy()
    coefficients = np.linalg.lstsq(basis, rest, rcond=None)[0].astype("<f4")
    return exact + coefficients.tobytes(), bits_of(top.indices.numpy(), layout.id_bits)


LAYOUT = Layout(
    d=VOCABULARY, k=12, exact_k=2, exact_dtype="bfloat16", polynomial_terms=[0, 1, "sqrt"], delta_encoding=False
)


def example(length: int = 9, seed: int = 0) -> tuple[list[int], torch.Tensor]:
    torch.manual_seed(seed)
    log_p = (torch.randn(length, VOCABULARY) * 3).log_softmax(-1)
    return torch.randint(4, VOCABULARY, (length,)).tolist(), log_p


def test_the_published_settings_have_the_published_sizes() -> None:
    budget = {"k": 50, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"]}
    full = {"k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
    for settings, vocabulary, size in (
        (budget, 128256, 121),
        (budget, 262144, 127),
        (full, 128256, 328),
        (full, 262144, 344),
    ):
        layout = Layout(d=vocabulary, **settings)
        assert layout.value_bytes + layout.id_bytes == size


def test_packed_rows_are_read_as_they_were_written() -> None:
    tokens, log_p = example()
    both = [packed(row, LAYOUT) for row in log_p]
    row = {
        "input_ids": tokens,
        "compressed_logprobs": [list(v) for v, _ in both],
        "bytepacked_indices": [list(i) for _, i in both],
    }
    read, rows = packed_rows(row, LAYOUT)
    assert read.tolist() == tokens
    for t, (ids, values) in enumerate(rows):
        top = log_p[t].topk(12)
        assert ids.tolist() == top.indices.tolist()
        assert values[:2] == pytest.approx(top.values[:2].tolist(), rel=2**-8)
        t_ = np.arange(10.0)
        basis = np.stack([t_**0, t_, np.sqrt(t_)], -1)
        fitted = basis @ np.linalg.lstsq(basis, top.values[2:].double().numpy(), rcond=None)[0]
        assert values[2:] == pytest.approx(fitted, abs=1e-4)
    with pytest.raises(ImportRefusedError, match=r"16 bytes of log-probabilities, these settings make 20"):
        packed_rows(row, LAYOUT.model_copy(update={"exact_k": 4}))


@given(seed=st.integers(0, 1000), bits=st.integers(1, 9), delta=st.booleans())
def test_residual_bins_and_differences_are_added_up(seed: int, bits: int, delta: bool) -> None:
    random = np.random.default_rng(seed)
    settings = {"scale_dtype": "float32", "element_bits": bits, "num_elements": 5}
    layout = Layout(d=64, k=7, exact_k=1, residual_bins=[settings], delta_encoding=delta)
    codes, scale, first = random.integers(0, 2**bits, 5), 0.25, -0.5
    values = np.float32([first]).tobytes() + np.float32([scale]).tobytes() + bits_of(codes, bits)
    _, read = layout.unpacked(values, bits_of(np.arange(7), 6))
    steps = scale * (2 * codes - 1 if bits == 1 else codes - 2 ** (bits - 1))
    wanted = np.array([first, *steps, 0.0])
    assert read == pytest.approx(np.cumsum(wanted) if delta else wanted)


def test_a_column_of_lists_describes_the_end_of_the_text() -> None:
    listed = [None, [{"token": "token_id:7", "logprob": -0.5}, {"token": "token_id:9", "logprob": -1.5}]]
    tokens, rows = listed_rows({"logprobs": listed}, np.arange(5))
    assert len(rows) == len(tokens) - 1 == 4
    assert [len(ids) for ids, _ in rows] == [0, 0, 0, 2]
    assert rows[3][0].tolist() == [7, 9]


def test_an_imported_teacher_says_what_was_stored(tmp_path: Path) -> None:
    texts = [example(seed=seed) for seed in range(5)]
    rows = []
    for tokens, log_p in texts:
        tops = [row.topk(20) for row in log_p]
        rows.append((np.array(tokens), [(t.indices.numpy(), t.values.double().numpy()) for t in tops]))
    manifest = import_cache(str(tmp_path / "cache"), Source("data", "x", VOCABULARY, rows), "them", step=0.1)
    assert manifest.plan.teachers[0].weights == "imported"
    teacher = CachedTeacher("them", Cache(str(tmp_path / "cache")))
    for tokens, log_p in texts:
        ids = torch.tensor(tokens)[None]
        says = teacher.speak(ids, torch.ones_like(ids), torch.arange(8))
        log_q = logits_of(says, torch.arange(8)).log_softmax(-1)
        top = log_p[:8].topk(20)
        assert float((log_q.gather(1, top.indices) - top.values).abs().max()) <= 0.1 + 1e-5
        rest = log_q.scatter(1, top.indices, -math.inf).exp().sum(-1)
        assert float((rest - (1 - top.values.exp().sum(-1))).abs().max()) < 0.02
        label = log_q.gather(1, ids[0, 1:, None]).squeeze(1)
        assert float((says.known.label_log_prob - label).abs().max()) < 0.2


def test_stores_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    outside = (np.array([1, VOCABULARY]), np.log([0.5, 0.2]))
    twice = (np.array([1, 1]), np.log([0.5, 0.2]))
    heavy = (np.array([1, 2]), np.log([0.9, 0.9]))
    for row, said in ((outside, "outside the vocabulary"), (twice, "twice"), (heavy, "mass is 1.8")):
        source = Source("data", "x", VOCABULARY, [(np.arange(3), [row, row])])
        with pytest.raises(ImportRefusedError, match=rf"data, row 0, position 0: .*{said}"):
            import_cache(str(tmp_path / said[:4]), source, "them")
    short = Source("data", "x", VOCABULARY, [(np.arange(9), [heavy])])
    with pytest.raises(ImportRefusedError, match="9 tokens have 1 stored positions"):
        import_cache(str(tmp_path / "short"), short, "them")


@pytest.mark.parametrize("kind", ["distillkit", "axolotl"])
def test_files_are_imported_from_the_command_line(kind: str, tmp_path: Path) -> None:
    words, lines = saved(tmp_path / "words"), []
    for seed in range(3):
        tokens, log_p = example(seed=seed)
        if kind == "distillkit":
            both = [packed(row, LAYOUT) for row in log_p]
            columns = {
                "compressed_logprobs": [list(v) for v, _ in both],
                "bytepacked_indices": [list(i) for _, i in both],
            }
        else:
            tops = [row.topk(8) for row in log_p]
            columns = {
                "logprobs": [
                    [
                        {"token": f"token_id:{i}", "logprob": v}
                        for i, v in zip(t.indices.tolist(), t.values.tolist(), strict=True)
                    ]
                    for t in tops
                ]
            }
        lines.append(json.dumps({"input_ids": tokens, **columns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "layout.yaml").write_text(LAYOUT.model_dump_json())
    command = [
        "cache",
        "import",
        str(tmp_path / "data.jsonl"),
        "--tokenizer",
        str(words),
        "--to",
        str(tmp_path / "cache"),
    ]
    command += ["--layout", str(tmp_path / "layout.yaml")] if kind == "distillkit" else []
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    opened = Cache(str(tmp_path / "cache"))
    assert len(opened) == 3
    assert CachedTeacher("student", opened, "teacher").agree_with(tokenizer(), VOCABULARY) is None


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"token": 5, "logprob": 3.0}, "the log-probability 3 is none"),
        ({"token": 5, "logprob": math.nan}, "the log-probability nan is none"),
        ({"token": "9" * 30, "logprob": -1.0}, "row 0: the column logprobs is not a list of lists"),
        ({"token": "a word", "logprob": -1.0}, "row 0: the column logprobs is not a list of lists"),
        ({"token": 5, "logprob": None}, "row 0: the column logprobs is not a list of lists"),
        ({"id": 5}, "row 0: the column logprobs is not a list of lists"),
    ],
)
def test_what_is_no_log_probability_is_refused_with_its_row(entry: dict, sentence: str, tmp_path: Path) -> None:
    def imported() -> None:
        rows = [listed_rows({"logprobs": [[entry]] * 4}, np.arange(4), where="data, row 0")]
        import_cache(str(tmp_path / "cache"), Source("data", "t", VOCABULARY, rows), "teacher")

    with pytest.raises(ImportRefusedError) as caught:
        imported()
    assert sentence in str(caught.value)
