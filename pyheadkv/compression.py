"""Carry a plan out: observe the tokens that its scorer looks at, then compress."""

from __future__ import annotations

from dataclasses import replace

from pyheadkv.native import Native
from pyheadkv.plan import Plan


def arm(native: Native, plan: Plan) -> None:
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
    gathers = plan.policy.scorer.gathers
    if gathers is None:
        native.score_arm(0)
    else:
        native.score_arm(plan.n_last + plan.policy.lookahead, gathers)


def compress(native: Native, plan: Plan, n_threads: int) -> Plan:
    """Keep the rows of a plan and free the full cache.

    Parameters
    ----------
    native
        after `arm` with this plan, the last tokens of the prompt and those of the lookahead were decoded
    plan
        of the prompt in the cache; the tokens of the lookahead are kept whole, beside its rows
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
    n_ahead = plan.policy.lookahead
    scorer = replace(plan.policy.scorer, n_obs=plan.policy.n_obs + n_ahead)
    if plan.complete is not None:
        plan = plan.complete([native.score_read(i, scorer) for i in range(len(plan.rows))])
    native.compress(plan.flat_rows() + n_ahead, scorer, plan.policy.n_sink, n_threads, plan.roles)
    return plan
