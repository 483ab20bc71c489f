"""Counting the highest scores without sorting them: against sorting, with ties, signs, zeros and extremes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyheadkv.policy.allocators.ranking import Ranking
from tests.reference import allocate_prompt as reference

Layers = list[npt.NDArray[np.float32]]

# neighbours that share their upper 16 bits, both zeros, both signs, the ends of the range, the smallest numbers
TRICKY = [0.0, -0.0, 1.0, 1.0000001, 1.0000002, -1.0, -1.0000001, 3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 0.5]
VALUES = st.one_of(st.sampled_from(TRICKY), st.floats(width=32, allow_nan=False, allow_infinity=False))


@st.composite
def layers_of_scores(draw: st.DrawFn) -> Layers:
    """Up to 4 layers of unequal shape."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 17)), min_size=1, max_size=4))
    return [
        np.array(draw(st.lists(VALUES, min_size=n * n_pos, max_size=n * n_pos)), dtype=np.float32).reshape(n, n_pos)
        for n, n_pos in shapes
    ]


def sorted_counts(layers: Layers, k: int) -> list[list[int]]:
    """The same by sorting all scores."""
    entries = [
        (-float(score), il, ih, pos)
        for il, layer in enumerate(layers)
        for ih, head in enumerate(layer)
        for pos, score in enumerate(head)
    ]
    best = sorted(entries)[:k]
    return [[sum(e[1:3] == (il, ih) for e in best) for ih in range(len(layer))] for il, layer in enumerate(layers)]


@settings(max_examples=60, deadline=None)
@given(layers_of_scores(), st.data())
def test_counts_are_those_of_sorting(layers: Layers, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, sum(layer.size for layer in layers) + 2))
    n_layer = data.draw(st.integers(1, len(layers)))
    before = [layer.copy() for layer in layers]
    ranking = Ranking(layers)
    assert [c.tolist() for c in ranking.counts(k)] == sorted_counts(layers, k)
    assert [c.tolist() for c in ranking.counts(k, n_layer)] == sorted_counts(layers[:n_layer], k)
    assert [c.tolist() for c in ranking.counts(k)] == sorted_counts(layers, k)  # asking changes nothing
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, layers, strict=True))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 1e-45])
def test_equal_scores_fill_the_first_heads(value: float) -> None:
    layers = [np.full((2, 5), value, dtype=np.float32), np.full((1, 5), value, dtype=np.float32)]
    assert [c.tolist() for c in Ranking(layers).counts(7)] == [[5, 2], [0]]
    assert [c.tolist() for c in Ranking(layers).counts(11)] == [[5, 5], [1]]


def test_both_zeros_are_equal() -> None:
    layers = [np.array([[-0.0, -0.0], [0.0, 0.0]], dtype=np.float32)]
    assert Ranking(layers).counts(3)[0].tolist() == [2, 1]


def test_many_scores_in_one_bucket() -> None:
    # one million numbers that differ in their lower 16 bits only, and not a sorted one among them
    rng = np.random.default_rng(3)
    bits = rng.permutation(np.tile(np.arange(65536, dtype=np.int32) + 0x3F80_0000, 16)).reshape(4, -1)
    layers = list(bits.view(np.float32).reshape(2, 2, -1))
    flat = np.concatenate([layer.ravel() for layer in layers])
    for k in (1, 16, 17, 500_000, flat.size):
        counts = np.concatenate(Ranking(layers).counts(k))
        kth = np.sort(flat)[-k]
        above = np.array([np.count_nonzero(head > kth) for layer in layers for head in layer])
        assert counts.sum() == k
        assert (above <= counts).all()
        assert (counts - above).sum() == k - above.sum()


def test_scores_that_are_a_view() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 12)
    assert Ranking([whole[:, 3:7]]).counts(3)[0].tolist() == [0, 3]
    assert Ranking([whole[:, ::-3]]).counts(5)[0].tolist() == [1, 4]


def test_the_reference_breaks_ties_as_promised() -> None:
    assert reference.top_counts([[[1, 1], [1, 2]], [[1, 1]]], [0, 1], 4) == [[2, 2], [0]]
    assert reference.top_counts([[[1, 9], [1, 2]], [[1, 1]]], [0], 2) == [[1, 1], [0]]
