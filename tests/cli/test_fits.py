"""Memory at the peak, and the largest batch that fits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from polydistill.run import check, fits
from polydistill.run.fits import Peak, Watched, peak

MIB = 2**20


def test_what_a_batch_took_at_its_peak_is_seen_after_it_is_gone():
    watched = Watched(torch.device("cpu"))
    if watched.held is None:
        pytest.skip("no /proc that can be reset: nothing is measured there, and the last test is about that")
    torch.ones(64 * MIB // 4).sum()
    found = peak(watched, fixed=16 * MIB, optimizer=8 * MIB, student=2 * MIB, of=(2, 8))
    assert 40 * MIB <= found.of_batch <= 56 * MIB
    assert found.bytes == found.highest + 10 * MIB
    assert found.largest_batch > 2


def test_what_lies_about_in_the_allocator_hides_nothing_of_a_batch():
    torch.ones(31 * MIB // 4)  # from now on blocks of this size come from the heap
    pins = []
    for step in range(8):
        blocks = [torch.ones((20 + step) * MIB // 4) for _ in range(8)]
        pins.append(torch.ones(16))
        del blocks
        watched = Watched(torch.device("cpu"))
        if watched.held is None:
            pytest.skip("no /proc that can be reset")
        torch.ones(64 * MIB // 4).sum()
        assert 40 * MIB <= peak(watched, 16 * MIB, 8 * MIB, 2 * MIB, of=(2, 8)).of_batch <= 56 * MIB


def test_the_largest_batch_fills_the_room():
    found = Peak(
        highest=700 * MIB, optimizer=90 * MIB, saved=10 * MIB, of_batch=400 * MIB, batch=4, tokens=8, room=1000 * MIB
    )
    assert found.largest_batch == 6  # 400 that stay, 100 a sequence
    assert replace(found, room=450 * MIB).largest_batch == 0
    assert replace(found, of_batch=0).largest_batch is None, "a small model's batch is lost in what lies about"


def test_on_a_card_its_own_counters_are_read_as_far_as_it_has_them(monkeypatch):
    told = {"memory_allocated": 100, "max_memory_allocated": 700, "memory_reserved": 600, "mem_get_info": (300, 1000)}
    card = SimpleNamespace(reset_peak_memory_stats=lambda _: None, **{n: lambda _, x=x: x for n, x in told.items()})
    monkeypatch.setattr(torch, "get_device_module", lambda _: card)
    found = peak(Watched(torch.device("xpu")), 0, 50, 9, (1, 1))
    assert (found.highest, found.of_batch, found.room, found.bytes) == (700, 600, 900, 750)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())
    assert peak(Watched(torch.device("xpu")), 0, 50, 9, (1, 1)) is None


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(fits, "CLEAR", tmp_path / "missing" / "file")
    assert peak(Watched(torch.device("cpu")), 0, 0, 0, (1, 1)) is None


def test_where_the_fused_kernel_is_missing_a_card_is_told_why_and_what_it_costs():
    assert check._kernel_says(torch.device("cpu"), []) == []
    (said,) = check._kernel_says(torch.device("xpu"), [])
    assert said.startswith("objective: plain passes instead of the fused kernel on xpu, since they are written for NVI")
    assert "4 to 9 times" in said
