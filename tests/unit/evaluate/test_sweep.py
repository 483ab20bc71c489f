"""Sweeps over a runner that only counts: what is measured, kept, gone on with, averaged, shown and chosen."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate import choose
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.choose import Candidate, Measured, Range, choose_settings, pick
from pyheadkv.evaluate.compare import comparisons
from pyheadkv.evaluate.plots import write_curves, write_depths
from pyheadkv.evaluate.report import markdown, sheets, value_text
from pyheadkv.evaluate.results import FULL, Results, cells
from pyheadkv.evaluate.runner import Outcome
from pyheadkv.evaluate.sweep import Sweep, run_mark, run_sweep
from pyheadkv.evaluate.tasks import Sizes
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.text import parse_policy
from pyheadkv.policy.trial import Trial
from pyheadkv.profile import Profile

BUDGETS = [Budget.parse("50%"), Budget.parse("10%")]
TRIALS = [Trial(name, parse_policy(name), budget) for name in ("auto", "snapkv") for budget in BUDGETS]
SCORES = ((0.75, 0.25),)
PROFILE = Profile(SCORES, "test", kinds={"reconstruction": SCORES})


def case(i: int, task: str = "single", depth: float = 0.5) -> Case:
    metric = "kl" if task == "kl" else "all_substr"
    return Case(f"{task}{i}", task, "k", "text", "?", ("1",), metric, 4, n_tokens=100, bucket="2k", depths=(depth,))


CASES = [case(i, depth=i / 4) for i in range(4)]


def outcome(figures: dict[str, float], keep_ratio: float = 1.0) -> Outcome:
    n_bytes = round(1000 * keep_ratio)
    return Outcome(figures, "said", 100, keep_ratio, n_bytes, 1000, n_bytes + 50, "resolved:x=1", 0.123456)


class FakeReading:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.full = outcome({"kl": 0.0} if case.metric == "kl" else {"score": 1.0})
        self.log_probs: Any = f"predictions of {case.id}" if case.metric == "kl" else None


class FakeRunner:
    """Scores: 1 at 50 %; at 10 % those of even cases by auto, none by snapkv. Stops like Ctrl-C after so many steps."""

    sizes = Sizes(lambda text: len(text.split()), 10)

    def __init__(self, n_steps: int = 10**6) -> None:
        self.steps: list[str] = []
        self.n_steps = n_steps
        self.closed = 0

    def _step(self, words: str) -> None:
        if len(self.steps) == self.n_steps:
            raise KeyboardInterrupt
        self.steps.append(words)

    def read(self, case: Case, question: str, reference: Any = None) -> FakeReading:
        self._step(f"read {case.id} {question}" + (f" as {reference}" if reference else ""))
        return FakeReading(case)

    def measure(self, reading: FakeReading, trial: Trial) -> Outcome:
        self._step(f"{reading.case.id} {trial.name} {trial.budget.request}")
        ratio = float(trial.budget.value)
        if reading.case.metric == "kl":
            return outcome({"kl": 0.1 / ratio if trial.name == "auto" else 0.2 / ratio}, ratio)
        is_even = int(reading.case.id[-1]) % 2 == 0
        return outcome({"score": float(ratio == 0.5 or (is_even and trial.name == "auto"))}, ratio)

    def close(self) -> None:
        self.closed += 1


def sweep(runner: FakeRunner, results: Results, cases: list[Case] = CASES, trials: Any = TRIALS, **more: Any) -> Any:
    return run_sweep(runner, Sweep("r", cases, trials, "in"), results, **more)


def test_a_prompt_is_read_once_for_all_trials() -> None:
    runner = FakeRunner()
    records = sweep(runner, Results())
    assert runner.steps[:5] == [
        "read single0 in",
        *(f"single0 {p} {b}" for p in ("auto", "snapkv") for b in ("50%", "10%")),
    ]
    assert len(runner.steps) == 4 * 5 == len(records) and runner.closed == 1
    assert {record["resolved"] for record in records} == {"resolved:x=1"}


@pytest.mark.parametrize("n_steps", [0, 1, 3, 5, 7, 19])
def test_goes_on_where_it_was_stopped(tmp_path: Path, n_steps: int) -> None:
    path = tmp_path / "cells.jsonl"
    first = FakeRunner(n_steps)
    with pytest.raises(KeyboardInterrupt):
        sweep(first, Results(path))
    assert first.closed == 1
    with path.open("a") as file:
        file.write('{"run": "r", "question"')  # cut off while writing
    second = FakeRunner()
    records = sweep(second, Results(path))
    measured = [step for step in (*first.steps, *second.steps) if not step.startswith("read")]
    assert len(measured) == len(set(measured)) == 16
    assert len([step for step in second.steps if step.startswith("read")]) == 4 - n_steps // 5
    third = FakeRunner()
    assert sweep(third, Results(path)) == records and third.steps == []
    assert [json.loads(line) for line in path.read_text().splitlines()] == sorted(
        records, key=lambda record: [r["case"] for r in records].index(record["case"])
    )


def test_more_trials_measure_only_what_is_new() -> None:
    results = Results()
    sweep(FakeRunner(), results, trials=TRIALS[:1])
    runner = FakeRunner()
    records = sweep(runner, results, trials=TRIALS[:2])
    assert runner.steps[:2] == ["read single0 in", "single0 auto 10%"] and len(runner.steps) == 8
    assert len(records) == 12
    other = FakeRunner()
    run_sweep(other, Sweep("other model", CASES, TRIALS[:1], "in"), results)
    run_sweep(other, Sweep("r", CASES, TRIALS[:1], "after"), results)
    assert len(other.steps) == 16


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[int, int, str]] = []
    sweep(FakeRunner(), Results(), on_progress=lambda *args: seen.append(args))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] == 4 * (100 + 4 * 30) and seen[-1][2] == "done"
    assert seen[1][2] == "single, 2k: auto 50%"


def test_prose_is_compared_with_the_first_cache_type() -> None:
    cases, results = [CASES[0], case(0, "kl"), case(1, "kl")], Results()

    def sweeps() -> list[Sweep]:
        references: dict[str, Any] = {}
        return [Sweep(name, cases, TRIALS[:1], "in", name, references) for name in ("f16", "q8_0")]

    runner = FakeRunner()
    base, other = sweeps()
    base = base.lending_to([other], results)
    assert base.lends == {"kl0", "kl1"}
    run_sweep(runner, base, results)
    run_sweep(runner, other, results)
    reads = [step for step in runner.steps if step.startswith("read")]
    assert reads[:3] == ["read single0 in", "read kl0 in", "read kl1 in"]
    assert reads[3:] == [
        "read single0 in",
        "read kl0 in as predictions of kl0",
        "read kl1 in as predictions of kl1",
    ]
    del results.records[
        other.key(cases[2], TRIALS[0])
    ]  # stopped before the last: only this case is read again, in both
    runner = FakeRunner()
    base, other = sweeps()
    base = base.lending_to([other], results)
    n_records = len(results.records)
    assert {record["cache"] for record in run_sweep(runner, base, results)} == {"f16"}
    assert len(results.records) == n_records
    assert len(run_sweep(runner, other, results)) == 6
    assert runner.steps == ["read kl1 in", "read kl1 in as predictions of kl1", "kl1 auto 50%"]
    assert sweeps()[0].lending_to(sweeps()[1:], results).lends == frozenset()


def test_a_case_that_changed_is_measured_again() -> None:
    results = Results()
    sweep(FakeRunner(), results, cases=CASES[:1])
    runner = FakeRunner()
    sweep(runner, results, cases=[replace(CASES[0], question="What else?")])
    assert len(runner.steps) == 5 and len(results.records) == 10


def test_marks() -> None:
    assert run_mark("f", a=1, b=2) == run_mark("f", b=2, a=1) != run_mark("f", a=1, b=3) != run_mark("g", a=1, b=3)


def test_results_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is a folder"):
        Results(tmp_path)
    with pytest.raises(EvaluationError, match="cannot be written"):
        sweep(FakeRunner(), Results(tmp_path / "no folder" / "cells.jsonl"))


@pytest.fixture
def records() -> Any:
    return sweep(FakeRunner(), Results(), cases=[*CASES, case(0, "kl"), case(1, "kl")])


def test_cells(records: Any) -> None:
    found = {(cell.task, cell.policy, cell.budget): cell for cell in cells(records)}
    assert len(found) == 10
    auto = found["single", "auto", "10%"]
    assert auto.n == 4 and auto.length == "2k" and auto.keep_ratio == pytest.approx(0.1)
    assert auto.bytes_kept == pytest.approx(100)
    assert auto.figures["score"] == pytest.approx((0.5, math.sqrt(1 / 3 / 4)))
    assert found["single", FULL, FULL].figures["score"] == (1, 0)
    assert found["kl", "snapkv", "10%"].figures == {"kl": (pytest.approx(2), pytest.approx(0))}


def test_report(records: Any) -> None:
    single, kl = sheets(cells(records))
    assert (
        single.title == "single, 2k, question in: score (4 cases)"
        and kl.title == "kl, 2k: KL to the full cache (2 cases)"
    )
    assert single.columns == ("policy", "50%", "10%", "full")
    assert single.rows[0] == ("auto", "100.0 ±0.0", "50.0 ±28.9", "100.0 ±0.0")
    text = markdown(cells(records), comparisons(records), "Title", [("model", "demo")], ["quality.png"])
    assert "# Title\n\n- model: demo\n" in text and "| auto | 100.0 ±0.0 | 50.0 ±28.9 | 100.0 ±0.0 |" in text
    assert "![quality.png](quality.png)" in text and "one standard error" in text
    assert "| single, 2k, question in: score | 10% | auto - snapkv | 4 | 50.0 ±28.9 | too few cases |" in text
    assert "| 2k | snapkv | 10% | 0.00 | 0.00 |" in text
    assert value_text("kl", 0.06234, math.nan) == "0.0623"


def test_pictures(records: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_curves(cells(records), tmp_path / "quality.png")
    assert write_depths(records, tmp_path / "depths.png")
    for name in ("quality.png", "depths.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not write_depths([record for record in records if record["task"] == "kl"], tmp_path / "none.png")
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_curves(cells(records), tmp_path / "no folder" / "q.png")


def one(name: str, needles: float, kl: float, error: float = 0.05) -> Measured:
    return Measured(Candidate(name), (needles, error), (kl, 0.01))


@pytest.mark.parametrize(
    ("candidates", "wanted"),
    [
        ([one("a", 0.9, 0.2), one("b", 0.5, 0.01)], "a"),
        ([one("a", 0.9, 0.2), one("b", 0.86, 0.1), one("c", 0.86, 0.15)], "b"),
        ([one("a", 0.9, 0.2), one("b", 0.84, 0.1)], "a"),
        ([one("a", 0.9, 0.2, math.nan), one("b", 0.89, 0.1)], "a"),
        ([one("a", 1.0, 0.1, 0.0), one("b", 1.0, 0.1, 0.0)], "a"),
        (
            [one("a", 0.88, 0.1), one("b", 0.9, 0.105), one("c", 0.92, 0.12)],
            "b",
        ),  # KL of a and b: the same within errors
        ([one("b", 0.86, 0.1, 0.5), one("c", 0.5, 0.01), one("a", 0.9, 0.2)], "b"),
    ],
)
def test_rule(candidates: list[Measured], wanted: str) -> None:
    assert pick(candidates).candidate.policy == wanted


RANGES = (
    Range(0.15, "10%", (Candidate("snapkv"), Candidate("auto", {"reconstruction": 1.0}))),
    Range(
        1.0, "50%", (Candidate("snapkv"), Candidate("auto", {"reconstruction": 1.0}), Candidate("auto", {"other": 1.0}))
    ),
)


class Judge(FakeRunner):
    """Auto (with its mix in the name) finds everything and has half the KL."""

    def measure(self, reading: FakeReading, trial: Trial) -> Outcome:
        self._step(f"{reading.case.id} {trial.name} {trial.budget.request}")
        is_auto = trial.name.startswith("auto")
        if reading.case.metric == "kl":
            return outcome({"kl": 0.1 if is_auto else 0.2})
        return outcome({"score": float(is_auto or trial.budget.request == "50%")})


def test_choosing_writes_settings_with_figures() -> None:
    runner, notices = Judge(), []
    profile = choose_settings(
        runner,
        PROFILE,
        Results(),
        n_cases=3,
        n_tokens=400,
        ranges=RANGES,
        on_notice=notices.append,  # type: ignore[arg-type]
    )
    low, high = profile.settings
    assert (low.max_keep_ratio, high.max_keep_ratio) == (0.15, 1.0)
    assert low.policy == high.policy == "auto" and low.mix == {"reconstruction": 1.0}
    assert low.figures == {
        "keep_ratio": 0.1,
        "needles": 1.0,
        "needles_error": 0.0,
        "n_needles": 15.0,
        "prose_kl": 0.1,
        "prose_kl_error": 0.0,
    }
    assert notices[0] == "up to 15%: auto (reconstruction=1.0), needles 100 % ±0, KL 0.100 ±0.000"
    assert not any("other" in step for step in runner.steps)  # a kind of scores that the profile lacks
    assert profile.scores == PROFILE.scores


def test_too_few_needles_to_choose_by() -> None:
    with pytest.raises(EvaluationError, match="the whole cache finds 5 of 5 needles, at least 8"):
        choose_settings(Judge(), PROFILE, Results(), n_cases=1, n_tokens=400, ranges=RANGES)  # type: ignore[arg-type]


def test_candidates_can_be_read() -> None:
    assert [part.max_keep_ratio for part in choose.RANGES] == sorted({part.max_keep_ratio for part in choose.RANGES})
    assert choose.RANGES[-1].max_keep_ratio == 1
    for part in choose.RANGES:
        below = float(Budget.parse(part.budget).value)
        assert below <= part.max_keep_ratio
        assert len({candidate.name for candidate in part.candidates}) == len(part.candidates)
        for candidate in part.candidates:
            assert parse_policy(candidate.policy).name != "auto"
