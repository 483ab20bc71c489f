"""An archive kept beside a compressed cache: whole again, to the bit, and chosen from anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.llama import cut
from pyheadkv.engine.native import Compression, Observe
from pyheadkv.errors import NativeError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, make_tokens
from tests.e2e.sweep import decode_batches, differences
from tests.tiny import Tiny

TINY = Tiny(n_head=(4, 2, 2), n_head_kv=(2, 2, 1))
N_HEADS = sum(TINY.n_head_kv)
TOKENS = make_tokens(900, TINY.n_vocab)
N_PROMPT, N_ANSWER, N_NEXT = 300, 40, 60
HOW = Scorer(n_obs=16)
OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 48, "logits_all": False}
ROWS = np.full(N_HEADS, 60)


def read_and_compress(context: Context, tokens: list[int], folder: Path | None) -> None:
    context.read(tokens, observe=Observe(HOW.n_obs), folder=folder)
    context.native.compress(Compression(ROWS, HOW, 4))


def answer(context: Context, first: int = N_PROMPT, n: int = N_ANSWER) -> None:
    decode_batches(context, TOKENS[first : first + n], [1] * n)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


def open_kept(open_context: MakeContext, cache_type: str = "f16") -> Context:
    context = open_context(TINY, **OPTIONS, n_cells=64, cache_type=cache_type)
    context.native.keep_archive(True)
    return context


def stock_of(open_context: MakeContext, tokens: list[int], cache_type: str = "f16") -> Context:
    """Has read the prompt, and all other tokens in one batch."""
    stock = open_context(TINY, **OPTIONS, attach=False, cache_type=cache_type)
    for part in (tokens[:N_PROMPT], tokens[N_PROMPT:]):
        if part:
            stock.llama.eval(part)
    return stock


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
def test_a_follow_up_is_that_of_a_whole_cache(open_context: MakeContext, folder: Path | None, cache_type: str) -> None:
    """The answer is read again with the next question."""
    ours = open_kept(open_context, cache_type)
    read_and_compress(ours, TOKENS[:N_PROMPT], folder)
    assert ours.native.stats().n_pos_archive == N_PROMPT
    answer(ours)
    ours.native.reopen(N_PROMPT)
    ours.llama.n_tokens = N_PROMPT
    rest = TOKENS[N_PROMPT : N_PROMPT + N_ANSWER + N_NEXT]
    stock = stock_of(open_context, TOKENS[: N_PROMPT + len(rest)], cache_type)
    ours.read(rest, folder=folder)
    assert not differences(stock, ours, TOKENS[-1])


def test_hot_rows_are_those_of_a_whole_cache(open_context: MakeContext, folder: Path | None) -> None:
    n = N_PROMPT + N_ANSWER + N_NEXT
    ours, whole = open_kept(open_context), open_context(TINY, **OPTIONS)
    read_and_compress(ours, TOKENS[:N_PROMPT], folder)
    answer(ours)
    ours.native.reopen(N_PROMPT)
    ours.llama.n_tokens = N_PROMPT
    read_and_compress(ours, TOKENS[N_PROMPT:n], folder)

    whole.llama.eval(TOKENS[:N_PROMPT])
    whole.llama.eval(TOKENS[N_PROMPT : n - HOW.n_obs])
    whole.native.observe(HOW.n_obs)
    whole.llama.eval(TOKENS[n - HOW.n_obs : n])
    whole.native.compress(Compression(ROWS, HOW, 4))
    for mine, theirs in zip(ours.kept(), whole.kept(), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    for token in TOKENS[-5:]:
        for context in (ours, whole):
            context.llama.eval([token])
        np.testing.assert_array_equal(ours.last_logits(), whole.last_logits())


def test_rows_as_generated_are_kept(open_context: MakeContext, folder: Path | None) -> None:
    ours = open_kept(open_context)
    read_and_compress(ours, TOKENS[:N_PROMPT], folder)
    answer(ours)
    before = ours.native.stats()
    ours.native.reopen(before.n_pos)
    stats = ours.native.stats()
    assert (stats.n_pos, stats.n_pos_hot, stats.n_cells_used) == (N_PROMPT + N_ANSWER, 0, N_PROMPT + N_ANSWER)
    assert stats.bytes_hot == 0 and stats.n_pos_archive == stats.n_pos
    # the prompt's rows are stock's, the answer's are not
    stock = stock_of(open_context, TOKENS[: N_PROMPT + N_ANSWER])
    cut(stock.llama, N_PROMPT)
    state = ours.state()
    cut(ours.llama, N_PROMPT)
    np.testing.assert_array_equal(ours.state(), stock.state())
    assert state.size > stock.state().size
    stock.llama.eval(TOKENS[-3:])
    ours.read(TOKENS[-3:], folder=folder)
    assert not differences(stock, ours, TOKENS[0])


@pytest.mark.parametrize("n_left", [1, 100, N_PROMPT - HOW.n_obs - 1])
def test_a_cut_inside_the_hot_rows_reopens(open_context: MakeContext, folder: Path | None, n_left: int) -> None:
    ours = open_kept(open_context)
    read_and_compress(ours, TOKENS[:N_PROMPT], folder)
    answer(ours)
    cut(ours.llama, n_left)
    stats = ours.native.stats()
    assert (stats.n_pos, stats.n_pos_hot, stats.n_pos_archive) == (n_left, 0, n_left)
    stock = stock_of(open_context, TOKENS[:N_PROMPT])
    cut(stock.llama, n_left)
    following = TOKENS[500:600]
    stock.llama.eval(following)
    ours.read(following, folder=folder)
    assert not differences(stock, ours, TOKENS[-1])


def test_a_cut_in_the_tail_takes_rows_of_the_archive_too(open_context: MakeContext, folder: Path | None) -> None:
    """What is decoded at those positions then is not what was read there."""
    ours = open_kept(open_context)
    read_and_compress(ours, TOKENS[:N_PROMPT], folder)
    cut(ours.llama, N_PROMPT - 5)
    assert ours.native.stats().n_pos_archive == N_PROMPT - 5
    answer(ours, first=600, n=20)
    ours.native.reopen(N_PROMPT - 5)
    ours.llama.n_tokens = N_PROMPT - 5
    stock = stock_of(open_context, TOKENS[:N_PROMPT])
    cut(stock.llama, N_PROMPT - 5)
    stock.llama.eval(TOKENS[600:700])
    ours.read(TOKENS[600:700], folder=folder)
    assert not differences(stock, ours, TOKENS[-1])


def test_many_turns(open_context: MakeContext, tmp_path: Path) -> None:
    """Read, answer, cut anywhere: the whole cache is always stock's of the tokens that are left."""
    rng = np.random.default_rng(0)
    ours, stock = open_kept(open_context), open_context(TINY, **OPTIONS, attach=False)
    known = 0
    for _ in range(12):
        n_new = int(rng.integers(20, 120))
        if known + n_new > 900:
            known = int(rng.integers(1, 200))
        for context in (ours, stock):
            cut(context.llama, known)
        tokens = rng.integers(0, TINY.n_vocab, n_new).tolist()
        first = n_new - HOW.n_obs
        decode_batches(stock, tokens, [first, HOW.n_obs])
        ours.read(tokens, observe=Observe(HOW.n_obs), folder=tmp_path)
        known += n_new
        assert np.array_equal(stock.state(), ours.state())
        if known > 80:
            ours.native.compress(Compression(ROWS, HOW, 4))
            answer(ours, n=int(rng.integers(0, 30)))
            known = int(rng.integers(1, known + 1))
            ours.native.reopen(known)
            for context in (ours, stock):
                cut(context.llama, known)
            assert np.array_equal(stock.state(), ours.state())


