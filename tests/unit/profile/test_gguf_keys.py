"""Profiles as GGUF keys: what is written is read back, and nothing damaged or foreign is accepted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.profile import BudgetChoice, Profile
from pyheadkv.profile.gguf_keys import MetadataValue, profile_from_metadata, profile_to_metadata

SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(2, 4, 1, 64, 64)))
FULL = Profile(
    ((0.3, 0.2), (0.5,)),
    "mixed",
    beta=1.1,
    fingerprint="llama:1:2:3",
    source="m.gguf",
    kinds={"retrieval": ((0.5, 0.3), (0.2,)), "reconstruction": ((0.1, 0.1), (0.8,))},
    mix={"retrieval": 1.0, "reconstruction": 0.1},
    scores_query=((0.1, 0.1, 0.1, 0.2), (0.1, 0.1, 0.1, 0.2)),
    n_sink=4,
    n_obs=16,
    pool_kernel=7,
    keep_ratio=0.1,
    settings=(
        BudgetChoice(0.05, "headkv:beta=1.01", {"retrieval": 1.0}, {"needles": 0.9}),
        BudgetChoice(1.0, "headkv"),
    ),
    calibration={"seed": 1, "lengths": [512, 1024]},
)


def as_f32(metadata: dict[str, MetadataValue]) -> dict[str, object]:
    """What a GGUF file gives back: floats went through f32."""

    def through(value: MetadataValue) -> object:
        if isinstance(value, (float, list)):
            return np.asarray(value, dtype=np.float32).tolist()
        return value

    return {key: through(value) for key, value in metadata.items()}


def test_keys_and_types() -> None:
    metadata = profile_to_metadata(FULL)
    assert {key: type(value) for key, value in metadata.items()} == {
        "headkv.version": int,
        "headkv.method": str,
        "headkv.scores": list,
        "headkv.scores.retrieval": list,
        "headkv.scores.reconstruction": list,
        "headkv.mix": str,
        "headkv.scores_query": list,
        "headkv.fingerprint": str,
        "headkv.beta": float,
        "headkv.n_sink": int,
        "headkv.n_obs": int,
        "headkv.pool_kernel": int,
        "headkv.keep_ratio": float,
        "headkv.settings": str,
        "headkv.calibration": str,
    }
    assert metadata["headkv.scores"] == pytest.approx([0.3, 0.2, 0.5])
    assert metadata["headkv.mix"] == "retrieval=1.0,reconstruction=0.1"
    assert json.loads(str(metadata["headkv.settings"]))[0]["policy"] == "headkv:beta=1.01"


def test_only_what_is_known_is_written() -> None:
    assert list(profile_to_metadata(Profile(((1.0,),), "made"))) == ["headkv.version", "headkv.method", "headkv.scores"]
    whole = profile_to_metadata(replace(FULL, beta=2))
    assert isinstance(whole["headkv.beta"], float)  # or it would be written as u32


def test_round_trip_through_f32() -> None:
    profile = profile_from_metadata(as_f32(profile_to_metadata(FULL)), SHAPE, "m.gguf")
    assert profile is not None
    for read, written in [
        (profile.scores, FULL.scores),
        (profile.kinds["reconstruction"], FULL.kinds["reconstruction"]),
        (profile.scores_query, FULL.scores_query),
    ]:
        assert [pytest.approx(layer, abs=1e-7) for layer in written or ()] == [*map(list, read or ())]
    assert replace(profile, scores=FULL.scores, kinds=FULL.kinds, scores_query=FULL.scores_query) == FULL


def test_a_model_without_profile() -> None:
    assert profile_from_metadata({"general.name": "x", "headkv.scores": [1.0]}, SHAPE, "m.gguf") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "headkv.version is 2, expected 1"),
        ({"version": [1]}, "headkv.version is list, expected 1"),
        ({"version": 1.0}, "headkv.version is 1.0, expected 1"),
        ({"method": None}, "headkv.method is None, expected a string"),
        ({"method": [1.0]}, "headkv.method is list, expected a string"),
        ({"scores": None}, "headkv.scores is NoneType, expected one list"),
        ({"scores": "0.3,0.2,0.5"}, "headkv.scores is str, expected an array of f32"),
        ({"scores": 1.0}, "headkv.scores is float, expected an array of f32"),
        ({"scores": [0.5, 0.5]}, "headkv.scores has 2 values, this model has 3 heads for them"),
        ({"scores": [0.5, 0.5, math.nan]}, "headkv.scores[1][0] is nan"),
        ({"scores": [1.5, -0.5, 0.0]}, "headkv.scores[0][1] is -0.5"),
        ({"scores": [0.5, 0.5, 0.5]}, "headkv.scores sum to 1.5"),
        ({"scores": [True, False, False]}, "headkv.scores[0][0] is True"),
        ({"scores.retrieval": [0.5]}, "headkv.scores.retrieval has 1 values, this model has 3 heads"),
        ({"scores.A": [0.5, 0.5, 0.0]}, "headkv.'scores.A' is no kind of scores"),
        ({"scores_query": [1.0]}, "headkv.scores_query has 1 values, this model has 8 heads for them"),
        ({"mix": 3}, "headkv.mix is int, expected a string"),
        ({"mix": "x"}, "headkv.mix names 'x'"),
        ({"mix": "retrieval=-1"}, "mix 'retrieval=-1' cannot be read"),
        ({"beta": math.inf}, "headkv.beta is inf, expected a finite number"),
        ({"beta": 1e300}, None),
        ({"n_obs": 16.0}, "headkv.n_obs is 16.0, expected a whole number"),
        ({"keep_ratio": 1.5}, "headkv.keep_ratio is 1.5"),
        ({"settings": "["}, "headkv.settings is no JSON text"),
        ({"settings": "[" * 100_000}, "headkv.settings is no JSON text"),
        ({"settings": "{}"}, "headkv.settings is dict, expected a list"),
        ({"calibration": "[1]"}, "headkv.calibration is list, expected an object"),
        ({"calibration": " " * (1 << 20) + "{}"}, "headkv.calibration is a string of 1048578 characters"),
        ({"from_the_future": [1, 2]}, None),
    ],
)
def test_damaged_keys(changes: dict[str, object], message: str | None) -> None:
    metadata = as_f32(profile_to_metadata(FULL)) | {f"headkv.{name}": value for name, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    if message is None:
        assert profile_from_metadata(metadata, SHAPE, "m.gguf") is not None
        return
    with pytest.raises(ProfileError, match=re.escape(message)) as error:
        profile_from_metadata(metadata, SHAPE, "m.gguf")
    assert str(error.value).startswith("profile in m.gguf: ") and "\n" not in str(error.value)


def test_an_invalid_profile_makes_no_keys() -> None:
    with pytest.raises(ProfileError, match=r"headkv\.scores sum to 2"):
        profile_to_metadata(Profile(((2.0,),), "made"))
    with pytest.raises(ProfileError, match=r"headkv\.calibration cannot be written as JSON"):
        profile_to_metadata(replace(FULL, calibration={"x": math.inf}))


@given(st.integers(0, 2**32), st.integers(0, 12))
def test_f32_sums_are_near_enough(seed: int, sharpness: int) -> None:
    values = (np.random.default_rng(seed).random(900) ** sharpness).tolist()
    total = math.fsum(values)
    shape = ModelShape("llama", "", 8192, tuple(LayerShape(il, 30, 30, 64, 64) for il in range(30)))
    scores = tuple(tuple(value / total for value in values[30 * i : 30 * i + 30]) for i in range(30))
    assert profile_from_metadata(as_f32(profile_to_metadata(Profile(scores, "made"))), shape, "m.gguf") is not None


@given(st.floats(1.001, 1000).map(lambda beta: round(beta, 4)))
def test_numbers_of_few_digits_come_back_exactly(beta: float) -> None:
    profile = profile_from_metadata(as_f32(profile_to_metadata(replace(FULL, beta=beta))), SHAPE, "m.gguf")
    assert profile is not None and profile.beta == beta
