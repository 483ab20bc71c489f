"""Profiles: what is written is read back, and nothing damaged or foreign is accepted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.profile import BudgetChoice, Profile, check_scores, format_mix, parse_mix, read_profile, write_profile

SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(2, 4, 1, 64, 64)))
GOOD: dict[str, object] = {
    "version": 1,
    "method": "retrieval-reasoning",
    "n_head_kv": [2, 1],
    "scores": [[0.5, 0.2], [0.3]],
}


def write(path: Path, **changes: object) -> Path:
    """A profile file with keys replaced, or removed where None."""
    body = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path.write_text(json.dumps({"headkv": body}), encoding="utf-8")
    return path


def test_read(tmp_path: Path) -> None:
    path = write(tmp_path / "profile.json", beta=1.1, fingerprint="abc")
    profile = read_profile(path, SHAPE)
    assert profile == Profile(((0.5, 0.2), (0.3,)), "retrieval-reasoning", 1.1, "abc", str(path))


def test_beta_and_fingerprint_may_be_absent(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path / "profile.json"), SHAPE)
    assert (profile.beta, profile.fingerprint) == (None, None)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = Profile(((0.25, 0.25), (0.5,)), "made", 1.2, "abc", str(path))
    write_profile(path, profile)
    assert read_profile(path, SHAPE) == profile
    assert json.loads(path.read_text())["headkv"]["n_head_kv"] == [2, 1]


@pytest.mark.parametrize("scores", [[[0.4999, 0.2], [0.2996]], [[0.5005, 0.2], [0.3]], [[1, 0], [0]]])
def test_a_rounded_sum_is_made_exact(tmp_path: Path, scores: list[list[float]]) -> None:
    profile = read_profile(write(tmp_path / "profile.json", scores=scores), SHAPE)
    assert math.isclose(math.fsum(score for layer in profile.scores for score in layer), 1.0, abs_tol=1e-12)
    total = scores[0][0] + scores[0][1] + scores[1][0]
    assert profile.scores[1][0] == pytest.approx(scores[1][0] / total)  # the proportions stay


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "headkv.version is 2, expected 1"),
        ({"version": None}, "headkv.version is None, expected 1"),
        ({"version": "1"}, "headkv.version is '1', expected 1"),
        ({"version": True}, "headkv.version is True, expected 1"),
        ({"method": 3}, "headkv.method is 3, expected a string"),
        ({"fingerprint": 3}, "headkv.fingerprint is 3, expected a string"),
        ({"beta": "big"}, "headkv.beta is 'big', expected a finite number"),
        ({"beta": math.nan}, "headkv.beta is nan, expected a finite number"),
        ({"n_head_kv": None}, "headkv.n_head_kv has NoneType layers, this model has 2"),
        ({"n_head_kv": [2, 1, 1]}, "headkv.n_head_kv has 3 layers, this model has 2"),
        ({"n_head_kv": [2, 4]}, "headkv.n_head_kv[1] is 4, this model has 1 KV heads there"),
        ({"scores": None}, "headkv.scores is NoneType, expected one list for each layer"),
        ({"scores": [[0.5, 0.5]]}, "headkv.scores has 1 layers, expected 2"),
        ({"scores": [[0.5], [0.5]]}, "headkv.scores[0] has 1 values, expected 2, one for each KV head"),
        ({"scores": [[0.5, 0.5], 0.5]}, "headkv.scores[1] has float values, expected 1"),
        ({"scores": [[0.5, 0.2], [math.nan]]}, "headkv.scores[1][0] is nan, expected a finite number of at least 0"),
        ({"scores": [[0.5, math.inf], [0.3]]}, "headkv.scores[0][1] is inf, expected a finite number"),
        ({"scores": [[0.9, -0.2], [0.3]]}, "headkv.scores[0][1] is -0.2, expected a finite number of at least 0"),
        ({"scores": [[0.5, "0.2"], [0.3]]}, "headkv.scores[0][1] is '0.2', expected a finite number"),
        ({"scores": [[True, 0], [0]]}, "headkv.scores[0][0] is True, expected a finite number"),
        ({"scores": [[10**400, 0], [0]]}, "expected a finite number of at least 0"),
        ({"scores": [[0, 0], [0]]}, "headkv.scores are all 0, expected a sum of 1"),
        ({"scores": [[0.5, 0.2], [0.31]]}, "headkv.scores sum to 1.01, expected 1"),
        ({"scores": [[50, 20], [30]]}, "headkv.scores sum to 100, expected 1"),
        ({"scores": [[1e308, 1e308], [0]]}, "headkv.scores sum to inf, expected 1"),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "profile.json", **changes)
    with pytest.raises(ProfileError, match=re.escape(message)) as error:
        read_profile(path, SHAPE)
    assert str(error.value).startswith(f"profile {path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF {}", "not a JSON file"),
        (b'{"headkv": {"version": 1', "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[1]", "key headkv is missing"),
        (b'{"headkv": []}', "key headkv is missing"),
        (b'{"version": 1}', "key headkv is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=f"profile .*: {message}"):
        read_profile(path, SHAPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF\x03\x00\x00\x00", "is not text: it has a NUL byte at offset 5"),
        (b'{"\xff', "is not UTF-8 text: byte 0xff at offset 2"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=f"^profile {path} {message}$"):
        read_profile(path, SHAPE)


def test_a_profile_as_windows_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "profile.json")
    expected = read_profile(path, SHAPE)
    path.write_bytes(path.read_text().replace(",", ",\r\n").encode("utf-16"))
    assert read_profile(path, SHAPE) == expected


def test_missing_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot be read: No such file"):
        read_profile(tmp_path / "none.json", SHAPE)
    with pytest.raises(ProfileError, match=r"cannot be written: nothing can be made in the folder"):
        write_profile(tmp_path / "none" / "p.json", Profile(((1.0,),), "made"))
    with pytest.raises(ProfileError, match="sum to 2"):
        write_profile(tmp_path / "p.json", Profile(((2.0,),), "made"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3),
    max_leaves=6,
)


@given(JSON)
def test_check_scores_raises_nothing_else(value: object) -> None:
    try:
        scores = check_scores(value, [2, 1])
    except ProfileError:
        return
    assert [len(layer) for layer in scores] == [2, 1]


KIND_SCORES = {"retrieval": ((0.5, 0.3), (0.2,)), "reconstruction": ((0.1, 0.1), (0.8,))}
FULL = Profile(
    ((0.3, 0.2), (0.5,)),
    "mixed",
    beta=1.1,
    fingerprint="llama:1:2:3",
    kinds=KIND_SCORES,
    mix={"retrieval": 1.0, "reconstruction": 1.0},
    scores_query=((0.1, 0.1, 0.1, 0.2), (0.1, 0.1, 0.1, 0.2)),
    n_sink=4,
    n_obs=16,
    pool_kernel=7,
    keep_ratio=0.1,
    settings=(
        BudgetChoice(0.05, "headkv:beta=1.01", {"retrieval": 1.0}, {"needles": 0.9}),
        BudgetChoice(1.0, "headkv", {}, {"prose_kl": 0.07}),
    ),
    calibration={"seed": 1, "lengths": [512, 1024]},
)


def test_round_trip_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, FULL)
    assert read_profile(path, SHAPE) == replace(FULL, source=str(path))


def test_mix_weighs_each_kind_as_one() -> None:
    thrice = {**KIND_SCORES, "reconstruction": ((0.3, 0.3), (2.4,))}  # a kind that does not sum to 1 counts no more
    mixed = replace(FULL, kinds=thrice).with_mix({"retrieval": 3, "reconstruction": 1})
    assert [score for layer in mixed.scores for score in layer] == pytest.approx([0.4, 0.25, 0.35])
    assert mixed.mix == {"retrieval": 3, "reconstruction": 1}
    assert (mixed.method, mixed.kinds) == (FULL.method, thrice)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"retreival": 1}, "headkv.mix names 'retreival', the kinds of scores there are: retrieval, reconstruction"),
        ({"retrieval": -1}, "headkv.mix gives retrieval the weight -1, expected a finite number"),
        ({"retrieval": math.inf}, "headkv.mix gives retrieval the weight inf"),
        ({"retrieval": math.nan}, "headkv.mix gives retrieval the weight nan"),
        ({"retrieval": 0}, "headkv.mix has no weight above 0"),
        ({}, "headkv.mix has no weight above 0"),
    ],
)
def test_a_mix_that_makes_no_scores_is_refused(mix: dict[str, float], message: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)):
        FULL.with_mix(mix)


def test_a_profile_without_kinds_has_nothing_to_mix() -> None:
    with pytest.raises(ProfileError, match="there are: none"):
        Profile(((1.0,),), "made").with_mix({"retrieval": 1})


@given(st.floats(1e-300, 1e308), st.floats(0, 1e308))
def test_mixed_scores_sum_to_one(a: float, b: float) -> None:
    mixed = FULL.with_mix({"retrieval": a, "reconstruction": b})
    assert math.fsum(score for layer in mixed.scores for score in layer) == pytest.approx(1, abs=1e-12)


def test_parse_mix() -> None:
    assert parse_mix("retrieval-reasoning=1, reconstruction=.5") == {"retrieval-reasoning": 1, "reconstruction": 0.5}
    assert parse_mix("retrieval") == {"retrieval": 1}
    assert parse_mix(format_mix({"a": 0.1, "b-2": 3})) == {"a": 0.1, "b-2": 3}


@pytest.mark.parametrize("text", ["", "a=", "a=x", "a=nan", "a=-1", "a=1,,b=1", "A=1", "a=1,a=2", "a=1=2"])
def test_a_mix_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match="mix"):
        parse_mix(text)


@pytest.mark.parametrize(("ratio", "i"), [(0.01, 0), (0.05, 0), (0.0500001, 1), (1, 1)])
def test_setting_for(ratio: float, i: int) -> None:
    assert FULL.setting_for(ratio) is FULL.settings[i]
    assert Profile(((1.0,),), "made").setting_for(ratio) is None


LAST = {"max_keep_ratio": 1, "policy": "headkv"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores.retrieval": [[0.5, 0.5]]}, "headkv.scores.retrieval has 1 layers, expected 2"),
        ({"scores.retrieval": [[0.5, 0.5], [math.nan]]}, "headkv.scores.retrieval[1][0] is nan"),
        ({"scores.Retrieval": [[0.5, 0.5], [0]]}, "headkv.'scores.Retrieval' is no kind of scores"),
        (
            {"scores_query": [[0.5, 0.5], [0]]},
            "headkv.scores_query[0] has 2 values, expected 4, one for each query head",
        ),
        ({"mix": {"retrieval": 1}}, "headkv.mix names 'retrieval', the kinds of scores there are: none"),
        ({"mix": [1]}, "headkv.mix is list, expected an object"),
        ({"mix": {"retrieval": "1"}}, "headkv.mix has '1' under 'retrieval', expected a finite number"),
        ({"n_sink": -1}, "headkv.n_sink is -1, expected a whole number of at least 0"),
        ({"n_obs": 0}, "headkv.n_obs is 0, expected a whole number of at least 1"),
        ({"n_obs": True}, "headkv.n_obs is True"),
        ({"pool_kernel": 7.0}, "headkv.pool_kernel is 7.0"),
        ({"pool_kernel": 10**30}, "headkv.pool_kernel is 1000"),
        ({"keep_ratio": 0}, "headkv.keep_ratio is 0, expected a share above 0 and at most 1"),
        ({"keep_ratio": 1.5}, "headkv.keep_ratio is 1.5"),
        ({"keep_ratio": math.nan}, "headkv.keep_ratio is nan"),
        ({"settings": {}}, "headkv.settings is dict, expected a list"),
        ({"settings": [1]}, "headkv.settings[0] is int, expected an object"),
        ({"settings": [{"policy": "headkv"}]}, "headkv.settings[0].max_keep_ratio is missing"),
        (
            {"settings": [{**LAST, "max_keep_ratio": 0.5}]},
            "headkv.settings[0].max_keep_ratio is 0.5, expected the last",
        ),
        ({"settings": [LAST, LAST]}, "headkv.settings[1].max_keep_ratio is 1, expected more than 1"),
        ({"settings": [{**LAST, "policy": 3}]}, "headkv.settings[0].policy is 3, expected a string"),
        ({"settings": [{**LAST, "mix": {"retrieval": 1}}]}, "headkv.settings[0].mix names 'retrieval'"),
        ({"settings": [{**LAST, "figures": {"kl": math.nan}}]}, "headkv.settings[0].figures has nan under 'kl'"),
        ({"calibration": "x"}, "headkv.calibration is str, expected an object"),
        ({"method": "a\nb"}, "headkv.method is 'a\\nb', expected one line"),
        ({"method": "a" * 300}, "headkv.method is 'aaa"),
        ({"beta": 10**400}, "headkv.beta is a huge number"),
    ],
)
def test_damaged_optional_keys_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    test_damaged_profiles_are_refused(tmp_path, changes, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": {"retrieval": ((0.5, 0.6), (0.0,))}}, "headkv.scores.retrieval sum to 1.1"),
        ({"kinds": {}}, "headkv.mix names 'retrieval'"),
        ({"scores_query": ((1.0,),)}, "headkv.scores_query has 1 layers, expected 2"),
        ({"settings": FULL.settings[:1]}, "expected the last to be 1"),
        ({"keep_ratio": 2.0}, "headkv.keep_ratio is 2.0"),
        ({"beta": math.inf}, "headkv.beta is inf"),
        ({"n_obs": 0}, "headkv.n_obs is 0"),
        ({"calibration": {"x": math.nan}}, "headkv.calibration cannot be written as JSON"),
        ({"calibration": {"x": {1}}}, "headkv.calibration cannot be written as JSON"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ProfileError, match=re.escape(message)):
        write_profile(path, replace(FULL, **changes))  # type: ignore[arg-type]
    assert not path.exists()
