"""Scores of the observation window, and the rows that are kept because of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyheadkv.engine.native import Compression
from pyheadkv.policy.retrieval_heads import HeadScoring
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, make_tokens
from tests.reference.attention import window_attention
from tests.reference.llama import forward, round_f16
from tests.reference.select import fold_heads, mix_vote, pool_positions, select_positions
from tests.tiny import Tiny, make_weights, write_tiny

N_POS = 210
# the first layer: stock reads Q and K in f16, and a rounding that falls the other way moves a logit of 10 by some 1e-3.
# The second has the errors of stock's attention in its input (9e-3 measured)
SCORE_ERRORS = (5e-3, 5e-2, 5e-2)

SHAPES = {
    "gqa1": Tiny(n_head=(3, 3), n_head_kv=(3, 3)),
    "gqa3": Tiny(n_head=(6, 6), n_head_kv=(2, 2), head_size=80),
    "gqa8": Tiny(n_head=(8, 8), n_head_kv=(1, 1), head_size=128),
    "unequal": Tiny(n_head=(6, 4, 8), n_head_kv=(2, 4, 1)),
}
SCORERS = {
    "plain": Scorer(n_obs=16, pool_kernel=1),
    "snapkv": Scorer(n_obs=16, pool_kernel=7),
    "max-fold": Scorer(n_obs=16, pool_kernel=5, fold="max"),
    "avg-pool": Scorer(n_obs=16, pool_kernel=21, pool="avg"),
    "one-query": Scorer(n_obs=1, pool_kernel=3),
    "wide": Scorer(n_obs=97, pool_kernel=255, fold="max", pool="avg"),
}


def reference_scores(tiny: Tiny, tokens: list[int], scorer: Scorer) -> list[np.ndarray]:
    """Folded and pooled scores of each layer, [n_head_kv, n_pos - n_obs]."""
    truth = forward(tiny, make_weights(tiny), tokens, is_f16=True)
    scores = []
    for q, k in zip(truth.q, truth.k, strict=True):
        attn = window_attention(round_f16(q), k, scorer.n_obs)
        folded = fold_heads(attn, k.shape[1], scorer.fold)
        scores.append(pool_positions(folded, scorer.pool_kernel, scorer.pool))
    return scores


def score_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the score itself, small scores counted as a tenth of the mean."""
    return float((np.abs(scores - truth) / (truth + truth.mean() / 10)).max())


def scored(context: Context, tokens: list[int], scorer: Scorer) -> list[np.ndarray]:
    context.arm_and_decode(tokens, scorer.n_obs)
    return [context.native.score_read(i, scorer) for i in range(len(context.native.layers()))]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_window_attention(open_context: MakeContext, shape: str, scorer: str) -> None:
    tiny, tokens = SHAPES[shape], make_tokens(N_POS, 64)
    scores = scored(open_context(tiny), tokens, SCORERS[scorer])
    truth = reference_scores(tiny, tokens, SCORERS[scorer])
    for il in range(tiny.n_layer):
        assert scores[il].shape == (tiny.n_head_kv[il], N_POS - SCORERS[scorer].n_obs)
        assert score_error(scores[il], truth[il]) < SCORE_ERRORS[il], f"layer {il}"


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("n_ubatch", [64, 5])
def test_attention_of_each_query_head(open_context: MakeContext, n_ubatch: int, reduce: str) -> None:
    tiny, tokens, n_obs = SHAPES["unequal"], make_tokens(N_POS, 64), 16
    context = open_context(tiny, n_ubatch=n_ubatch)
    context.decode(tokens[:-n_obs])
    context.native.observe(n_obs, f"attn_{reduce}")
    context.decode(tokens[-n_obs:])
    truth = forward(tiny, make_weights(tiny), tokens, is_f16=True)
    for il, (q, k) in enumerate(zip(truth.q, truth.k, strict=True)):
        attention = context.native.attention_read(il, n_obs)
        assert attention.shape == (tiny.n_head[il], N_POS - n_obs)
        expected = window_attention(round_f16(q), k, n_obs, reduce)
        assert score_error(attention, expected) < SCORE_ERRORS[il], f"layer {il}"


