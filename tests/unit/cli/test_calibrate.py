"""`pyheadkv calibrate`: options as typed, the file it writes, and what a stop leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyheadkv.calibrate import CalibrationSettings
from pyheadkv.cli import calibrate as command
from pyheadkv.cli.app import app
from pyheadkv.cli.render import note
from pyheadkv.engine import load as loading
from pyheadkv.errors import CalibrationError
from pyheadkv.profile import Profile

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 2048,
    "llama.embedding_length": 128,
    "llama.attention.head_count": 2,
}
SCORES = ((0.75, 0.25),)
PROFILE = Profile(
    SCORES,
    "test",
    fingerprint="f",
    kinds={"retrieval": SCORES, "reconstruction": ((0.25, 0.75),)},
    calibration={
        "examples": {"digits": {"tried": 9, "right": 8}},
        "counted": {"retrieval": 8, "reconstruction": 2},
        "split_half": {"retrieval": 0.98765, "reconstruction": None},
        "seconds": 12.3,
    },
)


class FakeLlama:
    closed = 0

    def close(self) -> None:
        FakeLlama.closed += 1


class Calls:
    """What the command asked for; `outcome` is what comes of it."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.settings: CalibrationSettings | None = None
        self.options: dict[str, Any] = {}
        self.outcome: BaseException | None = None

    def load(self, path: Path, **options: Any) -> FakeLlama:
        self.loaded = options
        return FakeLlama()

    def calibrate(self, llama: FakeLlama, settings: CalibrationSettings, **options: Any) -> Profile:
        self.settings, self.options = settings, options
        options["part"].write_text("what is measured so far\n")
        options["on_progress"](0, 10, "512 tokens, digits")
        if self.outcome:
            raise self.outcome
        return PROFILE


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADKV_DEBUG", raising=False)
    Path("folder").mkdir()
    Path("folder/model.Q4_1.gguf").write_bytes(b"GGUF")
    FakeLlama.closed = 0
    monkeypatch.setattr(command, "read_gguf_metadata", lambda _: METADATA)
    monkeypatch.setattr(command, "fingerprint", lambda _: "f")
    monkeypatch.setattr(loading, "load", calls.load)
    monkeypatch.setattr(command, "calibrate", calls.calibrate)
    return calls


@pytest.fixture
def run(calls: Calls) -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(app, ["calibrate", "folder/model.Q4_1.gguf", *arguments])


def test_defaults(run: Callable[..., Any], calls: Calls) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert calls.settings == CalibrationSettings()
    assert calls.loaded == {"n_ctx": 2048, "n_threads": None, "n_gpu_layers": 0, "on_notice": note}
    assert (calls.options["fingerprint"], calls.options["force"]) == ("f", False)
    assert FakeLlama.closed == 1
    written = json.loads(Path("model.Q4_1.headkv.json").read_text())["headkv"]
    assert written["scores"] == [[0.75, 0.25]] and written["calibration"]["seconds"] == 12.3
    assert not Path("model.Q4_1.headkv.json.part").exists()


def test_every_option_as_typed(run: Callable[..., Any], calls: Calls) -> None:
    line = (
        "-o heads.json --examples 7 --lengths 512,700 --seed 3 --fold max --score-mix retrieval=2,reconstruction"
        " -t 3 -ngl 99 --force"
    )
    assert run(*line.split()).exit_code == 0
    assert calls.settings == CalibrationSettings(
        7, (512, 700), 3, fold="max", mix={"retrieval": 2, "reconstruction": 1}
    )
    assert dict(calls.settings.mix) == {"retrieval": 2, "reconstruction": 1}
    assert (calls.loaded["n_threads"], calls.loaded["n_gpu_layers"]) == (3, 99)
    assert calls.options["part"] == Path("heads.json.part") and calls.options["force"]
    assert Path("heads.json").is_file()


def test_report(run: Callable[..., Any]) -> None:
    assert run().stdout.splitlines() == [
        "answered right: digits 8 of 9 (12 s)",
        "retrieval: 8 counted, split-half correlation 0.988",
        "  leading heads (layer-head, share): 0-0 75.0 %, 0-1 25.0 %",
        "reconstruction: 2 counted, split-half correlation unknown",
        "  leading heads (layer-head, share): 0-1 75.0 %, 0-0 25.0 %",
        "model.Q4_1.headkv.json",
    ]


def test_a_stop_keeps_what_is_measured_and_says_so(run: Callable[..., Any], calls: Calls) -> None:
    calls.outcome = KeyboardInterrupt()
    result = run()
    assert result.exit_code == 130
    assert "model.Q4_1.headkv.json.part, and the same command goes on" in " ".join(result.stderr.split())
    assert Path("model.Q4_1.headkv.json.part").read_text() == "what is measured so far\n"
    assert not Path("model.Q4_1.headkv.json").exists() and FakeLlama.closed == 1


def test_too_few_examples_write_nothing_and_keep_what_is_measured(run: Callable[..., Any], calls: Calls) -> None:
    calls.outcome = CalibrationError("3 of 20 examples counted")
    result = run()
    assert (result.exit_code, result.stderr, result.stdout) == (1, "error: 3 of 20 examples counted\n", "")
    assert Path("model.Q4_1.headkv.json.part").exists() and not Path("model.Q4_1.headkv.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "512,x"], "--lengths '512,x' cannot be read"),
        (["--lengths", "100"], "a length of 100 tokens is too short, at least 384 are needed"),
        (["--fold", "mean"], "unknown fold 'mean'"),
        (["--score-mix", "nope=1"], "names 'nope'"),
        (["--score-mix", "retrieval=-1"], "mix 'retrieval=-1' cannot be read"),
    ],
)
def test_known_errors_are_one_line_before_anything_is_loaded(
    run: Callable[..., Any], calls: Calls, arguments: list[str], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert calls.loaded == {} and not list(Path().glob("*.part"))


def test_a_model_that_cannot_be_compressed(
    run: Callable[..., Any], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "read_gguf_metadata", lambda _: {"general.architecture": "mamba"})
    result = run()
    assert result.exit_code == 1 and calls.loaded == {}
    assert "model.Q4_1.gguf cannot be compressed: architecture mamba is recurrent" in result.stderr
