"""A process that is killed while it writes a capsule: the last finished turn is there, and the next goes behind it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.capsule.writer import append_turn
from tests.unit.capsule.made import HEADER, made, tokens_of_turn
from tests.unit.capsule.test_capsule import check_whole

ROOT = Path(__file__).parents[2]


def write_until_killed(path: Path, seconds: float) -> int:
    """Turns that the writer said were finished; it lived for so long after the first."""
    command = [sys.executable, "-m", "tests.unit.capsule.made", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        said = [writer.stdout.readline()]
        time.sleep(seconds)
        writer.kill()
        said += writer.stdout.readlines()
        assert writer.stderr.read() == ""
    return int([line for line in said if line.endswith("\n")][-1])


def kill(folder: Path, n_times: int, seed: int) -> None:
    rng = random.Random(seed)
    n_dropped = 0
    for n in range(n_times):
        path = folder / f"{n}.hkv"
        n_said = write_until_killed(path, rng.uniform(0, 0.05))
        contents = check_whole(path)
        assert contents.n_turns in (n_said, n_said + 1)
        assert contents.tokens.tolist() == tokens_of_turn(contents.n_turns)
        assert len(contents.messages) == contents.n_turns
        n_dropped += contents.n_dropped > 0
        status = path.stat()
        append_turn(path, (status.st_dev, status.st_ino), HEADER, made([1, 2, 3]))
        again = check_whole(path)
        assert (again.n_turns, again.n_dropped, again.tokens.tolist()) == (contents.n_turns + 1, 0, [1, 2, 3])
        path.unlink()
    assert n_dropped > 0, "no writing was broken off"


def test_killed_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    kill(tmp_path, 30, seed=0)


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    kill(tmp_path, 200, seed=1)


def test_killed_before_the_first_turn(tmp_path: Path) -> None:
    """A new file has its name when it is whole."""
    for n in range(5):
        path = tmp_path / "a.hkv"
        command = [sys.executable, "-m", "tests.unit.capsule.made", path]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as writer:
            time.sleep(0.1 * n)
            writer.kill()
        if path.exists():
            assert read_contents(path).n_turns >= 1
            path.unlink()
