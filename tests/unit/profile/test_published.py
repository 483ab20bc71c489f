"""Score files of the HeadKV repository: means, normalised, folded by group; nothing malformed is accepted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.profile import read_profile

# layer 1 has no cache
SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(2, 2, 1, 64, 64)))
GOOD: dict[str, object] = {
    "0-0": [0.1, 0.3],
    "0-1": [0.0],
    "0-2": [0.2, 0.2, 0.2],
    "0-3": [0],
    "2-0": [1.008],
    "2-1": [0.592],
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({key: value for key, value in (GOOD | changes).items() if value is not None}))
    return path


def test_read(tmp_path: Path) -> None:
    path = write(tmp_path / "heads.json")
    profile = read_profile(path, SHAPE)
    assert profile.scores_query is not None
    assert [*profile.scores_query[0], *profile.scores_query[1]] == pytest.approx([0.1, 0, 0.1, 0, 0.504, 0.296])
    assert [*profile.scores[0], *profile.scores[1]] == pytest.approx([0.1, 0.1, 0.8])
    assert (profile.method, profile.source, profile.fingerprint) == ("published", str(path), None)
    assert (profile.kinds, profile.mix) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0-1": None}, "key 0-1 is missing, expected one for every query head"),
        ({"0-4": [0.1]}, "key 0-4 names query head 4, this model's layer 0 has 4"),
        ({"1-0": [0.1]}, "key 1-0 names layer 1, this model's last layer with a KV cache is 2"),
        ({"3-0": [0.1]}, "key 3-0 names layer 3"),
        ({"00-1": [0.1]}, "key '00-1' cannot be read, expected layer-head, as in 0-0"),
        ({"0-1 ": [0.1]}, "key '0-1 ' cannot be read"),
        ({"0-\u0661": [0.1]}, "cannot be read"),
        ({"mean": [0.1]}, "key 'mean' cannot be read"),
        ({"9" * 5000 + "-0": [0.1]}, "cannot be read"),
        ({"0-1": []}, "key 0-1 is empty, expected a list of scores"),
        ({"0-1": 0.1}, "key 0-1 is 0.1, expected a list of scores"),
        ({"0-1": [0.1, math.nan]}, "key 0-1 has nan at 1, expected a finite number of at least 0"),
        ({"0-1": [math.inf]}, "key 0-1 has inf at 0"),
        ({"0-1": [-0.1]}, "key 0-1 has -0.1 at 0"),
        ({"0-1": ["0.1"]}, "key 0-1 has '0.1' at 0"),
        ({"0-1": [True]}, "key 0-1 has True at 0"),
        ({"0-1": [10**400]}, "key 0-1 has a huge number at 0"),
        ({"0-1": [1e308, 1e308], "0-2": [1e308]}, "the scores sum to inf, expected more than 0"),
        ({key: [0] for key in GOOD}, "the scores sum to 0, expected more than 0"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "heads.json", **changes)
    with pytest.raises(ProfileError, match=re.escape(message)) as error:
        read_profile(path, SHAPE)
    assert str(error.value).startswith(f"profile {path}: ") and "\n" not in str(error.value)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text('{"0-0": [0.1], "0-1": [0.1], "0-0": [0.2]}')
    with pytest.raises(ProfileError, match="key '0-0' is there twice"):
        read_profile(path, SHAPE)
