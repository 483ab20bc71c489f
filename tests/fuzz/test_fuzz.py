"""Damaged and hostile files: each is refused in one line, or is valid; nothing crashes, hangs or takes much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyheadkv.engine.native import abi_version
from pyheadkv.errors import LibraryError

ROOT = Path(__file__).resolve().parents[2]
BATCH = 2000  # cases in one process
SECONDS = 540  # of one process; a case that does not end is killed long before


@pytest.fixture(scope="module")
def library() -> None:
    """The library reads model files."""
    try:
        abi_version()
    except LibraryError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


def test_damaged_files(library: None, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    expected = ("gguf: profile", "gguf: ModelError", "gguf: ProfileError", "json: profile", "json: ProfileError")
    run_all("tests.fuzz.child", request, 800, tmp_path, expected)


def test_damaged_capsules(library: None, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    expected = ("damaged: CapsuleError", "damaged: turn 3", "forged: CapsuleError", "forged: turn 4")
    run_all("tests.fuzz.capsules", request, 300, tmp_path, expected)


def run_all(module: str, request: pytest.FixtureRequest, n_cases: int, folder: Path, expected: Sequence[str]) -> None:
    """Have a module read so many files, or as many as were asked for; outcomes that must be among them."""
    first = request.config.getoption("--fuzz-seed", 0)
    end = first + (request.config.getoption("--fuzz-cases", None) or n_cases)
    totals: dict[str, int] = {}
    for start in range(first, end, BATCH):
        for outcome, n in run_batch(module, start, min(BATCH, end - start), folder).items():
            totals[outcome] = totals.get(outcome, 0) + n
    print(f"seeds {first} to {end - 1}: {totals}")
    assert sum(totals.values()) == end - first
    if end - first >= n_cases:  # else the damage is too little or too much to find anything
        assert min(totals.get(outcome, 0) for outcome in expected) >= 5, totals


def run_batch(module: str, first: int, count: int, folder: Path) -> dict[str, int]:
    """Counts of the outcomes of a batch; fails with the seed of the file that ended it."""
    command = [sys.executable, "-m", module, str(first), str(count), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
    last = (done.stdout.split() or ["none"])[-1] if done.returncode else done.stdout.splitlines()[-1]
    if done.returncode:
        pytest.fail(f"seed {last}: the process ended with {done.returncode}\n{done.stderr[-3000:]}")
    counts: dict[str, int] = json.loads(last)
    return counts