# ---- what is refused, and what fails ----


def test_without_an_archive_nothing_is_opened(open_context: MakeContext, tmp_path: Path) -> None:
    context = open_context(TINY, **OPTIONS)
    for is_kept in (False, True):
        context.native.keep_archive(is_kept)
        with pytest.raises(NativeError, match="no archive was kept"):
            context.native.reopen(0)
    context.native.keep_archive(False)
    read_and_compress(context, TOKENS[:N_PROMPT], tmp_path)
    assert context.native.stats().n_pos_archive == 0
    with pytest.raises(NativeError, match="no archive was kept"):
        context.native.reopen(10)


def test_more_positions_than_there_are(open_context: MakeContext, tmp_path: Path) -> None:
    context = open_kept(open_context)
    read_and_compress(context, TOKENS[:N_PROMPT], tmp_path)
    with pytest.raises(NativeError, match="301 positions are more than the 300 that there are"):
        context.native.reopen(N_PROMPT + 1)
    assert context.native.stats().n_pos_hot > 0


@pytest.mark.parametrize("end", ["clear", "forbid"])
def test_the_archive_goes(open_context: MakeContext, tmp_path: Path, end: str) -> None:
    context = open_kept(open_context)
    read_and_compress(context, TOKENS[:N_PROMPT], tmp_path)
    assert context.native.stats().bytes_archive > 0
    if end == "clear":
        cut(context.llama, 0)
    else:
        context.native.keep_archive(False)
    assert context.native.stats().bytes_archive == 0
    assert (context.native.stats().n_pos_hot > 0) == (end == "forbid")


