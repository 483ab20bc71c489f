"""A prompt can be compressed while it is read layer by layer: what is left is what compressing behind it leaves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.engine.native import Compression, Observe, debug_alloc_fail
from pyheadkv.errors import NativeError
from pyheadkv.policy.retrieval_heads import HeadScoring
from pyheadkv.policy.scorers import SCORERS, Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context
from tests.e2e.sweep import decode_batches
from tests.e2e.test_sweep_failures import N_LIMIT, OPTIONS, STARTS, TINY, TOKENS, Watched, stop_at
from tests.e2e.test_sweep_memory import SLACK, WIDE, bytes_full

N_POS, N_OBS, N_BLOCK = 350, 16, 128
ROWS = np.array([60, 20, 120, 45, 80])  # of each KV head


def compression(scorer: str = "snapkv") -> Compression:
    return Compression(ROWS, Scorer(scorer, n_obs=N_OBS), 4, 2)


def read(context: Context, how: Compression, is_at_once: bool, n_observe: int = N_OBS, **options: Any) -> None:
    """Read up to N_POS, and compress."""
    assert isinstance(how.scorer, Scorer)
    what = how.scorer.gathers
    options |= {"observe": Observe(n_observe, what) if what else None}
    context.read(TOKENS[context.n_pos : N_POS], compression=how if is_at_once else None, **options)
    if not is_at_once:
        context.native.compress(how)


def left(context: Context) -> list[np.ndarray]:
    """Kept positions of each KV head, logits of the last token and of some that follow."""
    found = [head for layer in context.kept() for head in layer] + [context.last_logits()]
    for n in (1, 1, 20, 1):
        decode_batches(context, TOKENS[context.n_pos : context.n_pos + n], [n])
        found.append(context.last_logits())
    return found


def assert_same(ours: Context, behind: Context) -> None:
    stats = [context.native.stats() for context in (ours, behind)]
    assert stats[0].bytes_hot == stats[1].bytes_hot > 0
    assert (stats[0].bytes_tail, stats[0].n_pos_hot) == (stats[1].bytes_tail, stats[1].n_pos_hot)
    assert stats[0].bytes_archive == stats[0].bytes_observed == 0
    for a, b in zip(left(ours), left(behind), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_a_prompt(open_context: MakeContext, tmp_path: Path, start: str, cache_type: str) -> None:
    ours, behind = (open_context(TINY, **OPTIONS, cache_type=cache_type) for _ in range(2))
    for context in (ours, behind):
        STARTS[start](context, tmp_path)
        read(context, compression(), context is ours, folder=tmp_path)
    assert ours.native.stats().ms_select > 0
    assert_same(ours, behind)


@pytest.mark.parametrize("votes", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_beside_an_archive_that_stays(open_context: MakeContext, tmp_path: Path, start: str, votes: bool) -> None:
    """The rows are chosen as layers are read there too, by votes when all are; the archive is what it is without."""
    how = compression()
    if votes:
        how = replace(how, scoring=HeadScoring((5,) * 5, (1.0, 0.5, 0.2, 0.1, 2.0), (0.5,) * 5, 7))
    ours, behind = (open_context(TINY, **OPTIONS) for _ in range(2))
    for context in (ours, behind):
        STARTS[start](context, tmp_path)
        context.native.keep_archive(True)
        read(context, how, context is ours, folder=tmp_path)
    stats = [context.native.stats() for context in (ours, behind)]
    assert stats[0].n_pos_archive == stats[1].n_pos_archive == N_POS
    assert stats[0].bytes_archive <= stats[1].bytes_archive, "what is observed takes no room there"
    for i in range(len(ours.native.layers())):
        for is_k in (True, False):
            assert np.array_equal(*(context.native.rows_get(i, is_k, 0, N_POS) for context in (ours, behind)))
    for a, b in zip(left(ours), left(behind), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name != "kvzip"])
def test_every_scorer(open_context: MakeContext, scorer: str) -> None:
    how = compression(scorer)
    assert isinstance(how.scorer, Scorer)
    ours, behind = (open_context(TINY, **OPTIONS) for _ in range(2))
    for context in (ours, behind):
        read(context, how, context is ours, n_observe=how.scorer.n_last(N_POS, how.n_sink))
    assert_same(ours, behind)


def test_several_blocks(open_context: MakeContext, tmp_path: Path) -> None:
    """What a layer keeps is known when its last block was read."""
    ours, behind = (open_context(TINY, **OPTIONS) for _ in range(2))
    for context in (ours, behind):
        read(context, compression(), context is ours, folder=tmp_path, bytes_hidden=N_BLOCK * TINY.n_embd * 4)
    assert_same(ours, behind)


def test_tokens_that_come_later(open_context: MakeContext) -> None:
    watched = Watched(open_context(TINY, **OPTIONS), "empty")
    with pytest.raises(NativeError, match="n_ahead = 4 tokens are to come before the cache is compressed"):
        watched.context.read(TOKENS[:N_POS], observe=Observe(N_OBS + 4, n_ahead=4), compression=compression())
    watched.assert_unchanged()


# ---- what fails ----


@pytest.fixture(params=STARTS)
def watched(open_context: MakeContext, tmp_path: Path, request: pytest.FixtureRequest) -> Watched:
    return Watched(open_context(TINY, **OPTIONS), request.param, tmp_path)


def assert_reads(open_context: MakeContext, watched: Watched) -> None:
    """What failed can be tried again."""
    behind = open_context(TINY, **OPTIONS)
    STARTS[watched.start](behind, None)
    read(behind, compression(), False)
    read(watched.context, compression(), True)
    assert_same(watched.context, behind)


def test_an_allocation_that_fails(open_context: MakeContext, watched: Watched, tmp_path: Path) -> None:
    for n in range(1, N_LIMIT):
        debug_alloc_fail(n)
        try:
            read(watched.context, compression(), True, folder=tmp_path)
            break
        except NativeError as error:
            assert error.status == STATUS_NO_MEMORY
        finally:
            debug_alloc_fail(0)
        watched.assert_unchanged()
    assert 5 <= n < N_LIMIT - 1, f"{n - 1} allocations failed"


def stop_behind(layer: int, n_done: int, n_total: int) -> None:
    if n_done * TINY.n_layer == n_total * layer:
        raise KeyboardInterrupt


def test_reading_that_is_stopped(open_context: MakeContext, watched: Watched) -> None:
    for layer in range(1, TINY.n_layer + 1):
        with pytest.raises(KeyboardInterrupt):
            read(watched.context, compression(), True, on_progress=partial(stop_behind, layer))
        watched.assert_unchanged()
    assert_reads(open_context, watched)


def test_reading_that_is_aborted(open_context: MakeContext, watched: Watched) -> None:
    for n in (1, 50, 200, 350):
        with watched.context.native.abortable(stop_at(n)), pytest.raises(NativeError, match="aborted"):
            read(watched.context, compression(), True)
        watched.assert_unchanged()
    assert_reads(open_context, watched)


# ---- memory ----


def test_a_layer_and_what_is_kept_are_in_memory(open_context: MakeContext) -> None:
    context = open_context(WIDE, n_ctx=512, n_cells=64, cache_type="f32", logits_all=False)
    before = context.native.stats()
    context.native.reset_peak()
    how = Compression(np.full(sum(WIDE.n_head_kv), 50), Scorer(n_obs=N_OBS), 4)
    read(context, how, True)
    stats, full = context.native.stats(), bytes_full(context) * 512 / N_POS  # in whole steps of 256 cells
    observed = WIDE.n_head[0] * 512 * 4
    layer = full / WIDE.n_layer
    kept = stats.bytes_hot + stats.bytes_tail + before.bytes_tail
    assert layer + kept + observed <= stats.bytes_peak <= layer * SLACK + kept + observed
