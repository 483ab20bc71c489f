"""A trial: what measurements compare."""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import DraftPlan, draft_plan
from pyheadkv.policy.policy import PolicyChoice
from pyheadkv.profile import Profile


@dataclass(frozen=True)
class Trial:
    """A policy under the name that was typed, a budget, and the head scores that go with them."""

    name: str
    policy: PolicyChoice
    budget: Budget
    profile: Profile | None = None

    def draft(self, shape: ModelShape, n_prompt: int, type_k: str, type_v: str) -> DraftPlan | None:
        """The plan of a prompt; None and errors are those of `pyheadkv.policy.plan.make_plan`."""
        return draft_plan(shape, self.policy, self.budget, n_prompt, type_k=type_k, type_v=type_v, profile=self.profile)
