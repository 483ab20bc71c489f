"""What `--fit` promises holds for a process that reads a prompt which fills the context."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_cli import COMMAND, ENV, run

LIMIT = 328  # MiB, of which the weights of the demo are 94 or 138


def watched(process: subprocess.Popen[str]) -> float:
    """MiB that a process had in memory at its peak; its beginning, as a copy of its parent, does not count."""
    peak = 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if "VmHWM:" in status and "llama" in Path(f"/proc/{process.pid}/maps").read_text():
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        time.sleep(0.02)
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read as Linux counts it")
def test_a_process_stays_within_the_limit(library: None, demo_path: Path, tmp_path: Path) -> None:
    document = tmp_path / "long.txt"
    document.write_text("The ferry leaves at nine. It is cold, and the tea in the old harbour is not. " * 65)
    arguments = ("chat", demo_path, "-f", document, "-p", "When?", "-st", "-n", "4", "-t", "1", "--temp", "0")
    command = [*COMMAND, *map(str, arguments), "--fit", f"{LIMIT}MiB", "-c", "2048"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        peak = watched(process)
        answer, said = process.communicate()
    assert process.returncode == 0 and answer.strip(), said
    promised = re.search(r"^note: -c 2048 .* fits into 328MiB: about (\d+) MiB ", said)
    assert promised, said
    assert 0.6 * int(promised[1]) < peak <= int(promised[1]) <= LIMIT


def test_what_does_not_fit_is_said_before_anything_is_loaded(demo_path: Path) -> None:
    done = run("chat", demo_path, "-p", "hello", "--fit", "100MiB")
    assert done.returncode == 1 and re.fullmatch(r"error: nothing fits into 100 MiB: .* of it weights\n", done.stderr)
    assert "--fit is '10%', expected a size" in run("inspect", demo_path, "--fit", "10%").stderr
    done = run("inspect", demo_path, "--fit", "8GiB")
    assert "fit              -c 8192 -ctk f16 -ctv f16 --budget full fits into 8GiB" in done.stdout
