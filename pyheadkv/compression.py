"""Carry a plan out, once the observation window has been read."""

from __future__ import annotations

from dataclasses import replace

from pyheadkv.native import Native
from pyheadkv.plan import Plan


def compress(native: Native, plan: Plan, n_threads: int, n_ahead: int = 0) -> Plan:
    """Keep the rows of a plan and free the full cache.

    Parameters
    ----------
    native
        its window, as long as the plan's and n_ahead more, was armed and decoded
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
