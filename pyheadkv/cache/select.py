"""Carry a plan out: observe the tokens that its scorer looks at, then compress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.native import Native
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


def begin_observation(native: Native, plan: Plan) -> None:
    """Have the tokens that are read from here on observe, as the plan's scorer wants it, and its lookahead after them.

    Parameters
    ----------
    native
        the prompt was read up to the last tokens, ``plan.n_last`` of them
    plan
        of the whole prompt

    Raises
    ------
    NativeError
        there is no memory for what is gathered
    """
    if gathers := plan.policy.scorer.gathers:
        native.observe(plan.n_last + plan.policy.lookahead, gathers)
    else:
        native.observe(0)


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
    n_ahead = expected.policy.lookahead
    scorer = replace(expected.policy.scorer, n_obs=expected.policy.n_obs + n_ahead)
    allocator = get_allocator(expected.policy.allocator)
    scores = _token_scores(native, expected, scorer, made) if allocator.needs_token_scores else None
    plan = draft.finish(scores, _head_distances(native, expected) if allocator.needs_semantics else None)
    if scores is not None and plan.scoring is None:  # they need not be made again
        made, scorer = scores, replace(scorer, pool_kernel=1)
    native.compress(
        plan.flat_rows() + n_ahead,
        scorer,
        plan.policy.n_sink,
        n_threads,
        plan.scoring,
        made,
        plan.protected,
        plan.n_evictable,
    )
    return plan


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
