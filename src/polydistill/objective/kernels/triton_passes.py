"""Triton's passes over the logits `[K + 1, m, V]` of a chunk: one program per row, sums in float32.

Logits are read as the models' products left them: bias, scale, soft cap and temperature are applied while they are
read, by `_logits`, so that nothing is rounded a second time. What a row needs of another pass is in `table
[FIELDS, m, K + 1]`. Strides are in numbers; they are 64 bits wide, since a chunk may have more than 2^31 of them.
"""

from contextlib import nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

LABEL, TOP, ENTROPY, LOG_Z, TEMPERED_LOG_Z, TEMPERED_ENTROPY, LARGEST, MARGIN = range(8)
"""Fields of a table: as `Read` has them, the normaliser at temperature 1, and the largest logit of a row. A normaliser
is of the logits less their largest: in one number with that it would be rounded by as many nats as logits are large."""
FIELDS = 8


@triton.jit
@no_type_check
def _logits(x, off, ok, model, bias, scale, cap, V, BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr):
    """`cap tanh(scale (x + bias) / cap)` of one model, minus infinity where not `ok`; a cap of 0 is none."""
    z = tl.load(x + off, mask=ok, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias + model * V + off, mask=ok, other=0.0)
    if SCALE:
        z *= tl.load(scale + model)
    if CAP:
        c = tl.load(cap + model)
        ratio = z / tl.where(c > 0.0, c, 1.0)
        e = tl.exp(-2.0 * tl.abs(ratio))
        bent = c * (1.0 - e) / (1.0 + e)
        z = tl.where(c > 0.0, tl.where(ratio < 0.0, -bent, bent), z)
    return tl.where(ok, z, float("-inf"))


