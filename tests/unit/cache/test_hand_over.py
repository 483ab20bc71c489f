"""What is handed from a plan to the library: each argument as the plan says, and times where they belong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyheadkv.cache import stats
from pyheadkv.cache.select import compress
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.abi import FOLDS, POOLS, SCORES, STATUS_OK
from pyheadkv.engine.native import Compression, Native
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.plan import DraftPlan, draft_plan
from pyheadkv.policy.scorers import Scorer
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile
from tests.unit.fake_llama import FakeLlama, FakeNative, without_library

SHAPE = ModelShape("llama", "", 8192, (LayerShape(0, 4, 2, 64, 64), LayerShape(1, 4, 2, 64, 64)))
PROFILE = Profile(((0.1, 0.4), (0.3, 0.2)), "made")
N_PROMPT = 400


class RecordingNative:
    """Has scores, and remembers with what it was asked to compress."""

    def __init__(self) -> None:
        self.asked: Compression | None = None

    def score_read(self, i: int, scorer: Scorer, n_forced_max: int = 0) -> np.ndarray:
        rng = np.random.default_rng(i)
        return rng.random((SHAPE.n_head_kv[i], N_PROMPT - scorer.n_obs), dtype=np.float32)

    def compress(self, compression: Compression) -> None:
        self.asked = compression


def draft_of(text: str) -> DraftPlan:
    draft = draft_plan(SHAPE, parse_policy(text), "25%", N_PROMPT, profile=PROFILE, protected=[(20, 30)])
    assert draft is not None
    return draft


def handed_over(draft: DraftPlan) -> dict[str, Any]:
    """Of the compression, by their names."""
    native: Any = RecordingNative()
    compress(native, draft, 3)
    return vars(native.asked)


def test_all_that_the_plan_says() -> None:
    draft = draft_of("headkv:n_sink=7")
    asked, plan = handed_over(draft), draft.expected
    assert asked["rows"].tolist() == plan.flat_rows().tolist()
    assert asked["scorer"] == plan.policy.scorer
    assert (asked["n_sink"], asked["n_threads"]) == (7, 3)
    assert plan.scoring is not None and asked["scoring"] == plan.scoring
    assert asked["scores"] is None
    assert asked["spans"] == ((20, 30),)
    assert asked["n_forced_max"] == plan.n_evictable > 0


def test_scores_that_an_allocator_saw_are_handed_on_as_they_are() -> None:
    asked = handed_over(draft_of("adakv+snapkv:pool_kernel=5"))
    assert asked["scoring"] is None
    np.testing.assert_array_equal(asked["scores"][1], RecordingNative().score_read(1, asked["scorer"]))
    assert asked["scorer"].pool_kernel == 1  # they are pooled


def test_scores_are_made_again_where_heads_have_roles() -> None:
    """Each head pools in its own way, and the vote is not in the scores that the allocator saw."""
    asked = handed_over(draft_of("adakv+snapkv:pool_kernel=5,retrieval_share=0.5,vote_share=0.5"))
    assert asked["scoring"] is not None and any(asked["scoring"].vote_shares)
    assert asked["scores"] is None
    assert asked["scorer"].pool_kernel == 5


# ---- what the library gets


class FakeLibrary:
    """Remembers the numbers in the structs that it is given."""

    def headkv_compress(self, ctx: object, params: Any) -> int:
        score = params.score
        self.score = {
            name: getattr(score, name) for name in ("n_obs", "pool_kernel", "pool", "fold", "kind", "n_forced_max")
        }
        self.others = (list(params.n_rows[0 : params.n_rows_size]), params.n_sink, params.n_threads)
        return STATUS_OK


@pytest.mark.parametrize(
    ("scorer", "fold"),
    [
        (Scorer(n_obs=9, pool_kernel=5, pool="avg", fold="max"), "max"),
        (Scorer(n_obs=9, pool_kernel=5, pool="avg", fold="mean"), "mean"),
        (Scorer("tova", n_obs=9, pool_kernel=5, pool="avg", fold="max"), "layer"),
    ],
)
def test_numbers_of_the_struct(monkeypatch: pytest.MonkeyPatch, scorer: Scorer, fold: str) -> None:
    native: Any = object.__new__(Native)
    native._lib = FakeLibrary()
    native._llama = SimpleNamespace(_ctx=SimpleNamespace(ctx=1))
    native.compress(Compression(np.array([30, 40]), scorer, 4, 2, n_forced_max=11))
    expected = {"n_obs": 9, "pool_kernel": 5, "pool": POOLS["avg"], "fold": FOLDS[fold], "n_forced_max": 11}
    assert native._lib.score == expected | {"kind": SCORES[scorer.kind]}
    assert native._lib.others == ([30, 40], 4, 2)


# ---- times


def test_each_part_of_a_turn_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(s=0.0)

    class SlowLlama(FakeLlama):
        def eval(self, tokens: list[int]) -> None:
            clock.s += len(tokens)
            super().eval(tokens)

    class SlowNative(FakeNative):
        def compress(self, *arguments: Any) -> None:
            clock.s += 10_000
            super().compress(*arguments)

    without_library(monkeypatch)
    monkeypatch.setattr("pyheadkv.chat.session.Native", SlowNative)
    monkeypatch.setattr(stats.time, "perf_counter", lambda: clock.s)
    llama = SlowLlama()
    with HeadKV(llama, policy="snapkv", sweep=False) as headkv:
        stream = llama.generate(list(range(400)))
        for _ in range(3):
            next(stream)
        stream.close()
        took = headkv.stats()
    assert (took.ms_prefill, took.ms_select, took.ms_reconstruction) == (400_000, 10_000_000, 0)
    assert headkv.stats().n_decoded == 2
