"""Protected spans: where texts stand among tokens, and which of them a budget has room for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.chat.session import HeadKV
from pyheadkv.errors import UsageError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.allocators import AllocRequest, allocator_names
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import make_plan
from pyheadkv.policy.policy import Policy
from pyheadkv.policy.spans import choose_spans, find_spans, join_spans
from pyheadkv.policy.text import parse_policy
from tests.unit.fake_llama import FakeLlama, without_library

SHAPE = ModelShape("llama", "fake", 4096, tuple(LayerShape(i, 4, 2, 64, 64) for i in range(3)))


def spans_of(pieces: list[str], *texts: str) -> list[tuple[int, int] | None]:
    return find_spans(range(len(pieces)), texts, lambda token: pieces[token].encode())


def test_a_text_is_found_whatever_tokens_it_is_cut_into() -> None:
    pieces = ["<s>", "You", " are", " Em", "ma", ".", "\n", "Em", "ma", "?"]
    assert spans_of(pieces, "Emma") == [(3, 5)]  # the first time, with the blank of its first token
    assert spans_of(pieces, " You are Emma.\n", "mm", "?") == [(1, 6), (3, 5), (9, 10)]
    assert spans_of(pieces, "Emil", "", "  ") == [None, None, None]
    assert spans_of(pieces, "<s>") == [(0, 1)]
    assert spans_of([], "a") == [None]


def test_tokens_may_be_parts_of_characters_and_empty() -> None:
    pieces = [b"", b"caf", b"\xc3", b"\xa9", b"", b" au"]
    assert find_spans(range(6), ["é", "café au", "f"], lambda token: pieces[token]) == [(2, 4), (1, 6), (1, 2)]


@given(st.text("ab ", max_size=30), st.data())
def test_found_tokens_hold_the_text(prompt: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(prompt)), max_size=8)))
    pieces = [prompt[a:b] for a, b in zip([0, *cuts], [*cuts, len(prompt)], strict=True)]
    text = data.draw(st.text("ab", min_size=1, max_size=4))
    (span,) = spans_of(pieces, text)
    assert (span is None) == (text not in prompt)
    if span is not None:
        first, end = span
        start = len("".join(pieces[:first]))
        at = prompt.index(text)
        assert start <= at < start + len(pieces[first])  # where it stands first, though "aa" stands twice in "aaa"
        last = len("".join(pieces[: end - 1]))
        assert last < at + len(text) <= last + len(pieces[end - 1])


def test_join_spans() -> None:
    assert join_spans([(8, 9), (3, 5), (5, 6), (4, 5), (7, 7), (9, 8)]) == ((3, 6), (8, 9))


def test_spans_are_protected_whole_and_in_order() -> None:
    # room for 10 of the positions 4 to 90
    assert choose_spans([(0, 8), (20, 24), (80, 83), (90, 95)], 0, 4, 90, 10) == (((4, 8), (20, 24)), ((80, 83),))
    assert choose_spans([(20, 31), (20, 30)], 0, 4, 90, 10) == (((20, 30),), ((20, 31),))
    # recent positions take what is left, the spans' own among them only once
    assert choose_spans([(20, 24)], 256, 4, 90, 10) == (((20, 24), (84, 90)), ())
    assert choose_spans([], 3, 4, 90, 10) == (((87, 90),), ())
    assert choose_spans([], 256, 4, 6, 10) == (((4, 6),), ())
    assert choose_spans([(5, 6)], 256, 4, 90, 0) == ((), ((5, 6),))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    st.integers(0, 80),
    st.integers(0, 20),
    st.integers(0, 30),
)
def test_chosen_spans_keep_to_their_room(spans: list[tuple[int, int]], n_recent: int, room: int, first: int) -> None:
    chosen, left_out = choose_spans(spans, n_recent, first, 50, room)
    positions = [p for a, b in chosen for p in range(a, b)]
    assert len(positions) <= room and positions == sorted(set(positions))
    assert all(first <= p < 50 for p in positions)
    for span in spans:
        wanted = set(range(max(span[0], first), min(span[1], 50)))
        assert span in left_out or wanted <= set(positions)


def plan_of(policy: Policy | str, budget: str, n_prompt: int, *spans: tuple[int, int]):
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    return make_plan(SHAPE, policy, Budget.parse(budget), n_prompt, protected=spans)


def test_the_budget_pays_for_protected_rows() -> None:
    free, plan = plan_of("snapkv", "100", 1000), plan_of("snapkv", "100", 1000, (200, 230), (2, 8))
    assert plan.protected == ((4, 8), (200, 230)) and plan.unprotected == ()
    assert plan.rows == free.rows and plan.n_evictable == free.n_evictable - 34 == 100 - 20 - 34
    assert plan.to_json()["protected"] == [[4, 8], [200, 230]]


def test_what_has_no_room_is_named() -> None:
    # 80 rows beside the floor: 40 of them may be protected
    plan = plan_of("snapkv", "100", 1000, (200, 230), (300, 311), (400, 410))
    assert plan.protected == ((200, 230), (400, 410)) and plan.unprotected == ((300, 311),)
    # nothing is left out where everything is kept
    assert plan_of("snapkv", "100%", 1000, (10, 900)).unprotected == ()
    # what lies in the window or among the sinks costs nothing
    assert plan_of("snapkv", "20", 1000, (0, 4), (984, 1000)).unprotected == ()


def test_recent_rows_take_what_spans_leave() -> None:
    assert plan_of("snapkv:n_recent=64", "400", 1000).protected == ((936, 984),)
    assert plan_of("snapkv:n_recent=64", "100", 1000, (10, 20)).protected == ((10, 20), (954, 984))
    assert plan_of("snapkv:n_recent=10", "400", 1000).protected == ()  # the window is longer


@pytest.mark.parametrize("name", allocator_names())
def test_every_allocator_keeps_the_floor(name: str) -> None:
    import numpy as np

    from pyheadkv.policy.allocators import get_allocator

    allocator = get_allocator(name)
    params = allocator.complete({"scale": 0} if "scale" in allocator.params else {})
    scores = tuple((1 / 6,) * 2 for _ in range(3))
    rng = np.random.default_rng(0)
    request = AllocRequest((2, 2, 2), 300, 6 * 60 + 1, 4, 16, scores, params, ((10, 25), (200, 204)))
    request = replace(request, token_scores=[rng.random((2, 284), dtype=np.float32) for _ in range(3)])
    request = replace(request, head_distance=tuple((0.25, 0.5) for _ in range(3)))
    rows = allocator.allocate(request)
    assert sum(map(sum, rows)) == 361 and min(map(min, rows)) >= 4 + 15 + 4 + 16


def test_bytes_that_are_no_text_cannot_be_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    with pytest.raises(UsageError, match="protect is not text: it has half a character at position 1"):
        HeadKV(FakeLlama(), protect=["a\ud800"])
