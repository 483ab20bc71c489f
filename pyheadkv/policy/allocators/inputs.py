"""Inputs of the methods, checked: head scores, scores of positions, distances of heads.

Methods take their inputs from here, so that a missing or damaged one ends in one clear sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pyheadkv.errors import PolicyError, ProfileError
from pyheadkv.policy.allocators.base import AllocRequest


def head_scores(request: AllocRequest, name: str) -> list[float]:
    """Measured score of each KV head in layer-major order, for allocator `name`.

    Raises
    ------
    ProfileError
        the request has none
    PolicyError
        one is negative or not finite, or there are too many or too few
    """
    if request.scores is None:
        raise ProfileError(f"allocator {name} needs a profile with measured head scores")
    _check_heads(request, "head score", request.scores)
    return [score for layer in request.scores for score in layer]


def head_shares(request: AllocRequest, name: str) -> list[Fraction]:
    """`head_scores` divided by their sum, exact; equal shares when all are 0."""
    scores = [Fraction(score) for score in head_scores(request, name)]
    total = sum(scores)
    return [score / total for score in scores] if total else [Fraction(1, len(scores))] * len(scores)


def head_distances(request: AllocRequest, name: str) -> Sequence[Sequence[float]]:
    """Distance of each KV head from the semantic centre of its layer, by layer, for allocator `name`.

    Raises
    ------
    PolicyError
        the request has none, one is negative or not finite, or there are too many or too few
    """
    if request.head_distance is None:
        raise PolicyError(f"allocator {name} needs the distances of the heads from their layer's semantic centre")
    _check_heads(request, "head distance", request.head_distance)
    return request.head_distance


def distances_from_centre(seen: npt.ArrayLike) -> list[float]:
    """Euclidean distance of each KV head of a layer from their mean, as `head_distances` gives them.

    Parameters
    ----------
    seen
        [n_head_kv, d], equation 15 of Task-KV: the values of the ``n_top`` positions with the largest attention, each
        times this attention (mean over the window and the group, which the paper leaves open), summed
    """
    vectors = np.asarray(seen, dtype=np.float64)
    distances: list[float] = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).tolist()
    return distances


def evictable_scores(request: AllocRequest, name: str) -> list[npt.NDArray[np.float32]]:
    """Scores of the positions that may be kept or dropped, for allocator `name`.

    Returns
    -------
    list of float32 [n_head_kv, n_evictable_pos]
        one array a layer, in position order. Views when nothing but first positions is kept anyway,
        else copies

    Raises
    ------
    PolicyError
        the request has none, an array has another shape or type, or a score is not finite
    """
    if request.token_scores is None:
        raise PolicyError(f"allocator {name} needs the scores of the prompt's positions")
    if len(request.token_scores) != len(request.n_head_kv):
        raise PolicyError(f"token scores of {len(request.token_scores)} layers, expected {len(request.n_head_kv)}")
    return [_open_of_layer(request, i, scores) for i, scores in enumerate(request.token_scores)]


def _open_of_layer(request: AllocRequest, i: int, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    expected = (request.n_head_kv[i], request.n_before_window)
    if scores.shape != expected or scores.dtype != np.float32:
        raise PolicyError(
            f"token scores of layer {i} are {scores.dtype} {list(scores.shape)}, expected float32 {list(expected)}"
        )
    if not np.isfinite(scores).all():
        ih, pos = (int(index) for index in np.argwhere(~np.isfinite(scores))[0])
        raise PolicyError(
            f"the score of position {pos} of KV head {ih} of layer {i} is {scores[ih, pos]}, expected a finite number"
        )
    spans = request.protected_spans()
    if len(spans) == 1 and spans[0][0] == 0:
        return scores[:, spans[0][1] :]
    if not spans:
        return scores
    return np.delete(scores, np.concatenate([np.arange(*span) for span in spans]), axis=1)


def _check_heads(request: AllocRequest, what: str, values: Sequence[Sequence[float]]) -> None:
    n_head_kv = tuple(len(layer) for layer in values)
    if n_head_kv != request.n_head_kv:
        raise PolicyError(
            f"{what} of {sum(n_head_kv)} KV heads given, expected {request.n_heads} in the model's layers"
        )
    for i, layer in enumerate(values):
        for ih, value in enumerate(layer):
            if not (math.isfinite(value) and value >= 0):
                raise PolicyError(
                    f"the {what} of KV head {ih} of layer {i} is {value}, expected a finite number of at least 0"
                )
