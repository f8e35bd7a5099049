"""Kernels: the only place that touches a vocabulary's worth of numbers, `[n, V]`.

A kernel gives room for the products of K teachers and of the student, reads every teacher off once (`read`), and pulls
the student towards them when their weights are known (`pull`); what it keeps in between is its own business. Every
kernel is told the whole call beforehand and may decline it: the plain one takes them all.
"""

from polydistill.objective.kernels import fused, tiled
from polydistill.objective.kernels.call import Call, Pulled, Read
from polydistill.objective.kernels.fused import Fused
from polydistill.objective.kernels.plain import Plain
from polydistill.objective.kernels.storage import release

Kernel = Plain | Fused
"""What the loop calls; another engine has the same methods."""


def kernel_for(call: Call) -> Kernel:
    """The fastest one that supports a call."""
    if call.divergence.compiles:
        if fused.supports(call):
            return Fused(call)
        if tiled.pays(call):
            return tiled.Tiled(call)
    return Plain(call)


def row_bytes(call: Call) -> int:
    """What that one holds for each position of a chunk."""
    if fused.supports(call):
        return call.storage.itemsize * call.vocabulary * (call.teachers + 1)
    # Of each teacher, of the one that speaks, of a student that signals read, and on a GPU of the gradient.
    blocks = call.teachers + 1 + call.compares + (call.device.type != "cpu")
    return call.dtype.itemsize * call.vocabulary * blocks


__all__ = ["Call", "Fused", "Kernel", "Plain", "Pulled", "Read", "kernel_for", "release", "row_bytes"]
