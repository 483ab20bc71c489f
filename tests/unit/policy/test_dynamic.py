"""Policies that look at the prompt: their rows are decided when the scores are there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pyheadkv.cache.select import compress
from pyheadkv.engine.native import Compression
from pyheadkv.errors import PolicyError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import DraftPlan, Plan, draft_plan
from pyheadkv.policy.text import parse_policy
from tests.reference.select import Floats

SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(1, 4, 2, 64, 64)))
N_PROMPT = 300


def scores_of(plan: Plan, loud: int) -> list[Floats]:
    """Scores in which one head of the first layer has everything."""
    n = plan.n_prompt - plan.policy.n_obs
    first = np.full((2, n), 1e-4, dtype=np.float32)
    first[loud] = 1.0
    return [first, np.full((2, n), 0.5, dtype=np.float32)]


def draft_of(text: str, budget: str = "20%") -> DraftPlan:
    draft = draft_plan(SHAPE, parse_policy(text), Budget.parse(budget), N_PROMPT)
    assert draft is not None
    return draft


@pytest.mark.parametrize("text", ["ada-snapkv", "dynamic-kv", "global"])
def test_rows_are_equal_first_and_then_follow_the_scores(text: str) -> None:
    draft = draft_of(text)
    plan = draft.expected
    assert {n for layer in plan.rows for n in layer} == {60}
    final = draft.finish(scores_of(plan, loud=1))
    assert sum(n for layer in final.rows for n in layer) == plan.rows_kept == final.rows_kept == 240
    assert (final.policy, final.budget, final.keep_ratio) == (plan.policy, plan.budget, plan.keep_ratio)
    if text != "dynamic-kv":  # deals to layers
        assert final.rows[0][1] > final.rows[0][0]
        assert draft.finish(scores_of(plan, loud=0)).rows[0][0] > final.rows[0][0]


def test_static_policies_need_no_scores() -> None:
    for text in ("snapkv", "pyramidkv"):
        draft = draft_of(text)
        assert draft.finish() is draft.expected


def test_scores_that_are_none_are_refused() -> None:
    draft = draft_of("ada-snapkv")
    scores = scores_of(draft.expected, loud=0)
    scores[1][0, 3] = np.nan
    with pytest.raises(PolicyError, match="score of position 3 of KV head 0 of layer 1 is nan"):
        draft.finish(scores)
    with pytest.raises(PolicyError, match="scores"):
        draft.finish()


def test_compress_reads_scores_only_when_they_are_needed() -> None:
    calls: list[str] = []
    dynamic = draft_of("ada-snapkv")
    scores = scores_of(dynamic.expected, loud=1)

    def score_read(i: int, scorer: object, n_forced_max: int) -> Floats:
        calls.append(f"read {i}")
        return scores[i]

    native = SimpleNamespace(score_read=score_read, compress=lambda *arguments: calls.append("compress"))
    static = draft_of("snapkv")
    assert compress(native, static, 1) is static.expected  # type: ignore[arg-type]
    assert calls == ["compress"]
    final = compress(native, dynamic, 1)  # type: ignore[arg-type]
    assert calls[1:] == ["read 0", "read 1", "compress"]
    assert final.rows[0][1] > final.rows[0][0]


def test_scores_that_were_read_are_not_made_again() -> None:
    given: list[Compression] = []
    dynamic = draft_of("layer-defensive")
    scores = scores_of(dynamic.expected, loud=1)
    native = SimpleNamespace(score_read=lambda i, scorer, n_forced_max: scores[i], compress=given.append)
    final = compress(native, dynamic, 1)  # type: ignore[arg-type]
    asked = given[0]
    assert asked.scores is not None and [id(a) for a in asked.scores] == [id(a) for a in scores]
    assert (asked.scorer.pool_kernel, asked.scoring, asked.spans) == (1, None, ())
    assert asked.n_forced_max == final.n_evictable == 60 - 36


def test_heads_are_told_apart_by_what_they_see() -> None:
    draft = draft_of("task-kv", "50%")
    seen = [np.array([[0.0, 0], [1, 0]]), np.array([[3.0, 4], [3, 4]])]
    native = SimpleNamespace(semantics_read=lambda i, n_top: seen[i], compress=lambda *arguments: None)
    # two heads are equally far from their mean: the first keeps all
    final = compress(native, draft, 1)  # type: ignore[arg-type]
    assert final.protected and sum(map(sum, final.rows)) == draft.expected.rows_kept
    assert final.rows[0][0] > final.rows[0][1] and final.rows[1][0] > final.rows[1][1]
