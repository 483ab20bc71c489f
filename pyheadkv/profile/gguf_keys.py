"""A profile as keys of a GGUF file, so that a model carries its own head scores.

    headkv.version          u32                       headkv.n_sink, n_obs, pool_kernel   u32
    headkv.method           string                    headkv.beta, keep_ratio             f32
    headkv.scores           f32[n_kv_heads]           headkv.fingerprint                  string
    headkv.scores.<kind>    f32[n_kv_heads]           headkv.mix                          string, a=1,b=0.5
    headkv.scores_query     f32[n_heads]              headkv.settings, calibration        string, JSON

Arrays go layer by layer over the layers that have a cache and sum to 1; how many heads a layer has is known from the
model's own keys. Only version, method and scores must be there. llama.cpp and others ignore all of them.

A value is an int (u32), a float (f32), a str or a list of floats (array of f32).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import ModelShape
from pyheadkv.profile import Profile, format_mix, parse_mix
from pyheadkv.profile.checks import KIND_PREFIX, body_of, finite, profile_from_body

PREFIX = "headkv."
_F32_MAX = float(np.finfo(np.float32).max)
_MAX_JSON = 1 << 20  # characters
_F32_KEYS = ("beta", "keep_ratio")
_JSON_KEYS = ("settings", "calibration")

MetadataValue = int | float | str | list[float]


def profile_to_metadata(profile: Profile) -> dict[str, MetadataValue]:
    """The GGUF keys of a profile, in the order in which they are written.

    Raises
    ------
    ProfileError
        the profile is invalid; names the key
    """
    body = body_of(profile)
    del body["n_head_kv"]
    return {PREFIX + name: _encoded(name, value) for name, value in body.items()}


def profile_from_metadata(metadata: Mapping[str, object], shape: ModelShape, source: str) -> Profile | None:
    """The profile among a model's GGUF keys; None if there is no headkv.version.

    Parameters
    ----------
    metadata
        GGUF key -> number, string or list of numbers
    source
        the file, for messages and `Profile.source`

    Raises
    ------
    ProfileError
        naming the file, the key, what was expected and what was found
    """
    if PREFIX + "version" not in metadata:
        return None
    names = (key.removeprefix(PREFIX) for key in metadata if key.startswith(PREFIX))
    try:
        body = {name: _decoded(name, metadata[PREFIX + name], shape) for name in names}
        return profile_from_body(body | {"n_head_kv": list(shape.n_head_kv)}, shape, source)
    except ProfileError as error:
        raise ProfileError(f"profile in {source}: {error}") from None


def _encoded(name: str, value: object) -> MetadataValue:
    if name == "mix" and isinstance(value, dict):
        return format_mix(value)
    if name in _JSON_KEYS:
        return json.dumps(value)
    if name.startswith("scores"):
        return [score for layer in value for score in layer]  # type: ignore[attr-defined]
    if name in _F32_KEYS:
        return float(value)  # type: ignore[arg-type]
    return value  # type: ignore[return-value]


def _decoded(name: str, value: object, shape: ModelShape) -> object:
    if name == "scores" or name.startswith(KIND_PREFIX):
        return _by_layer(name, value, shape.n_head_kv)
    if name == "scores_query":
        return _by_layer(name, value, [layer.n_head for layer in shape.layers])
    if name in _F32_KEYS:
        return _shortest(value)
    if name == "mix":
        return parse_mix(_text(name, value))
    if name in _JSON_KEYS:
        return _json(name, _text(name, value))
    return value


def _by_layer(name: str, value: object, n_heads: Sequence[int]) -> list[list[object]]:
    if not isinstance(value, list):
        raise ProfileError(f"{PREFIX}{name} is {type(value).__name__}, expected an array of f32")
    if len(value) != sum(n_heads):
        raise ProfileError(f"{PREFIX}{name} has {len(value)} values, this model has {sum(n_heads)} heads for them")
    ends = np.cumsum(n_heads).tolist()
    return [value[end - n : end] for n, end in zip(n_heads, ends, strict=True)]


def _shortest(value: object) -> object:
    """1.1 for the f32 next to 1.1: the number that was written, as far as f32 tells, so that plans stay the same."""
    number = finite(value)
    if number is None or abs(number) > _F32_MAX or np.float32(number) != number:
        return value
    return float(str(np.float32(number)))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_JSON:
        found = f"a string of {len(value)} characters" if isinstance(value, str) else type(value).__name__
        raise ProfileError(f"{PREFIX}{name} is {found}, expected a string of at most {_MAX_JSON} characters")
    return value


def _json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ProfileError(f"{PREFIX}{name} is no JSON text") from None