# ---- rows as bytes ----


def copy_rows(source: Context, target: Context, n: int) -> None:
    for i in range(TINY.n_layer):
        for is_k in (False, True):
            for first in range(0, n, 128):
                rows = source.native.rows_get(i, is_k, first, min(128, n - first))
                target.native.rows_set(i, is_k, first, rows)


@pytest.mark.parametrize("kind", ["whole", "open", "parked"])
def test_rows_go_from_one_context_to_another(open_context: MakeContext, folder: Path | None, kind: str) -> None:
    source, target = open_kept(open_context), open_kept(open_context)
    if kind == "whole":
        source.llama.eval(TOKENS[:N_PROMPT])
    else:
        source.read(TOKENS[:N_PROMPT], observe=Observe(HOW.n_obs), folder=folder)
    if kind == "parked":
        source.native.compress(Compression(ROWS, HOW, 4))
        answer(source)
    target.native.rows_begin(TOKENS[:N_PROMPT], folder)
    copy_rows(source, target, N_PROMPT)
    target.llama.n_tokens = N_PROMPT
    stock = stock_of(open_context, TOKENS[:N_PROMPT])
    assert np.array_equal(stock.state(), target.state())
    stock.llama.eval(TOKENS[400:500])
    target.read(TOKENS[400:500], folder=folder)
    assert not differences(stock, target, TOKENS[-1])


def test_rows_that_are_not_there(open_context: MakeContext, tmp_path: Path) -> None:
    context = open_kept(open_context)
    with pytest.raises(NativeError, match="positions 0 to 1 of layer 0: there are 0 positions"):
        context.native.rows_get(0, True, 0, 1)
    context.llama.eval(TOKENS[:10])
    with pytest.raises(NativeError, match="rows can be set in an archive alone"):
        context.native.rows_set(0, True, 0, context.native.rows_get(0, True, 0, 10))
    with pytest.raises(NativeError, match="the cache holds 10 positions already"):
        context.native.rows_begin(TOKENS[:10])
    other = open_kept(open_context)
    other.native.rows_begin(TOKENS[:10], tmp_path)
    with pytest.raises(NativeError, match="12 bytes for 3 rows of"):
        other.native.rows_set(0, True, 0, np.zeros((3, 4), dtype=np.uint8))


def test_rows_of_a_compressed_cache_without_an_archive(open_context: MakeContext) -> None:
    context = open_context(TINY, **OPTIONS)
    read_and_compress(context, TOKENS[:N_PROMPT], None)
    with pytest.raises(NativeError, match="no archive was kept of it"):
        context.native.rows_get(0, True, 0, 10)
