"""Carry a plan out, once the observation window has been read."""

from __future__ import annotations

from pyheadkv.native import Native
from pyheadkv.plan import Plan


def compress(native: Native, plan: Plan, n_threads: int) -> Plan:
    """Keep the rows of a plan and free the full cache.

    Parameters
    ----------
    native
        its window, as long as the plan's, was armed and decoded
    plan
        of the prompt in the cache
    n_threads
        for selection and gather

    Returns
    -------
    Plan
        with the rows that were decided by the scores of the prompt, where the policy looks at them

    Raises
    ------
    NativeError, PolicyError
        nothing has changed then
    """
    scorer = plan.policy.scorer
    if plan.complete is not None:
        plan = plan.complete([native.score_read(i, scorer) for i in range(len(plan.rows))])
    native.compress(plan.flat_rows(), scorer, plan.policy.n_sink, n_threads, plan.roles)
    return plan
