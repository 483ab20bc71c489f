"""`pyheadkv eval`: options as typed, what is written, what a stop leaves behind; and `calibrate --choose`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyheadkv.cli import calibrate as calibrate_command
from pyheadkv.cli import eval as command
from pyheadkv.cli import eval_report
from pyheadkv.cli.app import app
from pyheadkv.cli.eval import cases_of_file
from pyheadkv.cli.parsing import parse_lengths, split_policies
from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.cases import Case, write_cases
from pyheadkv.evaluate.runner import Outcome
from pyheadkv.evaluate.tasks import Sizes
from pyheadkv.profile import BudgetChoice, Profile

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 2048,
    "llama.embedding_length": 128,
    "llama.attention.head_count": 2,
}
PROFILE = Profile(((0.75, 0.25),), "test", kinds={"reconstruction": ((0.75, 0.25),)}, source="there")


class FakeRunner:
    sizes = Sizes(lambda text: len(text.split()), 10)
    fail_at: int | None = None
    n_read = 0

    def read(self, case: Case, question: str, reference: Any = None) -> Any:
        if FakeRunner.n_read == self.fail_at:
            raise KeyboardInterrupt
        FakeRunner.n_read += 1
        figures = {"kl": 0.0, "ms_token": 2.5} if case.metric == "kl" else {"score": 1.0}
        full = Outcome(figures, "", 100, 1.0, 1000, 1000, 1024, "full", 0.1)
        return type("Reading", (), {"case": case, "full": full, "log_probs": None})

    def measure(self, reading: Any, trial: Any) -> Outcome:
        figures = {"kl": 0.25, "ms_token": 1.5} if reading.case.metric == "kl" else {"score": 0.5}
        return Outcome(figures, "", 100, float(trial.budget.value), 10, 1000, 20, f"{trial.name}:n_obs=3", 0.1)

    def close(self) -> None:
        pass


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    @contextmanager
    def open_runner(path: Path, shape: Any, n_tokens: int, on_notice: Any, **options: Any) -> Iterator[FakeRunner]:
        calls.append({"n_tokens": n_tokens} | options)
        yield FakeRunner()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADKV_DEBUG", raising=False)
    Path("model.Q4.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(command, "read_gguf_metadata", lambda _: METADATA)
    monkeypatch.setattr(command, "fingerprint", lambda _: "f")
    monkeypatch.setattr(command, "find_profile", lambda *_: PROFILE)
    monkeypatch.setattr(command, "open_runner", open_runner)
    monkeypatch.setattr(eval_report, "write_curves", lambda found, path: path.write_bytes(b"PNG"))
    monkeypatch.setattr(eval_report, "write_depths", lambda records, path: False)
    monkeypatch.setattr(FakeRunner, "fail_at", None)
    monkeypatch.setattr(FakeRunner, "n_read", 0)
    return calls


@pytest.fixture
def run(opened: list[dict[str, Any]]) -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(app, ["eval", "model.Q4.gguf", *arguments])


def test_defaults(run: Callable[..., Any], opened: list[dict[str, Any]]) -> None:
    result = run("--cases", "2")
    assert result.exit_code == 0, result.output
    assert opened == [{"n_tokens": 2048, "n_threads": None, "n_gpu_layers": 0, "type_k": "f16", "type_v": "f16"}]
    assert "single, 2k, question in: score (2 cases)" in result.stdout and "KL to the full cache" in result.stdout
    assert "kl, 2k: decoding, ms a token (2 cases)" in result.stdout and "1.50" in result.stdout
    assert result.stdout.splitlines()[-1] == "model.Q4.eval/report.md"
    lines = [json.loads(line) for line in Path("model.Q4.eval/cells.jsonl").read_text().splitlines()]
    assert len(lines) == 5 * 2 * (1 + 2 * 5)  # tasks x cases x (full + policies x budgets)
    assert {line["budget"] for line in lines} == {"full", "50%", "25%", "10%", "5%", "1.5%"}
    report = Path("model.Q4.eval/report.md").read_text()
    assert "![quality.png](quality.png)" in report and "depths.png" not in report
    assert "- auto at 10%: auto:n_obs=3" in report and "- model: model.Q4.gguf, f" in report
    assert len(Path("model.Q4.eval/cases.jsonl").read_text().splitlines()) == 10


def test_tables_in_a_readme(run: Callable[..., Any], opened: list[dict[str, Any]], monkeypatch: Any) -> None:
    Path("README.md").write_text("# R\n<!-- measured: needles -->\nold\n<!-- /measured -->\nend\n")
    monkeypatch.setattr("sys.argv", ["x", "eval", "model.Q4.gguf", "-o", "out", "--readme", "README.md#needles"])
    options = ("--tasks", "single", "--budgets", "10%", "--policies", "snapkv", "--cases", "2", "-o", "out")
    assert run(*options, "--readme", "README.md#none").exit_code == 1 and not opened
    result = run(*options, "--readme", "README.md#needles")
    assert result.exit_code == 0, result.output
    text = Path("README.md").read_text()
    assert text.startswith("# R\n<!-- measured: needles -->\n`pyheadkv eval model.Q4.gguf` (")
    assert (
        "\n\nsingle, 2k, question in: score (2 cases), ± one standard error:\n\n| policy | 10% | full |\n| --- |"
        in text
    )
    assert "| snapkv | 50.0 ±0.0 | 100.0 ±0.0 |" in text and text.endswith("\n<!-- /measured -->\nend\n")


def test_room_for_a_reconstruction_pass_of_auto(
    run: Callable[..., Any], opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (BudgetChoice(0.05, "headkv+kvzip", {}, {}), BudgetChoice(1.0, "headkv", {}, {}))
    monkeypatch.setattr(command, "find_profile", lambda *_: replace(PROFILE, settings=settings))
    for budgets in ("10%", "10%,5%"):
        options = ("--tasks", "kl", "--policies", "auto", "--budgets", budgets, "--cases", "1", "-o", budgets)
        assert run(*options).exit_code == 0
    assert [call["n_tokens"] for call in opened] == [2048, 4096]


@pytest.mark.parametrize(("policies", "n_tokens"), [("snapkv,auto", 2048), ("snapkv,headkv+kvzip", 4096)])
def test_room_for_a_reconstruction_pass(
    run: Callable[..., Any], opened: list[dict[str, Any]], policies: str, n_tokens: int
) -> None:
    assert (
        run("--tasks", "kl", "--policies", policies, "--budgets", "10%", "--ctx", "1k,2k", "--cases", "1").exit_code
        == 0
    )
    assert opened[0]["n_tokens"] == n_tokens


def test_options_as_typed(run: Callable[..., Any], opened: list[dict[str, Any]]) -> None:
    line = (
        "--tasks kl --policies snapkv,headkv:beta=2,n_obs=8 --budgets 512,10% --ctx 1k --cases 1 -o out -t 3 -ctk q8_0"
    )
    assert run(*line.split()).exit_code == 0
    assert opened[0] == {"n_tokens": 1024, "n_threads": 3, "n_gpu_layers": 0, "type_k": "q8_0", "type_v": "f16"}
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert [(line["policy"], line["budget"]) for line in lines[1:]] == [
        (policy, budget) for policy in ("snapkv", "headkv:beta=2,n_obs=8") for budget in ("512", "10%")
    ]


def test_both_questions_and_prose_once(run: Callable[..., Any], opened: list[dict[str, Any]]) -> None:
    options = "--tasks single,kl --policies snapkv --budgets 10% --question in,after --versus q8_0 --cases 1 -o out"
    result = run(*options.split())
    assert result.exit_code == 0, result.output
    assert len(opened) == 2  # a context for each cache type
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert [(line["cache"], line["question"], line["task"]) for line in lines[::2]] == [
        (cache, *what) for cache in ("f16", "q8_0") for what in (("in", "single"), ("in", "kl"), ("after", "single"))
    ]
    assert "single, 2k, question after: score" in result.stdout
    n_read = FakeRunner.n_read
    assert run(*options.split()).exit_code == 0 and FakeRunner.n_read == n_read  # all of it is there


def test_stopped_and_gone_on_with(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--tasks", "single", "--cases", "4", "-o", "out", "--budgets", "10%")
    monkeypatch.setattr(FakeRunner, "fail_at", 2)
    result = run(*options)
    assert result.exit_code == 130
    assert "stopped; what is measured is in out/cells.jsonl" in result.stderr
    assert not Path("out/report.md").exists()
    monkeypatch.setattr(FakeRunner, "fail_at", None)
    assert run(*options).exit_code == 0 and FakeRunner.n_read == 4
    assert len(Path("out/cells.jsonl").read_text().splitlines()) == 4 * 3


def test_what_is_no_file_is_refused_before_measuring(run: Callable[..., Any], opened: list[dict[str, Any]]) -> None:
    Path("out").mkdir()
    os.mkfifo("out/report.md")
    result = run("-o", "out")
    assert result.exit_code == 1 and opened == []
    assert result.stderr == "error: out/report.md is a FIFO, expected a file to write\n"


def test_data_instead_of_tasks(run: Callable[..., Any]) -> None:
    row = {"task": "mine", "kind": "k", "context": "c", "question": "q", "metric": "all_substr", "max_new_tokens": 3}
    made = [Case(id=f"{b}{i}", answers=("x",), bucket=b, **row) for b in ("2k", "4k") for i in (0, 1)]  # type: ignore[arg-type]
    write_cases("d.jsonl", made)
    assert run("--data", "d.jsonl", "-o", "out").exit_code == 0
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert {(line["case"], line["length"]) for line in lines} == {("d: 2k0", "2k"), ("d: 2k1", "2k")}
    with pytest.raises(EvaluationError, match="no cases of the lengths asked for, it has 2k, 4k"):
        cases_of_file("d.jsonl", [1024], 10)


def test_benchmark_files_are_counted_and_cut(run: Callable[..., Any]) -> None:
    rows = [
        {"input": "Who?", "context": "word " * n, "answers": ["x"], "all_classes": None, "dataset": "musique", "_id": n}
        for n in (50, 900, 3000)
    ]
    Path("musique.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("--data", "musique.jsonl", "-o", "out", "--ctx", "1k,2k", "--budgets", "10%", "--cases", "3")
    assert result.exit_code == 0, result.output
    assert "1 of 3 cases of files are longer than 2k tokens: cut in the middle (--ctx)" in result.stderr
    cases = [json.loads(line) for line in Path("out/cases.jsonl").read_text().splitlines()]
    assert [(case["id"], case["bucket"]) for case in cases] == [
        ("musique: musique_50", "1k"),
        ("musique: musique_900", "1k"),
        ("musique: musique_3000", "2k"),
    ]
    assert cases[2]["length_tokens"] <= 2048
    assert run("--data", "musique.jsonl", "-o", "two", "--budgets", "10%", "--cases", "2").exit_code == 0
    assert len(Path("two/cases.jsonl").read_text().splitlines()) == 2


def test_versus(run: Callable[..., Any], opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_report, "write_bytes", lambda found, path: path.write_bytes(b"PNG") > 0)
    options = ("--tasks", "single", "--cases", "2", "-o", "out", "--budgets", "10%", "--versus", "q8_0,q4_0")
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert [(call["type_k"], call["type_v"]) for call in opened] == [(t, t) for t in ("f16", "q8_0", "q4_0")]
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 2 * 3 and len({line["run"] for line in lines}) == 3
    assert "snapkv@q4_0" in result.stdout and "full@q8_0" in result.stdout
    report = Path("out/report.md").read_text()
    assert "over bytes of the cache" in report and "bytes.png" in report and "Paired differences" in report
    assert "| auto@q8_0 - auto@q4_0 | 2 | 0.0 ±0.0 | too few cases |" in report
    n_read = FakeRunner.n_read
    assert run(*options).exit_code == 0 and FakeRunner.n_read == n_read


def test_kvpress(run: Callable[..., Any], opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer(FakeRunner):
        def __init__(self, path: Path, case_prompter: object, n_threads: int | None) -> None:
            assert path.name == "model.Q4.gguf"

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        result = run("--kvpress", "snapkv")
        assert result.exit_code == 1 and "error: --kvpress needs torch" in result.stderr and not opened
    monkeypatch.setattr(command, "libraries", dict)
    monkeypatch.setattr(command, "PressRunner", Peer)
    monkeypatch.setattr(FakeRunner, "case_prompter", None, raising=False)
    result = run(
        "--tasks", "single", "--cases", "1", "-o", "out", "--budgets", "10%", "--kvpress", "snapkv:window_size=16"
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert [(line["policy"], line["cache"]) for line in lines[3:]] == [
        ("full", "kvpress"),
        ("kvpress:snapkv:window_size=16", "kvpress"),
    ]
    assert "kvpress:snapkv:window_size=16" in result.stdout and "full@kvpress" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--question", "before"], "--question is 'before', expected in or after"),
        (["--question", "in,"], "--question is '', expected in or after, or both"),
        (["--tasks", "x"], "unknown task 'x'"),
        (["--budgets", "0.2"], "budget 0.2 is ambiguous"),
        (["--policies", "x"], "unknown policy 'x'"),
        (["--ctx", "4k"], "--ctx 4096 is more than the 2048 tokens of this model"),
        (["--ctx", "two"], "--ctx 'two' cannot be read"),
        (["--data", "none.jsonl"], "none.jsonl cannot be read"),
        (["--text", "none.txt"], "none.txt cannot be read"),
        (["--versus", "q9"], "--versus 'q9' is no cache type, known are"),
        (["--versus", "f16"], "--versus f16 is the cache type that is measured already"),
        (["--kvpress", "x"], "--kvpress 'x' is not one of snapkv"),
    ],
)
def test_mistakes_are_one_line(
    run: Callable[..., Any], opened: list[dict[str, Any]], options: list[str], words: str
) -> None:
    result = run(*options)
    assert result.exit_code == 1 and not opened
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1


def test_no_profile_for_a_policy_that_needs_one(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_profile", lambda *_: None)
    result = run("--policies", "headkv")
    assert result.exit_code == 1 and "policy headkv needs measured head scores: --profile FILE" in result.stderr


def test_calibrate_and_choose(opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = replace(PROFILE, settings=(BudgetChoice(1.0, "snapkv", {}, {"prose_kl": 0.1}),))

    def choose(path: Path, profile: Profile, part: Path, **threads: Any) -> Profile:
        part.write_text("measured so far")
        return chosen if profile is PROFILE else profile

    monkeypatch.setattr(calibrate_command, "calibrate_model", lambda *args, **options: PROFILE)
    monkeypatch.setattr(calibrate_command, "choose_for_model", choose)
    monkeypatch.setattr(calibrate_command, "report_lines", lambda _: [])
    for options, n_settings in (((), None), (("--choose",), 1)):
        assert CliRunner().invoke(app, ["calibrate", "model.Q4.gguf", "-o", "p.json", *options]).exit_code == 0
        written = json.loads(Path("p.json").read_text())["headkv"]
        assert len(written.get("settings") or []) == (n_settings or 0)
    assert not list(Path().glob("*.part"))


def test_policies_and_lengths() -> None:
    assert split_policies("auto,headkv:beta=2,n_obs=32,snapkv, auto") == ["auto", "headkv:beta=2,n_obs=32", "snapkv"]
    assert split_policies("headkv:pool=5,fold=max,headkv:beta=1.5") == ["headkv:pool=5,fold=max", "headkv:beta=1.5"]
    assert parse_lengths("10,30", "--follow-ups", least=1) == (10, 30)
    with pytest.raises(UsageError, match="--follow-ups 0 is too short, at least 1 tokens are needed"):
        parse_lengths("0", "--follow-ups", least=1)
    assert parse_lengths("2k, 4K,1000") == (2048, 4096, 1000)
    with pytest.raises(UsageError, match="--ctx 100 is too short"):
        parse_lengths("100")
