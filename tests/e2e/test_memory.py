"""Bytes are those of the buffers that exist, the full cache is really freed, and the tail grows without a trace."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.native import Compression, Native
from pyheadkv.model.shape import CACHE_TYPES
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens
from tests.e2e.ragged import N_OBS, N_POS, N_PREFIX, chat_tokens, flat, make_kept
from tests.tiny import Tiny

UNEQUAL = Tiny(n_head=(6, 4, 8), n_head_kv=(2, 4, 1))
META_BYTES = 2 * 4  # of a head: first row and number of rows
ALIGNMENT = 64  # of each tensor in a buffer; K, V and meta of a layer are three tensors


def row_bytes(native: Native) -> list[int]:
    """Bytes of one row of K and V, for each KV head of the model."""
    sizes = zip(native.layers(), native.row_bytes(), strict=True)
    return [size for layer, size in sizes for _ in range(layer.n_head_kv)]


@pytest.mark.parametrize("lengths", [(17, 0, 97, 1), (N_PREFIX,), (0,)], ids=str)
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_measured_bytes_are_planned_bytes(open_context: MakeContext, cache_type: str, lengths: tuple[int, ...]) -> None:
    context, kept = open_context(UNEQUAL, cache_type=cache_type), make_kept(UNEQUAL, lengths)
    native = context.native
    context.decode(chat_tokens(UNEQUAL)[:N_POS])
    native.keep(flat(kept), N_OBS)
    sizes, stats = row_bytes(native), native.stats()
    block = CACHE_TYPES[cache_type]
    assert sizes == [2 * UNEQUAL.head_size // block.block_elems * block.block_bytes] * len(sizes)

    planned = sum(size * len(head) for size, head in zip(sizes, flat(kept), strict=True)) + META_BYTES * len(sizes)
    slack = 3 * ALIGNMENT * UNEQUAL.n_layer + max(sizes) * UNEQUAL.n_layer  # a layer without rows still has one
    assert planned <= stats.bytes_hot <= planned + slack
    assert 0 <= stats.bytes_tail - stats.n_cells * sum(sizes) <= 2 * ALIGNMENT * UNEQUAL.n_layer
    assert stats.n_cells < N_POS, "the tail has as many cells as the full cache"
    assert stats.n_rows_hot == sum(map(len, flat(kept)))
    assert (stats.n_rows_tail, stats.n_rows_full) == (N_OBS * len(sizes), N_POS * len(sizes))
    assert stats.bytes_observed == 0


def test_scores_exist_only_while_tokens_observe(open_context: MakeContext) -> None:
    context, tokens = open_context(UNEQUAL), chat_tokens(UNEQUAL)
    context.decode(tokens[:100])
    assert context.native.stats().bytes_observed == 0
    context.native.observe(16)
    stats = context.native.stats()
    assert stats.bytes_observed >= sum(UNEQUAL.n_head) * 116 * 4
    assert stats.bytes_peak >= stats.bytes_tail + stats.bytes_observed
    context.native.observe(0)
    assert context.native.stats().bytes_observed == 0


def test_peak_holds_both_caches_while_rows_are_moved(open_context: MakeContext) -> None:
    context, tokens, how = open_context(UNEQUAL), chat_tokens(UNEQUAL), Scorer(n_obs=16)
    context.arm_and_decode(tokens[:N_POS], how.n_obs)
    before = context.native.stats()
    context.native.compress(Compression(np.full(7, 60), how, 4))
    after = context.native.stats()
    assert after.bytes_peak >= before.bytes_tail + after.bytes_hot + after.bytes_tail
    context.native.reset_peak()
    assert context.native.stats().bytes_peak == after.bytes_hot + after.bytes_tail


def resident_bytes() -> int:
    """Physical memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc/self/statm")
