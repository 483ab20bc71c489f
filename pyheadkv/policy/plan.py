"""A plan: the exact rows that every KV head keeps of one prompt.

    budget, policy, profile --draft_plan()--> DraftPlan --finish(scores of the prompt)--> Plan --> native side

Frozen integers, made without a model or a library. Only allocators that look at the prompt need its scores; `make_plan`
says what can be told without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pyheadkv.errors import BudgetError, ProfileError
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.allocators import AllocRequest, get_allocator
from pyheadkv.policy.allocators.base import Rows
from pyheadkv.policy.budget import Budget, BudgetLike, rows_to_bytes
from pyheadkv.policy.policy import Policy, PolicyChoice
from pyheadkv.policy.resolve import resolve
from pyheadkv.policy.retrieval_heads import HeadScoring, head_scoring
from pyheadkv.policy.spans import Span, choose_spans
from pyheadkv.profile import Profile

DEFAULT_BUDGET = "25%"

TokenScores = Sequence[npt.NDArray[np.float32]]
HeadDistances = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Plan:
    """Rows to keep of a prompt. Budgets in rows and bytes are kept to the row.

    >>> from pyheadkv.model.shape import LayerShape
    >>> shape = ModelShape("llama", "", 4096, layers=(LayerShape(0, 4, 2, 64, 64),) * 2)
    >>> plan = make_plan(shape, parse_policy("snapkv"), "25%", 1000)
    >>> plan.rows, plan.rows_kept, plan.bytes_kept
    (((250, 250), (250, 250)), 1000, 256000)

    Parameters
    ----------
    policy
        resolved, with all parameters of its allocator filled in
    budget
        as it was asked for
    n_prompt
        tokens of the prompt
    rows
        ``rows[i][ih]`` of KV head ih in the i-th layer with a cache, sinks and observation window
        included
    rows_full, rows_kept
        rows over all KV heads, without and with compression
    keep_ratio
        rows_kept / rows_full
    bytes_full, bytes_kept
        the same rows in bytes, in the cache types in use
    scoring
        how each KV head's positions are rated, where heads differ
    protected
        spans of positions [first, end) that every KV head keeps beside the first and the last ones, in order
    unprotected
        spans that were to be protected, and for which the budget has no room
    n_evictable
        rows that a KV head chooses on average: neither sinks, protected nor observed
    """

    policy: Policy
    budget: Budget
    n_prompt: int
    rows: tuple[tuple[int, ...], ...]
    rows_full: int
    rows_kept: int
    keep_ratio: float
    bytes_full: int
    bytes_kept: int
    scoring: HeadScoring | None = None
    protected: tuple[Span, ...] = ()
    unprotected: tuple[Span, ...] = ()
    n_evictable: int = 0

    @property
    def n_last(self) -> int:
        """So many of the prompt's last tokens observe, and are read by themselves."""
        return self.policy.scorer.n_last(self.n_prompt, self.policy.n_sink)

    def flat_rows(self) -> npt.NDArray[np.uint32]:
        """Rows of all KV heads, layer after layer, as the C ABI takes them: uint32 [n_kv_heads]."""
        return np.array([n for layer in self.rows for n in layer], dtype=np.uint32)

    def to_json(self) -> dict[str, object]:
        """The plan as plain values for ``json.dumps``."""
        return {
            "policy": str(self.policy),
            "budget": self.budget.to_json(self.rows_kept, self.keep_ratio, self.bytes_kept),
            "n_prompt": self.n_prompt,
            "n_sink": self.policy.n_sink,
            "n_obs": self.policy.n_obs,
            "protected": [list(span) for span in self.protected],
            "rows_full": self.rows_full,
            "rows_kept": self.rows_kept,
            "rows_per_head": [list(layer) for layer in self.rows],
            "bytes_full": self.bytes_full,
            "bytes_kept": self.bytes_kept,
        }


