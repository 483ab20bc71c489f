"""How many of the highest scores of a prompt lie in each KV head, exact, without sorting them.

A float32 has an int32 of the same order: flip the lower 31 bits of the negative ones. The k-th
highest score of any number of layers is then found in two steps: a histogram of the upper 16 bits
says in which of 65536 buckets it lies, one of the lower 16 bits within that bucket which number it
is. What is above it counts; of its equals the first ones do, by layer, then by KV head.

Memory: one histogram a layer (256 KiB) and some arrays of one layer's size at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_HALF = 1 << 16
_OFFSET = 1 << 15  # of the upper half, which is signed

Counts = list[npt.NDArray[np.int64]]


class Ranking:
    """The scores of some layers, ready to be ranked.

    Parameters
    ----------
    layers
        float32 [n_head_kv, n] each, finite; kept, not copied. n_head_kv and n may differ
    """

    def __init__(self, layers: Sequence[npt.NDArray[np.float32]]) -> None:
        self._layers = layers
        self._upper = [np.bincount(_upper(_keys(scores)), minlength=_HALF).astype(np.int32) for scores in layers]

    def counts(self, k: int, n_layer: int | None = None) -> Counts:
        """Where the `k` highest scores of the first `n_layer` layers (all of them by default) lie.

        Returns
        -------
        list of int64 [n_head_kv]
            how many are in each KV head, one array a layer, summing to min(k, number of scores).
            Among equal scores the earlier layer wins, then the earlier KV head
        """
        layers = self._layers[:n_layer]
        k = min(k, sum(scores.size for scores in layers))
        if k == 0:
            return [np.zeros(len(scores), dtype=np.int64) for scores in layers]
        kth = self._kth(k, n_layer)
        above = [_count_rows(scores > kth) for scores in layers]
        equal = [_count_rows(scores == kth) for scores in layers]
        rest = k - sum(int(n.sum()) for n in above)
        for n_above, n_equal in zip(above, equal, strict=True):
            before = np.cumsum(n_equal) - n_equal
            n_above += np.clip(rest - before, 0, n_equal)
            rest = max(rest - int(n_equal.sum()), 0)
        return above

    def _kth(self, k: int, n_layer: int | None) -> np.float32:
        """The k-th highest score of the first `n_layer` layers."""
        whole = np.zeros(_HALF, dtype=np.int64)
        for histogram in self._upper[:n_layer]:
            whole += histogram
        upper, k = _from_top(whole, k)
        lower = np.zeros(_HALF, dtype=np.int64)
        for scores, histogram in zip(self._layers[:n_layer], self._upper[:n_layer], strict=True):
            if histogram[upper]:
                keys = _keys(scores)
                lower += np.bincount(keys[_upper(keys) == upper] & (_HALF - 1), minlength=_HALF)
        key = np.array([(upper - _OFFSET) * _HALF + _from_top(lower, k)[0]], dtype=np.int32)
        kth: np.float32 = _flipped(key).view(np.float32)[0]
        return kth


def _flipped(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Bits of floats -> integers of the same order, and back."""
    flipped: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return flipped


def _keys(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """int32 [scores.size] of the order of `scores`; of the zeros, the negative one comes before the other."""
    return _flipped(scores.ravel().view(np.int32))


def _upper(keys: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    buckets: npt.NDArray[np.int32] = (keys >> 16) + np.int32(_OFFSET)
    return buckets


def _count_rows(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    # row by row, since with an axis NumPy adds up integers instead of counting bits
    return np.array([np.count_nonzero(row) for row in mask], dtype=np.int64)


def _from_top(histogram: npt.NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bucket that holds the k-th from the top, and its place in that bucket, from 1."""
    from_top = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(from_top, k))
    return len(histogram) - 1 - at, k - int(from_top[at] - histogram[::-1][at])
