"""Head score files of the HeadKV repository (Fu et al., https://arxiv.org/abs/2410.19258), read as profiles.

One JSON object; the key is "layer-head", by query head, the value the head's score in each example:

    {"0-0": [0.0, 0.011], "0-1": [0.2, 0.173], ...}

A head's score is the mean over its examples, divided by the sum over all heads of the model. A KV head has the sum of
its query heads' (the paper keeps rows by query head). Which model the file was measured on it does not say, so such a
profile has no fingerprint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pyheadkv.errors import ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.profile.checks import finite, short
from pyheadkv.profile.profile import Profile

METHOD = "published"
_KEY = re.compile(r"(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,5})")


def is_published(data: object) -> bool:
    """Whether this JSON content looks like such a file: some key looks like "0-0"."""
    return isinstance(data, dict) and "headkv" not in data and any(_KEY.fullmatch(key) for key in data)


def profile_from_published(data: Mapping[str, object], shape: ModelShape, source: str) -> Profile:
    """Check the content of such a file against a model.

    Raises
    ------
    ProfileError
        naming the key, what was expected and what was found
    """
    by_layer = {layer.il: layer for layer in shape.layers}
    for key in data:
        _check_key(key, by_layer)
    means = [[_mean(data, f"{layer.il}-{h}") for h in range(layer.n_head)] for layer in shape.layers]
    total = sum(mean for layer in means for mean in layer)
    if not 0 < total < math.inf:
        raise ProfileError(f"the scores sum to {total:g}, expected more than 0")
    query = tuple(tuple(mean / total for mean in layer) for layer in means)
    scores = tuple(_folded(heads, layer) for heads, layer in zip(query, shape.layers, strict=True))
    return Profile(scores, METHOD, source=source, scores_query=query)


def _folded(heads: tuple[float, ...], layer: LayerShape) -> tuple[float, ...]:
    n_gqa = layer.n_head // layer.n_head_kv
    return tuple(math.fsum(heads[n_gqa * ih : n_gqa * (ih + 1)]) for ih in range(layer.n_head_kv))


def _check_key(key: str, by_layer: Mapping[int, LayerShape]) -> None:
    match = _KEY.fullmatch(key)
    if match is None:
        raise ProfileError(f"key {short(key)} cannot be read, expected layer-head, as in 0-0")
    il, h = int(match[1]), int(match[2])
    if il not in by_layer:
        raise ProfileError(f"key {key} names layer {il}, this model's last layer with a KV cache is {max(by_layer)}")
    if h >= by_layer[il].n_head:
        raise ProfileError(f"key {key} names query head {h}, this model's layer {il} has {by_layer[il].n_head}")


def _mean(data: Mapping[str, object], key: str) -> float:
    if key not in data:
        raise ProfileError(f"key {key} is missing, expected one for every query head")
    values = data[key]
    if not isinstance(values, list) or not values:
        found = "empty" if isinstance(values, list) else short(values)
        raise ProfileError(f"key {key} is {found}, expected a list of scores, one for each example")
    scores = []
    for j, value in enumerate(values):
        score = finite(value)
        if score is None or score < 0:
            raise ProfileError(f"key {key} has {short(value)} at {j}, expected a finite number of at least 0")
        scores.append(score / len(values))
    return sum(scores)
