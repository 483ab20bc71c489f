"""Carry a plan out: observe the tokens that its scorer looks at, then compress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.native import Compression, Native, Observe
from pyheadkv.policy.allocators import get_allocator
from pyheadkv.policy.allocators.inputs import distances_from_centre
from pyheadkv.policy.plan import DraftPlan, Plan
from pyheadkv.policy.scorers import Scorer

Floats = npt.NDArray[np.float32]


def attention_of(native: Native, read: Callable[[list[int]], None], tokens: Sequence[int], reduce: str) -> list[Floats]:
    """Read tokens on a whole cache, and return what they attended to before them.

    Parameters
    ----------
    read
        evaluates tokens after those that are there
    reduce
        over the tokens: "mean" or "max"

    Returns
    -------
    for each layer with a cache, f32 [n_head, positions before the tokens]
    """
    native.observe(len(tokens), f"attn_{reduce}")
    read(list(tokens))
    return [native.attention_read(i, len(tokens)) for i in range(len(native.layers()))]


def begin_observation(native: Native, observe: Observe | None, n_before: int = 0) -> None:
    """Have the last tokens of a prompt observe, if any shall.

    Parameters
    ----------
    observe
        as `observed` has it of the plan
    n_before
        tokens that are to be read before those

    Raises
    ------
    NativeError
        there is no memory for what is gathered
    """
    if observe:
        native.observe(observe.n_tokens, observe.what, n_before)
    else:
        native.observe(0)


def observed(plan: Plan) -> Observe | None:
    """What the plan's scorer gathers, of the last tokens of the prompt and those of the lookahead."""
    n_ahead = plan.policy.lookahead
    what = plan.policy.scorer.gathers
    return Observe(plan.n_last + n_ahead, what, n_ahead) if what else None


def compress(native: Native, draft: DraftPlan, n_threads: int, made: Sequence[Floats] | None = None) -> Plan:
    """Keep the rows of a plan and free the full cache.

    Parameters
    ----------
    native
        after `begin_observation`, the last tokens of the prompt and those of the lookahead were decoded
    draft
        of the prompt in the cache; the tokens of the lookahead are kept whole, beside its rows
    n_threads
        for selection and gather
    made
        scores that the library did not make: for each layer f32 [n_head_kv, n_prompt - n_obs], folded but not pooled

    Returns
    -------
    Plan
        the rows that were kept

    Raises
    ------
    NativeError, PolicyError
        nothing has changed then
    """
    expected = draft.expected
    scorer = _late_scorer(expected)
    allocator = get_allocator(expected.policy.allocator)
    scores = _token_scores(native, expected, scorer, made) if allocator.needs_token_scores else None
    plan = draft.finish(scores, _head_distances(native, expected) if allocator.needs_semantics else None)
    if scores is not None and plan.scoring is None:  # they need not be made again
        made, scorer = scores, replace(scorer, pool_kernel=1)
    native.compress(_compression(plan, scorer, n_threads, made))
    return plan


def early_compression(draft: DraftPlan, n_threads: int) -> Compression | None:
    """How a prompt is compressed while it is read; None where that takes its scores, or tokens behind it."""
    plan = draft.expected
    if get_allocator(plan.policy.allocator).needs_prompt or plan.policy.lookahead:
        return None
    return _compression(plan, plan.policy.scorer, n_threads, None)


def _late_scorer(plan: Plan) -> Scorer:
    """The plan's, its window with the tokens of the lookahead."""
    return replace(plan.policy.scorer, n_obs=plan.policy.n_obs + plan.policy.lookahead)


def _compression(plan: Plan, scorer: Scorer, n_threads: int, made: Sequence[Floats] | None) -> Compression:
    return Compression(
        plan.flat_rows() + plan.policy.lookahead,
        scorer,
        plan.policy.n_sink,
        n_threads,
        plan.scoring,
        made,
        plan.protected,
        plan.n_evictable,
    )


def _token_scores(native: Native, plan: Plan, scorer: Scorer, made: Sequence[Floats] | None) -> list[Floats]:
    """Pooled scores of the prompt's positions, of each layer."""
    if made is not None:
        return [pooled(scores, scorer) for scores in made]
    return [native.score_read(i, scorer, plan.n_evictable) for i in range(len(plan.rows))]


def _head_distances(native: Native, plan: Plan) -> list[list[float]]:
    """How far what each KV head sees is from what its layer sees."""
    n_top = get_allocator(plan.policy.allocator).n_top
    return [distances_from_centre(native.semantics_read(i, n_top)) for i in range(len(plan.rows))]


def pooled(scores: Floats, scorer: Scorer) -> Floats:
    """Pool scores that were made elsewhere as the library does: stride 1, at the ends over the positions that exist.

    Parameters
    ----------
    scores
        f32 [n_head_kv, n]
    """
    half = scorer.pool_kernel // 2
    if half == 0:
        return scores
    is_max = scorer.pool == "max"
    padded = np.pad(scores, ((0, 0), (half, half)), constant_values=-np.inf if is_max else np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, scorer.pool_kernel, axis=1)
    result: Floats = windows.max(axis=2) if is_max else np.nanmean(windows, axis=2)
    return result
