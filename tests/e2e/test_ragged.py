"""A ragged prefix: fused kernel = unfused graph = NumPy, whatever the lengths, cache types, groups and head sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyheadkv.model.shape import CACHE_TYPES
from tests.e2e.conftest import MakeContext
from tests.e2e.context import relative_error
from tests.e2e.ragged import N_POS, N_PREFIX, chat_tokens, compressed, make_kept, run_ragged
from tests.reference.llama import forward
from tests.tiny import Tiny, make_weights

GROUPS = (1, 3, 4, 8)
HEAD_SIZES = (64, 80, 96, 128, 256)
LENGTHS = (17, 0, 97, 1)

# one layer, whose rows do not depend on earlier attention: the kernel adds up in f32 (5e-6 measured with an f32 cache);
# an f16 cache rounds a few elements of K, V and Q the other way than float64 does (3e-5 measured)
FUSED_ERROR = {"f32": 3e-5, "f16": 2e-4}
# the unfused graph rounds all rows to f16 (6e-4 measured)
COMPOSED_ERROR = 2e-3
# three layers: stock attention reads the prompt, in f16 (1.4e-3 measured)
LAYERS_ERROR = 5e-3
# keeping all rows instead moves the answer by half its size, so a wrong row cannot hide in the errors above
EFFECT = 0.2


def one_layer(n_gqa: int, head_size: int) -> Tiny:
    return Tiny(n_head=(4 * n_gqa,), n_head_kv=(4,), head_size=head_size)


@pytest.mark.parametrize("cache_type", FUSED_ERROR)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("n_gqa", GROUPS)
def test_fused_is_reference(open_context: MakeContext, n_gqa: int, head_size: int, cache_type: str) -> None:
    tiny = one_layer(n_gqa, head_size)
    tokens, kept = chat_tokens(tiny), make_kept(tiny, LENGTHS, seed=n_gqa)
    is_f16 = cache_type == "f16"
    truth = forward(tiny, make_weights(tiny), tokens, compressed(kept), is_f16=is_f16).logits[N_POS:]
    logits = run_ragged(open_context(tiny, cache_type=cache_type), tokens, kept)
    assert relative_error(logits, truth) < FUSED_ERROR[cache_type]


@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_fused_is_composed(open_context: MakeContext, cache_type: str, head_size: int) -> None:
    block = CACHE_TYPES[cache_type].block_elems
    if head_size % block:
        pytest.skip(f"head size {head_size} is not a multiple of the {cache_type} block of {block}")
    tiny = one_layer(GROUPS[head_size // 16 % len(GROUPS)], head_size)
    tokens, kept = chat_tokens(tiny), make_kept(tiny, LENGTHS)
    fused, unfused = (
        run_ragged(open_context(tiny, cache_type=cache_type), tokens, kept, attention)
        for attention in ("fused", "unfused")
    )
    assert relative_error(fused, unfused) < COMPOSED_ERROR


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q4_0"), ("f16", "q8_0"), ("q5_1", "f16")])
def test_different_types_of_k_and_v(open_context: MakeContext, type_k: str, type_v: str) -> None:
    types = {"type_k": CACHE_TYPES[type_k].ggml_type, "type_v": CACHE_TYPES[type_v].ggml_type}
    tiny = one_layer(4, 64)
    tokens, kept = chat_tokens(tiny), make_kept(tiny, LENGTHS)
    fused, unfused = (
        run_ragged(open_context(tiny, **types), tokens, kept, attention) for attention in ("fused", "unfused")
    )
    assert relative_error(fused, unfused) < COMPOSED_ERROR


UNEQUAL = {
    "equal": Tiny(n_head=(6, 6, 6), n_head_kv=(2, 2, 2)),
    "unequal": Tiny(n_head=(6, 4, 8), n_head_kv=(2, 4, 1), head_size=96),
}


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("cache_type", ["f32", "f16"])
@pytest.mark.parametrize("shape", UNEQUAL)
def test_several_layers_are_reference(open_context: MakeContext, shape: str, cache_type: str, attention: str) -> None:
    tiny, is_f16 = UNEQUAL[shape], cache_type == "f16"
    tokens, kept, weights = chat_tokens(tiny), make_kept(tiny, LENGTHS), make_weights(tiny)
    truth = forward(tiny, weights, tokens, compressed(kept), is_f16=is_f16).logits[N_POS:]
    everything = forward(tiny, weights, tokens, is_f16=is_f16).logits[N_POS:]
    logits = run_ragged(open_context(tiny, cache_type=cache_type), tokens, kept, attention)
    assert relative_error(logits, truth) < LAYERS_ERROR
    assert relative_error(everything, truth) > EFFECT


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("lengths", [(0,), (1,), (N_PREFIX,), (0, N_PREFIX), (0, 0, 0, 1)], ids=str)
def test_extreme_lengths_are_reference(open_context: MakeContext, lengths: tuple[int, ...], attention: str) -> None:
    tiny = one_layer(3, 64)
    tokens, kept = chat_tokens(tiny), make_kept(tiny, lengths)
    truth = forward(tiny, make_weights(tiny), tokens, compressed(kept)).logits[N_POS:]
    logits = run_ragged(open_context(tiny, cache_type="f32"), tokens, kept, attention)
    assert relative_error(logits, truth) < (FUSED_ERROR["f32"] if attention == "fused" else COMPOSED_ERROR)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_share_the_work_of_uneven_heads(open_context: MakeContext, n_threads: int) -> None:
    tiny = one_layer(4, 64)
    tokens, kept = chat_tokens(tiny), make_kept(tiny, (0, N_PREFIX, 1, 17))
    truth = forward(tiny, make_weights(tiny), tokens, compressed(kept)).logits[N_POS:]
    logits = run_ragged(open_context(tiny, cache_type="f32", n_threads=n_threads), tokens, kept)
    assert relative_error(logits, truth) < FUSED_ERROR["f32"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, N_PREFIX - 1)), min_size=4, max_size=4), st.integers(0, 3))
def test_any_positions_are_kept_and_attended(open_context: MakeContext, sets: list[set[int]], seed: int) -> None:
    tiny = Tiny(n_head=(8,), n_head_kv=(4,), seed=seed)
    kept = [[np.array(sorted(positions), dtype=np.int64) for positions in sets]]
    tokens = chat_tokens(tiny)[: N_POS + 3]
    context = open_context(tiny, cache_type="f32", n_ctx=256)
    context.decode(tokens[:N_POS])
    context.native.keep(kept[0], N_POS - N_PREFIX)
    for ih, positions in enumerate(kept[0]):
        np.testing.assert_array_equal(context.native.positions(0, ih), positions)
    truth = forward(tiny, make_weights(tiny), tokens, compressed(kept)).logits[N_POS:]
    assert relative_error(context.decode(tokens[N_POS:]), truth) < FUSED_ERROR["f32"]
