"""The changes that scripts/emulate_metal.py makes to our sources fit them, and leave no barrier out."""

from __future__ import annotations

import pytest

import emulate_metal
from emulate_metal import BARRIER, MUTANTS, VARIANTS, Mutant, spare_barriers
from tests.conftest import ROOT

OURS = [mutant for mutant in (*MUTANTS, *VARIANTS.values()) if mutant.file.startswith("headkv")]


@pytest.mark.parametrize("mutant", OURS, ids=lambda mutant: mutant.what)
def test_a_mutant_finds_its_text(mutant: Mutant) -> None:
    text = (ROOT / "native" / "attend" / "metal" / mutant.file).read_text()
    assert text.count(mutant.old) > mutant.nth
    assert mutant.new != mutant.old


def test_each_barrier_between_threads_has_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spare_barriers() == 0
    monkeypatch.setattr(emulate_metal, "MUTANTS", [m for m in MUTANTS if m.old != BARRIER or m.nth != 1])
    assert spare_barriers() == 1


def test_each_barrier_between_kernels_has_a_mutant() -> None:
    host = (ROOT / "native" / "attend" / "metal" / "headkv-metal.cpp").read_text()
    assert host.count("memory_barrier(") == sum("memory_barrier(" in mutant.old for mutant in MUTANTS)
