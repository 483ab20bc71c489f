"""A whole calibration without a model: what is kept and gone on with, what counts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.calibrate import CalibrationSettings, calibrate, run
from pyheadkv.calibrate.needles import Question
from pyheadkv.calibrate.part import Part
from pyheadkv.calibrate.result import MIN_COUNTED, Heads, make_profile
from pyheadkv.calibrate.retrieval import Measured
from pyheadkv.errors import CalibrationError, ProfileError

HEADS = Heads((4, 2), (2, 1))
N_QUERY, N_KV = 6, 3
MIX = {"retrieval-reasoning": 1.0, "reconstruction": 1.0}
HEADER = {"fingerprint": "f", "seed": 0, "lengths": [512]}


def question(i: int, kind: str = "digits", is_right: bool = True, group: int | None = None) -> dict[str, Any]:
    scores = np.arange(1, N_QUERY + 1) + i / 100
    record = {"id": f"q{i}", "kind": kind, "group": i if group is None else group, "is_right": is_right}
    return record | ({"copy": list(scores), "reasoning": list(2 * scores[::-1])} if is_right else {})


def excerpt(i: int) -> dict[str, Any]:
    return {"id": f"x{i}", "kind": "reconstruction", "group": i, "reconstruction": [3.0, 2.0, 1.0 + i / 100]}


ENOUGH = [*(question(i) for i in range(MIN_COUNTED)), question(90, "reasoning"), excerpt(0), excerpt(1)]


# ---- the profile ----


def test_profile_is_the_mean_of_what_counted() -> None:
    records = [*ENOUGH, question(50, "codes", is_right=False)]
    profile = make_profile(records, HEADS, CalibrationSettings(mix=MIX), fingerprint="f")
    copies = np.mean([record["copy"] for record in ENOUGH[:MIN_COUNTED]], axis=0)
    reasons = np.mean([record["reasoning"] for record in ENOUGH[: MIN_COUNTED + 1]], axis=0)
    for kind, query in (("retrieval", copies), ("retrieval-reasoning", reasons)):
        folded = [query[:2].sum(), query[2:4].sum(), query[4:].sum()] / query.sum()
        assert np.concatenate(profile.kinds[kind]) == pytest.approx(folded)
    assert [len(layer) for layer in profile.kinds["retrieval"]] == [2, 1]
    assert profile.scores_query is not None
    assert np.concatenate(profile.scores_query) == pytest.approx(reasons / reasons.sum())
    assert np.concatenate(profile.kinds["reconstruction"]) == pytest.approx(np.array([3, 2, 1.005]) / 6.005)
    halves = [np.concatenate(profile.kinds[kind]) for kind in MIX]
    assert np.concatenate(profile.scores) == pytest.approx((halves[0] + halves[1]) / 2)
    assert profile.mix == MIX and profile.fingerprint == "f"
    examples: Any = profile.calibration["examples"]
    assert examples["digits"] == {"tried": 8, "right": 8} and examples["codes"] == {"tried": 1, "right": 0}
    assert profile.calibration["counted"] == {"retrieval": 8, "retrieval-reasoning": 9, "reconstruction": 2}


def test_fold_max() -> None:
    profile = make_profile(ENOUGH, HEADS, CalibrationSettings(mix=MIX, fold="max"))
    query = np.mean([record["copy"] for record in ENOUGH[:MIN_COUNTED]], axis=0)
    folded = np.array([query[1], query[3], query[5]])
    assert np.concatenate(profile.kinds["retrieval"]) == pytest.approx(folded / folded.sum())


def test_too_few_right_answers_are_refused_in_one_line() -> None:
    records = [*(question(i, is_right=i < MIN_COUNTED - 1) for i in range(20)), excerpt(0), excerpt(1)]
    with pytest.raises(CalibrationError) as caught:
        make_profile(records, HEADS, CalibrationSettings(n_examples=20, mix=MIX))
    assert str(caught.value) == (
        "7 of 20 examples counted for retrieval-reasoning, at least 8 must be answered right: "
        "take more than 20 examples, shorter lengths, or the mix reconstruction=1"
    )


def test_a_kind_that_is_not_in_the_mix_may_be_left_out() -> None:
    notices: list[str] = []
    records = [question(0), excerpt(0), excerpt(1)]
    profile = make_profile(records, HEADS, CalibrationSettings(mix={"reconstruction": 1}), on_notice=notices.append)
    assert set(profile.kinds) == {"reconstruction"} and profile.scores_query is None
    assert [notice.split(" examples")[0] for notice in notices[:2]] == ["1 of 1", "1 of 1"]


def test_scores_that_are_all_zero_do_not_count() -> None:
    records = [record | {"copy": [0.0] * N_QUERY} if "copy" in record else record for record in ENOUGH]
    with pytest.raises(CalibrationError, match="counted for retrieval,"):
        make_profile(records, HEADS, CalibrationSettings(mix={"retrieval": 1}))


def test_warnings() -> None:
    """Examples whose scores have nothing in common, and no reasoning at all."""
    rng = np.random.default_rng(0)
    records = [question(i) | {"copy": list(rng.random(6)), "reasoning": list(rng.random(6))} for i in range(10)]
    notices: list[str] = []
    make_profile([*records, excerpt(0)], HEADS, CalibrationSettings(mix=MIX), on_notice=notices.append)
    assert any(n.startswith("the split-half correlation of retrieval is ") for n in notices)
    assert any("of reconstruction cannot be had" in n for n in notices)
    assert any(n.startswith("no question that needs reasoning was answered right") for n in notices)
    notices.clear()
    make_profile(ENOUGH, HEADS, CalibrationSettings(mix=MIX), on_notice=notices.append)
    assert notices == []


# ---- settings ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_examples": 0}, "0 examples are too few"),
        ({"lengths": ()}, "a length of 0 tokens is too short, at least 384"),
        ({"lengths": (2048, 100)}, "a length of 100 tokens is too short"),
        ({"n_excerpts": 1}, "1 excerpts are too few"),
        ({"fold": "mean"}, "unknown fold 'mean', known are sum, max"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationSettings(**options)


def test_mix_is_checked_before_anything_is_measured() -> None:
    with pytest.raises(ProfileError, match="names 'nope'"):
        CalibrationSettings(mix={"nope": 1})


def test_lengths_are_bounded_by_the_context() -> None:
    settings = CalibrationSettings(lengths=(512, 4096))
    assert settings.within(4095) == (512,) and settings.within(4096) == (512, 4096)
    with pytest.raises(CalibrationError, match="a context of 256 tokens: the shortest is 512"):
        settings.within(256)
    assert (settings.n_ctx(8192), settings.n_ctx(1024)) == (4096, 1024)
    assert CalibrationSettings(lengths=(512,)).n_ctx(8192) == 2128


# ---- the part file ----


def test_part_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "p.part"
    part = Part(path, HEADER)
    part.add({"id": "a", "copy": [0.5]})
    part.add({"id": "b"})
    assert Part(path, HEADER).records == part.records == {"a": {"id": "a", "copy": [0.5]}, "b": {"id": "b"}}


def test_a_line_cut_off_halfway_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "p.part"
    part = Part(path, HEADER)
    part.add({"id": "a"})
    whole = path.read_bytes()
    part.add({"id": "b", "copy": [1.5, 2.5]})
    for n in range(len(whole), path.stat().st_size - 1):
        path.write_bytes((whole + b'{"id": "b", "copy": [1.5, 2.5]}\n')[:n])
        again = Part(path, HEADER)
        assert set(again.records) == {"a"}
        again.add({"id": "c"})
        assert set(Part(path, HEADER).records) == {"a", "c"}


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("fingerprint", "other"), ("lengths", [512, 1024])])
def test_another_calibration_is_refused_unless_forced(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "p.part"
    Part(path, HEADER).add({"id": "a"})
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match=f"its {key} is .*--force begins anew") as caught:
        Part(path, HEADER | {key: value})
    assert "\n" not in str(caught.value) and path.read_bytes() == before
    assert Part(path, HEADER | {key: value}, force=True).records == {}
    assert set(Part(path, HEADER | {key: value}).records) == set()


def test_force_does_not_throw_away_the_same_calibration(tmp_path: Path) -> None:
    """Or a forced run that was stopped could not go on by the same command."""
    path = tmp_path / "p.part"
    Part(path, HEADER).add({"id": "a"})
    assert set(Part(path, HEADER, force=True).records) == {"a"}


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.part"
    path.write_text("my notes\n")
    with pytest.raises(CalibrationError, match="is of another calibration"):
        Part(path, HEADER)
    assert path.read_text() == "my notes\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written: nothing can be made in the folder"):
        Part(tmp_path / "none" / "p.part", HEADER)


# ---- the run ----


class FakeObserver:
    n_head, n_head_kv = HEADS.n_head, HEADS.n_head_kv

    def __init__(self, llama: Any) -> None:
        self.llama = llama

    def forget(self) -> None:
        self.llama.n_forgotten += 1


class FakePrompter:
    def __init__(self, llama: Any) -> None:
        pass

    def prompt(self, message: str, answer: str) -> Any:
        return type("Prompt", (), {"tokens": [0] * 30})

    def count(self, text: str) -> int:
        return len(text.split())


class FakeLlama:
    n_forgotten = 0
    input_ids = range(2128)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers of the questions that were measured; excerpts are "x"."""
    seen: list[str] = []

    def measure_question(observer: Any, prompter: Any, page: Any, question: Question) -> Measured:
        seen.append(question.answer)
        copy = np.arange(1.0, 1 + N_QUERY) + len(question.answer) / 7
        return Measured(question.kind != "facts", question.answer, copy, copy[::-1] / 3)

    def measure_excerpt(observer: Any, prompter: Any, text: str) -> np.ndarray:
        seen.append("x")
        return np.array([3, 2, len(text) / 10000])

    for name, fake in (
        ("Observer", FakeObserver),
        ("Prompter", FakePrompter),
        ("measure_question", measure_question),
        ("measure_excerpt", measure_excerpt),
    ):
        monkeypatch.setattr(run, name, fake)
    return seen


