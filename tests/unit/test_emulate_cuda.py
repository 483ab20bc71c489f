"""The changes that scripts/cuda_mutants.py makes to our CUDA files fit them, and leave no barrier out."""

from __future__ import annotations

import re

import pytest

import cuda_mutants
from cuda_emulator import HERE
from cuda_mutants import BACKEND_MUTANTS, DISPATCH, GGML_CUDA, KERNEL_MUTANTS, OURS, SYNC, Mutant, spare_barriers
from emulate_cuda import FAULTS

UPSTREAMS = (DISPATCH, GGML_CUDA)


@pytest.mark.parametrize("mutant", KERNEL_MUTANTS + BACKEND_MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_finds_its_text_once(mutant: Mutant) -> None:
    assert mutant.new != mutant.old
    assert mutant.file in UPSTREAMS or (OURS / mutant.file).read_text().count(mutant.old) == 1


def test_each_barrier_has_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spare_barriers() == 0
    first = next(mutant for mutant in KERNEL_MUTANTS if SYNC in mutant.old)
    monkeypatch.setattr(cuda_mutants, "KERNEL_MUTANTS", [mutant for mutant in KERNEL_MUTANTS if mutant is not first])
    assert spare_barriers() == 1


def test_each_fault_of_the_program_is_asked_for() -> None:
    assert set(re.findall(r'is_wrong\("([^"]+)"\)', (HERE / "faults.cu").read_text())) == set(FAULTS)
