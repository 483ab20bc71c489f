"""From what a user chose to what is done: `auto` becomes a policy, and the profile's numbers find their place.

Asked once for a model, a budget and a prompt, before anyone asks what the policy needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyheadkv.errors import PolicyError, ProfileError
from pyheadkv.policy.allocators import get_allocator
from pyheadkv.policy.policy import AUTO, Auto, Policy, PolicyChoice
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile


@dataclass(frozen=True)
class Resolved:
    """A policy and what goes with it.

    Parameters
    ----------
    policy
        as it was named, by the user or by the profile
    profile
        with the mix of scores that goes with the policy, if there is one
    params
        all parameters of the policy's allocator
    """

    policy: Policy
    profile: Profile | None
    params: dict[str, float]


def resolve(choice: PolicyChoice, profile: Profile | None, keep_ratio: float) -> Resolved:
    """Replace `auto` by what it stands for; any other policy stays as it is.

    With a profile: the choice measured for this share of the rows, with its mix of scores, or `headkv` where nothing
    was chosen. Without one: `snapkv`. A policy with a mix of its own gets the profile with that mix; a profile of one
    kind of scores, which has no name, as those of the HeadKV repository, is taken as it is. An allocator's parameters
    are those that the policy sets, else those of the profile, else the defaults.

    Parameters
    ----------
    keep_ratio
        share of the rows asked for, in (0, 1]

    Raises
    ------
    ProfileError
        the profile's choice cannot be read, naming headkv.settings, or it lacks a kind of scores that the policy names
    PolicyError
        the profile's beta is out of range
    """
    if isinstance(choice, Auto):
        chosen, profile = _measured_choice(profile, keep_ratio)
        policy = replace(chosen, lookahead=choice.lookahead)
    else:
        policy = choice
    if policy.score_mix and profile is not None and profile.kinds:
        profile = profile.with_mix(policy.mix_weights(), f"policy {policy.name}")
    return Resolved(policy, profile, _allocator_params(policy, profile))


def _measured_choice(profile: Profile | None, keep_ratio: float) -> tuple[Policy, Profile | None]:
    if profile is None:
        return Policy.preset("snapkv"), None
    setting = profile.setting_for(keep_ratio)
    if setting is None:
        return _with_defaults_of(profile), profile
    try:
        chosen = parse_policy(setting.policy)
    except PolicyError as error:
        raise ProfileError(f"headkv.settings for budgets up to {100 * setting.max_keep_ratio:g}%: {error}") from None
    if isinstance(chosen, Auto):
        raise ProfileError(f"headkv.settings for budgets up to {100 * setting.max_keep_ratio:g}% is {AUTO} again")
    return chosen, profile.with_mix(setting.mix) if setting.mix else profile


def _with_defaults_of(profile: Profile) -> Policy:
    """`headkv` with the single settings that a profile may carry."""
    policy = Policy.preset("headkv")
    scorer = {key: value for key in ("n_obs", "pool_kernel") if (value := getattr(profile, key)) is not None}
    n_sink = policy.n_sink if profile.n_sink is None else profile.n_sink
    return replace(policy, scorer=replace(policy.scorer, **scorer), n_sink=n_sink)


def _allocator_params(policy: Policy, profile: Profile | None) -> dict[str, float]:
    """Values that the user set, else those of the profile, else the defaults."""
    allocator = get_allocator(policy.allocator)
    has_beta = allocator.needs_profile and "beta" in allocator.params
    measured = {"beta": profile.beta} if has_beta and profile and profile.beta is not None else {}
    params = allocator.complete({**measured, **policy.params})
    allocator.check_params(params)
    return params
