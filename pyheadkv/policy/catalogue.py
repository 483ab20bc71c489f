"""All policies, allocators and scorers, with their sources, needs and parameters.

Nothing is said here that is not said by the policies, allocators and scorers themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyheadkv.policy.allocators import allocator_names, get_allocator
from pyheadkv.policy.policy import Auto, Policy, PolicyChoice, policy_names, policy_settings
from pyheadkv.policy.scorers import SCORERS, ScorerKind
from pyheadkv.policy.text import parse_policy

PROFILE, QUESTION = "head scores", "the question in the prompt"
RECONSTRUCTION, ATTENTION_AGAIN = "a reconstruction pass", "the prompt's attention a second time"
Settings = dict[str, int | float | str]


@dataclass(frozen=True)
class Entry:
    """A policy, allocator or scorer.

    Parameters
    ----------
    name
        as it is typed
    summary
        its effect
    sources
        arXiv ids
    needs
        conditions for it to do well
    settings
        parameters with their defaults
    """

    name: str
    summary: str
    sources: tuple[str, ...]
    needs: tuple[str, ...]
    settings: Settings


def policy_entries(policies: Iterable[PolicyChoice] | None = None) -> list[Entry]:
    """The given policies, by default `auto` and all presets."""
    policies = [parse_policy(name) for name in policy_names()] if policies is None else policies
    return [_policy_entry(policy) for policy in policies]


def allocator_entries() -> list[Entry]:
    """All allocators: what stands before the plus of ALLOCATOR+SCORER."""
    return [
        Entry(
            name,
            (allocator := get_allocator(name)).description,
            (allocator.source,) if allocator.source else (),
            (PROFILE,) if allocator.needs_profile else (),
            dict(allocator.complete({})),
        )
        for name in allocator_names()
    ]


def scorer_entries() -> list[Entry]:
    """All scorers: what stands behind the plus."""
    return [
        Entry(name, kind.summary, (kind.source,), _scorer_needs(kind), _scorer_settings(name))
        for name, kind in SCORERS.items()
    ]


def _policy_entry(policy: PolicyChoice) -> Entry:
    if isinstance(policy, Auto):
        summary = "what the model's profile says is best for the budget; snapkv without one"
        return Entry(policy.name, summary, (), (), {})
    allocator, kind = get_allocator(policy.allocator), SCORERS[policy.scorer.name]
    mix = f" ({policy.score_mix})" if policy.score_mix else ""
    votes = "; retrieval heads pool widely and share what they find" if policy.scorer.retrieval_share else ""
    sources = dict.fromkeys(source for source in (allocator.source, kind.source) if source)
    needs = (*((PROFILE,) if policy.needs_profile else ()), *_scorer_needs(kind))
    summary = f"{allocator.description}{mix}: {kind.summary}{votes}"
    return Entry(policy.name, summary, tuple(sources), needs, policy_settings(policy))


def _scorer_needs(kind: ScorerKind) -> tuple[str, ...]:
    needs = {"reconstruction pass": (RECONSTRUCTION,), "window": (QUESTION,), "prompt": (ATTENTION_AGAIN,)}
    return (*needs.get(kind.observers, ()), *kind.needs)


def _scorer_settings(name: str) -> Settings:
    """Those of the preset that ALLOCATOR+SCORER follows."""
    policy = Policy.preset(f"uniform+{name}")
    return {key: value for key, value in policy_settings(policy).items() if key != "lookahead"}
