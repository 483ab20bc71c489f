"""Rules for profiles: every value is looked at before it is believed, and a refusal names its key.

A *body* is what both forms, JSON and GGUF, are brought to first: the keys of the GGUF form without ``headkv.``, scores
as nested lists [layer][head], and ``mix``, ``settings`` and ``calibration`` as objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeGuard, TypeVar

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import ModelShape
from pyheadkv.profile.profile import BudgetChoice, Profile, Scores, check_mix, is_kind

VERSION = 1
SUM_TOLERANCE = 1e-3  # room for values rounded to a few digits, or to f32
KIND_PREFIX = "scores."
MAX_TEXT = 256  # characters of a method, policy, ...
MAX_KINDS = 8  # their names are listed in messages
MAX_COUNT = 2**31 - 1
_PLAIN_KEYS = ("fingerprint", "beta", "n_sink", "n_obs", "pool_kernel", "keep_ratio", "scores_query")

Body = Mapping[str, object]
T = TypeVar("T")


def profile_from_body(body: Body, shape: ModelShape, source: str) -> Profile:
    """Check a body against a model.

    Parameters
    ----------
    body
        see the top of this file; unknown keys are left alone, for later versions
    source
        where it came from, for `Profile.source`

    Raises
    ------
    ProfileError
        naming the key, what was expected and what was found
    """
    return _checked(body, shape.n_head_kv, [layer.n_head for layer in shape.layers], source)


def body_of(profile: Profile) -> dict[str, object]:
    """The body of a profile, checked by the rules for reading it.

    Raises
    ------
    ProfileError
        naming the key, what was expected and what was found
    """
    n_head_kv, query = [len(layer) for layer in profile.scores], profile.scores_query
    if query is not None and len(query) != len(n_head_kv):
        raise ProfileError(f"headkv.scores_query has {len(query)} layers, expected {len(n_head_kv)}")
    n_head = [len(layer) for layer in query or ()]
    return _as_body(_checked(_as_body(profile), n_head_kv, n_head, profile.source))


def _as_body(profile: Profile) -> dict[str, object]:
    optional: dict[str, object] = {key: getattr(profile, key) for key in _PLAIN_KEYS}
    optional |= {"mix": dict(profile.mix), "calibration": dict(profile.calibration)}
    optional["settings"] = [
        {**vars(setting), "mix": dict(setting.mix), "figures": dict(setting.figures)} for setting in profile.settings
    ]
    return {
        "version": VERSION,
        "method": profile.method,
        "n_head_kv": [len(layer) for layer in profile.scores],
        "scores": profile.scores,
        **{KIND_PREFIX + kind: scores for kind, scores in profile.kinds.items()},
        **{key: value for key, value in optional.items() if value not in (None, {}, [])},
    }


def _checked(body: Body, n_head_kv: Sequence[int], n_head: Sequence[int], source: str) -> Profile:
    if not is_whole(body.get("version")) or body.get("version") != VERSION:
        raise ProfileError(f"headkv.version is {short(body.get('version'))}, expected {VERSION}")
    method = _text("headkv.method", body.get("method"))
    fingerprint = _optional(body, "fingerprint", _text)
    _check_heads(body.get("n_head_kv"), list(n_head_kv))
    scores = check_scores(body.get("scores"), n_head_kv)
    kinds = _kinds(body, n_head_kv)
    query = body.get("scores_query")
    return Profile(
        scores,
        method,
        beta=_optional(body, "beta", _number),
        fingerprint=fingerprint,
        source=source,
        kinds=kinds,
        mix=_weights("headkv.mix", body.get("mix"), kinds),
        scores_query=None if query is None else check_scores(query, n_head, "headkv.scores_query", "query"),
        n_sink=_optional(body, "n_sink", partial(_count, 0)),
        n_obs=_optional(body, "n_obs", partial(_count, 1)),
        pool_kernel=_optional(body, "pool_kernel", partial(_count, 1)),
        keep_ratio=_optional(body, "keep_ratio", _keep_ratio),
        settings=_settings(body.get("settings"), kinds),
        calibration=_calibration(body.get("calibration")),
    )


def check_scores(value: object, n_heads: Sequence[int], key: str = "headkv.scores", which: str = "KV") -> Scores:
    """Validate head scores and make their sum exact.

    Parameters
    ----------
    value
        found under `key`
    n_heads
        heads of each layer with a cache
    key, which
        for messages: the name of the key, and "KV" or "query" heads

    Raises
    ------
    ProfileError
        naming the key, what was expected and what was found
    """
    if not isinstance(value, (list, tuple)):
        raise ProfileError(f"{key} is {type(value).__name__}, expected one list for each layer")
    if len(value) != len(n_heads):
        raise ProfileError(f"{key} has {len(value)} layers, expected {len(n_heads)}")
    scores = []
    for i, (layer, n) in enumerate(zip(value, n_heads, strict=True)):
        if not isinstance(layer, (list, tuple)) or len(layer) != n:
            found = len(layer) if isinstance(layer, (list, tuple)) else type(layer).__name__
            raise ProfileError(f"{key}[{i}] has {found} values, expected {n}, one for each {which} head")
        scores.append([_score(item, f"{key}[{i}][{ih}]") for ih, item in enumerate(layer)])
    total = sum(score for layer in scores for score in layer)
    if total == 0:
        raise ProfileError(f"{key} are all 0, expected a sum of 1")
    if abs(total - 1) > SUM_TOLERANCE:
        raise ProfileError(f"{key} sum to {total:g}, expected 1")
    return tuple(tuple(score / total for score in layer) for layer in scores)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number (bool is one in Python, but not here)."""
    return isinstance(value, int) and not isinstance(value, bool)


