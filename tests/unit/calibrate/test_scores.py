"""From attention to head scores: published formulas on small numbers, and against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.calibrate.scores import (
    by_layer,
    copy_hits,
    fold_groups,
    largest_attention,
    normalised,
    span_mass,
    split_half,
)
from tests.reference import calibrate as reference

SPAN = np.array([10, 11, 12])
PROMPT = list(range(100, 116))


def weights(**at: float) -> np.ndarray:
    """One head over 16 positions; p10=0.5 is the weight of position 10."""
    row = np.zeros(16)
    for name, value in at.items():
        row[int(name[1:])] = value
    return row[None]


def test_r2_takes_the_n_largest_that_lie_in_the_span() -> None:
    step = weights(p10=0.5, p3=0.2, p12=0.1, p11=0.05)
    assert span_mass(step, SPAN) == pytest.approx([0.2])
    assert sum(span_mass(step, SPAN) for _ in range(3)) == pytest.approx([0.6])


def test_r_counts_only_the_copied_token() -> None:
    steps = [(weights(p10=0.9), 110), (weights(p11=0.9), 112), (weights(p2=0.9), 102)]
    hits = [copy_hits(attention, SPAN, PROMPT, token) for attention, token in steps]
    assert np.concatenate(hits) == pytest.approx([1 / 3, 0, 0])
    assert sum(hits) == pytest.approx([1 / 3])


def test_ties_go_to_the_lower_position() -> None:
    assert span_mass(weights(p9=0.2, p10=0.2, p11=0.2, p12=0.2), SPAN) == pytest.approx([0.4 / 3])
    assert copy_hits(weights(p9=0.2, p10=0.2), SPAN, PROMPT, 110).tolist() == [0]


@st.composite
def observations(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[int], list[int]]:
    """Attention [steps, heads, n] with many ties, a span, the prompt and the answer."""
    n, n_head, n_step = draw(st.integers(4, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=n, max_size=n)
    attention = [[draw(values) for _ in range(n_head)] for _ in range(n_step)]
    span = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=3)))
    prompt = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    answer = draw(st.lists(st.integers(0, 3), min_size=n_step, max_size=n_step))
    return np.array(attention), span, prompt, answer


@given(observations())
def test_scores_are_those_of_the_reference(data: tuple[np.ndarray, list[int], list[int], list[int]]) -> None:
    attention, span, prompt, answer = data
    positions = np.array(span)
    copy = sum(copy_hits(step, positions, prompt, token) for step, token in zip(attention, answer, strict=True))
    assert copy == pytest.approx(reference.retrieval_score(attention.tolist(), span, prompt, answer))
    mass = sum(span_mass(step, positions) for step in attention)
    assert mass == pytest.approx(reference.reasoning_score(attention.tolist(), span))


@pytest.mark.parametrize(("n_head", "n_head_kv"), [(3, 3), (6, 2), (8, 1)])
def test_reconstruction_is_that_of_the_reference(n_head: int, n_head_kv: int) -> None:
    attention = np.random.default_rng(n_head).random((n_head, 20))
    positions = np.array([4, 5, 9, 19])
    expected = reference.reconstruction_score(attention.tolist(), n_head_kv, positions.tolist())
    assert largest_attention(attention, n_head_kv, positions) == pytest.approx(expected)


@pytest.mark.parametrize("fold", ["sum", "max"])
def test_folding_follows_layers_and_groups(fold: str) -> None:
    n_head, n_head_kv = (6, 4, 3), (2, 4, 1)
    scores = np.random.default_rng(1).random(13)
    expected = reference.fold_scores(scores.tolist(), n_head, n_head_kv, fold)
    assert fold_groups(scores, n_head, n_head_kv, fold) == pytest.approx(expected)
    assert by_layer(np.arange(7.0), n_head_kv) == ((0, 1), (2, 3, 4, 5), (6,))
    assert normalised(scores).sum() == pytest.approx(1)


def test_split_half_is_the_correlation_of_the_halves() -> None:
    """Two groups can be split in one way only, and the order of the halves does not count."""
    values = np.random.default_rng(2).random((5, 8))
    groups = [0, 1, 0, 0, 1]
    first, second = values[[0, 2, 3]].mean(axis=0), values[[1, 4]].mean(axis=0)
    expected = reference.pearson(first.tolist(), second.tolist())
    assert split_half(values, groups, seed=0) == pytest.approx(expected)


def test_split_half_tells_signal_from_noise() -> None:
    rng = np.random.default_rng(3)
    signal, noise = rng.random(200), rng.random((40, 200))
    groups = [i // 2 for i in range(40)]
    stable, chance = split_half(signal + noise / 4, groups, seed=0), split_half(noise, groups, seed=0)
    assert stable is not None and stable > 0.95
    assert chance is not None and abs(chance) < 0.2


@pytest.mark.parametrize(
    ("values", "groups"),
    [(np.ones((4, 3)) * [1, 2, 3], [7, 7, 7, 7]), (np.zeros((4, 3)), [0, 1, 2, 3]), (np.empty((0, 3)), [])],
    ids=["one group", "no scores", "no examples"],
)
def test_no_correlation_where_there_is_none(values: np.ndarray, groups: list[int]) -> None:
    assert split_half(values, groups, seed=0) is None