@pytest.mark.parametrize("cache_type", ["f32", "bf16", "q8_0"])
def test_scores_of_other_cache_types(open_context: MakeContext, cache_type: str) -> None:
    tiny, tokens, scorer = SHAPES["unequal"], make_tokens(N_POS, 64), SCORERS["snapkv"]
    scores = scored(open_context(tiny, cache_type=cache_type), tokens, scorer)
    limit = {"f32": 0, "bf16": 0.1, "q8_0": 0.2}[cache_type]  # what the rows lose themselves
    for il, truth in enumerate(reference_scores(tiny, tokens, scorer)):
        assert score_error(scores[il], truth) < limit + SCORE_ERRORS[il], f"layer {il}"


@pytest.mark.parametrize("sizes", [(1,) * 16, (3, 13), (7, 1, 8)], ids=str)
def test_window_may_lie_in_several_batches(open_context: MakeContext, sizes: tuple[int, ...]) -> None:
    tiny, tokens, scorer = SHAPES["unequal"], make_tokens(N_POS, 64), SCORERS["snapkv"]
    context = open_context(tiny, n_ubatch=5)
    context.decode(tokens[: N_POS - scorer.n_obs])
    context.native.observe(scorer.n_obs)
    for n in sizes:
        context.decode(tokens[context.n_pos : context.n_pos + n])
    for il, truth in enumerate(reference_scores(tiny, tokens, scorer)):
        assert score_error(context.native.score_read(il, scorer), truth) < SCORE_ERRORS[il], f"layer {il}"


def test_observed_batch_has_the_logits_of_stock(open_context: MakeContext) -> None:
    tokens = make_tokens(N_POS, 64)
    stock = open_context(SHAPES["unequal"], attach=False)
    logits = np.concatenate([stock.decode(tokens[:-16]), stock.decode(tokens[-16:])])
    np.testing.assert_array_equal(open_context(SHAPES["unequal"]).arm_and_decode(tokens, 16), logits)


ROWS = {
    "floors": lambda n_heads, floor: [floor] * n_heads,
    "mixed": lambda n_heads, floor: [floor + extra for extra in (0, 1, 17, 97, 50, 3, 190)][:n_heads],
    "all": lambda n_heads, floor: [N_POS] * n_heads,
}


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_sink", [0, 4])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scorer", ["plain", "snapkv", "max-fold", "avg-pool"])
def test_kept_positions_are_sinks_and_best_scores(
    open_context: MakeContext, scorer: str, rows: str, n_sink: int, n_threads: int
) -> None:
    tiny, tokens, how = SHAPES["unequal"], make_tokens(N_POS, 64), SCORERS[scorer]
    context = open_context(tiny)
    scores = scored(context, tokens, how)
    wanted = [min(n, N_POS) for n in ROWS[rows](sum(tiny.n_head_kv), n_sink + how.n_obs)]
    context.native.compress(Compression(np.array(wanted), how, n_sink, n_threads))

    rows_of = iter(wanted)
    for il, layer in enumerate(context.kept()):
        for ih, kept in enumerate(layer):
            n_prefix = next(rows_of) - how.n_obs
            np.testing.assert_array_equal(kept, select_positions(scores[il][ih], n_sink, n_prefix))
            assert len(kept) == n_prefix
            assert (np.diff(kept) > 0).all()
            np.testing.assert_array_equal(kept[:n_sink], np.arange(n_sink))
    stats = context.native.stats()
    assert (stats.n_pos, stats.n_pos_hot, stats.n_cells_used) == (N_POS, N_POS - how.n_obs, how.n_obs)
    assert stats.n_rows_hot + stats.n_rows_tail == sum(wanted)


