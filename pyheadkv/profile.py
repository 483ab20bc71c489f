"""A profile: the measured importance of every KV head of one model.

File format (JSON, UTF-8), here for a model of two layers with 2 and 1 KV heads:

    {"headkv": {"version": 1,
                "method": "retrieval-reasoning",
                "n_head_kv": [2, 1],
                "scores": [[0.5, 0.2], [0.3]],
                "beta": 1.2,
                "fingerprint": "..."}}

``scores[i][ih]`` belongs to KV head ih of the i-th layer that has a cache; finite, >= 0, summing to
1 (within `SUM_TOLERANCE`, which leaves room for values rounded to a few digits). ``beta`` and
``fingerprint`` may be absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import ProfileError
from pyheadkv.shape import ModelShape

VERSION = 1
SUM_TOLERANCE = 1e-3

Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Profile:
    """Head scores, validated for one model.

    Parameters
    ----------
    scores
        [layer with a cache][KV head], >= 0, summing to 1
    method
        how they were measured
    beta
        the headkv allocator's parameter that goes with them, if they came with one
    fingerprint
        of the model they were measured on, if known
    source
        where they were read from, for messages
    """

    scores: Scores
    method: str
    beta: float | None = None
    fingerprint: str | None = None
    source: str = ""


def read_profile(path: str | Path, shape: ModelShape) -> Profile:
    """Read a profile file and check that it fits a model.

    Raises
    ------
    ProfileError
        naming the file, the key, what was expected and what was found
    """
    source = str(path)
    body = _read_body(Path(path))
    try:
        version = body.get("version")
        if version != VERSION or isinstance(version, bool):
            raise ProfileError(f"headkv.version is {version!r}, expected {VERSION}")
        method = body.get("method")
        if not isinstance(method, str):
            raise ProfileError(f"headkv.method is {method!r}, expected a string")
        fingerprint = body.get("fingerprint")
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise ProfileError(f"headkv.fingerprint is {fingerprint!r}, expected a string")
        n_head_kv = list(shape.n_head_kv)
        if body.get("n_head_kv") != n_head_kv:
            _refuse_heads(body.get("n_head_kv"), n_head_kv)
        scores = check_scores(body.get("scores"), n_head_kv)
        return Profile(scores, method, _beta(body.get("beta")), fingerprint, source)
    except ProfileError as error:
        raise ProfileError(f"profile {source}: {error}") from None


def write_profile(path: str | Path, profile: Profile) -> None:
    """Write a profile file.

    Raises
    ------
    ProfileError
        invalid scores, or the file cannot be written
    """
    n_head_kv = [len(layer) for layer in profile.scores]
    body: dict[str, object] = {
        "version": VERSION,
        "method": profile.method,
        "n_head_kv": n_head_kv,
        "scores": check_scores(profile.scores, n_head_kv),
    }
    if profile.beta is not None:
        body["beta"] = profile.beta
    if profile.fingerprint is not None:
        body["fingerprint"] = profile.fingerprint
    try:
        Path(path).write_text(json.dumps({"headkv": body}) + "\n", encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"profile {path}: cannot be written ({error.strerror})") from None


def check_scores(value: object, n_head_kv: Sequence[int]) -> Scores:
    """Validate head scores and make their sum exact.

    Parameters
    ----------
    value
        what a file held under ``scores``
    n_head_kv
        KV heads of each layer with a cache

    Raises
    ------
    ProfileError
        naming the key, what was expected and what was found
    """
    if not isinstance(value, (list, tuple)):
        raise ProfileError(f"headkv.scores is {type(value).__name__}, expected one list for each layer")
    if len(value) != len(n_head_kv):
        raise ProfileError(f"headkv.scores has {len(value)} layers, expected {len(n_head_kv)}")
    scores = []
    for i, (layer, n) in enumerate(zip(value, n_head_kv, strict=True)):
        if not isinstance(layer, (list, tuple)) or len(layer) != n:
            found = len(layer) if isinstance(layer, (list, tuple)) else type(layer).__name__
            raise ProfileError(f"headkv.scores[{i}] has {found} values, expected {n}, one for each KV head")
        scores.append([_score(item, i, ih) for ih, item in enumerate(layer)])
    total = sum(score for layer in scores for score in layer)
    if total == 0:
        raise ProfileError("headkv.scores are all 0, expected a sum of 1")
    if abs(total - 1) > SUM_TOLERANCE:
        raise ProfileError(f"headkv.scores sum to {total:g}, expected 1")
    return tuple(tuple(score / total for score in layer) for layer in scores)


def _read_body(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profile {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ProfileError(f"profile {path}: not a JSON file") from None
    body = data.get("headkv") if isinstance(data, dict) else None
    if not isinstance(body, dict):
        raise ProfileError(f"profile {path}: key headkv is missing")
    return body


def _refuse_heads(found: object, expected: list[int]) -> None:
    if isinstance(found, list) and len(found) == len(expected):
        i = next(i for i, n in enumerate(expected) if found[i] != n)
        raise ProfileError(f"headkv.n_head_kv[{i}] is {found[i]!r}, this model has {expected[i]} KV heads there")
    n_found = len(found) if isinstance(found, list) else type(found).__name__
    raise ProfileError(f"headkv.n_head_kv has {n_found} layers, this model has {len(expected)}")


def _score(value: object, i: int, ih: int) -> float:
    score = _finite(value)
    if score is None or score < 0:
        raise ProfileError(f"headkv.scores[{i}][{ih}] is {value!r}, expected a finite number of at least 0")
    return score


def _beta(value: object) -> float | None:
    if value is None:
        return None
    beta = _finite(value)
    if beta is None:
        raise ProfileError(f"headkv.beta is {value!r}, expected a finite number")
    return beta


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
