"""What is asked of an allocator: spans that are always kept, floors and caps, inputs that are missing or damaged."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError, PolicyError, ProfileError
from pyheadkv.policy.allocators import Allocator, AllocRequest, Param, allocator_names, get_allocator
from pyheadkv.policy.allocators.inputs import evictable_scores, head_shares
from tests.reference import allocate_prompt as reference

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda s: (s[0], s[0] + s[1])), max_size=4)


def request(**changes: object) -> AllocRequest:
    """Two layers of 2 and 1 heads, a prompt of 20 with 2 sinks and a window of 4; scores count up from 1."""
    token_scores = [np.arange(1, 33, dtype=np.float32).reshape(2, 16), np.arange(33, 49, dtype=np.float32)[None]]
    plain = AllocRequest((2, 1), 20, 33, 2, 4, ((0.5, 0.25), (0.25,)), {}, (), token_scores, ((0.1, 0.3), (0.0,)))
    return replace(plain, **changes)  # type: ignore[arg-type]


# --- spans


@given(SPANS, st.integers(0, 9), st.integers(1, 9))
def test_spans_cover_sinks_and_protected_positions_once(spans: list[tuple[int, int]], n_sink: int, n_obs: int) -> None:
    asked = AllocRequest((1,), 60, 60, n_sink, n_obs, protected=tuple(spans))
    found = [pos for first, end in asked.protected_spans() for pos in range(first, end)]
    kept_anyway = set(range(n_sink)).union(*(range(*span) for span in spans))
    assert found == sorted(pos for pos in kept_anyway if pos < 60 - n_obs)
    assert asked.n_protected == len(found)
    assert asked.n_evictable_pos == len(reference.evictable_positions(60, n_obs, n_sink, spans))
    ends = [end for _, end in asked.protected_spans()]
    starts = [first for first, _ in asked.protected_spans()]
    assert all(end < first for end, first in zip(ends, starts[1:], strict=False))  # neighbours are joined


@pytest.mark.parametrize("span", [(3, 3), (5, 4), (-1, 2), (10, 21)])
def test_spans_outside_the_prompt_are_refused(span: tuple[int, int]) -> None:
    with pytest.raises(PolicyError, match=f"protected span {span[0]} to {span[1]} is empty or outside 0 to 20"):
        request(protected=(span,))


def test_a_span_inside_the_window_costs_nothing_more() -> None:
    assert request(protected=((16, 20),)).n_protected == 2
    assert request(protected=((14, 20),)).n_protected == 4


def test_prompt_shorter_than_sinks_and_window() -> None:
    short = AllocRequest((2,), 6, 12, 4, 4)
    assert (short.n_before_window, short.n_protected, short.n_evictable_pos) == (2, 2, 0)
    assert short.deal([1, 1]) == [[6, 6]]


@pytest.mark.parametrize("total", [17, 61])
def test_totals_that_cannot_be_dealt(total: int) -> None:
    limit = "below the floors of 18" if total == 17 else "above the 60 rows"
    with pytest.raises(BudgetError, match=f"a budget of {total} rows is {limit}"):
        request(total_rows=total).evictable_rows()


def test_evictable_rows_by_layer_follow_the_heads() -> None:
    assert request(total_rows=33).evictable_rows() == 15
    assert request(total_rows=33).evictable_rows_by_layer() == [10, 5]
    assert request(total_rows=35).evictable_rows_by_layer() == [12, 5]  # the first heads get what does not divide
    assert request().with_protected([1, 0, 14]) == [[7, 6], [20]]


# --- scores of positions


def test_open_scores_are_views_of_what_is_not_kept_anyway() -> None:
    asked = request()
    assert asked.token_scores is not None
    found = evictable_scores(asked, "mine")
    assert [layer.tolist() for layer in found] == [
        [list(range(3, 17)), list(range(19, 33))],
        [list(range(35, 49))],
    ]
    assert all(np.shares_memory(a, b) for a, b in zip(found, asked.token_scores, strict=True))
    whole = evictable_scores(replace(asked, n_sink=0), "mine")
    assert all(np.shares_memory(a, b) and a.shape == b.shape for a, b in zip(whole, asked.token_scores, strict=True))


def test_open_scores_leave_out_protected_spans() -> None:
    found = evictable_scores(request(protected=((5, 8), (7, 15), (18, 20))), "mine")
    assert found[1].tolist() == [[35, 36, 37, 48]]
    alone = evictable_scores(request(n_sink=0, protected=((1, 15),)), "mine")
    assert alone[0].tolist() == [[1, 16], [17, 32]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [name for name in allocator_names() if get_allocator(name).needs_token_scores])
def test_scores_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    asked = request(params=get_allocator(name).complete({}))
    assert asked.token_scores is not None
    asked.token_scores[0][1, 7] = bad
    with pytest.raises(PolicyError, match=f"position 7 of KV head 1 of layer 0 is {bad}, expected a finite number"):
        get_allocator(name).allocate(asked)


@pytest.mark.parametrize("name", [name for name in allocator_names() if get_allocator(name).needs_token_scores])
def test_missing_or_misshapen_scores_are_refused(name: str) -> None:
    allocate, params = get_allocator(name).allocate, get_allocator(name).complete({})
    first = np.zeros((2, 16), dtype=np.float32)
    with pytest.raises(PolicyError, match=f"allocator {name} needs the scores of the prompt's positions"):
        allocate(request(params=params, token_scores=None))
    with pytest.raises(PolicyError, match="token scores of 1 layers, expected 2"):
        allocate(request(params=params, token_scores=[first]))
    with pytest.raises(PolicyError, match=r"layer 1 are float32 \[1, 17\], expected float32 \[1, 16\]"):
        allocate(request(params=params, token_scores=[first, np.zeros((1, 17), dtype=np.float32)]))
    with pytest.raises(PolicyError, match=r"layer 1 are float64 \[1, 16\]"):
        allocate(request(params=params, token_scores=[first, np.zeros((1, 16))]))


# --- scores and distances of heads


@pytest.mark.parametrize("name", [name for name in allocator_names() if get_allocator(name).needs_profile])
def test_head_scores_are_checked(name: str) -> None:
    allocate, params = get_allocator(name).allocate, get_allocator(name).complete({})
    with pytest.raises(ProfileError, match=f"allocator {name} needs a profile"):
        allocate(request(params=params, scores=None))
    for bad in (float("nan"), float("inf"), -0.25):
        with pytest.raises(PolicyError, match=f"the head score of KV head 1 of layer 0 is {bad}, expected"):
            allocate(request(params=params, scores=((0.5, bad), (0.5,))))
    with pytest.raises(PolicyError, match="head score of 2 KV heads given, expected 3"):
        allocate(request(params=params, scores=((0.5,), (0.5,))))


def test_distances_are_checked() -> None:
    taskkv, params = get_allocator("taskkv"), get_allocator("taskkv").complete({})
    with pytest.raises(PolicyError, match="allocator taskkv needs the distances"):
        taskkv.allocate(request(params=params, head_distance=None))
    with pytest.raises(PolicyError, match="the head distance of KV head 0 of layer 1 is nan"):
        taskkv.allocate(request(params=params, head_distance=((0.0, 1.0), (float("nan"),))))
    with pytest.raises(PolicyError, match="head distance of 4 KV heads given, expected 3"):
        taskkv.allocate(request(params=params, head_distance=((0.0, 1.0), (1.0, 1.0))))


def test_shares_sum_to_one_exactly() -> None:
    assert sum(head_shares(request(scores=((0.1, 0.2), (0.7,))), "mine")) == 1
    assert head_shares(request(scores=((0.0, 0.0), (0.0,))), "mine") == [Fraction(1, 3)] * 3


# --- what an allocator says of itself


def test_needs() -> None:
    needs = {
        name: (a.needs_profile, a.needs_token_scores, a.needs_semantics)
        for name, a in ((name, get_allocator(name)) for name in allocator_names())
    }
    assert {name for name, (profile, _, _) in needs.items() if profile} == {"headkv", "duo"}
    assert {name for name, (_, scores, _) in needs.items() if scores} == {"adakv", "dynamickv", "global"}
    assert {name for name, (_, _, semantics) in needs.items() if semantics} == {"taskkv"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "n is 0, expected at least 1 and at most 9"),
        (9.5, "n is 9.5, expected at least 1 and at most 9"),
        (2.5, "n is 2.5, expected a whole number"),
        (float("nan"), "n is nan, expected at least 1"),
    ],
)
def test_limits_of_parameters(value: float, message: str) -> None:
    allocator = Allocator(
        "mine", "", lambda _: [], params={"n": Param(default=2, at_least=1, at_most=9, is_whole=True)}
    )
    allocator.check_params({"n": 1})
    allocator.check_params({"n": 9.0})
    with pytest.raises(PolicyError, match=message):
        allocator.check_params({"n": value})
    with pytest.raises(PolicyError, match="x is 0, expected above 0 and at most 1"):
        Allocator("mine", "", lambda _: [], params={"x": Param(default=1, above=0, at_most=1)}).check_params({"x": 0})


@pytest.mark.parametrize("name", allocator_names())
def test_defaults_are_in_range(name: str) -> None:
    allocator = get_allocator(name)
    allocator.check_params(allocator.complete({}))