ROLES = {
    "own kernels": HeadScoring((1, 3, 21, 5, 7, 1, 9), (1.0,) * 7, (0.0,) * 7, 1),
    "all heed": HeadScoring((7,) * 7, (0.1, 0.2, 0.0, 0.3, 0.1, 0.2, 0.1), (0.5,) * 7, 7),
    "some heed": HeadScoring(
        (1, 1, 21, 21, 1, 21, 1), (3.0, 0.0, 1.0, 5.0, 0.0, 2.0, 0.5), (0, 0, 0.25, 0.5, 0, 1, 0), 21
    ),
    "nobody's vote": HeadScoring((3,) * 7, (0.0,) * 7, (0.5,) * 7, 3),
}


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("scorer", ["plain", "max-fold", "avg-pool"])
def test_heads_heed_the_vote(open_context: MakeContext, scorer: str, roles: str, n_threads: int) -> None:
    tiny, tokens, n_sink, who = SHAPES["unequal"], make_tokens(N_POS, 64), 4, ROLES[roles]
    how = SCORERS[scorer]
    context = open_context(tiny)
    context.arm_and_decode(tokens, how.n_obs)
    raw = [context.native.score_read(i, replace(how, pool_kernel=1)).astype(float) for i in range(tiny.n_layer)]
    weights = np.array(who.vote_weights) if any(who.vote_weights) else np.full(7, 1e-30)  # no votes weigh nothing
    vote_shares = np.array(who.vote_shares) if any(who.vote_weights) else np.zeros(7)
    scores = mix_vote(raw, weights, vote_shares, list(who.pool_kernels), who.vote_kernel, n_sink, how.pool)
    wanted = [30, 50, 25, 60, 100, 210, 77]
    context.native.compress(Compression(np.array(wanted), how, n_sink, n_threads, who))
    rows_of = iter(wanted)
    for il, layer in enumerate(context.kept()):
        for ih, kept in enumerate(layer):
            n_prefix = next(rows_of) - how.n_obs
            expected = select_positions(scores[il][ih], n_sink, n_prefix)
            np.testing.assert_array_equal(kept, expected, err_msg=f"layer {il} head {ih}")


@pytest.mark.parametrize("is_observed", [False, True])
def test_scores_made_elsewhere(open_context: MakeContext, is_observed: bool) -> None:
    tiny, tokens, how, n_sink, who = SHAPES["unequal"], make_tokens(N_POS, 64), SCORERS["snapkv"], 4, ROLES["some heed"]
    context = open_context(tiny)
    if is_observed:  # the window's own scores are not looked at
        context.arm_and_decode(tokens, how.n_obs)
    else:
        context.decode(tokens)
    rng = np.random.default_rng(8)
    raw = [rng.random((n, N_POS - how.n_obs), dtype=np.float32) for n in tiny.n_head_kv]
    vote_shares = np.array(who.vote_shares)
    scores = mix_vote(
        raw, np.array(who.vote_weights), vote_shares, list(who.pool_kernels), who.vote_kernel, n_sink, how.pool
    )
    wanted = [30, 50, 25, 60, 100, 210, 77]
    context.native.compress(Compression(np.array(wanted), how, n_sink, 1, who, raw))
    rows_of = iter(wanted)
    for il, layer in enumerate(context.kept()):
        for ih, kept in enumerate(layer):
            expected = select_positions(scores[il][ih], n_sink, next(rows_of) - how.n_obs)
            np.testing.assert_array_equal(kept, expected, err_msg=f"layer {il} head {ih}")


def test_compressed_by_scores_is_kept_by_positions(open_context: MakeContext) -> None:
    tiny, tokens, how = SHAPES["unequal"], make_tokens(N_POS + 40, 64), SCORERS["snapkv"]
    chosen, given = open_context(tiny), open_context(tiny)
    scored(chosen, tokens[:N_POS], how)
    chosen.native.compress(Compression(np.array([30, 50, 20, 20, 100, 210, 77]), how, 4))
    given.arm_and_decode(tokens[:N_POS], how.n_obs)
    given.native.keep([head for layer in chosen.kept() for head in layer], how.n_obs)
    np.testing.assert_array_equal(given.decode_each(tokens[N_POS:]), chosen.decode_each(tokens[N_POS:]))


def test_equal_scores_go_to_the_lower_position(open_context: MakeContext, tmp_path) -> None:
    tiny = Tiny(n_head=(4, 4), n_head_kv=(2, 2))
    weights = make_weights(tiny)
    for il in range(tiny.n_layer):
        weights[f"blk.{il}.attn_q"] = np.zeros_like(weights[f"blk.{il}.attn_q"])  # every logit is 0
    context = open_context(write_tiny(tmp_path / "constant.gguf", tiny, weights))
    scores = scored(context, make_tokens(N_POS, 64), SCORERS["plain"])
    assert all((layer == layer[0, 0]).all() for layer in scores)
    context.native.compress(Compression(np.array([20, 36, 117, 210]), SCORERS["plain"], 4))
    for kept, n in zip((head for layer in context.kept() for head in layer), (4, 20, 101, 194), strict=True):
        np.testing.assert_array_equal(kept, np.arange(n))
