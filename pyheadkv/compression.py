"""Carry a plan out: observe the tokens that its scorer looks at, then compress."""

from __future__ import annotations

from dataclasses import replace

from pyheadkv.native import Native
from pyheadkv.plan import Plan


def arm(native: Native, plan: Plan, n_ahead: int = 0) -> None:
    """Have the tokens that are read from here on observe, as the plan's scorer wants it.

    Parameters
    ----------
    native
        the prompt was read up to the last tokens, ``plan.n_last`` of them
    plan
        of the whole prompt
    n_ahead
        tokens after the prompt that observe with it

    Raises
    ------
    NativeError
        there is no memory for what is gathered
    """
    gathers = plan.policy.scorer.gathers
    if gathers is None:
        native.score_arm(0)
    else:
        native.score_arm(plan.n_last + n_ahead, gathers)


def compress(native: Native, plan: Plan, n_threads: int, n_ahead: int = 0) -> Plan:
    """Keep the rows of a plan and free the full cache.

    Parameters
    ----------
    native
        after `arm` with this plan and n_ahead, the last tokens and n_ahead more were decoded
    plan
        of the prompt in the cache
    n_threads
        for selection and gather
    n_ahead
        tokens after the prompt that were observed with it; they are kept whole, beside the plan's rows

    Returns
    -------
    Plan
        with the rows that were decided by the scores of the prompt, where the policy looks at them

    Raises
    ------
    NativeError, PolicyError
        nothing has changed then
    """
    scorer = replace(plan.policy.scorer, n_obs=plan.policy.n_obs + n_ahead)
    if plan.complete is not None:
        plan = plan.complete([native.score_read(i, scorer) for i in range(len(plan.rows))])
    native.compress(plan.flat_rows() + n_ahead, scorer, plan.policy.n_sink, n_threads, plan.roles)
    return plan