SETTINGS = CalibrationSettings(n_examples=20, lengths=(384, 512), excerpt_tokens=200)


def run_calibration(**options: Any) -> Any:
    llama: Any = FakeLlama()
    return calibrate(llama, options.pop("settings", SETTINGS), fingerprint="f", **options)


def test_whole_pages_are_asked(asked: list[str]) -> None:
    profile = run_calibration()
    assert len(asked) == 24 + 2  # three pages of 8 questions
    assert profile.calibration["lengths"] == [384, 512]
    assert len(set(asked)) > 20


def stop_after(n: int) -> Callable[[int, int, str], None]:
    calls = []

    def progress(done: int, total: int, what: str) -> None:
        calls.append(done)
        if len(calls) > n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("n", [0, 1, 11, 25])
def test_going_on_measures_the_rest_and_gives_the_same_profile(asked: list[str], tmp_path: Path, n: int) -> None:
    whole = run_calibration()
    all_asked = asked.copy()
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        run_calibration(part=tmp_path / "p.part", on_progress=stop_after(n))
    assert asked == all_asked[:n]
    again = run_calibration(part=tmp_path / "p.part")
    assert asked == all_asked
    assert again.kinds == whole.kinds and again.scores == whole.scores


def test_more_examples_another_mix_and_fold_use_what_is_there(asked: list[str], tmp_path: Path) -> None:
    run_calibration(part=tmp_path / "p.part")
    n = len(asked)
    other = CalibrationSettings(24, (384, 512), excerpt_tokens=200, fold="max", mix={"retrieval": 1})
    run_calibration(settings=other, part=tmp_path / "p.part")
    assert len(asked) == n
    run_calibration(settings=CalibrationSettings(32, (384, 512), excerpt_tokens=200), part=tmp_path / "p.part")
    assert len(asked) == n + 8
    with pytest.raises(CalibrationError, match="its seed is 0, not 1"):
        run_calibration(settings=CalibrationSettings(20, (384, 512), 1, excerpt_tokens=200), part=tmp_path / "p.part")


def test_progress_rises_to_the_whole(asked: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    run_calibration(on_progress=lambda done, total, what: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


def test_the_cache_is_emptied_whatever_happens(asked: list[str]) -> None:
    llama: Any = FakeLlama()
    calibrate(llama, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        calibrate(llama, SETTINGS, on_progress=stop_after(2))
    assert llama.n_forgotten == 2


def test_records_are_lines_of_json_with_six_digits(asked: list[str], tmp_path: Path) -> None:
    run_calibration(part=tmp_path / "p.part")
    header, *records = map(json.loads, (tmp_path / "p.part").read_text().splitlines())
    assert header == {
        "headkv_part": 1,
        "fingerprint": "f",
        "seed": 0,
        "lengths": [384, 512],
        "n_excerpts": 2,
        "excerpt_tokens": 200,
    }
    assert len(records) == 26
    for record in records:
        assert ("copy" in record) == (record["kind"] not in ("facts", "reconstruction"))
        assert all(len(f"{score:g}") <= 8 for score in record.get("copy", []))