@dataclass(frozen=True)
class DraftPlan:
    """A plan while its prompt is read: all but the rows that scores of the prompt decide.

    Parameters
    ----------
    expected
        the plan as far as it can be told now: final, or equal rows where the allocator looks at the prompt
    request
        for the allocator, without scores of the prompt
    row_bytes
        of one row, K and V, in each layer
    """

    expected: Plan
    request: AllocRequest
    row_bytes: tuple[int, ...]

    def finish(self, token_scores: TokenScores | None = None, head_distance: HeadDistances | None = None) -> Plan:
        """The plan of a prompt that was read.

        Parameters
        ----------
        token_scores
            of the prompt's positions, for each layer f32 [n_head_kv, n_prompt - n_obs], pooled, where the allocator
            ``needs_token_scores``
        head_distance
            of each layer's KV heads, where it ``needs_semantics``

        Raises
        ------
        PolicyError
            the allocator refused the scores, or broke its promise
        BudgetError
            the rows take more bytes than were asked for
        """
        allocator = get_allocator(self.expected.policy.allocator)
        if not allocator.needs_prompt:
            return self.expected
        request = replace(self.request, token_scores=token_scores, head_distance=head_distance)
        return self._with_rows(allocator.rows(request))

    def _with_rows(self, rows: Rows) -> Plan:
        """The expected plan with other rows, as many in all."""
        bytes_kept = rows_to_bytes(rows, self.row_bytes)
        budget = self.expected.budget
        if budget.kind == "bytes" and bytes_kept > budget.value:
            raise BudgetError(f"budget {budget.request} was overrun, the rows take {bytes_kept} bytes")
        return replace(self.expected, rows=rows, bytes_kept=bytes_kept)


def draft_plan(
    shape: ModelShape,
    policy: PolicyChoice,
    budget: BudgetLike,
    n_prompt: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    profile: Profile | None = None,
    protected: Sequence[Span] = (),
) -> DraftPlan | None:
    """The plan of a prompt that will be read; arguments, None and errors are those of `make_plan`."""
    budget = Budget.parse(budget)
    resolved = resolve(policy, profile, budget.keep_ratio(shape, n_prompt, type_k, type_v))
    policy, profile, params = resolved.policy, resolved.profile, resolved.params
    scores = _fitting_scores(shape, policy, profile)
    scoring = head_scoring(policy.scorer, profile)
    if budget.kind == "full" or n_prompt <= policy.floor_rows:
        return None
    rows_full = n_prompt * shape.n_kv_heads
    total = budget.total_rows(shape, n_prompt, type_k, type_v, floor_rows=policy.floor_rows)
    if budget.kind != "ratio" and total == rows_full:
        return None
    if total < policy.floor_rows * shape.n_kv_heads:
        budget.check(shape, n_prompt, policy.floor_rows, type_k, type_v, floor_words=policy.floor_words)

    policy = replace(policy, params=params)
    request = AllocRequest(shape.n_head_kv, n_prompt, total, policy.n_sink, policy.n_obs, scores, params)
    request, unprotected = _with_protection(request, protected, policy.n_recent)
    expected = Plan(
        policy=policy,
        budget=budget,
        n_prompt=n_prompt,
        rows=(),
        rows_full=rows_full,
        rows_kept=total,
        keep_ratio=total / rows_full,
        bytes_full=n_prompt * shape.bytes_per_token(type_k, type_v),
        bytes_kept=0,
        scoring=scoring,
        protected=request.protected,
        unprotected=unprotected,
        n_evictable=request.evictable_rows() // request.n_heads,
    )
    draft = DraftPlan(expected, request, tuple(shape.row_bytes(i, type_k, type_v) for i in range(shape.n_layer)))
    allocator = get_allocator(policy.allocator)
    first_rows = get_allocator("uniform" if allocator.needs_prompt else allocator.name).rows(request)
    return replace(draft, expected=draft._with_rows(first_rows))


