"""A failure at any step leaves the context as it was: it goes on with the logits it would have had; a retry succeeds.

`debug_alloc_fail(n)` makes the n-th buffer allocation fail. Steps are tried with n = 1, 2, ... until nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.abi import STATUS_COMPUTE, STATUS_NO_MEMORY
from pyheadkv.engine.native import Compression, Native, debug_alloc_fail
from pyheadkv.errors import NativeError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits
from tests.e2e.ragged import N_OBS, N_POS, chat_tokens, flat, make_kept
from tests.tiny import Tiny, make_weights, write_tiny

TINY = Tiny(n_head=(6, 4), n_head_kv=(2, 4))
TOKENS = chat_tokens(TINY)
KEPT = make_kept(TINY, (17, 0, 97, 1))
HOW = Scorer(n_obs=N_OBS)
ROWS = np.array([60, 12, 150, 20, 40, 80])
N_LIMIT = 10  # allocations of one step, at most


def go_on(context: Context) -> Logits:
    """Logits of tokens that make the tail grow several times."""
    return context.decode_each(TOKENS[context.n_pos : context.n_pos + 90])


def prompt(context: Context) -> None:
    context.decode(TOKENS[:N_POS])


def scored_prompt(context: Context) -> None:
    context.arm_and_decode(TOKENS[:N_POS], N_OBS)


Step = Callable[[Context], Any]
STEPS: dict[str, tuple[Step, Step]] = {  # what is done before, and the step that fails
    "reserve": (prompt, lambda c: c.native.reserve(450)),
    "observe": (prompt, lambda c: c.native.observe(8)),
    "compress": (scored_prompt, lambda c: c.native.compress(Compression(ROWS, HOW, 4))),
    "keep": (prompt, lambda c: c.native.keep(flat(KEPT), N_OBS)),
}


@pytest.mark.parametrize("name", STEPS)
def test_failed_step_changes_nothing_and_can_be_tried_again(open_context: MakeContext, name: str) -> None:
    prepare, step = STEPS[name]
    whole, done = open_context(TINY, n_cells=64), open_context(TINY, n_cells=64)
    prepare(whole)
    expected_whole = go_on(whole)
    prepare(done)
    step(done)
    expected_done = go_on(done)

    for n in range(1, N_LIMIT):
        left, retried = (open_context(TINY, n_cells=64) for _ in range(2))
        prepare(left)
        prepare(retried)
        if not fails(left, step, n):
            break
        assert fails(retried, step, n)
        step(retried)
        np.testing.assert_array_equal(go_on(left), expected_whole)
        np.testing.assert_array_equal(go_on(retried), expected_done)
    assert 2 <= n < N_LIMIT - 1, f"{n - 1} allocations failed"


def fails(context: Context, step: Step, n: int) -> bool:
    """Whether the step fails when its n-th allocation does; checks that it has changed nothing then."""
    before = context.native.stats()
    debug_alloc_fail(n)
    try:
        step(context)
    except NativeError as error:
        assert error.status == STATUS_NO_MEMORY
        assert "out of memory" in str(error)
        after = context.native.stats()
        # cells may have been added before; they are not used
        assert (after.n_pos_hot, after.bytes_hot, after.bytes_observed, after.n_cells_used) == (
            before.n_pos_hot,
            before.bytes_hot,
            before.bytes_observed,
            before.n_cells_used,
        )
        return True
    finally:
        debug_alloc_fail(0)
    return False


def test_failed_attach_leaves_a_stock_context(open_context: MakeContext) -> None:
    stock = open_context(TINY, attach=False)
    expected = stock.decode(TOKENS[:N_POS])
    left, retried = open_context(TINY, attach=False), open_context(TINY, attach=False)
    for context in (left, retried):
        debug_alloc_fail(1)
        with pytest.raises(NativeError) as error:
            Native(context.llama)
        assert error.value.status == STATUS_NO_MEMORY
        debug_alloc_fail(0)
    np.testing.assert_array_equal(left.decode(TOKENS[:N_POS]), expected)
    native = Native(retried.llama)
    np.testing.assert_array_equal(retried.decode(TOKENS[:N_POS]), expected)
    native.keep(flat(KEPT), N_OBS)
    assert native.stats().n_pos_hot == N_POS - N_OBS


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_failed_growth_fails_the_decode_alone(open_context: MakeContext, is_compressed: bool, attention: str) -> None:
    def start() -> Context:
        context = open_context(TINY, n_cells=64)
        prompt(context)
        if is_compressed:
            context.native.keep(flat(KEPT), N_OBS)
            context.native.attention_set(attention)
        return context

    expected = go_on(start())
    context, logits, n_failed = start(), [], 0
    for token in TOKENS[N_POS : N_POS + 90]:
        debug_alloc_fail(1)
        try:
            logits.append(context.decode([token]))
        except RuntimeError:
            n_failed += 1
            debug_alloc_fail(0)
            logits.append(context.decode([token]))
        finally:
            debug_alloc_fail(0)
    assert n_failed >= 1
    np.testing.assert_array_equal(np.concatenate(logits), expected)


def test_failed_growth_of_a_long_batch_leaves_the_tail(open_context: MakeContext) -> None:
    runs = []
    for is_disturbed in (False, True):
        context = open_context(TINY, n_cells=64)
        prompt(context)
        context.native.keep(flat(KEPT), N_OBS)
        if is_disturbed:
            before = context.native.stats()
            debug_alloc_fail(1)
            with pytest.raises(RuntimeError):
                context.decode(TOKENS[N_POS : N_POS + 120])
            debug_alloc_fail(0)
            assert context.native.stats() == before
        runs.append(np.concatenate([context.decode(TOKENS[N_POS : N_POS + 120]), go_on(context)]))
    np.testing.assert_array_equal(*runs)


def test_a_context_that_is_full_goes_on_after_a_cut(open_context: MakeContext) -> None:
    context, other = open_context(TINY, n_ctx=256), open_context(TINY, n_ctx=256)
    for each in (context, other):
        each.decode(TOKENS[:N_POS])
    context.decode(TOKENS[N_POS:256])
    with pytest.raises(RuntimeError):
        context.decode([1])
    assert context.seq_rm(N_POS)
    context.llama.n_tokens = N_POS
    np.testing.assert_array_equal(go_on(context), go_on(other))


def test_scores_that_are_not_finite_are_refused(open_context: MakeContext, tmp_path: Path) -> None:
    weights = make_weights(TINY)
    weights["blk.1.attn_q"][0] = np.inf
    context = open_context(write_tiny(tmp_path / "poisoned.gguf", TINY, weights))
    scored_prompt(context)
    assert np.isfinite(context.native.score_read(0, HOW)).all()
    before = context.native.stats()
    with pytest.raises(NativeError, match="the scores of layer 1 are not finite") as error:
        context.native.compress(Compression(ROWS, HOW, 4))
    assert error.value.status == STATUS_COMPUTE
    assert context.native.stats() == before
    context.native.keep(flat(KEPT), N_OBS)  # needs no scores
    assert context.native.stats().n_rows_hot == sum(map(len, flat(KEPT)))
