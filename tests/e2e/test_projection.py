"""Scores that look through the output projection, and what KV heads see, against NumPy."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from pyheadkv.engine.native import Compression
from pyheadkv.errors import NativeError
from pyheadkv.policy.retrieval_heads import HeadScoring
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens
from tests.e2e.test_scorers import ERRORS, N_POS, N_SINK, SHAPES, observe, output_projection, spread_error
from tests.reference import score as reference
from tests.reference.llama import forward, round_f16
from tests.reference.select import select_positions
from tests.tiny import Tiny, make_weights, write_tiny

CRITICAL = Scorer("criticalkv", n_obs=8, pool_kernel=3)
DEFENSIVE = Scorer("layer_defensive", n_obs=8, pool_kernel=5, pool="avg")
WANTED = [30, 50, 25, 60, 100, 210, 77]

# relative difference of scores that may change places: values are f16 or quantised, weights f32
NEAR_TIES = {"f16": 0.02, "q8_0": 0.05}


def assert_best(kept: np.ndarray, score: np.ndarray, n_protected: int, near_tie: float) -> None:
    """The kept positions are the highest scores, but for those that are nearly equal to the lowest kept one."""
    expected = select_positions(score, n_protected, len(kept))
    edge = score[expected[expected >= n_protected]].min() if len(expected) > n_protected else np.inf
    swapped = np.setxor1d(kept, expected)
    assert (np.abs(score[swapped] - edge) <= near_tie * edge).all(), f"{swapped} changed places"


@pytest.mark.parametrize(("cache_type", "n_threads"), [("f16", 1), ("f16", 3), ("q8_0", 1)])
@pytest.mark.parametrize("head_size", [64, 80, 128])
def test_criticalkv_keeps_the_best_in_two_stages(
    open_context: MakeContext, head_size: int, cache_type: str, n_threads: int
) -> None:
    if cache_type == "q8_0" and head_size == 80:
        head_size = 96  # rows are whole blocks; not a multiple of 64, so that nothing is mixed
    shape = Tiny(n_head=(6, 4, 8), n_head_kv=(2, 4, 1), head_size=head_size)
    tokens, n_pos = make_tokens(N_POS, 64), N_POS - CRITICAL.n_obs
    context = open_context(shape, cache_type=cache_type, n_threads=n_threads)
    observe(context, tokens, CRITICAL)
    scores = [context.native.score_read(i, CRITICAL).astype(np.float64) for i in range(shape.n_layer)]
    context.native.compress(Compression(np.array(WANTED), CRITICAL, N_SINK, n_threads))
    truth = forward(shape, make_weights(shape), tokens, is_f16=True)
    rows_of = iter(WANTED)
    for il, layer in enumerate(context.kept()):
        keeps = [next(rows_of) - CRITICAL.n_obs for _ in layer]
        score = scores[il].copy()
        score[:, :N_SINK] = np.inf  # they are kept anyway, and take no part in either stage
        n_forced = [N_SINK + (n - N_SINK) // 2 for n in keeps]
        second = reference.criticalkv(score, truth.v[il], output_projection(shape, il), n_forced)
        for ih, kept in enumerate(layer):
            assert len(kept) == keeps[ih] and (np.diff(kept) > 0).all()
            assert_best(kept, second[ih][:n_pos], N_SINK, NEAR_TIES[cache_type])
            # not the same as by score alone, so that the test can fail
        if il == 0:
            alone = select_positions(scores[0][0], N_SINK, keeps[0])
            assert len(np.setxor1d(layer[0], alone)) > 2


def test_defensive_first_positions(open_context: MakeContext) -> None:
    tiny, tokens, n_forced = SHAPES["unequal"], make_tokens(N_POS, 64), 20
    context = open_context(tiny)
    observe(context, tokens, DEFENSIVE)
    truth = forward(tiny, make_weights(tiny), tokens, is_f16=True)
    q, k, v = round_f16(truth.q[0]), truth.k[0], truth.v[0]
    expected = reference.layer_defensive(q, k, v, output_projection(tiny, 0), DEFENSIVE.n_obs, n_forced)
    found, plain = (context.native.score_read(0, DEFENSIVE, n) for n in (n_forced, 0))
    is_first, truly_first = (scores == np.float32(reference.FIRST) for scores in (found, expected))
    assert (is_first.sum(axis=1) == n_forced).all() and (is_first ^ truly_first).sum() <= 2
    np.testing.assert_array_equal(found[~is_first], plain[~is_first])
    assert not (plain == np.float32(reference.FIRST)).any()


def test_defensive_rows_are_the_highest_scores(open_context: MakeContext) -> None:
    tiny, tokens = SHAPES["unequal"], make_tokens(N_POS, 64)
    context = open_context(tiny, n_ubatch=5)  # the window lies in two ubatches
    observe(context, tokens, DEFENSIVE)
    scores = [context.native.score_read(i, DEFENSIVE, 20) for i in range(tiny.n_layer)]
    context.native.compress(Compression(np.array(WANTED), DEFENSIVE, N_SINK, n_forced_max=20))
    rows_of = iter(WANTED)
    for il, layer in enumerate(context.kept()):
        for ih, kept in enumerate(layer):
            expected = select_positions(scores[il][ih], N_SINK, next(rows_of) - DEFENSIVE.n_obs)
            np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("n_top", [256, 40, 1])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_what_heads_see(open_context: MakeContext, cache_type: str, n_top: int) -> None:
    tiny, tokens, scorer = SHAPES["unequal"], make_tokens(N_POS, 64), Scorer(n_obs=32)
    context = open_context(tiny, cache_type=cache_type)
    observe(context, tokens, scorer)
    truth = forward(tiny, make_weights(tiny), tokens, is_f16=True)
    for il in range(tiny.n_layer):
        seen = context.native.semantics_read(il, n_top)
        expected = reference.semantics(round_f16(truth.q[il]), truth.k[il], truth.v[il], scorer.n_obs, n_top)
        assert seen.shape == expected.shape
        if cache_type == "q8_0":  # elements are mixed, lengths are not
            seen, expected = (np.linalg.norm(x, axis=1, keepdims=True) for x in (seen, expected))
        # behind a quantised cache another position may be the first
        limit = 0.02 if cache_type == "f16" or il == 0 else 0.15
        np.testing.assert_allclose(seen, expected, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "F16"])
def test_quantised_projection(open_context: MakeContext, tmp_path: Path, name: str) -> None:
    """Weights that a backend may keep in an order of its own (Q4_0) are asked for by products alone."""
    tiny, tokens, kind = SHAPES["unequal"], make_tokens(N_POS, 64), gguf.GGMLQuantizationType[name]
    weights = make_weights(tiny)
    names = [f"blk.{il}.attn_output" for il in range(tiny.n_layer)]
    context = open_context(write_tiny(tmp_path / "quantised.gguf", tiny, types=dict.fromkeys(names, kind)))
    observe(context, tokens, DEFENSIVE)
    stored = gguf.dequantize(gguf.quantize(weights[names[0]], kind), kind).astype(np.float64)
    truth = forward(tiny, weights, tokens, is_f16=True)
    wo = stored.T.reshape(tiny.n_head[0], tiny.head_size, tiny.n_embd)
    q, k, v = round_f16(truth.q[0]), truth.k[0], truth.v[0]
    expected = reference.layer_defensive(q, k, v, wo, DEFENSIVE.n_obs, 0)
    assert spread_error(context.native.score_read(0, DEFENSIVE), expected) < ERRORS[0]


@pytest.mark.parametrize("scorer", [CRITICAL, DEFENSIVE], ids=["criticalkv", "layer_defensive"])
def test_vote_by_defensive_scores_is_refused(open_context: MakeContext, scorer: Scorer) -> None:
    context = open_context(SHAPES["unequal"])
    observe(context, make_tokens(N_POS, 64), scorer)
    scoring = HeadScoring((1,) * 7, (1.0,) * 7, (0.5,) * 7, 3)
    if scorer is CRITICAL:
        context.native.compress(Compression(np.full(7, 50), scorer, N_SINK, 1, scoring))
        return
    with pytest.raises(NativeError, match="heads cannot vote by defensive scores"):
        context.native.compress(Compression(np.full(7, 50), scorer, N_SINK, 1, scoring))
    assert context.native.stats().n_pos_hot == 0