def make_plan(
    shape: ModelShape,
    policy: PolicyChoice,
    budget: BudgetLike,
    n_prompt: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    profile: Profile | None = None,
    protected: Sequence[Span] = (),
) -> Plan | None:
    """Decide the rows of every KV head for a prompt of `n_prompt` tokens, as far as its length tells.

    Rows of a policy that looks at the prompt are equal.

    Spans of positions in `protected`, [first, end), are kept whole by every KV head, and the budget pays for them.
    They may take half of the rows that a head has on average beside sinks and observation window, in their order;
    those for which there is no room are named in ``plan.unprotected``. The policy's recent rows take what they
    leave of that half.

    >>> from pyheadkv.model.shape import LayerShape
    >>> shape = ModelShape("llama", "", 4096, layers=(LayerShape(0, 4, 2, 64, 64),) * 2)
    >>> scores = Profile(((0.6, 0.2), (0.1, 0.1)), "made up")
    >>> make_plan(shape, parse_policy("headkv:beta=1.1"), 128, 1000, profile=scores).rows
    ((269, 108), (68, 67))

    Parameters
    ----------
    shape
        of the model
    policy
        as `parse_policy` reads it
    budget
        as of `Budget.parse`
    n_prompt
        tokens
    type_k, type_v
        cache types by llama.cpp's names; a budget in bytes depends on them
    profile
        head scores [layer with a cache][KV head], for the policies that need them
    protected
        spans of positions [first, end), the most important first

    Returns
    -------
    Plan or None
        None when there is nothing to do: the budget is "full", the prompt is no longer than the
        sinks and the observation window, or an absolute budget (rows, bytes) holds the whole
        prompt, so that the cache had better stay whole until it is longer. "100%" gives a plan that
        keeps every row.

    Raises
    ------
    BudgetError
        it cannot be read, or an absolute one is below the floor of this policy
    ProfileError
        the policy needs a profile and there is none, or it is another model's
    PolicyError
        the allocator broke its promise, or the profile's beta is out of range
    """
    draft = draft_plan(
        shape, policy, budget, n_prompt, type_k=type_k, type_v=type_v, profile=profile, protected=protected
    )
    return draft.expected if draft else None


def _with_protection(
    request: AllocRequest, spans: Sequence[Span], n_recent: int
) -> tuple[AllocRequest, tuple[Span, ...]]:
    """The request with as many protected spans as half of the evictable rows hold, and the spans that are left out."""
    n_evictable = request.evictable_rows() // request.n_heads
    room = n_evictable if n_evictable == request.n_evictable_pos else n_evictable // 2  # everything is kept
    n_before = max(0, n_recent - request.n_obs)
    protected, left_out = choose_spans(spans, n_before, request.n_protected, request.n_before_window, room)
    return replace(request, protected=protected), left_out


def choose_budget(budget: BudgetLike | None, profile: Profile | None) -> Budget:
    """The budget asked for, else the profile's default, else `DEFAULT_BUDGET`.

    Raises
    ------
    BudgetError
        it cannot be read
    """
    if budget is None:
        keep_ratio = profile.keep_ratio if profile else None
        budget = DEFAULT_BUDGET if keep_ratio is None else f"{100 * keep_ratio:.6g}%"
    return Budget.parse(budget)


def check_budget(
    shape: ModelShape,
    policy: PolicyChoice,
    budget: BudgetLike,
    n_ctx: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    profile: Profile | None = None,
) -> None:
    """Refuse a budget below the floor of the policy even when the whole context is used.

    Raises
    ------
    BudgetError
        naming the budget and the floor
    """
    budget = Budget.parse(budget)
    policy = resolve(policy, profile, budget.keep_ratio(shape, n_ctx, type_k, type_v)).policy
    budget.check(shape, n_ctx, policy.floor_rows, type_k, type_v, floor_words=policy.floor_words)


def _fitting_scores(shape: ModelShape, policy: Policy, profile: Profile | None) -> tuple[tuple[float, ...], ...] | None:
    if not policy.needs_profile:
        return None
    if profile is None:
        raise ProfileError(f"policy {policy.name} needs a profile with measured head scores")
    n_head_kv = tuple(len(layer) for layer in profile.scores)
    if n_head_kv != shape.n_head_kv:
        raise ProfileError(
            f"profile {profile.source} has {sum(n_head_kv)} KV heads in {len(n_head_kv)} layers, "
            f"this model has {shape.n_kv_heads} in {shape.n_layer}"
        )
    return profile.scores
