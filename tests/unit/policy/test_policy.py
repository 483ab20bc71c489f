"""Policies: presets, their text form, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import PolicyError
from pyheadkv.policy import policy as policy_module
from pyheadkv.policy.policy import Policy, policy_names, register_policy
from pyheadkv.policy.scorers import Scorer
from pyheadkv.policy.text import parse_policy


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(policy_module, "_PRESETS", dict(policy_module._PRESETS))
    yield


def test_presets() -> None:
    snapkv = Policy.preset("snapkv")
    assert (snapkv.allocator, snapkv.n_sink, snapkv.needs_profile) == ("uniform", 4, False)
    assert snapkv.scorer == Scorer("snapkv", n_obs=16, pool_kernel=7, pool="max", fold="mean")
    headkv = Policy.preset("headkv")
    assert (headkv.allocator, headkv.n_sink, headkv.needs_profile) == ("headkv", 4, True)
    assert headkv.scorer == Scorer(
        "snapkv",
        n_obs=16,
        pool_kernel=1,
        fold="max",
        reduce="max",
        retrieval_share=0.2,
        retrieval_kernel=17,
        vote_share=0.5,
    )
    assert (snapkv.floor_rows, snapkv.floor_words) == (20, "4 sinks + 16 observed")


def test_overrides() -> None:
    policy = parse_policy(
        " headkv : beta=1.1, n_obs=32, pool=13, fold=mean, n_sink=8, vote_share=0, retrieval_share=1 "
    )
    scorer = Scorer("snapkv", 32, 13, "max", "mean", "max", retrieval_share=1, vote_share=0)
    assert policy == Policy("headkv", "headkv", scorer, 8, {"beta": 1.1})
    assert parse_policy("snapkv:retrieval_share=0.1").needs_profile
    assert parse_policy("snapkv:pool=avg,pool_kernel=5").scorer == Scorer("snapkv", 16, 5, "avg", "mean")
    assert parse_policy("snapkv") == Policy.preset("snapkv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown policy '', known are auto, snapkv, headkv"),
        ("h3o", "unknown policy 'h3o', known are auto, snapkv, headkv"),
        ("snapkv:", "policy setting '' cannot be read, expected key=value"),
        ("snapkv:n_obs", "policy setting 'n_obs' cannot be read, expected key=value"),
        ("snapkv:n_obs=", "policy setting 'n_obs=' cannot be read"),
        ("snapkv:n_obs=8,", "policy setting '' cannot be read"),
        ("snapkv:n_obs=8,n_obs=9", "policy setting n_obs is given twice, 8 and 9"),
        ("snapkv:pool=5,pool_kernel=7", "policy setting pool_kernel is given twice, 5 and 7"),
        (
            "snapkv:beta=1.2",
            "policy snapkv has no setting 'beta', it has n_sink, n_recent, lookahead, score_mix, n_obs, pool_kernel, ",
        ),
        (
            "headkv:gamma=1",
            "policy headkv has no setting 'gamma', it has n_sink, n_recent, lookahead, score_mix, n_obs, pool_kernel, ",
        ),
        ("snapkv:retrieval_kernel=4", "retrieval_kernel is 4, expected an odd number from 1 to 255"),
        ("snapkv:retrieval_share=1.5", "retrieval_share is 1.5, expected 0 to 1"),
        ("snapkv:vote_share=nan", "vote_share is nan, expected 0 to 1"),
        ("snapkv:reduce=sum", "reduce is 'sum', expected mean or max"),
        ("auto:n_obs=8", "policy auto takes its settings from the profile: name another one to set n_obs"),
        ("auto:lookahead=257", "lookahead is 257, expected 0 to 256"),
        ("snapkv:n_obs=0", "n_obs is 0, expected 1 to 512"),
        ("snapkv:n_obs=513", "n_obs is 513, expected 1 to 512"),
        ("snapkv:n_obs=1.5", "n_obs is '1.5', expected a whole number"),
        ("snapkv:n_sink=-1", "n_sink is -1, expected 0 to 1024"),
        ("snapkv:n_sink=1025", "n_sink is 1025, expected 0 to 1024"),
        ("snapkv:pool=6", "pool_kernel is 6, expected an odd number from 1 to 255"),
        ("snapkv:pool=257", "pool_kernel is 257, expected an odd number from 1 to 255"),
        ("snapkv:pool=mean", "pool_kernel is 'mean', expected a whole number"),
        ("snapkv:fold=sum", "fold is 'sum', expected mean or max"),
        ("headkv:beta=1", "beta is 1, expected above 1 and at most 1000"),
        ("headkv:beta=nan", "beta is nan, expected above 1 and at most 1000"),
        ("headkv:beta=x", "beta is 'x', expected a number"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)) as error:
        parse_policy(text)
    assert "\n" not in str(error.value)


def test_what_text_cannot_say_is_refused_too() -> None:
    with pytest.raises(PolicyError, match="unknown scorer 'h3o', known are snapkv, h2o, tova"):
        Scorer("h3o")
    with pytest.raises(PolicyError, match=r"retrieval_share is 0\.2, expected 0: heads cannot vote by knorm"):
        Scorer("knorm", retrieval_share=0.2)
    with pytest.raises(PolicyError, match="pool is 'sum', expected max or avg"):
        Scorer(pool="sum")
    with pytest.raises(PolicyError, match="unknown allocator 'square'"):
        Policy("mine", "square")
    with pytest.raises(PolicyError, match="no parameter 'beta'"):
        Policy("mine", "uniform", params={"beta": 1.2})


POLICIES = st.builds(
    Policy,
    st.just("headkv"),
    st.just("headkv"),
    st.builds(
        Scorer,
        st.just("snapkv"),
        st.integers(1, 512),
        st.integers(0, 127).map(lambda n: 2 * n + 1),
        st.sampled_from(["max", "avg"]),
        st.sampled_from(["mean", "max"]),
    ),
    st.integers(0, 1024),
    st.one_of(st.just({}), st.fixed_dictionaries({"beta": st.floats(1, 1000, exclude_min=True)})),
)


@given(POLICIES)
def test_text_round_trip(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy


def test_text_names_only_what_differs() -> None:
    assert str(Policy.preset("headkv")) == "headkv"
    assert str(parse_policy("headkv:pool=9,fold=max,beta=1.01")) == "headkv:pool_kernel=9,beta=1.01"


def test_own_policies(presets: None) -> None:
    mine = Policy("wide", "uniform", Scorer(n_obs=64), n_sink=0)
    scorer = (
        "n_obs=64,pool_kernel=7,pool=max,fold=mean,reduce=mean,retrieval_share=0.0,retrieval_kernel=17,vote_share=0.0"
    )
    assert str(mine) == f"wide:n_sink=0,n_recent=0,lookahead=0,{scorer}"
    register_policy(mine)
    assert "wide" in policy_names()
    assert parse_policy("wide") is mine
    assert str(parse_policy("wide:n_obs=8")) == "wide:n_obs=8"
    with pytest.raises(PolicyError, match="policy 'wide' exists already"):
        register_policy(mine)
