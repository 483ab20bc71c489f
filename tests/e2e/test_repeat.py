"""The reconstruction pass on tiny models: scores of the formula, no traces, and a whole cache after failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyheadkv.cache.reconstruct import Reconstruction
from pyheadkv.cache.select import pooled
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.engine.native import debug_alloc_fail
from pyheadkv.errors import NativeError, UsageError
from pyheadkv.evaluate.engine import Engine
from pyheadkv.policy.plan import draft_plan
from pyheadkv.policy.scorers import Scorer
from pyheadkv.policy.text import parse_policy
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens
from tests.reference.repeat import repeated_scores
from tests.reference.select import select_positions
from tests.tiny import Tiny

TINY = Tiny(n_head=(6, 4), n_head_kv=(2, 4))
N_POS = 150
KVZIP = Scorer("kvzip", n_obs=1, pool_kernel=1, fold="max", reduce="max")
# stock reads Q and K in f16, and the second layer has the errors of stock's attention in its input
ERRORS = (5e-3, 5e-2)


@pytest.mark.parametrize(("max_part", "n_ubatch"), [(2048, 512), (2048, 37), (60, 512), (40, 37)])
def test_scores_are_the_formulas(open_context: MakeContext, max_part: int, n_ubatch: int) -> None:
    context, tokens = open_context(TINY, n_ubatch=n_ubatch), make_tokens(N_POS, 64)
    before = context.decode(tokens)[-1]
    reconstruction = Reconstruction(context.llama, tokens, max_part)
    assert [len(part.tokens) for part in reconstruction.parts] == {2048: [150], 60: [50, 58, 58], 40: [37, 46, 45, 46]}[
        max_part
    ]
    scores = reconstruction.scores(context.native, context.llama.eval, KVZIP)
    parts = [(part.first, part.end, part.tokens) for part in reconstruction.parts]
    for il, (found, expected) in enumerate(zip(scores, repeated_scores(TINY, tokens, parts), strict=True)):
        assert found.shape == expected.shape
        assert (np.abs(found - expected) / expected.std(axis=1, keepdims=True)).max() < ERRORS[il]
    assert context.native.stats().n_pos == N_POS and context.native.stats().bytes_observed == 0
    context.llama.n_tokens -= 1
    np.testing.assert_allclose(context.decode(tokens[-1:])[0], before, atol=1e-2 * np.abs(before).max())


def test_session_keeps_the_best_of_its_scores(open_context: MakeContext) -> None:
    tokens = make_tokens(400, 64)
    llama: Any = open_context(TINY, attach=False, n_ctx=1024).llama
    stock = open_context(TINY, attach=False, n_ctx=1024)
    with HeadKV(llama, policy="uniform+kvzip", budget="25%") as headkv:
        llama.eval(tokens)
        plan, n_obs = headkv.plan, headkv.policy.n_obs
        logits = stock.decode(tokens)[-1]
        np.testing.assert_allclose(
            llama.scores[399], logits, atol=1e-2 * np.abs(logits).max()
        )  # it is the prompt's end
        scores = repeated_scores(TINY, tokens[:-n_obs], [(0, 400 - n_obs, tokens[:-n_obs])])
        assert plan is not None
        for i, layer in enumerate(plan.rows):
            for ih, n in enumerate(layer):
                expected = select_positions(scores[i][ih], 4, n - n_obs)
                kept = headkv.native.positions(i, ih)
                assert len(kept) == len(expected) and len(np.intersect1d(kept, expected)) >= len(kept) - 2  # near ties
        stats = headkv.stats()
        assert stats.ms_reconstruction > 0 and stats.n_read == 400 and headkv.report()["ms"]["reconstruction"] > 0
        llama.eval([5])
        assert np.isfinite(llama.scores[400]).all()


@pytest.mark.parametrize("policy", ["kvzip", "adakv+kvzip", "dynamickv+kvzip:pool=3", "uniform+kvzip:lookahead=8"])
def test_engine_and_session_keep_the_same_rows(open_context: MakeContext, policy: str) -> None:
    tokens, options = make_tokens(300, 64), {"n_ctx": 1024, "attach": False}
    llama: Any = open_context(TINY, **options).llama
    with HeadKV(llama, policy=policy, budget="30%") as headkv:
        llama.eval(tokens)
        for token in range(8):
            llama.eval([token])
        assert headkv.is_compressed
        rows = [[headkv.native.positions(i, ih) for ih in range(n)] for i, n in enumerate(TINY.n_head_kv)]
        plan = headkv.plan
        again = draft_plan(headkv.shape, headkv.policy, headkv.budget, 300)
    assert plan is not None and again is not None
    engine = Engine(open_context(TINY, **options).llama)
    engine.read_only(tokens)
    kept = engine.snapshot()
    for _ in range(2):  # the second time without repeating
        engine.compress(kept, again)
        for token in range(8):
            engine.read([token])
        assert len(kept.scores) == 1
        for i, layer in enumerate(rows):
            for ih, positions in enumerate(layer):
                np.testing.assert_array_equal(engine.native.positions(i, ih), positions)
    policy_now = again.expected.policy
    scorer = replace(policy_now.scorer, pool="avg", pool_kernel=5, retrieval_kernel=9, vote_share=0.5)
    expected = replace(again.expected, policy=replace(policy_now, scorer=scorer))
    engine.compress(kept, replace(again, expected=expected))
    assert len(kept.scores) == 1


@pytest.mark.parametrize("policy", ["h2o:pool=5", "expected-attention"])
def test_scores_of_a_reading_are_made_once_and_are_the_librarys(open_context: MakeContext, policy: str) -> None:
    tokens, options = make_tokens(300, 64), {"n_ctx": 1024, "attach": False}
    llama: Any = open_context(TINY, **options).llama
    with HeadKV(llama, policy=policy, budget="30%") as headkv:
        llama.eval(tokens)
        rows = [[headkv.native.positions(i, ih) for ih in range(n)] for i, n in enumerate(TINY.n_head_kv)]
        plan = draft_plan(headkv.shape, headkv.policy, headkv.budget, 300)
    assert plan is not None
    engine = Engine(open_context(TINY, **options).llama)
    engine.read_only(tokens)
    kept = engine.snapshot()
    engine.compress(kept, plan)
    for i, layer in enumerate(rows):
        for ih, positions in enumerate(layer):
            np.testing.assert_array_equal(engine.native.positions(i, ih), positions)
    assert len(kept.scores) == 1


def test_interrupt_leaves_a_whole_cache(open_context: MakeContext) -> None:
    tokens = make_tokens(400, 64)
    llama: Any = open_context(TINY, attach=False, n_ctx=1024, n_batch=128).llama
    headkv = HeadKV(llama, policy="kvzip", budget="25%")
    n_before = 400 - headkv.policy.n_obs

    def interrupt(done: int, total: int) -> None:
        assert total == 400 + n_before
        if done > n_before + 128:  # inside the repetition
            headkv.on_progress = None
            raise KeyboardInterrupt

    headkv.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        llama.eval(tokens)
    stats = headkv.native.stats()
    assert (llama.n_tokens, stats.n_pos, stats.bytes_observed, headkv.is_compressed) == (n_before, n_before, 0, False)
    next(llama.generate(tokens))  # the next prompt finishes what was begun
    assert headkv.is_compressed and headkv.plan is not None and headkv.plan.n_prompt == 400


def test_no_memory_for_the_repetition_goes_on_uncompressed(open_context: MakeContext) -> None:
    tokens = make_tokens(400, 64)
    expected = open_context(TINY, attach=False, n_ctx=1024).decode(tokens)[-1]
    n_refused = 0
    for n in range(1, 8):
        notices: list[str] = []
        llama: Any = open_context(TINY, attach=False, n_ctx=1024).llama
        headkv = HeadKV(llama, policy="kvzip", budget="25%", on_notice=notices.append, sweep=False)
        llama.eval(tokens[:380])
        headkv.clear()
        debug_alloc_fail(n)
        try:
            llama.eval(tokens)
        except NativeError as error:
            assert error.status == STATUS_NO_MEMORY
            continue
        finally:
            debug_alloc_fail(0)
        n_refused += not headkv.is_compressed
        assert headkv.is_compressed == (notices == []) and headkv.native.stats().bytes_observed == 0
        np.testing.assert_allclose(llama.scores[399], expected, atol=1e-2 * np.abs(expected).max())
    assert n_refused >= 2


def test_no_room_is_refused_before_anything_is_read(open_context: MakeContext) -> None:
    llama: Any = open_context(TINY, attach=False, n_ctx=512).llama
    headkv = HeadKV(llama, policy="kvzip", budget="25%")
    with pytest.raises(UsageError, match="33 positions of the context of 512 are free, 72 are needed"):
        llama.eval(make_tokens(480, 64))
    assert llama.n_tokens == 0
    llama.eval(make_tokens(430, 64))  # in parts of at most 75
    assert headkv.is_compressed


def test_a_context_that_is_rounded_up_has_no_more_room(open_context: MakeContext) -> None:
    llama: Any = open_context(TINY, attach=False, n_ctx=500).llama
    assert llama.n_ctx() == 512
    with HeadKV(llama, policy="kvzip", budget="25%") as headkv:
        with pytest.raises(UsageError, match="prompt of 505 tokens is longer than the context of 500"):
            llama.eval(make_tokens(505, 64))
        llama.eval(make_tokens(420, 64))  # in parts of at most 72 tokens, and 8 before them
        assert headkv.is_compressed


@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_pooling_is_the_librarys(open_context: MakeContext, pool: str, kernel: int) -> None:
    context, tokens = open_context(TINY), make_tokens(N_POS, 64)
    context.arm_and_decode(tokens, 8)
    plain, scorer = Scorer(n_obs=8, pool_kernel=1), Scorer(n_obs=8, pool_kernel=kernel, pool=pool)
    for i in range(TINY.n_layer):
        expected = context.native.score_read(i, scorer)
        np.testing.assert_allclose(pooled(context.native.score_read(i, plain), scorer), expected, rtol=1e-5)


def test_scorer_of_the_preset() -> None:
    assert parse_policy("kvzip").scorer == KVZIP
