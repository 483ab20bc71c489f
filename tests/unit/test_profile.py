"""Profiles: what is written is read back, and nothing damaged or foreign is accepted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import ProfileError
from pyheadkv.profile import Profile, check_scores, read_profile, write_profile
from pyheadkv.shape import LayerShape, ModelShape

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
        (b"", "not a JSON file"),
        (b"GGUF\x03\x00\x00\x00\xff\xfe", "not a JSON file"),
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


def test_missing_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot be read \(No such file"):
        read_profile(tmp_path / "none.json", SHAPE)
    with pytest.raises(ProfileError, match=r"cannot be written \(No such file"):
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
