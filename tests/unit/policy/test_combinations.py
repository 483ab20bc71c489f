"""ALLOCATOR+SCORER: what goes together, with which settings, and that rows are exact for whatever scores may be."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyheadkv.errors import PolicyError
from pyheadkv.policy.allocators import AllocRequest, allocator_names, get_allocator
from pyheadkv.policy.policy import Policy
from pyheadkv.policy.scorers import SCORERS
from pyheadkv.policy.text import parse_policy

BETWEEN_HEADS = "knorm scores cannot be compared between heads"
NO_MEAN = "needs the mean attention of the window: not with "
# pairs that do not go together, and why; all others of what is registered do
REFUSED = {
    ("adakv", "knorm"): BETWEEN_HEADS,  # Ada-KV ranks the heads of a layer together
    # DynamicKV and one ranking of all heads rank the whole model
    **{
        (allocator, scorer): f"{scorer} scores cannot be compared between layers"
        for allocator in ("dynamickv", "global")
        for scorer in ("knorm", "expected_attention", "criticalkv")
    },
    # Task-KV compares what the heads see of the prompt
    **{
        ("taskkv", scorer): NO_MEAN + scorer
        for scorer in ("streaming", "knorm", "keydiff", "expected_attention", "kvzip", "layer_defensive")
    },
}
RANKING = ("adakv", "dynamickv", "global")


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("allocator", allocator_names())
def test_every_pair_works_or_is_refused(allocator: str, scorer: str) -> None:
    text = f"{allocator}+{scorer}"
    if (allocator, scorer) in REFUSED:
        with pytest.raises(PolicyError, match=f"{REFUSED[allocator, scorer]}$"):
            parse_policy(text)
        return
    policy = parse_policy(text)
    assert (policy.allocator, policy.scorer.name, str(policy)) == (allocator, scorer, text)
    assert policy.scorer.name in SCORERS and parse_policy(f"{text}:n_obs=8").n_obs == 8


def test_refused_pairs_are_of_what_is_registered() -> None:
    assert {allocator for allocator, _ in REFUSED} <= set(allocator_names())
    assert {scorer for _, scorer in REFUSED} <= set(SCORERS)


def test_ranking_allocators_are_those_that_say_so() -> None:
    assert tuple(name for name in allocator_names() if get_allocator(name).ranks) == RANKING


def test_the_scorer_is_its_presets() -> None:
    for text, preset in [
        ("headkv+h2o", "h2o"),
        ("uniform+snapkv", "snapkv"),
        ("duo+expected-attention", "expected-attention"),
    ]:
        policy, base = parse_policy(text), Policy.preset(preset)
        assert (policy.scorer, policy.n_sink) == (base.scorer, base.n_sink)
    kvzip = parse_policy("adakv+kvzip").scorer
    assert (kvzip.fold, kvzip.reduce, kvzip.pool_kernel, kvzip.needs_reconstruction) == ("max", "max", 1, True)


def test_words_may_be_joined_in_any_way() -> None:
    assert parse_policy("dynamic-kv+snap-kv") == parse_policy("dynamickv+snapkv")
    assert parse_policy("adakv+expected-attention") == parse_policy("adakv+expected_attention")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("headkv+h3o", "unknown scorer 'h3o', known are snapkv, h2o"),
        ("square+kvzip", "unknown allocator 'square', known are uniform, headkv"),
        ("+", "unknown allocator ''"),
        ("auto+kvzip", "unknown allocator 'auto'"),
        ("headkv+kvzip:gamma=1", "policy headkv+kvzip has no setting 'gamma'"),
        ("adakv+keydiff:scale=1", "scale is 1, expected 0: keydiff scores may be negative"),
        ("snapkv:lookahead=256,n_obs=300", "lookahead + n_obs is 556, expected at most 512"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        parse_policy(text)


def test_scores_that_may_be_negative_are_not_scaled() -> None:
    assert parse_policy("adakv+keydiff").params == {"scale": 0}
    assert str(parse_policy("adakv+keydiff:safeguard=0.5")) == "adakv+keydiff:safeguard=0.5"
    assert parse_policy("adakv+kvzip").params == {}


@pytest.mark.parametrize("allocator", RANKING)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_negative_scores_are_ranked_as_they_are(allocator: str, data: st.DataObject) -> None:
    """Rows are exact, and adding a number to all scores changes nothing."""
    n_evictable_pos = data.draw(st.integers(1, 40))
    values = st.integers(-8, 8).map(lambda n: n / 8)
    layers = [data.draw(hnp.arrays(np.float32, (2, n_evictable_pos), elements=values)) for _ in range(3)]
    total = data.draw(st.integers(6, 6 * (n_evictable_pos + 1)))
    chosen = get_allocator(allocator)
    params = chosen.complete({"scale": 0.0} if allocator == "adakv" else {})

    def rows(scores: list[np.ndarray]) -> list[list[int]]:
        return chosen.allocate(
            AllocRequest((2, 2, 2), n_evictable_pos + 1, total, n_sink=0, n_obs=1, params=params, token_scores=scores)
        )

    dealt = rows(layers)
    assert sum(map(sum, dealt)) == total
    assert all(1 <= n <= n_evictable_pos + 1 for layer in dealt for n in layer)
    assert rows([layer + np.float32(4) for layer in layers]) == dealt
