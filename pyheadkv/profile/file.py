"""Profile files, *.headkv.json.

JSON; here for a model of two layers with 2 and 1 KV heads and twice as many query heads:

    {"headkv": {"version": 1,
                "method": "retrieval-reasoning",
                "n_head_kv": [2, 1],
                "scores": [[0.5, 0.2], [0.3]],
                "scores.reconstruction": [[0.4, 0.3], [0.3]],
                "scores.retrieval-reasoning": [[0.6, 0.1], [0.3]],
                "mix": {"retrieval-reasoning": 1, "reconstruction": 1},
                "scores_query": [[0.5, 0.1, 0, 0.1], [0.1, 0.2]],
                "beta": 1.2,
                "n_sink": 4, "n_obs": 16, "pool_kernel": 7,
                "keep_ratio": 0.1,
                "settings": [{"max_keep_ratio": 0.05, "policy": "headkv:beta=1.01", "mix": {"reconstruction": 1},
                              "figures": {"prose_kl": 0.2}},
                             {"max_keep_ratio": 1, "policy": "headkv", "mix": {}, "figures": {}}],
                "calibration": {"seed": 1},
                "fingerprint": "..."}}

``scores[i][ih]`` belongs to KV head ih of the i-th layer that has a cache; finite, >= 0, summing to 1 (within
`SUM_TOLERANCE`, which leaves room for values rounded to a few digits). All after ``scores`` may be absent.
The keys are those of the GGUF form (pyheadkv.profile.gguf_keys).

`read_profile` also takes the score files of the HeadKV repository (`published`).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pyheadkv.errors import ProfileError
from pyheadkv.files.plain_text import read_text
from pyheadkv.files.targets import check_target
from pyheadkv.model.shape import ModelShape
from pyheadkv.profile.checks import body_of, profile_from_body
from pyheadkv.profile.profile import Profile
from pyheadkv.profile.published import is_published, profile_from_published


def read_profile(path: str | Path, shape: ModelShape) -> Profile:
    """Read a profile file and check that it fits a model.

    >>> write_profile("model.headkv.json", Profile(((0.6, 0.2), (0.1, 0.1)), "made up"))
    >>> read_profile("model.headkv.json", shape).method
    'made up'

    Parameters
    ----------
    path
        as `write_profile` writes it, or a score file of the HeadKV repository
    shape
        of the model: its layers with a cache and their KV heads

    Raises
    ------
    ProfileError
        naming the file, the key, what was expected and what was found
    """
    source = str(path)
    data = _read_json(Path(path))
    try:
        if is_published(data):
            return profile_from_published(data, shape, source)
        body = data.get("headkv") if isinstance(data, dict) else None
        if not isinstance(body, dict):
            raise ProfileError("key headkv is missing")
        return profile_from_body(body, shape, source)
    except ProfileError as error:
        raise ProfileError(f"profile {source}: {error}") from None


def write_profile(path: str | Path, profile: Profile) -> None:
    """Write a profile file, over one that is there.

    >>> write_profile("model.headkv.json", Profile(((0.6, 0.2), (0.1, 0.1)), "made up"))

    Parameters
    ----------
    path
        a file, new or old
    profile
        scores [layer with a cache][KV head], >= 0 and summing to 1

    Raises
    ------
    ProfileError
        invalid scores, or the file cannot be written
    """
    text = json.dumps({"headkv": body_of(profile)})
    check_target(Path(path), ProfileError)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"profile {path}: cannot be written ({error.strerror})") from None


def _read_json(path: Path) -> Any:
    text = read_text(path, ProfileError, f"profile {path}")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ProfileError(f"profile {path}: not a JSON file") from None
    except ProfileError as error:
        raise ProfileError(f"profile {path}: {error}") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; a key that is there twice would silently lose a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ProfileError(f"key {key[:80]!r} is there twice")
    return found
