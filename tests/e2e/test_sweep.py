"""Reading layer by layer leaves what llama_decode of the same ubatches leaves, bit for bit: logits, rows, what follows.

Every run takes pairs of the parameters, -m slow takes all of them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.llama import cut
from pyheadkv.errors import NativeError
from pyheadkv.model.shape import CACHE_TYPES
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, make_tokens
from tests.e2e.sweep import batch_sizes, decode_batches, differences
from tests.e2e.test_full import text_tokens
from tests.tiny import Tiny

# quantised rows of 64 elements are rotated; the layers differ, and the last one is the shortest
TINY = Tiny(n_head=(4, 2, 2), n_head_kv=(2, 2, 1))
TOKENS = make_tokens(2200, TINY.n_vocab)

BATCHES = ((1, 1), (512, 1), (7, 7), (512, 7), (128, 128), (512, 128), (512, 512), (2048, 512))  # n_batch, n_ubatch
LENGTHS = (1, 2, 8, 255, 256, 257, 700, 2100)
THREADS = (1, 2)
ALL = tuple(itertools.product(CACHE_TYPES, LENGTHS, BATCHES, THREADS))
# each cache type with each length but the longest, batches in turns; batches with two threads; the longest
PAIRS = (
    *(
        (kind, n, BATCHES[(i + j) % len(BATCHES)], 1)
        for i, kind in enumerate(CACHE_TYPES)
        for j, n in enumerate(LENGTHS[:-1])
    ),
    *(("f16", 8, batches, 2) for batches in BATCHES[:4]),  # a small graph costs two threads of a busy machine much
    *((kind, n, batches, 2) for batches in BATCHES[4:] for kind, n in (("f16", 257), ("q8_0", 700))),
    *((kind, 2100, BATCHES[5], 1) for kind in ("f16", "q8_0")),
)


def open_pair(
    open_context: MakeContext, model: Tiny | Path, *, n_cells: int = 0, attach: bool = False, **options: object
) -> tuple[Context, Context]:
    """A stock context, and one that reads layer by layer."""
    same = {"n_ctx": 1024, "logits_all": False} | options  # of the last token alone, as reading layer by layer has them
    return open_context(model, attach=attach, **same), open_context(model, n_cells=n_cells, **same)


def check_prompt(open_context: MakeContext, kind: str, n: int, batches: tuple[int, int], n_threads: int) -> None:
    n_batch, n_ubatch = batches
    options = {"cache_type": kind, "n_ctx": 2304, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_threads": n_threads}
    stock, ours = open_pair(open_context, TINY, **options)
    stock.llama.eval(TOKENS[:n])
    ours.read(TOKENS[:n])
    assert not differences(stock, ours, TOKENS[n])


@pytest.mark.parametrize(("kind", "n", "batches", "n_threads"), PAIRS)
def test_reading_is_stock_bit_for_bit(
    open_context: MakeContext, kind: str, n: int, batches: tuple[int, int], n_threads: int
) -> None:
    check_prompt(open_context, kind, n, batches, n_threads)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n", "batches", "n_threads"), ALL)
def test_reading_is_stock_bit_for_bit_with_all_parameters(
    open_context: MakeContext, kind: str, n: int, batches: tuple[int, int], n_threads: int
) -> None:
    check_prompt(open_context, kind, n, batches, n_threads)


@pytest.mark.parametrize("n_layer", [1, 2, 9])
def test_any_number_of_layers_is_stock_bit_for_bit(open_context: MakeContext, n_layer: int) -> None:
    stock, ours = open_pair(open_context, Tiny(n_head=(4,) * n_layer, n_head_kv=(2,) * n_layer), n_batch=128)
    for first, end in ((0, 300), (300, 420)):
        stock.llama.eval(TOKENS[first:end])
        ours.read(TOKENS[first:end])
        assert not differences(stock, ours, TOKENS[end])
        for context in (stock, ours):
            cut(context.llama, end)


@pytest.mark.parametrize("n_threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_demo_model_is_stock_bit_for_bit(
    open_context: MakeContext, demo_path: Path, tmp_path: Path, n_threads: int
) -> None:
    stock, ours = open_pair(open_context, demo_path, n_threads=n_threads)
    tokens = text_tokens(stock, 701)
    stock.llama.eval(tokens[:700])
    ours.read(tokens[:700], folder=tmp_path)
    assert not differences(stock, ours, tokens[700])


def test_another_prompt_is_seen(open_context: MakeContext) -> None:
    """What the tests above compare differs when one token of 300 does."""
    stock, ours = open_pair(open_context, TINY)
    tokens = TOKENS[:300]
    stock.llama.eval(tokens)
    ours.read([(tokens[0] + 1) % TINY.n_vocab, *tokens[1:]])
    assert differences(stock, ours, TOKENS[300]) == ["logits", "rows", "next logits"]


def test_other_ubatches_are_seen(open_context: MakeContext) -> None:
    """Equal bits are those of equal ubatches: the comparison is narrow enough to tell others."""
    stock, ours = (open_context(TINY, n_ctx=1024, logits_all=False, n_ubatch=n) for n in (128, 100))
    stock.llama.eval(TOKENS[:300])
    ours.read(TOKENS[:300])
    assert "rows" in differences(stock, ours, TOKENS[300])


def test_asking_whether_it_can_be_done_changes_nothing(open_context: MakeContext) -> None:
    """A graph is built and not computed; the one that was computed last is not used again."""
    stock, ours = open_pair(open_context, TINY)
    for i, token in enumerate(TOKENS[:6]):
        for context in (stock, ours):
            context.llama.eval([token])
        if i % 2:
            assert ours.native.read_reason() == ""
        assert np.array_equal(stock.last_logits(), ours.last_logits())
    assert not differences(stock, ours, TOKENS[6])


# ---- outputs ----


def decode_with_outputs(context: Context, tokens: list[int], n_outputs: int) -> None:
    """llama_decode of one batch, whose last tokens have outputs."""
    import llama_cpp

    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for j, token in enumerate(tokens):
        batch.token[j], batch.pos[j], batch.n_seq_id[j], batch.seq_id[j][0] = token, context.n_pos + j, 1, 0
        batch.logits[j] = j + n_outputs >= len(tokens)
    assert llama_cpp.llama_decode(context.llama._ctx.ctx, batch) == 0
    llama_cpp.llama_batch_free(batch)
    context.llama.n_tokens += len(tokens)


def outputs(context: Context, numbers: Iterable[int]) -> list[np.ndarray]:
    """Logits and embeddings of tokens of the last batch."""
    import llama_cpp

    functions = [(llama_cpp.llama_get_logits_ith, TINY.n_vocab), (llama_cpp.llama_get_embeddings_ith, TINY.n_embd)]
    found = []
    for get, size in functions:
        for i in numbers:
            values = get(context.llama._ctx.ctx, i)
            assert values, f"token {i} has none"
            found.append(np.ctypeslib.as_array(values, (size,)).copy())
    return found


@pytest.mark.parametrize(("n", "n_outputs"), [(140, 1), (140, 12), (100, 100), (1, 1)])
def test_outputs_of_the_last_tokens(open_context: MakeContext, n: int, n_outputs: int) -> None:
    import llama_cpp

    stock, ours = open_pair(open_context, TINY, n_batch=128)
    for context in (stock, ours):
        llama_cpp.llama_set_embeddings(context.llama._ctx.ctx, True)
    tokens, n_first = TOKENS[:n], n - n % 128 if n > 128 else 0
    if n_first:
        decode_with_outputs(stock, tokens[:n_first], 0)
    decode_with_outputs(stock, tokens[n_first:], n_outputs)
    ours.read(tokens, n_outputs=n_outputs)
    numbers = range(n - n_first - n_outputs, n - n_first)
    for a, b in zip(outputs(stock, numbers), outputs(ours, numbers), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pooled_embeddings(open_context: MakeContext) -> None:
    import llama_cpp

    stock, ours = open_pair(open_context, TINY, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST)
    found = []
    for context in (stock, ours):
        llama_cpp.llama_set_embeddings(context.llama._ctx.ctx, True)
    decode_with_outputs(stock, TOKENS[:100], 100)
    ours.read(TOKENS[:100], n_outputs=100)
    for context in (stock, ours):
        values = llama_cpp.llama_get_embeddings_seq(context.llama._ctx.ctx, 0)
        found.append(np.ctypeslib.as_array(values, (TINY.n_embd,)).copy())
    np.testing.assert_array_equal(*found)


def test_tokens_that_llama_cpp_samples_itself(open_context: MakeContext) -> None:
    """Its sampler is a part of the graph then."""
    import llama_cpp

    stock, ours = open_pair(open_context, TINY)
    chains, found = [], []
    for context in (stock, ours):
        chains.append(llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params()))
        llama_cpp.llama_sampler_chain_add(chains[-1], llama_cpp.llama_sampler_init_greedy())
        assert llama_cpp.llama_set_sampler(context.llama._ctx.ctx, 0, chains[-1])
    decode_with_outputs(stock, TOKENS[:100], 1)
    ours.read(TOKENS[:100])
    for context, chain in zip((stock, ours), chains, strict=True):
        found.append(llama_cpp.llama_get_sampled_token_ith(context.llama._ctx.ctx, -1))
        context.close()
        llama_cpp.llama_sampler_free(chain)
    assert found[0] == found[1] >= 0


def test_more_outputs_than_a_batch_has(open_context: MakeContext) -> None:
    _, ours = open_pair(open_context, TINY, n_batch=128)
    with pytest.raises(NativeError, match="n_outputs = 13 tokens are to have logits: the last batch has 12"):
        ours.read(TOKENS[:140], n_outputs=13)
    assert ours.native.stats().n_pos == 0


@pytest.mark.parametrize("n", [1, 2, 129, 300])
def test_upstream_counts_each_token_once(open_context: MakeContext, n: int) -> None:
    import llama_cpp

    context = open_context(TINY, n_ctx=1024, n_batch=128, logits_all=False)
    context.llama.eval(TOKENS[:10])
    context.native.synchronize()
    before = llama_cpp.llama_perf_context(context.llama._ctx.ctx)
    context.read(TOKENS[10 : 10 + n])
    after = llama_cpp.llama_perf_context(context.llama._ctx.ctx)
    single = n == 1
    assert after.n_p_eval == before.n_p_eval + (0 if single else n)
    assert after.n_eval == 1  # what it says where there is none, too
    assert (after.t_p_eval_ms > before.t_p_eval_ms, after.t_eval_ms > before.t_eval_ms) == (not single, single)


# ---- behind what is there ----


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("n_cells", [0, 64])
@pytest.mark.parametrize("n_past", [1, 100, 256, 300])
def test_reading_goes_on_behind_a_whole_cache(open_context: MakeContext, n_past: int, n_cells: int, kind: str) -> None:
    stock, ours = open_pair(open_context, TINY, n_cells=n_cells, n_ubatch=64, cache_type=kind)
    for context in (stock, ours):
        context.llama.eval(TOKENS[:n_past])
    stock.llama.eval(TOKENS[n_past:500])
    ours.read(TOKENS[n_past:500])
    assert not differences(stock, ours, TOKENS[500])


def test_reading_in_several_calls(open_context: MakeContext, tmp_path: Path) -> None:
    stock, ours = open_pair(open_context, TINY, n_ubatch=64)
    first = 0
    for n in (1, 7, 250, 1, 300):
        stock.llama.eval(TOKENS[first : first + n])
        ours.read(TOKENS[first : first + n], folder=tmp_path)
        first += n
        assert np.array_equal(stock.last_logits(), ours.last_logits())
        assert np.array_equal(stock.state(), ours.state())
    assert not differences(stock, ours, TOKENS[first])


@pytest.mark.parametrize("n_left", [0, 1, 255, 256, 299])
def test_reading_again_behind_a_cut(open_context: MakeContext, n_left: int) -> None:
    stock, ours = open_pair(open_context, TINY, n_ubatch=64)
    stock.llama.eval(TOKENS[:300])
    ours.read(TOKENS[:300])
    for context in (stock, ours):
        cut(context.llama, n_left)
    others = TOKENS[400:650]
    stock.llama.eval(others)
    ours.read(others)
    assert not differences(stock, ours, TOKENS[650])


@pytest.mark.parametrize("seed", range(4))
def test_reading_evaluating_and_cutting_in_any_order(open_context: MakeContext, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_batch = int(rng.choice([64, 256]))
    stock, ours = open_pair(open_context, TINY, n_cells=64, n_batch=n_batch, n_ubatch=int(rng.choice([13, 64])))
    n_tokens = 0
    for _ in range(12):
        step, n = rng.choice(["read", "evaluate", "cut"]), int(rng.integers(1, 150))
        if step == "cut" or n_tokens + n >= 1000:
            n_tokens = int(rng.integers(0, n_tokens + 1))
            for context in (stock, ours):
                cut(context.llama, n_tokens)
            continue
        tokens = rng.integers(0, TINY.n_vocab, n).tolist()
        n_block = int(rng.integers(1, n + 1))
        sizes = batch_sizes(n, n_batch, n_block if step == "read" else 0)
        decode_batches(stock, tokens, sizes)
        if step == "read":
            ours.read(tokens, bytes_hidden=n_block * TINY.n_embd * 4, folder=tmp_path if seed % 2 else None)
        else:
            decode_batches(ours, tokens, sizes)
        n_tokens += n
        assert np.array_equal(stock.last_logits(), ours.last_logits())
        assert np.array_equal(stock.state(), ours.state())
    assert n_tokens == 0 or not differences(stock, ours, 1)


@pytest.mark.parametrize("n_block", [1, 5, 64, 100, 299, 300])
def test_blocks_of_tokens_are_batches_of_stock(open_context: MakeContext, tmp_path: Path, n_block: int) -> None:
    stock, ours = open_pair(open_context, TINY, n_batch=64, n_ubatch=48)
    tokens = TOKENS[:300]
    decode_batches(stock, tokens, batch_sizes(300, 64, n_block))
    ours.read(tokens, bytes_hidden=n_block * TINY.n_embd * 4, folder=tmp_path)
    assert not differences(stock, ours, TOKENS[300])


def test_a_context_can_be_filled(open_context: MakeContext) -> None:
    stock, ours = open_pair(open_context, TINY, n_ctx=512)
    stock.llama.eval(TOKENS[:512])
    ours.read(TOKENS[:512])
    assert np.array_equal(stock.state(), ours.state())
    with pytest.raises(NativeError, match="1 tokens after 512: the context has 512"):
        ours.read(TOKENS[:1])
