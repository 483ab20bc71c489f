"""Every method against a second implementation, the published vectors, and by hand where the answer can be seen."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError, PolicyError
from pyheadkv.policy.allocators import AllocRequest, allocator_names, get_allocator
from pyheadkv.policy.allocators.adakv import scaled_scores
from pyheadkv.policy.allocators.headkv import sharpened
from pyheadkv.policy.allocators.pyramid import pyramid_targets
from pyheadkv.policy.allocators.taskkv import heterogeneous_heads, n_heterogeneous
from tests.reference import allocate as reference
from tests.reference import allocate_prompt as prompt_reference

SLOW = settings(max_examples=25, deadline=None)  # the references sort Python lists
PARAMS = {
    "uniform": st.just({}),
    "headkv": st.fixed_dictionaries(
        {"beta": st.sampled_from([1.01, 1.2, 10.0]), "temperature": st.sampled_from([1.0, 0.5, 3.0])}
    ),
    "pyramid": st.fixed_dictionaries({"beta": st.sampled_from([1.5, 2.0, 20.0, 1000.0])}),
    "adakv": st.fixed_dictionaries({"safeguard": st.sampled_from([0.0, 0.2, 0.5, 1.0]), "scale": st.integers(0, 1)}),
    "dynamickv": st.fixed_dictionaries(
        {"m": st.integers(1, 5), "r_max": st.sampled_from([0.25, 1.0, 1.5, 5.0, 100.0])}
    ),
    "global": st.just({}),
    "duo": st.fixed_dictionaries({"recent": st.integers(0, 40)}),
    "taskkv": st.fixed_dictionaries(
        {
            "beta": st.sampled_from([0.2, 0.3, 0.5, 1.0]),
            "m": st.sampled_from([0, 1, 2, 4]),
            "recent": st.integers(0, 20),
        }
    ),
}
ELSEWHERE = ("uniform", "headkv")  # test_allocators.py holds these against the reference
# sums and products of these are exact in float32: no reference can differ by rounding; many ties
DYADIC = st.integers(0, 64).map(lambda n: n / 64)


@st.composite
def requests(draw: st.DrawFn, name: str) -> AllocRequest:
    """Unequal layers, spans, every budget from the floors to the whole prompt."""
    n_head_kv = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)))
    n_obs, n_sink = draw(st.integers(1, 6)), draw(st.integers(0, 3))
    n_prompt = n_obs + draw(st.integers(1, 30))
    spans = draw(st.lists(st.tuples(st.integers(0, n_prompt - 1), st.integers(1, 6)), max_size=2))
    protected = tuple((first, min(first + n, n_prompt)) for first, n in spans)
    bare = AllocRequest(n_head_kv, n_prompt, 0, n_sink, n_obs, protected=protected)
    n = sum(n_head_kv)
    total = draw(st.integers(n * (bare.n_protected + n_obs), n * n_prompt))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_values = draw(st.sampled_from([1, 2, 8, 4096]))  # one value: all equal; two: mostly ties
    token_scores = [(rng.integers(0, n_values, (n, n_prompt - n_obs)) / 4096).astype(np.float32) for n in n_head_kv]
    heads = draw(st.lists(DYADIC, min_size=n, max_size=n))
    values = iter(heads)
    by_head = tuple(tuple(next(values) for _ in range(n)) for n in n_head_kv)
    params = draw(PARAMS[name])
    return replace(
        bare, total_rows=total, scores=by_head, params=params, token_scores=token_scores, head_distance=by_head
    )


def expected_rows(name: str, asked: AllocRequest) -> list[int]:
    """Rows by the references, one per head."""
    positions = prompt_reference.evictable_positions(asked.n_prompt, asked.n_obs, asked.n_sink, asked.protected)
    floor = asked.n_prompt - len(positions)
    n_head_kv = list(asked.n_head_kv)
    total = asked.total_rows - sum(n_head_kv) * floor
    scores = [layer.tolist() for layer in asked.token_scores or []]
    params = asked.params
    by_layer: list[list[int]]
    if name == "pyramid":
        always = floor - asked.n_obs
        shares = reference.pyramid(n_head_kv, params["beta"], asked.n_prompt, asked.total_rows, always, asked.n_obs)
        return [asked.n_obs + n for n in reference.largest_remainder(shares)]
    if name == "duo":
        flat = [score for layer in asked.scores or () for score in layer]
        recent = min(max(int(params["recent"]) - asked.n_obs, 0), len(positions))
        return [floor + n for n in reference.duo(flat, recent, len(positions), total)]
    if name == "adakv":
        by_layer = prompt_reference.adakv(scores, positions, params["safeguard"], bool(params["scale"]), total)
    elif name == "dynamickv":
        by_layer = prompt_reference.dynamickv(scores, positions, int(params["m"]), params["r_max"], total)
    elif name == "global":
        by_layer = prompt_reference.top_counts(scores, positions, total)
    else:
        recent = min(max(int(params["recent"]) - asked.n_obs, 0), len(positions))
        by_layer = []
        for r, layer_total in enumerate(prompt_reference.equal_by_layer(n_head_kv, total)):
            distances = (asked.head_distance or ())[r]
            n = len(distances)
            f = prompt_reference.taskkv_count(
                r, len(n_head_kv), n, Fraction(str(params["beta"])), Fraction(params["m"])
            )
            f_whole = min(max(math.floor(f + Fraction(1, 2)), 1), n)
            by_layer.append(prompt_reference.taskkv_layer(distances, f_whole, recent, len(positions), layer_total))
    return [floor + n for layer in by_layer for n in layer]


@pytest.mark.parametrize("name", [name for name in allocator_names() if name not in ELSEWHERE])
@SLOW
@given(data=st.data())
def test_rows_are_those_of_the_reference(name: str, data: st.DataObject) -> None:
    asked = data.draw(requests(name))
    rows = get_allocator(name).allocate(asked)
    assert [n for layer in rows for n in layer] == expected_rows(name, asked)


@pytest.mark.parametrize("name", allocator_names())
@SLOW
@given(data=st.data())
def test_sums_bounds_and_determinism(name: str, data: st.DataObject) -> None:
    asked = data.draw(requests(name))
    before = [layer.copy() for layer in asked.token_scores or []]
    rows = get_allocator(name).allocate(asked)
    flat = [n for layer in rows for n in layer]
    assert tuple(len(layer) for layer in rows) == asked.n_head_kv
    assert all(type(n) is int for n in flat)
    assert sum(flat) == asked.total_rows
    assert min(flat) >= asked.n_protected + asked.n_obs
    assert max(flat) <= asked.n_prompt
    assert get_allocator(name).allocate(asked) == rows
    assert all((a == b).all() for a, b in zip(before, asked.token_scores or [], strict=True))


@pytest.mark.parametrize("name", allocator_names())
def test_one_token_of_choice(name: str) -> None:
    scores = [np.zeros((2, 1), dtype=np.float32), np.zeros((1, 1), dtype=np.float32)]
    params = get_allocator(name).complete({})
    zeros = ((0.0, 0.0), (0.0,))
    for total, expected in [(12, 4), (14, None), (15, 5)]:
        asked = AllocRequest((2, 1), 5, total, 0, 4, zeros, params, (), scores, zeros)
        flat = [n for layer in get_allocator(name).allocate(asked) for n in layer]
        assert sum(flat) == total
        assert set(flat) == ({expected} if expected else {4, 5})


@pytest.mark.parametrize("name", allocator_names())
def test_nothing_is_open(name: str) -> None:
    scores = [np.zeros((2, 3), dtype=np.float32)]
    params, zeros = get_allocator(name).complete({}), ((0.0, 0.0),)
    asked = AllocRequest((2,), 5, 10, 1, 2, zeros, params, ((0, 3),), scores, zeros)
    assert get_allocator(name).allocate(asked) == [[5, 5]]


@pytest.mark.parametrize("name", allocator_names())
def test_budget_below_the_floors(name: str) -> None:
    scores, zeros = [np.zeros((2, 30), dtype=np.float32)], ((0.0, 0.0),)
    asked = AllocRequest((2,), 34, 35, 4, 4, zeros, get_allocator(name).complete({}), ((10, 20),), scores, zeros)
    with pytest.raises(BudgetError, match=r"a budget of (35|27) rows is below the floors of (36|28) rows"):
        get_allocator(name).allocate(asked)


# --- pyramid


@pytest.mark.parametrize(
    ("capacity", "n_prompt", "first", "last", "step", "mean"),
    [(128, 8000, 234, 17, 7, 125.5), (1024, 8000, 1982, 60, 62, 1021), (2048, 3000, 2992, 1101, 61, 2046.5)],
)
def test_pyramid_published_vectors(capacity: int, n_prompt: int, first: int, last: int, step: int, mean: float) -> None:
    published = reference.pyramid_published(capacity, 8, 32, 20, n_prompt)
    assert (published[0], published[-1], published[0] - published[1]) == (first, last, step)
    assert sum(published) / 32 == mean
    exact = pyramid_targets(Fraction(capacity), 32, n_prompt - 8, 8, 20)
    assert sum(exact) == 32 * (capacity - 8)  # the published rows are more than was given
    assert exact[0] == first
    # a step rounded down is at most one row too small, and that adds up from layer to layer
    assert all(ours <= theirs <= ours + il for il, (ours, theirs) in enumerate(zip(exact, published, strict=True)))


def test_pyramid_by_hand() -> None:
    # b = 10, last 10 // 5 = 2, first 18, step 8
    asked = AllocRequest((2, 1, 3), 100, 6 * 14, 0, 4, params={"beta": 5})
    equal = replace(asked, n_head_kv=(2, 2, 2))
    assert get_allocator("pyramid").allocate(equal) == [[22, 22], [14, 14], [6, 6]]
    # sinks lift the top layer to 5 + 4, the others pay in proportion to 18 and 10
    rows = get_allocator("pyramid").allocate(replace(equal, n_sink=5))
    assert rows == [[20, 20], [13, 13], [9, 9]]
    # shorter than twice the base: nothing to gain
    assert get_allocator("pyramid").allocate(replace(equal, n_prompt=19)) == [[14, 14]] * 3
    # unequal layers keep their proportions 18 : 10 : 2 and the sum
    unequal = get_allocator("pyramid").allocate(asked)
    assert sum(map(sum, unequal)) == 84
    assert unequal[1][0] < unequal[0][0] and unequal[2][0] < unequal[1][0]


# --- adakv


def test_adakv_published_vectors() -> None:
    assert prompt_reference.adakv_published([7, 1], 4, 0.2) == [6, 1]  # a row is lost
    assert prompt_reference.adakv_published([17, 3], 10, 0.2) == [16, 4]
    for split, k, expected in [((7, 1), 8, [6, 2]), ((17, 3), 20, [16, 4])]:
        scores = np.full((2, 30), 0.25, dtype=np.float32)
        for ih, n in enumerate(split):
            scores[ih, 5 : 5 + n] = 1.0
        asked = AllocRequest((2,), 32, k + 4, 0, 2, None, {"safeguard": 0.2, "scale": 0}, (), [scores])
        assert get_allocator("adakv").allocate(asked) == [[n + 2 for n in expected]]


def test_adakv_safeguard_is_not_rounded() -> None:
    # 5 rows for 3 heads, all in the first: 2.5 + 0.83, 0.83, 0.83
    scores = np.array([[1] * 5, [0] * 5, [0] * 5], dtype=np.float32)
    asked = AllocRequest((3,), 7, 6 + 5, 0, 2, None, {"safeguard": 0.5, "scale": 1}, (), [scores])
    assert get_allocator("adakv").allocate(asked) == [[2 + 3, 2 + 1, 2 + 1]]


def test_adakv_layers_have_equal_budgets() -> None:
    # all high scores are in the second layer: it gets no more than the first
    scores = [np.full((2, 10), 0.125, dtype=np.float32), np.full((2, 10), 1.0, dtype=np.float32)]
    params = get_allocator("adakv").complete({})
    rows = get_allocator("adakv").allocate(AllocRequest((2, 2), 12, 4 * 7, 0, 2, None, params, (), scores))
    assert [sum(layer) for layer in rows] == [14, 14]


def test_adakv_scales_each_head_by_what_its_best_hold() -> None:
    scores = np.array([[4, 2, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=np.float32)
    assert scaled_scores(scores, 2).tolist() == [[3, 1.5, 0.75, 0.75], [0.5] * 4, [0] * 4]
    # of 3 rows the flat head loses one: 16/9, 8/9, 6/9, 6/9 against 5/4
    two = np.array([[4, 2, 1.5, 1.5], [1.25, 0, 0, 0]], dtype=np.float32)
    asked = AllocRequest((2,), 6, 4 + 3, 0, 2, None, {"safeguard": 0, "scale": 1}, (), [two])
    assert get_allocator("adakv").allocate(asked) == [[2 + 2, 2 + 1]]
    assert get_allocator("adakv").allocate(replace(asked, token_scores=[two / 64])) == [[2 + 2, 2 + 1]]
    assert get_allocator("adakv").allocate(replace(asked, params={"safeguard": 0, "scale": 0})) == [[2 + 3, 2]]


def test_adakv_refuses_to_scale_negative_scores() -> None:
    scores = [np.array([[-1, -2, -3], [-4, -5, -0.5]], dtype=np.float32)]
    asked = AllocRequest((2,), 5, 4 + 3, 0, 2, None, {"safeguard": 0, "scale": 0}, (), scores)
    assert get_allocator("adakv").allocate(asked) == [[4, 3]]
    with pytest.raises(PolicyError, match=r"a token score is -5, adakv with scale=1 expects at least 0; use scale=0"):
        get_allocator("adakv").allocate(replace(asked, params={"safeguard": 0, "scale": 1}))


# --- dynamickv


def layered(counts: list[list[int]], n: int) -> list[np.ndarray]:
    """Scores of 1 at the first counts[il][ih] positions, else 0."""
    layers = []
    for layer in counts:
        scores = np.zeros((len(layer), n), dtype=np.float32)
        for ih, count in enumerate(layer):
            scores[ih, :count] = 1
        layers.append(scores)
    return layers


def test_dynamickv_published_vector() -> None:
    assert prompt_reference.dynamickv_published([20, 10, 5, 5], 50, 10, 8) == [40, 19, 9, 12]
    # the same layer shares as the last update of 4 layers: exact, where the released code rounds
    scores = layered([[20], [10], [5], [5]], 100)
    asked = AllocRequest((1,) * 4, 101, 4 * 11, 0, 1, None, {"m": 4, "r_max": 5}, (), scores)
    assert get_allocator("dynamickv").allocate(asked) == [[21], [11], [6], [6]]


def test_dynamickv_cuts_are_final() -> None:
    # base 10. First update (2 layers): all of the top 20 in layer 1, so layer 0 is cut to nothing. At the end layer 0
    # would get 3/4 of the rows by its many middling scores, but has none left
    scores = layered([[0], [20], [0], [0]], 100)
    scores[0][0, :100] = 0.5
    asked = AllocRequest((1,) * 4, 101, 4 * 11, 0, 1, None, {"m": 2, "r_max": 5}, (), scores)
    assert get_allocator("dynamickv").allocate(asked) == [[1], [41], [1], [1]]
    # without the update in between it gets half
    once = replace(asked, params={"m": 4, "r_max": 5})
    assert get_allocator("dynamickv").allocate(once) == [[21], [21], [1], [1]]


def test_dynamickv_updates_every_m_layers() -> None:
    # m = 1: the second update, of 2 layers, cuts layer 0 to nothing; at the end it would get 10 of 30 rows
    scores = layered([[0], [20], [0]], 100)
    scores[0][0, :] = 0.5
    asked = AllocRequest((1,) * 3, 101, 3 * 11, 0, 1, None, {"m": 1, "r_max": 5}, (), scores)
    assert get_allocator("dynamickv").allocate(asked) == [[1], [31], [1]]
    assert get_allocator("dynamickv").allocate(replace(asked, params={"m": 3, "r_max": 5})) == [[11], [21], [1]]


def test_dynamickv_holds_at_most_r_max() -> None:
    scores = layered([[100], [0], [0], [0]], 100)
    asked = AllocRequest((1,) * 4, 101, 4 * 11, 0, 1, None, {"m": 4, "r_max": 2.5}, (), scores)
    # 25 of 40 rows; the rest goes to layers without a count, in equal parts
    assert get_allocator("dynamickv").allocate(asked) == [[26], [6], [6], [6]]
    # caps that do not hold the budget give way
    tight = replace(asked, params={"m": 4, "r_max": 0.25})
    assert get_allocator("dynamickv").allocate(tight) == [[35], [3], [3], [3]]


def test_dynamickv_layers_are_equal_inside() -> None:
    scores = layered([[30, 0, 0], [0, 3, 0]], 40)
    params = get_allocator("dynamickv").complete({})
    rows = get_allocator("dynamickv").allocate(AllocRequest((3, 3), 42, 6 * 2 + 33, 0, 2, None, params, (), scores))
    assert rows == [[12, 12, 12], [3, 3, 3]]


# --- global


def test_global_by_hand() -> None:
    scores = [
        np.array([[9, 9, 1, 8], [0, 9, 7, 6]], dtype=np.float32),
        np.array([[9, 0, 0, 5]], dtype=np.float32),
    ]
    asked = AllocRequest((2, 1), 6, 3 * 3 + 3, 1, 2, None, {}, (), scores)
    # sinks (9, 0, 9) are set aside; then 9, 9, 8 are the best
    assert get_allocator("global").allocate(asked) == [[5, 4], [3]]
    # position 1 is protected too: two of the budget's rows are left, 8 and 7
    assert get_allocator("global").allocate(replace(asked, total_rows=14, protected=((1, 2),))) == [[5, 5], [4]]
    negative = replace(asked, token_scores=[-layer for layer in scores])
    assert get_allocator("global").allocate(negative) == [[4, 3], [5]]


def test_global_with_equal_scores_fills_the_first_heads() -> None:
    asked = AllocRequest((2, 2), 12, 4 * 2 + 15, 0, 2, None, {}, (), [np.zeros((2, 10), dtype=np.float32)] * 2)
    assert get_allocator("global").allocate(asked) == [[12, 7], [2, 2]]


# --- duo


def test_duo_by_hand() -> None:
    scores = ((0.1, 0.4), (0.3, 0.2))
    asked = AllocRequest((2, 2), 100, 4 * 10 + 180, 4, 6, scores, {"recent": 16})
    # everyone: 4 sinks + 16 recent, the window among them; 140 rows make the best head full, the next gets 60
    assert get_allocator("duo").allocate(asked) == [[20, 100], [80, 20]]
    assert get_allocator("duo").allocate(replace(asked, total_rows=4 * 10 + 200)) == [[20, 100], [100, 20]]
    # a quarter of 40 rows is 2 recent ones for each of 4 heads
    assert get_allocator("duo").allocate(replace(asked, total_rows=4 * 10 + 40)) == [[12, 44], [12, 12]]
    assert get_allocator("duo").allocate(replace(asked, total_rows=400, params={"recent": 5000})) == [[100, 100]] * 2
    # of equal scores the earlier head
    ties = replace(asked, scores=((0.25, 0.25), (0.25, 0.25)))
    assert get_allocator("duo").allocate(ties) == [[100, 80], [20, 20]]


# --- taskkv


def test_taskkv_published_vectors() -> None:
    assert [n_heterogeneous(r, 32, 32, 0.25, 4) for r in (0, 15, 31)] == [8, 6, 4]
    assert [n_heterogeneous(r, 32, 8, 0.3, 1) for r in (0, 31)] == [2, 1]  # 2.4 and 1
    assert n_heterogeneous(0, 1, 4, 0.5, 0) == 2
    assert n_heterogeneous(0, 2, 5, 0.3, 1) == 2  # 1.5, though the float 0.3 is a little less
    assert n_heterogeneous(31, 32, 8, 0.3, 0) == 1  # at least one
    assert n_heterogeneous(1, 3, 4, 0.25, 4) == 3  # 2.5, half up
    assert prompt_reference.taskkv_middle(51200, 4000, 32, 8, 16, 256) == 528


@pytest.mark.parametrize(("keep", "f", "others"), [(0.4, 8, [800]), (0.2, 4, [342, 343])])
def test_taskkv_layer_of_the_paper(keep: float, f: int, others: list[int]) -> None:
    # 32 heads, a prompt of 4000, sinks 16, recent 256: f heads keep all, at 20 % four heads fewer than at 40 %
    distances = (tuple(range(32)),)
    params = {"beta": 0.25, "m": 4, "recent": 256}
    asked = AllocRequest((32,), 4000, int(keep * 32 * 4000), 16, 32, None, params, head_distance=distances)
    rows = get_allocator("taskkv").allocate(asked)[0]
    assert [ih for ih in range(32) if rows[ih] == 4000] == [0, *range(33 - f, 32)]  # the nearest and the farthest
    assert sorted({n for n in rows if n < 4000}) == others
    k = prompt_reference.taskkv_middle(keep * 32 * 4000, 4000, 32, f, 16, 256)
    assert min(others) <= k + 272 <= max(others)


def test_taskkv_chooses_the_farthest_and_one_nearest() -> None:
    distances = [0.2, 0.5, 0.1, 0.5, 0.1]
    assert heterogeneous_heads(distances, 1) == [1]
    assert heterogeneous_heads(distances, 2) == [1, 2]
    assert heterogeneous_heads(distances, 3) == [1, 3, 2]
    assert sorted(heterogeneous_heads(distances, 5)) == [0, 1, 2, 3, 4]
    assert heterogeneous_heads([1.0, 1.0, 1.0], 3) == [0, 1, 2]


def test_taskkv_when_not_one_head_fits() -> None:
    # 3 heads, 300 rows: two keep 4 + 26, the farthest what is left
    asked = AllocRequest(
        (3,), 1000, 300, 4, 10, None, {"beta": 0.5, "m": 1, "recent": 26}, head_distance=((0.1, 0.2, 0.9),)
    )
    assert get_allocator("taskkv").allocate(asked) == [[30, 30, 240]]
    # not even sinks and recent rows for all: equal
    assert get_allocator("taskkv").allocate(replace(asked, total_rows=89)) == [[30, 30, 29]]


# --- headkv's temperature


def test_headkv_temperature() -> None:
    shares = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4), Fraction(0)]
    assert sharpened(shares, 1) == shares
    assert sharpened(shares, 2) == [Fraction(4, 6), Fraction(1, 6), Fraction(1, 6), 0]
    assert sharpened(shares, 0.5)[0] == pytest.approx(1 / (1 + math.sqrt(2)))
    tiny = [Fraction(1, 10**200), Fraction(3, 10**200)]
    assert sharpened(tiny, 100)[1] == pytest.approx(1)  # a power of each alone would be 0


def test_headkv_temperature_changes_rows() -> None:
    scores = ((0.5, 0.25), (0.25, 0.0))
    asked = AllocRequest((2, 2), 1000, 4 * 110, 0, 10, scores, {"beta": 1000.0 / 999, "temperature": 2})
    # b = 100, p = floor(99.9) = 99: 1 + 4/6 * 396, 1 + 1/6 * 396 twice, 1
    assert get_allocator("headkv").allocate(asked) == [[10 + 265, 10 + 67], [10 + 67, 11]]


def test_headkv_with_all_scores_zero_is_uniform() -> None:
    asked = AllocRequest((2, 1), 100, 90, 4, 10, ((0.0, 0.0), (0.0,)), {"beta": 1.2})
    assert get_allocator("headkv").allocate(asked) == [[30, 30], [30]]
