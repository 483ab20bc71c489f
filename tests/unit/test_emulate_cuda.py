"""The changes that scripts/emulate_cuda.py makes to our kernels fit them, and leave no barrier out."""

from __future__ import annotations

import re

import pytest

import emulate_cuda
from emulate_cuda import FAULTS, HERE, MUTANTS, OURS, SYNC, Mutant, spare_barriers


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_finds_its_text_once(mutant: Mutant) -> None:
    assert (OURS / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old


def test_each_barrier_has_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spare_barriers() == 0
    first = next(mutant for mutant in MUTANTS if SYNC in mutant.old)
    monkeypatch.setattr(emulate_cuda, "MUTANTS", [mutant for mutant in MUTANTS if mutant is not first])
    assert spare_barriers() == 1


def test_each_fault_of_the_program_is_asked_for() -> None:
    assert set(re.findall(r'is_wrong\("([^"]+)"\)', (HERE / "faults.cu").read_text())) == set(FAULTS)
