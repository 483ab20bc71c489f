"""Allocators: bounds, exact sums, the published formula, and agreement with a second implementation."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError, PolicyError, ProfileError
from pyheadkv.policy.allocators import (
    Allocator,
    AllocRequest,
    allocator_names,
    get_allocator,
    register_allocator,
)
from pyheadkv.policy.allocators.apportion import apportion
from pyheadkv.policy.allocators.headkv import headkv_targets
from tests.reference import allocate as reference

FEWER = settings(max_examples=40)  # the slow reference and the ordering need not be asked more often

# huge, tiny and zero weights side by side: a float implementation fails on these
WEIGHTS = st.one_of(
    st.just(0.0), st.integers(0, 5), st.floats(1e-300, 1e300), st.floats(0.0, 1.0, allow_subnormal=True)
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[int], list[int], int]:
    """Targets, floors, caps and a total that can be dealt."""
    heads = draw(st.lists(st.tuples(WEIGHTS, st.integers(0, 9), st.integers(0, 40)), min_size=1, max_size=17))
    targets, floors, extra = (list(column) for column in zip(*heads, strict=True))
    caps = [floor + more for floor, more in zip(floors, extra, strict=True)]
    return targets, floors, caps, draw(st.integers(sum(floors), sum(caps)))


@given(problems())
def test_apportion_keeps_bounds_and_sums_exactly(problem: tuple[list[float], list[int], list[int], int]) -> None:
    targets, floors, caps, total = problem
    rows = apportion(targets, floors, caps, total)
    assert sum(rows) == total
    assert all(floor <= n <= cap for floor, n, cap in zip(floors, rows, caps, strict=True))
    assert all(type(n) is int for n in rows)


@FEWER
@given(problems())
def test_apportion_agrees_with_the_reference(problem: tuple[list[float], list[int], list[int], int]) -> None:
    targets, floors, caps, total = problem
    shares = reference.water_fill([Fraction(target) for target in targets], floors, caps, total)
    assert apportion(targets, floors, caps, total) == reference.largest_remainder(shares)


@FEWER
@given(problems(), st.randoms(use_true_random=False))
def test_apportion_does_not_depend_on_the_order(
    problem: tuple[list[float], list[int], list[int], int], rng: random.Random
) -> None:
    targets, floors, caps, total = problem
    shares = reference.water_fill([Fraction(target) for target in targets], floors, caps, total)
    fractions = [share % 1 for share in shares if share % 1]
    assume(len(set(fractions)) == len(fractions))  # ties go by index, and so by order
    order = list(range(len(targets)))
    rng.shuffle(order)
    rows = apportion(targets, floors, caps, total)
    shuffled = apportion([targets[i] for i in order], [floors[i] for i in order], [caps[i] for i in order], total)
    assert shuffled == [rows[i] for i in order]


@FEWER
@given(problems())
def test_a_larger_total_takes_at_most_one_row_from_anyone(
    problem: tuple[list[float], list[int], list[int], int],
) -> None:
    # one, not none: every largest-remainder method has this paradox
    targets, floors, caps, total = problem
    assume(total < sum(caps))
    before, after = apportion(targets, floors, caps, total), apportion(targets, floors, caps, total + 1)
    assert all(b - 1 <= a for b, a in zip(before, after, strict=True))


@FEWER
@given(st.lists(st.sampled_from([0.0, 0.1, 7.0]), min_size=1, max_size=20), st.data())
def test_equal_targets_differ_by_at_most_one(targets: list[float], data: st.DataObject) -> None:
    floor, cap = 2, 31
    total = data.draw(st.integers(floor * len(targets), cap * len(targets)))
    rows = apportion(targets, [floor] * len(targets), [cap] * len(targets), total)
    for value in set(targets):
        same = [n for n, target in zip(rows, targets, strict=True) if target == value]
        assert max(same) - min(same) <= 1
        assert same == sorted(same, reverse=True)  # the lower index wins the tie


@pytest.mark.parametrize(
    ("targets", "floors", "caps", "total", "expected"),
    [
        ([1, 1, 8], [2, 2, 2], [10, 10, 9], 14, [3, 2, 9]),  # the example in the docstring
        ([0, 0, 0], [0, 0, 0], [9, 9, 9], 7, [3, 2, 2]),
        ([1e300, 1e-300, 0], [1, 1, 1], [5, 5, 5], 7, [5, 1, 1]),
        ([1e300, 1e-300, 0], [1, 1, 1], [5, 5, 5], 13, [5, 5, 3]),  # weightless heads come last
        ([0.1] * 10, [0] * 10, [9] * 10, 10, [1] * 10),  # ten times 0.1 is not 1 in floats
        ([3, 1], [0, 0], [0, 0], 0, [0, 0]),
        ([1, 1], [5, 0], [9, 9], 6, [5, 1]),
    ],
)
def test_apportion_by_hand(
    targets: list[float], floors: list[int], caps: list[int], total: int, expected: list[int]
) -> None:
    assert apportion(targets, floors, caps, total) == expected


def test_apportion_refuses_what_cannot_be_dealt() -> None:
    with pytest.raises(BudgetError, match="budget of 3 rows is below the floors of 4 rows"):
        apportion([1, 1], [2, 2], [9, 9], 3)
    with pytest.raises(BudgetError, match="budget of 19 rows is above the 18 rows that exist"):
        apportion([1, 1], [2, 2], [9, 9], 19)
    for bad in (float("nan"), float("inf"), -1e-9):
        with pytest.raises(PolicyError, match=f"target of KV head 1 is {bad}"):
            apportion([1.0, bad], [0, 0], [9, 9], 5)


# --- methods


def spread(values: list[int], counts: tuple[int, ...]) -> list[list[int]]:
    """Flat rows as [layer][head]."""
    rest = iter(values)
    return [[next(rest) for _ in range(n)] for n in counts]


@st.composite
def requests(draw: st.DrawFn) -> AllocRequest:
    """Requests with unequal heads per layer, whose total holds the floors."""
    n_head_kv = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    n, n_sink, n_obs = sum(n_head_kv), draw(st.integers(0, 5)), draw(st.integers(1, 17))
    n_prompt = n_sink + n_obs + draw(st.integers(1, 97))
    total = draw(st.integers(n * (n_sink + n_obs), n * n_prompt))
    weights = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=n, max_size=n))
    assume(sum(weights) > 0)
    scores = spread([weight / sum(weights) for weight in weights], n_head_kv)
    beta = draw(st.sampled_from([1.005, 1.01, 1.1, 1.2, 1.5, 2.0, 10.0, 1000.0]))
    frozen = tuple(tuple(layer) for layer in scores)
    return AllocRequest(n_head_kv, n_prompt, total, n_sink, n_obs, frozen, {"beta": beta})


@pytest.mark.parametrize("name", ["uniform", "headkv"])
@FEWER
@given(request=requests())
def test_rows_hold_sinks_and_window_and_sum_to_the_budget(name: str, request: AllocRequest) -> None:
    rows = get_allocator(name).allocate(request)
    flat = [n for layer in rows for n in layer]
    assert tuple(len(layer) for layer in rows) == request.n_head_kv
    assert sum(flat) == request.total_rows
    assert min(flat) >= request.n_sink + request.n_obs
    assert max(flat) <= request.n_prompt


@FEWER
@given(requests())
def test_methods_agree_with_the_reference(request: AllocRequest) -> None:
    common = (request.n_prompt, request.total_rows, request.n_sink, request.n_obs)
    equal = reference.deal([Fraction(1)] * request.n_heads, *common)
    assert get_allocator("uniform").allocate(request) == spread(equal, request.n_head_kv)
    assert request.scores is not None
    scores = [Fraction(score) for layer in request.scores for score in layer]
    by_score = reference.headkv(scores, request.params["beta"], *common)
    assert get_allocator("headkv").allocate(request) == spread(by_score, request.n_head_kv)


def test_headkv_published_vectors() -> None:
    # 32 layers of 32 heads, 128 rows with a window of 8: b = 120, p = 118, pool 118 * 1024
    shares = [0.0151, 0.0] + [(1 - 0.0151) / 1022] * 1022
    targets = headkv_targets(shares, 128, 8, 1.01)
    assert round(targets[0]) == 1827
    assert targets[1] == 2
    # 64 rows, beta 1.2: floor part 10, pool 47104
    targets = headkv_targets([1.0] + [0.0] * 1023, 64, 8, 1.2)
    assert targets[1] == 10
    assert targets[0] == 10 + 47104


@pytest.mark.parametrize(
    ("beta", "pool"),
    [(1.005, 119), (1.01, 118), (1.1, 109), (1.2, 100), (1.5, 80), (2, 60), (5, 24), (10, 12)],
)
def test_headkv_pool_is_that_of_the_released_code(beta: float, pool: int) -> None:
    assert 120 - headkv_targets([0.0, 1.0], 128, 8, beta)[0] == pool


@pytest.mark.parametrize("beta", [1.005, 1.01, 1.2, 1.7, 10, 999])
def test_headkv_equal_scores_give_every_head_the_mean(beta: float) -> None:
    assert headkv_targets([1 / 1024] * 1024, 128, 8, beta) == [120] * 1024
    thirds = tuple((1 / 3,) * 3 for _ in range(5))  # not exact in floats
    request = AllocRequest((3,) * 5, 1000, 15 * 128, 4, 8, thirds, {"beta": beta})
    assert get_allocator("headkv").allocate(request) == [[128] * 3] * 5


def test_headkv_passes_a_surplus_on() -> None:
    # one head has all the score, and a share far beyond the prompt: nothing may be lost
    request = AllocRequest((2, 2), 100, 4 * 50, 4, 16, ((1.0, 0.0), (0.0, 0.0)), {"beta": 1.01})
    assert get_allocator("headkv").allocate(request) == [[100, 34], [33, 33]]


def test_headkv_without_scores_is_refused() -> None:
    request = AllocRequest((2,), 100, 100, 4, 16, None, {"beta": 1.2})
    with pytest.raises(ProfileError, match="needs a profile"):
        get_allocator("headkv").allocate(request)


def test_a_budget_below_the_floors_is_refused() -> None:
    with pytest.raises(BudgetError, match="below the floors"):
        get_allocator("uniform").allocate(AllocRequest((2, 2), 100, 4 * 20 - 1, 4, 16))


@settings(max_examples=3)
@given(st.integers(0, 2**32))
def test_headkv_on_a_whole_model(seed: int) -> None:
    # 32 layers of 8 KV heads, scores as skewed as measured ones
    rng = random.Random(seed)
    weights = [rng.random() ** 6 for _ in range(256)]
    scores = spread([weight / sum(weights) for weight in weights], (8,) * 32)  # type: ignore[misc, arg-type]
    frozen = tuple(tuple(layer) for layer in scores)
    rows = get_allocator("headkv").allocate(AllocRequest((8,) * 32, 8192, 30720, 4, 16, frozen, {"beta": 1.1}))
    flat = [n for layer in rows for n in layer]
    assert sum(flat) == 30720
    by_weight = [n for _, n in sorted(zip(weights, flat, strict=True))]
    assert by_weight == sorted(by_weight)  # a higher score never gets fewer rows


# --- registry


def test_registry() -> None:
    assert set(allocator_names()) >= {"uniform", "headkv"}
    assert not get_allocator("uniform").needs_profile
    assert get_allocator("headkv").needs_profile
    with pytest.raises(PolicyError, match="unknown allocator 'square', known are uniform, headkv, "):
        get_allocator("square")
    with pytest.raises(PolicyError, match="'uniform' exists already"):
        register_allocator(Allocator("uniform", "", lambda request: []))


@pytest.mark.parametrize("beta", [1.0, 0.5, -2.0, 1000.5, float("nan"), float("inf")])
def test_beta_out_of_range(beta: float) -> None:
    with pytest.raises(PolicyError, match="expected above 1 and at most 1000"):
        get_allocator("headkv").check_params({"beta": beta})


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(PolicyError, match="allocator uniform has no parameter 'beta', it has none"):
        get_allocator("uniform").check_params({"beta": 1.2})
    assert get_allocator("headkv").complete({}) == {"beta": 1.2, "temperature": 1}
    assert get_allocator("headkv").complete({"beta": 2.0}) == {"beta": 2.0, "temperature": 1}
