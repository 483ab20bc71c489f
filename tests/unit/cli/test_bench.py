"""`pyheadkv bench`: options as typed, and what it prints and writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyheadkv.bench.reading import Reading
from pyheadkv.bench.run import record_of
from pyheadkv.bench.setup import Setup
from pyheadkv.bench.speed import Speed, Spread
from pyheadkv.cli import bench as command
from pyheadkv.cli.app import app
from pyheadkv.files.jsonl import Record

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 128,
    "llama.attention.head_count": 2,
}
MIB = 2**20
MEMORY = {"loaded": 10 * MIB, "whole": 20 * MIB, "read": 20 * MIB, "decoded": 21 * MIB, "peak": 22 * MIB}
STOCK = Reading(2000.0, 0.0, MEMORY, 0)
OURS = Reading(
    2100.0,
    30.0,
    {"loaded": 11 * MIB, "whole": 23 * MIB, "read": 12 * MIB, "decoded": 13 * MIB, "peak": None},
    7 * MIB,
)
SPEED = Speed(Spread(40.0, 38.0, 44.0), Spread(10.0, 9.5, 12.25), Spread(4.0, 3.5, 4.125), 2.0, 8.0, 6 * MIB)


class Calls:
    setup: Setup
    n_prompts: tuple[int, ...] = ()
    trials: tuple[tuple[str, str], ...] = ()
    shapes: tuple[Any, ...] = ()

    def run_bench(
        self, setup: Setup, n_prompts: Any, trials: Any, *, with_memory: bool, on_progress: Any, on_record: Any
    ) -> list[Record]:
        self.setup, self.n_prompts = setup, tuple(n_prompts)
        self.trials = tuple((trial.name, trial.budget.request) for trial in trials)
        on_progress(0, 10, "512 tokens: reading, stock")
        records = [
            record_of(
                setup, trial, setup.draft(trial, n).expected, 2500.0, SPEED, (STOCK, OURS) if with_memory else None
            )
            for n in n_prompts
            for trial in trials
        ]
        for record in records:
            on_record(record)
        return records


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def shape_file(shape: Any, on_notice: Any) -> Path:
        shape.model()
        calls.shapes += (shape,)
        return Path("random.gguf")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADKV_DEBUG", raising=False)
    Path("model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(command, "read_gguf_metadata", lambda _: METADATA)
    monkeypatch.setattr(command, "find_profile", lambda *_: None)
    monkeypatch.setattr(command, "run_bench", calls.run_bench)
    monkeypatch.setattr(command, "shape_file", shape_file)
    return calls


@pytest.fixture
def run(calls: Calls) -> Callable[[str], Any]:
    return lambda line: CliRunner().invoke(app, ["bench", *line.split()])


def cells(table: str, first: str) -> list[str]:
    """Words of the first row with `first` in it."""
    line = next(line for line in table.splitlines() if first in line)
    return [word.strip() for word in line.strip("| ").split("|")]


def test_tables(run: Callable[[str], Any], calls: Calls) -> None:
    result = run("model.gguf -c 1k,2000 --budgets 10%,64 --policies snapkv,snapkv:n_obs=8,n_sink=2 -t 2 -ctk q8_0")
    assert result.exit_code == 0, result.output
    assert calls.n_prompts == (1024, 2000)
    assert calls.trials == tuple((p, b) for p in ("snapkv", "snapkv:n_obs=8,n_sink=2") for b in ("10%", "64"))
    assert (calls.setup.type_k, calls.setup.type_v, calls.setup.n_threads) == ("q8_0", "f16", 2)
    speed, rest = result.stdout.split("K and V buffers, MiB")
    buffers, resident = rest.split("Resident memory")
    assert cells(speed, "1024") == [
        "1024",
        "snapkv",
        "10.0 %",
        "40.00 [38.00, 44.00]",
        "10.00 [9.50, 12.25]",
        "4.00 [3.50, 4.12]",
        "25.0, 100.0",
        "2.0, 2.1",
        "32 (1.60 %)",
    ]
    assert cells(buffers, "2000")[3:] == ["1.5", "0.1", "6.0", "7.0"]
    assert cells(resident, "1024")[3:] == ["10.0", "20.0", "22.0", "11.0", "23.0", "12.0", "13.0", "-"]
    assert "Random weights" not in result.stdout and "One layer" not in result.stdout
    assert not list(Path().glob("*/bench.jsonl"))


def test_without_the_memory_of_processes(run: Callable[[str], Any]) -> None:
    result = run("model.gguf -c 1k --policies snapkv --no-memory")
    assert result.exit_code == 0, result.output
    assert "Resident memory" not in result.stdout
    speed, buffers = result.stdout.split("K and V buffers, MiB")
    assert cells(speed, "1024")[-2:] == ["2.5, -", "10 (0.40 %)"]
    assert cells(buffers, "1024")[-1] == "-"


def test_json_and_files(run: Callable[[str], Any], calls: Calls) -> None:
    result = run("model.gguf -c 512 --equal-rows --policies snapkv --rounds 2 --tokens 4 --json -o out")
    assert result.exit_code == 0, result.output
    assert calls.trials == (("snapkv", "100%"),) and (calls.setup.n_rounds, calls.setup.n_tokens) == (2, 4)
    found = json.loads(result.stdout)
    assert found["random_weights"] is False
    [record] = found["results"]
    assert record["stock_to_ours"] == {"median": 4.0, "low": 3.5, "high": 4.125}
    assert record["policy"] == record["resolved"] == "snapkv"
    assert record["keep_ratio"] == 1.0 and record["stock"]["tok_s"] == 25.0 and record["ours"]["rss"]["peak"] is None
    assert [json.loads(line) for line in Path("out/bench.jsonl").read_text().splitlines()] == [record]
    assert Path("out/bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert run("model.gguf -c 512 --policies snapkv -o out").exit_code == 0
    assert len(Path("out/bench.jsonl").read_text().splitlines()) == 2  # what was measured before is not lost


@pytest.mark.parametrize("as_json", ["", " --json"])
def test_tables_in_a_readme(run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, as_json: str) -> None:
    Path("README.md").write_text("# R\n<!-- measured: speed -->\n<!-- /measured -->\nend\n")
    monkeypatch.setattr("sys.argv", ["x", "bench", "model.gguf", "--readme", "README.md#speed", "-c", "1k"])
    result = run(f"model.gguf -c 1k --policies snapkv --readme README.md#speed{as_json}")
    assert result.exit_code == 0, result.output
    text = Path("README.md").read_text()
    head, _, table = text.partition("| context ")
    assert head.startswith("# R\n<!-- measured: speed -->\n`pyheadkv bench model.gguf -c 1k` (")
    assert cells(table, "1024")[5] == "4.00 [3.50, 4.12]" and "5 rounds of 24 tokens. Medians" in table
    assert table.endswith("faster than stock.\n<!-- /measured -->\nend\n")


def test_no_place_in_a_readme_is_refused_before_measuring(run: Callable[[str], Any], calls: Calls) -> None:
    Path("README.md").write_text("# R\n")
    result = run("model.gguf --readme README.md#speed")
    assert result.exit_code == 1 and "README.md has no <!-- measured: speed -->" in result.stderr
    assert not calls.n_prompts


def test_a_shape(run: Callable[[str], Any], calls: Calls) -> None:
    result = run("--shape llama-8b --layers 4 --weights q8_0 -c 512 --policies snapkv")
    assert result.exit_code == 0, result.output
    [shape] = calls.shapes
    assert (shape.name, shape.n_layer, shape.weights) == ("llama-8b", 4, "q8_0")
    layer = result.stdout.split("One layer")[1]
    assert cells(layer, "512")[3:5] == ["20.000", "5.000"]  # of two layers
    assert "Random weights: only times and bytes mean something" in result.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "bench needs a MODEL or a --shape, one of them"),
        ("model.gguf --shape llama-8b", "bench needs a MODEL or a --shape, one of them"),
        ("model.gguf --layers 2", "--layers goes with --shape"),
        ("--shape llama-8b --layers 33", "--layers is 33, llama-8b has 1 to 32"),
        ("--shape x", "unknown shape 'x'"),
        ("model.gguf -c two", "--ctx 'two' cannot be read"),
        ("model.gguf -c 8k", "8216 positions, this model has 4096"),
        ("model.gguf --budgets 0.2", "budget 0.2 is ambiguous"),
        ("model.gguf --budgets 8 --policies snapkv", "budget 8"),
        ("model.gguf --policies x", "unknown policy 'x'"),
        ("model.gguf --policies headkv", "policy headkv needs measured head scores"),
        ("model.gguf -ctk q9", "q9"),
        ("none.gguf", "none.gguf: no such file"),
        ("model.gguf -o model.gguf", "model.gguf cannot be made: File exists"),
    ],
)
def test_mistakes_are_one_line(run: Callable[[str], Any], line: str, words: str) -> None:
    result = run(line)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1


def test_an_unsupported_model(run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_gguf_metadata", lambda _: {"general.architecture": "mamba"})
    result = run("model.gguf")
    assert result.exit_code == 1 and "model.gguf cannot be compressed: architecture mamba is recurrent" in result.stderr


def test_without_matplotlib_there_is_no_picture(run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run("model.gguf -c 512 --policies snapkv -o out")
    assert result.exit_code == 0 and "no picture: drawing needs matplotlib" in result.stderr
    assert not Path("out/bench.png").exists()


def test_what_is_no_file_is_refused_before_measuring(run: Callable[[str], Any]) -> None:
    Path("out").mkdir()
    os.mkfifo("out/bench.png")
    result = run("model.gguf -c 512 --policies snapkv -o out")
    assert result.exit_code == 1 and result.stderr == "error: out/bench.png is a FIFO, expected a file to write\n"
    assert not Path("out/bench.jsonl").exists()