def finite(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def short(value: object) -> str:
    """A value in a message: one line of at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"  # repr of one is slow, and refused from 4300 digits on
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _check_heads(found: object, expected: list[int]) -> None:
    if found == expected:
        return
    if isinstance(found, list) and len(found) == len(expected):
        i = next(i for i, n in enumerate(expected) if found[i] != n)
        raise ProfileError(f"headkv.n_head_kv[{i}] is {short(found[i])}, this model has {expected[i]} KV heads there")
    n_found = len(found) if isinstance(found, list) else type(found).__name__
    raise ProfileError(f"headkv.n_head_kv has {n_found} layers, this model has {len(expected)}")


def _kinds(body: Body, n_head_kv: Sequence[int]) -> dict[str, Scores]:
    kinds = {}
    for key, value in body.items():
        if key.startswith(KIND_PREFIX):
            kind = key.removeprefix(KIND_PREFIX)
            if not is_kind(kind):
                raise ProfileError(f"headkv.{key[:80]!r} is no kind of scores, expected small letters, digits and -")
            kinds[kind] = check_scores(value, n_head_kv, f"headkv.{key}")
    if len(kinds) > MAX_KINDS:
        raise ProfileError(f"headkv.{KIND_PREFIX}* are {len(kinds)} kinds of scores, expected at most {MAX_KINDS}")
    return kinds


def _weights(key: str, value: object, kinds: Mapping[str, Scores]) -> dict[str, float]:
    weights = _numbers(key, value)
    if weights:
        check_mix(weights, kinds, key)
    return weights


def _numbers(key: str, value: object) -> dict[str, float]:
    numbers = {}
    for name, item in _object(key, value).items():
        number = finite(item)
        if number is None:
            raise ProfileError(f"{key} has {short(item)} under {short(name)}, expected a finite number")
        numbers[name] = number
    return numbers


def _settings(value: object, kinds: Mapping[str, Scores]) -> tuple[BudgetChoice, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ProfileError(f"headkv.settings is {type(value).__name__}, expected a list")
    settings: list[BudgetChoice] = []
    for i, item in enumerate(value):
        key = f"headkv.settings[{i}]"
        fields = _object(key, item)
        if fields.get("max_keep_ratio") is None:
            raise ProfileError(f"{key}.max_keep_ratio is missing, expected a share above 0 and at most 1")
        ratio = _keep_ratio(f"{key}.max_keep_ratio", fields["max_keep_ratio"])
        if settings and ratio <= settings[-1].max_keep_ratio:
            raise ProfileError(f"{key}.max_keep_ratio is {ratio:g}, expected more than {settings[-1].max_keep_ratio:g}")
        mix = _weights(f"{key}.mix", fields.get("mix"), kinds)
        policy = _text(f"{key}.policy", fields.get("policy"))
        settings.append(BudgetChoice(ratio, policy, mix, _numbers(f"{key}.figures", fields.get("figures"))))
    if settings and settings[-1].max_keep_ratio != 1:
        found = settings[-1].max_keep_ratio
        raise ProfileError(
            f"headkv.settings[{len(settings) - 1}].max_keep_ratio is {found:g}, expected the last to be 1"
        )
    return tuple(settings)


def _calibration(value: object) -> dict[str, object]:
    calibration = _object("headkv.calibration", value)
    try:
        json.dumps(calibration, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProfileError(f"headkv.calibration cannot be written as JSON ({error})") from None
    return calibration


def _object(key: str, value: object) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ProfileError(f"{key} is {type(value).__name__}, expected an object")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ProfileError(f"{key} is {short(value)}, expected a string")
    if len(value) > MAX_TEXT or not value.isprintable():
        raise ProfileError(f"{key} is {short(value)}, expected one line of at most {MAX_TEXT} characters")
    return value


def _number(
    key: str, value: object, expected: str = "a finite number", accepts: Callable[[float], bool] = lambda number: True
) -> float:
    number = finite(value)
    if number is None or not accepts(number):
        raise ProfileError(f"{key} is {short(value)}, expected {expected}")
    return number


def _score(value: object, key: str) -> float:
    return _number(key, value, "a finite number of at least 0", lambda score: score >= 0)


def _count(at_least: int, key: str, value: object) -> int:
    if not is_whole(value) or not at_least <= value <= MAX_COUNT:
        raise ProfileError(f"{key} is {short(value)}, expected a whole number of at least {at_least}")
    return value


def _optional(body: Body, name: str, read: Callable[[str, object], T]) -> T | None:
    """The value under a name; None where there is nothing."""
    value = body.get(name)
    return None if value is None else read(f"headkv.{name}", value)


def _keep_ratio(key: str, value: object) -> float:
    return _number(key, value, "a share above 0 and at most 1", lambda ratio: 0 < ratio <= 1)