def test_process_gives_the_full_cache_back(open_context: MakeContext) -> None:
    # 64 KV heads of 256 elements in f32: 128 KiB a position
    wide = Tiny(n_head=(64,), n_head_kv=(64,), head_size=256)
    n_pos, n_kept, how = 1000, 50, Scorer(n_obs=8)
    context = open_context(wide, cache_type="f32", n_ctx=1024, n_cells=64)
    context.arm_and_decode(make_tokens(n_pos, wide.n_vocab), how.n_obs)
    before, stats_before = resident_bytes(), context.native.stats()
    context.native.compress(Compression(np.full(64, n_kept), how, 4))
    freed, stats = before - resident_bytes(), context.native.stats()

    bytes_full = n_pos * sum(row_bytes(context.native))
    assert stats_before.bytes_tail >= bytes_full
    planned = bytes_full - stats.bytes_hot - stats.bytes_tail
    assert planned > 100 * 2**20
    assert freed > 0.8 * planned

    context.seq_rm(0)  # the prefix too
    assert context.native.stats().bytes_hot == 0
    assert before - resident_bytes() > 0.8 * (bytes_full - stats.bytes_tail)


# ---- the tail ----


def test_cache_starts_small_grows_and_can_be_reserved(open_context: MakeContext) -> None:
    tokens = make_tokens(600, 64)
    context = open_context(Tiny(), n_ctx=1024, n_cells=64)
    assert context.native.stats().n_cells == 64
    cells = []
    for first in range(0, 600, 40):
        context.decode(tokens[first : first + 40])
        cells.append(context.native.stats().n_cells)
        assert first + 40 <= cells[-1] <= max(64, 1.25 * (first + 40) + 256)
    assert cells == sorted(cells)
    assert context.native.stats().n_grow == len(set(cells) - {64})

    reserved = open_context(Tiny(), n_ctx=1024, n_cells=64)
    reserved.native.reserve(600)
    n_cells = reserved.native.stats().n_cells
    assert 600 <= n_cells < 600 + 256
    for first in range(0, 600, 40):
        reserved.decode(tokens[first : first + 40])
    reserved.native.reserve(100)
    assert reserved.native.stats().n_cells == n_cells
    np.testing.assert_array_equal(reserved.decode(tokens[:3]), context.decode(tokens[:3]))


def test_cache_never_exceeds_the_context(open_context: MakeContext) -> None:
    tokens = make_tokens(256, 64)
    context = open_context(Tiny(), n_ctx=256, n_cells=64)
    context.decode(tokens)
    stats = context.native.stats()
    assert (stats.n_cells, stats.n_cells_used) == (256, 256)


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("cache_type", ["f32", "f16", "q5_1"])
def test_growing_tail_is_a_big_tail_bit_for_bit(open_context: MakeContext, cache_type: str, attention: str) -> None:
    tokens = make_tokens(N_POS + 500, 64)
    runs = []
    for is_reserved in (False, True):
        context = open_context(UNEQUAL, cache_type=cache_type, n_ctx=768)
        context.decode(tokens[:N_POS])
        context.native.keep(flat(make_kept(UNEQUAL, (17, 0, 97, 1))), N_OBS)
        context.native.attention_set(attention)
        if is_reserved:
            context.native.reserve(N_OBS + 500)
        n_grow = context.native.stats().n_grow
        logits = [context.decode_each(tokens[N_POS : N_POS + 300]), context.decode(tokens[N_POS + 300 :])]
        runs.append(np.concatenate(logits))
        assert (context.native.stats().n_grow - n_grow >= 4) == (not is_reserved)
    np.testing.assert_array_equal(*runs)


def test_compressing_again_and_again_leaks_nothing(open_context: MakeContext) -> None:
    tokens, how = chat_tokens(UNEQUAL), Scorer(n_obs=16)
    context = open_context(UNEQUAL, n_cells=64)
    stats, logits = [], []
    for _ in range(4):
        context.arm_and_decode(tokens[:N_POS], how.n_obs)
        context.native.compress(Compression(np.full(7, 60), how, 4))
        logits.append(context.decode_each(tokens[N_POS : N_POS + 80]))
        stats.append(replace(context.native.stats(), n_grow=0, ms_select=0))
        assert context.seq_rm(0)
        context.llama.n_tokens = 0
        assert context.native.stats().bytes_hot == 0
    for i in (1, 2, 3):
        np.testing.assert_array_equal(logits[i], logits[0])
    assert stats[2:] == stats[1:3]  # the first prompt grew the cache from 64 cells, the later ones from what was there
