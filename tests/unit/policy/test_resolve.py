"""`auto`: what was measured for the budget, and what stands in for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyheadkv.errors import BudgetError, PolicyError, ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import check_budget, choose_budget, make_plan
from pyheadkv.policy.policy import Auto, Policy, register_policy
from pyheadkv.policy.resolve import resolve
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import BudgetChoice, Profile

SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(1, 4, 1, 64, 64)))
AUTO = Auto()
KINDS = {"retrieval": ((1.0, 0.0), (0.0,)), "reconstruction": ((0.2, 0.2), (0.6,))}
PLAIN = Profile(((0.5, 0.2), (0.3,)), "test", kinds=KINDS)
MEASURED = replace(
    PLAIN,
    settings=(
        BudgetChoice(0.05, "headkv:beta=1.1,n_obs=8,n_sink=2", {"retrieval": 1.0}),
        BudgetChoice(1.0, "snapkv:n_obs=32"),
    ),
)


def test_without_a_profile_it_is_snapkv() -> None:
    found = resolve(AUTO, None, 0.1)
    assert (found.policy, found.profile) == (Policy.preset("snapkv"), None)


def test_lookahead_goes_with_it() -> None:
    ahead = parse_policy("auto:lookahead=16")
    assert resolve(ahead, None, 0.1).policy == parse_policy("snapkv:lookahead=16")
    assert resolve(ahead, PLAIN, 0.1).policy == parse_policy("headkv:lookahead=16")
    assert resolve(ahead, MEASURED, 0.5).policy == parse_policy("snapkv:n_obs=32,lookahead=16")


def test_other_policies_stay_as_they_are() -> None:
    for policy in (Policy.preset("snapkv"), parse_policy("headkv:beta=3")):
        found = resolve(policy, MEASURED, 0.01)
        assert (found.policy, found.profile) == (policy, MEASURED)


def test_a_policy_with_a_mix_of_its_own_gets_it() -> None:
    own = replace(Policy.preset("headkv"), score_mix="reconstruction")
    found = resolve(own, PLAIN, 0.1)
    policy, profile = found.policy, found.profile
    assert policy == own
    assert profile is not None and profile.scores == KINDS["reconstruction"]


def test_a_measured_choice_with_a_mix_of_its_own_gets_it() -> None:
    chosen = replace(PLAIN, settings=(BudgetChoice(1.0, "headkv:score_mix=reconstruction"),))
    found = resolve(AUTO, chosen, 0.1)
    policy, profile = found.policy, found.profile
    assert policy.score_mix == "reconstruction"
    assert profile is not None and profile.scores == KINDS["reconstruction"]


def test_a_mix_is_typed_with_plus_and_comes_back() -> None:
    policy = parse_policy("headkv-r2:score_mix=retrieval=3+reconstruction=1,n_sink=2")
    assert (policy.score_mix, policy.n_sink) == ("retrieval=3+reconstruction=1", 2)
    assert parse_policy(str(policy)) == policy
    profile = resolve(policy, PLAIN, 0.1).profile
    assert profile is not None and profile.mix == {"retrieval": 3, "reconstruction": 1}
    with pytest.raises(PolicyError, match="mix 'x=-1' cannot be read, expected kind=weight"):
        parse_policy("headkv:score_mix=retrieval+x=-1")


def test_one_kind_of_scores_without_a_name_is_taken_as_it_is() -> None:
    published = replace(PLAIN, kinds={})
    found = resolve(Policy.preset("headkv-r2"), published, 0.1)
    assert (found.policy, found.profile) == (Policy.preset("headkv-r2"), published)


def test_scores_that_a_policy_names_and_a_profile_lacks() -> None:
    message = "policy headkv-r2 names 'retrieval-reasoning', the kinds of scores there are: retrieval, reconstruction"
    with pytest.raises(ProfileError, match=f"^{message}$"):
        resolve(Policy.preset("headkv-r2"), PLAIN, 0.1)


def test_measured_choice_for_the_budget() -> None:
    found = resolve(AUTO, MEASURED, 0.05)
    policy, profile = found.policy, found.profile
    assert policy == parse_policy("headkv:beta=1.1,n_obs=8,n_sink=2")
    assert profile is not None and profile.scores == KINDS["retrieval"]
    found = resolve(AUTO, MEASURED, 0.0501)
    policy, profile = found.policy, found.profile
    assert policy == parse_policy("snapkv:n_obs=32")
    assert profile == MEASURED


def test_a_mix_of_the_users_stays() -> None:
    mine = MEASURED.with_mix({"reconstruction": 1})
    found = resolve(AUTO, mine, 0.01)
    policy, profile = found.policy, found.profile
    assert policy == parse_policy("headkv:beta=1.1,n_obs=8,n_sink=2")
    assert profile is not None and profile.scores == mine.scores != MEASURED.scores


def test_profile_without_choices_is_headkv_with_its_own_numbers() -> None:
    found = resolve(AUTO, PLAIN, 0.1)
    assert (found.policy, found.profile) == (Policy.preset("headkv"), PLAIN)
    policy = resolve(AUTO, replace(PLAIN, n_sink=1, n_obs=24, pool_kernel=9), 0.1).policy
    assert (policy.n_sink, policy.scorer.n_obs, policy.scorer.pool_kernel) == (1, 24, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square", "headkv.settings for budgets up to 100%: unknown policy 'square'"),
        ("headkv:beta=0", "headkv.settings for budgets up to 100%: beta is 0"),
        ("auto", "headkv.settings for budgets up to 100% is auto again"),
        # as it was called before the first release
        (
            "headkv:vote=0.5",
            "headkv.settings for budgets up to 100%: policy headkv has no setting 'vote', it has n_sink",
        ),
        (
            "headkv:mix=retrieval",
            "headkv.settings for budgets up to 100%: policy headkv has no setting 'mix', it has n",
        ),
    ],
)
def test_choice_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        resolve(AUTO, replace(PLAIN, settings=(BudgetChoice(1.0, text),)), 0.1)


def test_plan_follows_the_choice() -> None:
    plan = make_plan(SHAPE, AUTO, Budget.parse("5%"), 2000, profile=MEASURED)
    assert plan is not None
    assert (plan.policy.name, plan.policy.n_obs, plan.policy.n_sink) == ("headkv", 8, 2)
    assert plan.rows[0][0] > plan.rows[0][1] == plan.rows[1][0]  # all of the score is the first head's
    wide = make_plan(SHAPE, AUTO, Budget.parse("50%"), 2000, profile=MEASURED)
    assert wide is not None and (wide.policy.name, wide.policy.n_obs) == ("snapkv", 32)
    assert wide.scoring is None
    # rows per head become a share of this prompt
    few = make_plan(SHAPE, AUTO, Budget.parse("40"), 2000, profile=MEASURED)
    assert few is not None and few.policy.name == "headkv"


def test_floor_is_that_of_the_choice() -> None:
    check_budget(SHAPE, AUTO, Budget.parse("10"), 2000, profile=MEASURED)
    with pytest.raises(BudgetError, match=r"budget 10 is below the floor of 20 rows per KV head \(4 sinks"):
        check_budget(SHAPE, AUTO, Budget.parse("10"), 2000)


def test_budget_of_user_then_profile_then_default() -> None:
    assert choose_budget(None, None) == Budget.parse("25%")
    assert choose_budget(None, PLAIN) == Budget.parse("25%")
    assert choose_budget(None, replace(PLAIN, keep_ratio=0.015)) == Budget.parse("1.5%")
    assert choose_budget("512", replace(PLAIN, keep_ratio=0.015)) == Budget.parse("512")
    assert choose_budget(Budget.parse("full"), None) == Budget.parse("full")


def test_parameters_are_those_of_the_policy_then_of_the_profile_then_the_defaults() -> None:
    measured = replace(PLAIN, beta=2.0)
    assert resolve(parse_policy("headkv:beta=3"), measured, 0.1).params == {"beta": 3, "temperature": 1}
    assert resolve(parse_policy("headkv"), measured, 0.1).params == {"beta": 2, "temperature": 1}
    assert resolve(parse_policy("headkv"), PLAIN, 0.1).params["beta"] == 1.2
    with pytest.raises(PolicyError, match=r"beta is 0\.5, expected above 1"):
        resolve(AUTO, replace(PLAIN, beta=0.5), 0.1)


def test_auto_is_no_policy_and_has_no_say_but_lookahead() -> None:
    assert not isinstance(parse_policy("auto"), Policy) and not hasattr(AUTO, "n_obs")
    assert str(parse_policy("auto:lookahead=4")) == "auto:lookahead=4" and str(AUTO) == "auto"
    with pytest.raises(PolicyError, match="policy auto takes its settings from the profile: name another one to set"):
        parse_policy("auto:n_sink=2")
    with pytest.raises(PolicyError, match="lookahead is 1000, expected 0 to 256"):
        parse_policy("auto:lookahead=1000")
    with pytest.raises(PolicyError, match="auto is no preset"):
        Policy.preset("auto")
    with pytest.raises(PolicyError, match="policy 'auto' exists already"):
        register_policy(Policy("auto", "uniform"))
