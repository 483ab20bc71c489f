"""Reading layer by layer that fails or is stopped, anywhere, leaves the context as it was, and what follows."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.abi import STATUS_COMPUTE, STATUS_NO_MEMORY
from pyheadkv.engine.llama import cut
from pyheadkv.engine.native import Observe, Stats, debug_alloc_fail
from pyheadkv.errors import NativeError
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits, make_tokens
from tests.e2e.sweep import batch_sizes, decode_batches, differences
from tests.tiny import Tiny

TINY = Tiny(n_head=(4, 2, 2), n_head_kv=(2, 2, 1))
TOKENS = make_tokens(500, TINY.n_vocab)
N_PAST, N_READ, N_BATCH, N_BLOCK = 100, 250, 64, 128
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_batch": N_BATCH, "n_ubatch": 48, "n_cells": 64, "logits_all": False}
N_LIMIT = 30  # allocations while reading, at most

STARTS: dict[str, Callable[[Context, Path | None], None]] = {
    "empty": lambda context, folder: None,
    "whole": lambda context, folder: context.llama.eval(TOKENS[:N_PAST]),
    "read": lambda context, folder: context.read(TOKENS[:N_PAST], folder=folder),
}


def read(context: Context, **options: Any) -> None:
    """Read on, in two blocks of hidden states, with a window that observes."""
    hidden = N_BLOCK * TINY.n_embd * 4
    tokens = TOKENS[context.n_pos : context.n_pos + N_READ]
    context.read(tokens, **{"observe": Observe(16), "bytes_hidden": hidden} | options)


def next_logits(context: Context) -> Logits:
    """Logits after one more token, which is taken back."""
    n = context.n_pos
    context.llama.eval([7])
    logits = context.last_logits()
    cut(context.llama, n)
    return logits


class Watched:
    """A context, and what must not change about it."""

    def __init__(self, context: Context, start: str, folder: Path | None = None) -> None:
        STARTS[start](context, folder)
        self.context, self.start, self.n_pos = context, start, context.n_pos
        self._logits = next_logits(context)
        self._rows, self._stats = self._state(), self._fixed_stats()

    def assert_unchanged(self) -> None:
        """Stats, rows, and the logits of the next token are those of the beginning; no token observes."""
        assert self.context.n_pos == self.n_pos
        assert self._fixed_stats() == self._stats
        np.testing.assert_array_equal(self._state(), self._rows)
        with pytest.raises(NativeError, match="the last 0 positions were not all observed"):  # nothing observes
            self.context.native.attention_read(0, 0)
        np.testing.assert_array_equal(next_logits(self.context), self._logits)
        np.testing.assert_array_equal(self._state(), self._rows)

    def assert_reads_as_stock(self, open_context: MakeContext, **options: Any) -> None:
        """What failed can be tried again."""
        stock = open_context(TINY, **OPTIONS | {"n_cells": 0}, attach=False)
        decode_batches(stock, TOKENS[: self.n_pos], batch_sizes(self.n_pos, N_BATCH))
        tokens = TOKENS[self.n_pos : self.n_pos + N_READ]
        decode_batches(stock, tokens, batch_sizes(N_READ, N_BATCH, N_BLOCK))
        read(self.context, **options)
        assert not differences(stock, self.context, TOKENS[-1])

    def _state(self) -> np.ndarray:
        return self.context.state()

    def _fixed_stats(self) -> Stats:
        stats = self.context.native.stats()
        if (
            stats.bytes_archive
        ):  # what is in memory of it is the system's choice; room on the disk may have been taken before
            stats = replace(stats, bytes_tail=0, bytes_archive=1)
        return replace(stats, bytes_peak=0)


@pytest.fixture(params=STARTS)
def watched(open_context: MakeContext, request: pytest.FixtureRequest) -> Watched:
    return Watched(open_context(TINY, **OPTIONS), request.param)


@pytest.mark.parametrize("in_file", [False, True])
def test_an_allocation_that_fails(open_context: MakeContext, watched: Watched, tmp_path: Path, in_file: bool) -> None:
    folder = tmp_path if in_file else None
    for n in range(1, N_LIMIT):
        debug_alloc_fail(n)
        try:
            read(watched.context, folder=folder)
            break
        except NativeError as error:
            assert error.status == STATUS_NO_MEMORY
            assert "out of memory" in str(error)
        finally:
            debug_alloc_fail(0)
        watched.assert_unchanged()
    assert 2 <= n < N_LIMIT - 1, f"{n - 1} allocations failed"
    cut(watched.context.llama, watched.n_pos)
    watched.assert_reads_as_stock(open_context, folder=folder)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_reading_that_is_stopped(open_context: MakeContext, watched: Watched, kind: type[BaseException]) -> None:
    calls: list[tuple[int, int]] = []

    def stop(n_done: int, n_total: int) -> None:
        calls.append((n_done, n_total))
        if len(calls) == n_stop:
            raise kind("stopped here")

    n_batches = len(batch_sizes(N_READ, N_BATCH, N_BLOCK)) * TINY.n_layer
    for n_stop in range(1, n_batches + 1):
        calls.clear()
        with pytest.raises(kind, match="stopped here"):
            read(watched.context, on_progress=stop)
        assert len(calls) == n_stop
        watched.assert_unchanged()
    assert calls[-1] == (N_READ * TINY.n_layer, N_READ * TINY.n_layer)
    assert calls == sorted(set(calls))
    watched.assert_reads_as_stock(open_context)


def stop_at(n: int) -> Callable[[], bool]:
    """True when it is asked for the n-th time."""
    numbers = count(1)
    return lambda: next(numbers) == n


def test_reading_that_is_aborted(open_context: MakeContext, watched: Watched) -> None:
    whole, numbers = Watched(open_context(TINY, **OPTIONS), watched.start).context, count()
    with whole.native.abortable(lambda: next(numbers) < 0):
        read(whole)
    n_asked = next(numbers)
    assert n_asked > 300, "llama.cpp asks after each operation"
    for n in np.linspace(1, n_asked, 9, dtype=int).tolist():
        with watched.context.native.abortable(stop_at(n)), pytest.raises(NativeError, match="aborted") as error:
            read(watched.context)
        assert error.value.status == STATUS_COMPUTE
        watched.assert_unchanged()
    watched.assert_reads_as_stock(open_context)


# ---- places for the rows ----


@pytest.mark.parametrize("kind", ["missing", "a file"])
@pytest.mark.parametrize("start", ["empty", "whole"])
def test_a_folder_that_cannot_be_written(open_context: MakeContext, tmp_path: Path, start: str, kind: str) -> None:
    watched, folder = Watched(open_context(TINY, **OPTIONS), start), tmp_path / "none"
    if kind == "a file":
        folder.touch()
    with pytest.raises(NativeError, match=f"no file for rows can be made in {folder}: "):
        read(watched.context, folder=folder)
    watched.assert_unchanged()
    watched.assert_reads_as_stock(open_context)


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond it. Python ignores the signal that says so."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("start", ["empty", "whole"])
def test_a_file_that_may_not_grow(open_context: MakeContext, tmp_path: Path, start: str) -> None:
    watched = Watched(open_context(TINY, **OPTIONS), start)
    with (
        file_size_limit(1000),
        pytest.raises(NativeError, match=r"a file of .* MiB for rows cannot be made in") as error,
    ):
        read(watched.context, folder=tmp_path)
    assert error.value.status == STATUS_NO_MEMORY
    watched.assert_unchanged()
    assert not list(tmp_path.iterdir())
    watched.assert_reads_as_stock(open_context, folder=tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the rows of some tokens."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1280k", "none", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no small disk can be made: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs is a small disk")
@pytest.mark.parametrize("start", STARTS)
def test_a_disk_that_is_full(open_context: MakeContext, small_disk: Path, start: str) -> None:
    # 5 KiB a token: 100 of them fit, 250 do not
    wide = replace(TINY, head_size=256)
    context = open_context(wide, **OPTIONS)
    watched = Watched(context, start, folder=small_disk)
    with pytest.raises(NativeError, match=r"the disk has no room for .* MiB of rows, .* MiB are free") as error:
        read(context, folder=small_disk)
    assert error.value.status == STATUS_NO_MEMORY
    watched.assert_unchanged()
    context.read(TOKENS[watched.n_pos : watched.n_pos + 10], folder=small_disk)
    assert np.isfinite(context.last_logits()).all()


# ---- what is refused ----


def test_a_compressed_cache_is_not_read_on(open_context: MakeContext) -> None:
    context = open_context(TINY, **OPTIONS)
    context.llama.eval(TOKENS[:N_PAST])
    context.native.keep([range(0, 80, 3)] * sum(TINY.n_head_kv), 16)
    before, logits = context.native.stats(), next_logits(context)
    with pytest.raises(NativeError, match="the cache is compressed already"):
        read(context)
    assert replace(context.native.stats(), n_grow=0) == replace(before, n_grow=0)
    np.testing.assert_array_equal(next_logits(context), logits)


@pytest.mark.parametrize(
    ("tokens", "observe", "words"),
    [
        ([], None, "0 tokens after 100: the context has 512"),
        ([1] * 413, None, "413 tokens after 100: the context has 512"),
        ([1] * 20, Observe(21), "21"),
        ([1] * 20, Observe(40, n_ahead=19), "21|40"),
    ],
)
def test_arguments_that_cannot_be(
    open_context: MakeContext, tokens: list[int], observe: Observe | None, words: str
) -> None:
    watched = Watched(open_context(TINY, **OPTIONS), "whole")
    with pytest.raises(NativeError, match=words):
        watched.context.read(tokens, observe=observe)
    watched.assert_unchanged()