@triton.jit
@no_type_check
def listen(
    x, label, table, bias, scale, cap, models, rows, V, model_stride, row_stride, inverse_t,
    TEMPERED: tl.constexpr, WITH_MARGIN: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's numbers for the table, from one read of it; not finite in `TOP` where a logit is not."""
    row, model = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    base = x + model * model_stride + row * row_stride
    top, second, low = float("-inf"), float("-inf"), float("inf")
    s, t, s_t, t_t = 0.0, 0.0, 0.0, 0.0
    for start in range(0, V, BLOCK):
        off = start + tl.arange(0, BLOCK)
        ok = off < V
        z = _logits(base, off, ok, model, bias, scale, cap, V, BIAS, SCALE, CAP)
        best = tl.max(z, 0)
        low = tl.minimum(low, tl.min(tl.where(ok, z, float("inf")), 0))
        if WITH_MARGIN:
            tied = tl.sum(tl.where(z == best, 1, 0), 0) > 1
            next_best = tl.where(tied, best, tl.max(tl.where(z == best, float("-inf"), z), 0))
            second = tl.maximum(tl.minimum(top, best), tl.maximum(second, next_best))
        new = tl.maximum(top, best)
        first = top == float("-inf")
        shift = tl.where(first, 0.0, top - new)
        d = z - new
        e = tl.exp(d)
        t = tl.where(first, 0.0, tl.exp(shift) * (t + shift * s)) + tl.sum(tl.where(ok, e * d, 0.0), 0)
        s = tl.where(first, 0.0, tl.exp(shift) * s) + tl.sum(e, 0)
        if TEMPERED:
            d = d * inverse_t
            shift = shift * inverse_t
            e = tl.exp(d)
            t_t = tl.where(first, 0.0, tl.exp(shift) * (t_t + shift * s_t)) + tl.sum(tl.where(ok, e * d, 0.0), 0)
            s_t = tl.where(first, 0.0, tl.exp(shift) * s_t) + tl.sum(e, 0)
        top = new
    y = tl.load(label + row)
    chosen = _logits(base, y, y < V, model, bias, scale, cap, V, BIAS, SCALE, CAP)
    log_s = tl.log(s)
    out, field = table + row * models + model, rows * models
    tl.store(out, chosen - top - log_s)
    tl.store(out + field, 0.0 * low - log_s)
    tl.store(out + 2 * field, log_s - t / s)
    tl.store(out + 3 * field, log_s)
    if TEMPERED:
        log_t = tl.log(s_t)
        tl.store(out + 4 * field, log_t)
        tl.store(out + 5 * field, log_t - t_t / s_t)
    else:
        tl.store(out + 4 * field, log_s)
        tl.store(out + 5 * field, log_s - t / s)
    tl.store(out + 6 * field, top)
    if WITH_MARGIN:
        tl.store(out + 7 * field, tl.where(second == float("-inf"), 0.0, top - second))


@triton.jit
@no_type_check
def compare(
    x, table, to_mean, to_student, bias, scale, cap, rows, V, model_stride, row_stride,
    K: tl.constexpr, MEAN: tl.constexpr, STUDENT: tl.constexpr,
    BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`KL(p_k || mean)` and `KL(p_k || q)` at temperature 1, as far as they are wanted."""
    row = tl.program_id(0).to(tl.int64)
    model_stride += tl.zeros((), tl.int64)
    log_z, top = table + (3 * rows + row) * (K + 1), table + (6 * rows + row) * (K + 1)
    base = x + row * row_stride
    teacher = tl.arange(0, WIDE)
    mean_gap, student_gap = tl.zeros((WIDE,), tl.float32), tl.zeros((WIDE,), tl.float32)
    for start in range(0, V, BLOCK):
        off = start + tl.arange(0, BLOCK)
        ok = off < V
        mean = tl.zeros((BLOCK,), tl.float32)
        log_q = mean
        if MEAN:
            for k in tl.static_range(K):
                z = _logits(base + k * model_stride, off, ok, k, bias, scale, cap, V, BIAS, SCALE, CAP)
                mean += tl.exp(z - tl.load(top + k) - tl.load(log_z + k))
        if STUDENT:
            z = _logits(base + K * model_stride, off, ok, K, bias, scale, cap, V, BIAS, SCALE, CAP)
            log_q = z - tl.load(top + K) - tl.load(log_z + K)
        log_mean = tl.log(mean / K)
        for k in tl.static_range(K):
            z = _logits(base + k * model_stride, off, ok, k, bias, scale, cap, V, BIAS, SCALE, CAP)
            log_p = z - tl.load(top + k) - tl.load(log_z + k)
            p = tl.exp(log_p)
            if MEAN:
                mean_gap += tl.where(teacher == k, tl.sum(tl.where(p > 0.0, p * (log_p - log_mean), 0.0), 0), 0.0)
            if STUDENT:
                student_gap += tl.where(teacher == k, tl.sum(tl.where(p > 0.0, p * (log_p - log_q), 0.0), 0), 0.0)
    if MEAN:
        tl.store(to_mean + row * K + teacher, mean_gap, mask=teacher < K)
    if STUDENT:
        tl.store(to_student + row * K + teacher, student_gap, mask=teacher < K)


@triton.jit
@no_type_check
def _against(
    base, off, ok, log_q, top, log_z, log_w, row, bias, scale, cap, V, model_stride, inverse_t,
    K: tl.constexpr, REVERSE: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Forward: the linear pool, and `sum_k w_k p_k (log p_k - log q)`; reverse: `sum_k w_k (log q - log p_k)` twice.

    Differences are taken teacher by teacher, so that a teacher that equals the student adds exactly 0.
    """
    pool, point = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        z = _logits(base + k * model_stride, off, ok, k, bias, scale, cap, V, BIAS, SCALE, CAP)
        log_p = (z - tl.load(top + k)) * inverse_t - tl.load(log_z + k)
        w = tl.exp(tl.load(log_w + row * K + k))
        if REVERSE:
            point += w * (log_q - log_p)
        else:
            p = w * tl.exp(log_p)
            pool += p
            point += p * (log_p - log_q)
    return pool, point


@triton.jit
@no_type_check
def pull(
    x, label, table, log_w, divergence, bias, scale, cap, rows, V, model_stride, row_stride, inverse_t, pull_mass, ce,
    K: tl.constexpr, REVERSE: tl.constexpr, CE: tl.constexpr, GRADIENT: tl.constexpr,
    BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Divergence of a row; the gradient with respect to the student's product is written where that stood.

    Reverse KL reads a row twice: its gradient has the divergence in it.
    """
    row = tl.program_id(0).to(tl.int64)
    model_stride += tl.zeros((), tl.int64)
    base = x + row * row_stride
    student = base + K * model_stride
    log_z, top = table + (4 * rows + row) * (K + 1), table + (6 * rows + row) * (K + 1)
    log_z_q, top_q = tl.load(log_z + K), tl.load(top + K)
    log_z_1 = tl.load(table + (3 * rows + row) * (K + 1) + K)
    y = tl.load(label + row)
    total = 0.0
    if REVERSE:
        for start in range(0, V, BLOCK):
            off = start + tl.arange(0, BLOCK)
            ok = off < V
            z = _logits(student, off, ok, K, bias, scale, cap, V, BIAS, SCALE, CAP)
            log_q = (z - top_q) * inverse_t - log_z_q
            _, excess = _against(
                base, off, ok, log_q, top, log_z, log_w, row, bias, scale, cap, V, model_stride, inverse_t,
                K, REVERSE, BIAS, SCALE, CAP, BLOCK,
            )  # fmt: skip
            total += tl.sum(tl.where(ok, tl.exp(log_q) * excess, 0.0), 0)
    if GRADIENT or not REVERSE:
        for start in range(0, V, BLOCK):
            off = start + tl.arange(0, BLOCK)
            ok = off < V
            z = _logits(student, off, ok, K, bias, scale, cap, V, BIAS, SCALE, CAP)
            log_q = (z - top_q) * inverse_t - log_z_q
            q = tl.exp(log_q)
            pool, point = _against(
                base, off, ok, log_q, top, log_z, log_w, row, bias, scale, cap, V, model_stride, inverse_t,
                K, REVERSE, BIAS, SCALE, CAP, BLOCK,
            )  # fmt: skip
            if REVERSE:
                g = pull_mass * q * (point - total)
            else:
                g = pull_mass * (q - pool)
                total += tl.sum(tl.where(ok, point, 0.0), 0)
            if GRADIENT:
                if CE:
                    g += ce * (tl.exp(z - top_q - log_z_1) - tl.where(off == y, 1.0, 0.0))
                if CAP:
                    c = tl.load(cap + K)
                    ratio = z / tl.where(c > 0.0, c, 1.0)
                    g = tl.where(c > 0.0, g * (1.0 - ratio * ratio), g)
                if SCALE:
                    g *= tl.load(scale + K)
                tl.store(student + off, g.to(x.dtype.element_ty), mask=ok)
    tl.store(divergence + row, total)


def launch(
    kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Tensor | int | float, **settings: int | bool
) -> None:
    """Every launch of a kernel goes through here, on the device of its numbers; of no rows there is none."""
    if all(grid):
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton would take the current one
            kernel[grid](x, *arguments, **settings)


def fits(device: torch.device) -> None:
    """Run both passes once on a device and look at what they say.

    Raises:
        Exception: whatever keeps Triton from running there, or ArithmeticError where an answer is wrong.
    """
    x = torch.tensor([[[0.5, -1.0, 2.0]], [[0.0, 1.0, -0.5]]], device=device).to(torch.bfloat16)
    log_p, log_q = x[:, 0].float().log_softmax(-1)
    label, table = torch.zeros(1, dtype=torch.long, device=device), torch.empty(FIELDS, 1, 2, device=device)
    none, divergence = table.new_empty(0), table.new_empty(1)
    shapes = {"BIAS": False, "SCALE": False, "CAP": False, "BLOCK": 4}
    at = (none, none, none, 1, 3, 3, 3, 1.0)
    launch(listen, (1, 2), x, label, table, *at[:3], 2, *at[3:], TEMPERED=False, WITH_MARGIN=False, **shapes)
    pulled = {"K": 1, "REVERSE": False, "CE": False, "GRADIENT": True}
    launch(pull, (1,), x, label, table, table.new_zeros(1, 1), divergence, *at, 1.0, 0.0, **pulled, **shapes)
    truths = {"a log-probability": (table[LABEL, 0, 0], log_p[0])}
    truths["a divergence"] = (divergence[0], (log_p.exp() * (log_p - log_q)).sum())
    truths["a gradient"] = (x[1, 0, 2], log_q[2].exp() - log_p[2].exp())
    for name, (said, truth) in truths.items():
        if not abs(float(said) - float(truth)) < (1e-2 if name == "a gradient" else 1e-5):
            raise ArithmeticError(f"{name} came out as {float(said):.6g} instead of {float(truth):.6g}")
