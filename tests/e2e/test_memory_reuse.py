"""llama.cpp evaluates a graph again when the next batch has the same shape; not so after tensors were exchanged.

Every test evaluates single tokens, with the same number of visible cells, before and after the change: then nothing but
our epoch tells upstream that the graph is of yesterday.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens, relative_error
from tests.reference.llama import Compressed, forward
from tests.tiny import Tiny, make_weights

TINY = Tiny(n_head=(8,), n_head_kv=(4,))
N_POS, N_OBS, N_NEW = 50, 8, 12  # 64 cells before and after the compression
TOKENS = make_tokens(N_POS + N_NEW, TINY.n_vocab)
KEPT = [[np.array([0, 7, 30]), np.arange(0), np.arange(42), np.array([41])]]

FUSED_ERROR, COMPOSED_ERROR = 3e-5, 2e-3  # as in test_ragged.py


def truth() -> np.ndarray:
    compressed = Compressed(N_POS, N_POS - N_OBS, KEPT)
    return forward(TINY, make_weights(TINY), TOKENS, compressed).logits[N_POS:]


def test_after_compression(open_context: MakeContext) -> None:
    context = open_context(TINY, cache_type="f32", n_cells=64)
    context.decode_each(TOKENS[:N_POS])
    context.native.keep(KEPT[0], N_OBS)
    assert context.native.stats().n_cells == 64
    assert relative_error(context.decode_each(TOKENS[N_POS:]), truth()) < FUSED_ERROR


def test_after_the_prefix_was_dropped(open_context: MakeContext) -> None:
    fresh, context = (open_context(TINY, n_cells=64) for _ in range(2))
    context.decode_each(TOKENS[:N_POS])
    context.native.keep(KEPT[0], N_OBS)
    context.decode_each(TOKENS[N_POS:])
    assert context.seq_rm(0)
    context.llama.n_tokens = 0
    np.testing.assert_array_equal(context.decode_each(TOKENS), fresh.decode_each(TOKENS))


def test_after_the_kernel_was_changed(open_context: MakeContext) -> None:
    context = open_context(TINY, cache_type="f32", n_cells=64)
    context.decode_each(TOKENS[:N_POS])
    context.native.keep(KEPT[0], N_OBS)
    is_exact = []
    for token, expected in zip(TOKENS[N_POS:], truth(), strict=True):
        context.native.attention_set(("fused", "unfused")[context.n_pos // 3 % 2])
        error = relative_error(context.decode([token])[0], expected)
        assert error < COMPOSED_ERROR
        is_exact.append(error < FUSED_ERROR)  # the unfused graph rounds to f16, so this tells them apart
    assert is_exact == [(N_POS + i) // 3 % 2 == 0 for i in range(N_NEW)]


def test_after_an_observation_began(open_context: MakeContext) -> None:
    scores = []
    for is_single in (True, False):
        context = open_context(TINY, n_cells=64)
        if is_single:
            context.decode_each(TOKENS[: N_POS - N_OBS])
        else:
            context.decode(TOKENS[: N_POS - N_OBS])
        context.native.observe(N_OBS)
        context.decode_each(TOKENS[N_POS - N_OBS : N_POS])
        scores.append(context.native.score_read(0, Scorer(n_obs=N_OBS)))
        context.native.observe(0)
        context.decode_each(TOKENS[N_POS:])
    assert relative_error(*scores) < 1e-3


@pytest.mark.parametrize("is_compressed", [False, True])
def test_after_the_tail_was_reserved(open_context: MakeContext, is_compressed: bool) -> None:
    tokens, runs = make_tokens(100, TINY.n_vocab), []
    for is_disturbed in (False, True):
        context = open_context(TINY, n_ctx=1024, n_cells=64)
        context.decode_each(tokens[:N_POS])
        if is_compressed:
            context.native.keep(KEPT[0], N_OBS)
        context.native.reserve(320)  # 256 of them are visible now and after the next one
        context.decode_each(tokens[N_POS:60])
        if is_disturbed:
            context.native.reserve(640)
        single = context.decode_each(tokens[60:70])
        runs.append(np.concatenate([single, context.decode(tokens[70:100])]))
    np.testing.assert_array_equal(*runs)
