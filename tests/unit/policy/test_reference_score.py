"""The NumPy scorers, on inputs whose scores can be seen: the native side is compared with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.reference import score as reference

Array = npt.NDArray[np.float64]


def pointing(targets: list[list[int]], d: int) -> Array:
    """Queries [n_pos, n_head, d] whose attention lies on the position targets[pos][head], for keys of `axes`."""
    return 1000.0 * np.eye(d)[np.array(targets)]


def axes(n_pos: int, n_head_kv: int) -> Array:
    """Keys [n_pos, n_head_kv, n_pos]: position p points along axis p."""
    return np.repeat(np.eye(n_pos)[:, None], n_head_kv, axis=1)


def test_h2o_of_even_attention_is_a_harmonic_sum() -> None:
    k = np.random.default_rng(0).normal(size=(5, 2, 4))
    found = reference.h2o(np.zeros((5, 4, 4)), k, 2)
    # query j pays 1 / (j + 1) to each of the positions 0 to j
    assert found == pytest.approx(np.tile([sum(1 / (j + 1) for j in range(p, 5)) for p in range(3)], (2, 1)))


def test_h2o_counts_every_query_and_means_over_the_group() -> None:
    # heads 0, 1 -> KV head 0; heads 2, 3 -> KV head 1
    targets = [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 2, 2], [0, 0, 2, 3]]
    found = reference.h2o(pointing(targets, 4), axes(4, 2), 1)
    assert found == pytest.approx(np.array([[3.5, 0.5, 0], [1, 1, 1.5]]))


def test_tova_is_the_last_query_and_the_same_for_all_heads() -> None:
    targets = [[0, 0], [1, 1], [2, 2], [0, 1]]
    found = reference.tova(pointing(targets, 4), axes(4, 2), 1)
    assert found == pytest.approx(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0]]))


def test_streaming_prefers_the_end() -> None:
    assert reference.streaming(2, 3).tolist() == [[0, 1, 2]] * 2


def test_knorm() -> None:
    k = np.zeros((3, 2, 2))
    k[:, 0] = [[3, 4], [0, 1], [9, 9]]
    k[:, 1] = [[0, 0], [6, 8], [9, 9]]
    assert reference.knorm(k, 1).tolist() == [[-5, -1], [0, -10]]


def test_keydiff_is_highest_for_the_odd_one_out() -> None:
    # lengths do not matter; three keys to the right, one up, the window's to the right: the mean is (4, 1)
    k = np.array([[1, 0], [5, 0], [0, 2], [0.1, 0], [7, 0]])[:, None]
    found = reference.keydiff(k, 1)
    right, up = -4 / np.sqrt(17), -1 / np.sqrt(17)
    assert found == pytest.approx(np.array([[right, right, up, right]]))
    assert reference.keydiff(np.repeat(k, 3, axis=1), 1).shape == (3, 4)


# --- expected attention


@pytest.mark.parametrize("is_neox", [False, True])
def test_rope_matrix_is_a_rotation_by_pairs(is_neox: bool) -> None:
    theta = np.array([np.pi / 2, 0.0])
    x = np.array([1.0, 2.0, 3.0, 4.0])
    turned = reference.rope_matrix(1, theta, is_neox) @ x
    assert turned == pytest.approx([-3, 2, 1, 4] if is_neox else [-2, 1, 3, 4])
    # rotating by 2 is rotating by 1 twice, and lengths stay
    twice = reference.rope_matrix(2, theta, is_neox)
    assert twice == pytest.approx(np.linalg.matrix_power(reference.rope_matrix(1, theta, is_neox), 2))


def test_expected_attention_of_constant_queries_is_softmax_times_value() -> None:
    # no rotation, no spread: plain attention of that query over all but the sink, window included
    k = np.log(np.array([[9.0, 1], [1, 1], [2, 1], [5, 1]]))[:, None] * np.sqrt(2)
    q = np.tile([1.0, 0.0], (4, 2, 1))
    q[0] = [50.0, -50.0]  # the sink's query is no sample
    v = np.array([[7.0], [1], [-3], [1]])[:, None]
    found = reference.expected_attention(q, k, v, np.zeros(1), 1, is_neox=True, n_sink=1, eps=0.5)
    assert found == pytest.approx(np.array([[(2 / 8 + 0.5) * 3, 1 / 8 + 0.5, (2 / 8 + 0.5) * 3]]))


def test_expected_attention_looks_at_the_spread_of_queries() -> None:
    # queries of +2 and -2 along the first axis, mean 0, variance 4: logit 4 k0^2 / (2 d)
    q = np.array([[2.0, 0], [-2, 0], [2, 0], [-2, 0]])[:, None]
    k = np.array([[np.sqrt(np.log(3)), 5], [0, 9], [0, 0], [0, 0]])[:, None]
    found = reference.expected_attention(q, k, np.ones((4, 1, 1)), np.zeros(1), 1, is_neox=True, n_sink=0, eps=0)
    assert found == pytest.approx(np.array([[3 / 6, 1 / 6, 1 / 6]]))


def test_expected_attention_rotates_the_spread() -> None:
    # the first axis an eighth of a turn on: along (1, 1), variance 4
    q = np.array([[2.0, 0], [-2, 0], [2, 0], [-2, 0]])[:, None]
    root = np.sqrt(np.log(3) / 2)
    k = np.array([[root, root], [9, -9], [0, 0], [0, 0]])[:, None]
    found = reference.expected_attention(
        q, k, np.ones((4, 1, 1)), np.array([np.pi / 16]), 1, is_neox=True, n_sink=0, n_future=1, eps=0
    )
    assert found == pytest.approx(np.array([[3 / 6, 1 / 6, 1 / 6]]))


def test_expected_attention_means_over_the_group() -> None:
    # the first query head sees 0 only, the second everything alike; one KV head
    q = np.zeros((4, 2, 2))
    q[:, 0] = 1000
    k = np.array([[1.0, 1], [0, 0], [0, 0], [0, 0]])[:, None]
    found = reference.expected_attention(q, k, np.ones((4, 1, 1)), np.zeros(1), 1, is_neox=True, n_sink=0, eps=0)
    assert found == pytest.approx(np.array([[(1 + 1 / 4) / 2, 1 / 8, 1 / 8]]))


def test_expected_attention_averages_future_rotations() -> None:
    # four positions a quarter turn apart: the mean rotation is 0, so all keys are equal
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(8, 2, 2)), rng.normal(size=(8, 1, 2))
    around = reference.expected_attention(
        q, k, np.ones((8, 1, 1)), np.array([np.pi / 2]), 2, is_neox=True, n_sink=0, n_future=4, eps=0
    )
    assert around == pytest.approx(np.full((1, 6), 1 / 8))
    # one future position, 8: the prompt's own next query, rotated as it will be
    turned = reference.expected_attention(
        np.tile([1.0, 0.0], (8, 1, 1)),
        k,
        np.ones((8, 1, 1)),
        np.array([np.pi / 16]),
        2,
        is_neox=True,
        n_sink=0,
        n_future=1,
        eps=0,
    )
    weights = np.exp(k[:, 0, 1] / np.sqrt(2))  # 8 * pi / 16 is a quarter turn: along the second axis
    assert turned == pytest.approx((weights / weights.sum())[None, :6])


# --- the output projection


def test_projected_value_norms() -> None:
    v = np.array([[1.0, 0], [0, 2]])[:, None]
    wo = np.array([[[3.0, -4, 0], [0, 0, 1]], [[0, 0, 0], [2, 1, -2]]])
    # head 0: 5, 2 * 1; head 1: 0, 2 * 3
    assert reference.projected_value_norms(v, wo).tolist() == [[2.5, 4]]


def test_criticalkv_keeps_the_best_then_what_changes_the_output() -> None:
    score = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    v = np.array([[1.0, 1], [1, 1], [4, 1], [9, 8], [100, 100]])[:, :, None]
    found = reference.criticalkv(score, v, np.ones((4, 1, 1)), [1, 2], eps=0.1)
    assert found[0] == pytest.approx([reference.FIRST, 0.4, 1.2, 1.8])
    assert found[1] == pytest.approx([reference.FIRST, reference.FIRST, 0.35, 2.8])
    assert score[0, 0] == 0.4  # what came in is as it was


def test_layer_defensive_takes_the_worst_case() -> None:
    # 1 KV head, 2 query heads, window of 2. Head 0 looks at 0 twice; head 1 at 0, then at 3
    targets = [[0, 0]] * 4 + [[0, 0], [0, 3]]
    q, k = pointing(targets, 6), axes(6, 1)
    v, wo = np.array([1.0, 1, 1, 1, 1, 1])[:, None, None], np.ones((2, 1, 1))
    found = reference.layer_defensive(q, k, v, wo, 2, 0, kernel=1)
    # the one look at 3 counts as much as the three at 0; the others get the mean of (1, 0, 0, 1)
    assert found == pytest.approx(np.array([[1, 0.5, 0.5, 1]]) / 4)
    # values: 1 and 2 take part in the norm's sum, 1 + 1 + 6 + 2
    v = np.array([1.0, 1, -6, 2, 50, 50])[:, None, None]
    weighted = reference.layer_defensive(q, k, v, wo, 2, 0, kernel=1)
    assert weighted == pytest.approx(np.array([[0.1, 0.05, 0.3, 0.2]]))
    # attention is .75 at 0 and .25 at 3: both are needed for nine tenths
    first = reference.layer_defensive(q, k, v, wo, 2, 4, kernel=1)
    assert first == pytest.approx(np.array([[reference.FIRST, 0.05, 0.3, reference.FIRST]]))
    assert reference.layer_defensive(q, k, v, wo, 2, 1, kernel=1)[0, 3] == pytest.approx(0.2)
    assert reference.layer_defensive(q, k, v, wo, 2, 4, kernel=1, mass=0.7)[0, 3] == pytest.approx(0.2)


def test_layer_defensive_pools_each_row_and_keeps_its_mass() -> None:
    # one look at position 0 of 4, pooled over 3: (1/2, 1/3, 0, 0) scaled by 6/5
    q, k = pointing([[0]] * 5, 5), axes(5, 1)
    found = reference.layer_defensive(q, k, np.ones((5, 1, 1)), np.ones((1, 1, 1)), 1, 0, kernel=3)
    assert found == pytest.approx(np.array([[0.6, 0.4, 0.25, 0.25]]) / 4)


# --- what heads see


def test_semantics_sum_the_values_that_are_looked_at() -> None:
    # head 0 of the group looks at 0, head 1 at 1 and 3: weights .5, .25, 0, .25
    targets = [[0, 0]] * 2 + [[0, 1], [0, 3]]
    v = np.array([[1.0, 0], [0, 4], [9, 9], [8, 0]])[:, None]
    found = reference.semantics(pointing(targets, 4), axes(4, 1), v, 2, 3)
    assert found == pytest.approx(np.array([[0.5 + 2, 1]]))
    # of the two that get a quarter, the lower position
    assert reference.semantics(pointing(targets, 4), axes(4, 1), v, 2, 2) == pytest.approx(np.array([[0.5, 1]]))
