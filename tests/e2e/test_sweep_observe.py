"""Tokens that are read layer by layer observe what decoded ones do, and the same rows are kept, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.cache.reconstruct import Reconstruction
from pyheadkv.cache.select import Floats, compress
from pyheadkv.engine.abi import OBSERVES
from pyheadkv.engine.native import Native, Observe
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.allocators import allocator_names
from pyheadkv.policy.plan import DraftPlan, draft_plan
from pyheadkv.policy.policy import policy_names
from pyheadkv.policy.scorers import SCORERS, Scorer
from pyheadkv.policy.text import parse_policy
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, make_tokens
from tests.e2e.sweep import batch_sizes, decode_batches
from tests.e2e.test_golden import made_profile
from tests.tiny import Tiny

TINY = Tiny(n_head=(6, 4, 2), n_head_kv=(2, 4, 1))
TOKENS = make_tokens(400, TINY.n_vocab)
N_POS, N_SINK, N_TOP = 300, 4, 5
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_batch": 96, "n_ubatch": 48, "logits_all": False}
WINDOWS = {  # tokens that observe, of which so many are decoded later
    "window": (16, 0),
    "prompt": (N_POS, 0),
    "with lookahead": (24, 8),
    "lookahead alone": (8, 8),
    "prompt with lookahead": (N_POS + 8, 8),
}


def decode_observed(context: Context, tokens: list[int], observe: Observe) -> None:
    """What `Native.read` does, by llama_decode."""
    context.native.observe(observe.n_tokens, observe.what, len(tokens) - (observe.n_tokens - observe.n_ahead))
    decode_batches(context, tokens, batch_sizes(len(tokens), OPTIONS["n_batch"]))


def read_observed(
    open_context: MakeContext, observe: Observe, folder: Path | None = None, n_block: int = 0, **options: object
) -> tuple[Context, Context]:
    """The same prompt, decoded and read layer by layer, and what is decoded later."""
    decoded, read = (open_context(TINY, **OPTIONS | options) for _ in range(2))
    decode_observed(decoded, TOKENS[:N_POS], observe)
    read.read(TOKENS[:N_POS], observe=observe, folder=folder, bytes_hidden=n_block * TINY.n_embd * 4)
    for context in (decoded, read):
        decode_batches(context, TOKENS[N_POS : N_POS + observe.n_ahead], [1] * observe.n_ahead)
    return decoded, read


def gathered(native: Native, observe: Observe) -> list[np.ndarray]:
    """All that can be asked about what was observed."""
    layers = range(len(native.layers()))
    n_obs = observe.n_tokens if observe.n_tokens < N_POS else 16
    reduce = "max" if observe.what == "attn_max" else "mean"
    scorers = [Scorer(name, n_obs=n_obs, reduce=reduce) for name in SCORERS if name != "kvzip"]
    asked = [native.score_read(i, how, 20) for how in scorers if how.gathers in (observe.what, None) for i in layers]
    if observe.what.startswith("attn"):
        asked += [native.attention_read(i, observe.n_tokens) for i in layers]
        asked += [native.semantics_read(i, N_TOP) for i in layers]
    return asked


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("what", OBSERVES)
def test_what_is_gathered_is_that_of_decoding(
    open_context: MakeContext, tmp_path: Path, what: str, window: str, cache_type: str
) -> None:
    n_tokens, n_ahead = WINDOWS[window]
    observe = Observe(n_tokens, what, n_ahead)
    folder = tmp_path if cache_type == "f16" else None
    decoded, read = read_observed(open_context, observe, folder, cache_type=cache_type)
    assert_equal(gathered(read.native, observe), gathered(decoded.native, observe))
    np.testing.assert_array_equal(read.last_logits(), decoded.last_logits())
    np.testing.assert_array_equal(read.state(), decoded.state())


def test_another_prompt_is_observed_otherwise(open_context: MakeContext) -> None:
    """The comparison above can fail: one token of the prompt changed."""
    decoded, read = (open_context(TINY, **OPTIONS) for _ in range(2))
    decode_observed(decoded, TOKENS[:N_POS], Observe(16))
    read.read([(TOKENS[0] + 1) % TINY.n_vocab, *TOKENS[1:N_POS]], observe=Observe(16))
    for i in range(TINY.n_layer):
        assert not np.array_equal(read.native.attention_read(i, 16), decoded.native.attention_read(i, 16))


@pytest.mark.parametrize(("n_past", "n_threads"), [(0, 1), (100, 1), pytest.param(100, 2, marks=pytest.mark.slow)])
def test_observing_behind_what_is_there(open_context: MakeContext, tmp_path: Path, n_past: int, n_threads: int) -> None:
    """The window lies behind a cache that was decoded before, and in several blocks of hidden states."""
    observe = Observe(150, "attn_mean")
    decoded, read = (open_context(TINY, **OPTIONS, n_cells=64, n_threads=n_threads) for _ in range(2))
    for context in (decoded, read):
        decode_batches(context, TOKENS[:n_past], batch_sizes(n_past, OPTIONS["n_batch"]))
    rest = TOKENS[n_past:N_POS]
    n_block = 50
    decoded.native.observe(150, n_before=len(rest) - 150)
    decode_batches(decoded, rest, batch_sizes(len(rest), OPTIONS["n_batch"], n_block))
    read.read(rest, observe=observe, folder=tmp_path, bytes_hidden=n_block * TINY.n_embd * 4)
    assert_equal(gathered(read.native, observe), gathered(decoded.native, observe))
    np.testing.assert_array_equal(read.state(), decoded.state())


# ---- windows that begin within a batch ----


@pytest.mark.parametrize("n_obs", [1, 16, 100, 128, 129, 200])
@pytest.mark.parametrize("what", OBSERVES)
def test_a_window_within_a_batch(open_context: MakeContext, what: str, n_obs: int) -> None:
    """What observes is told apart from what stands before it in the batch.

    As in a batch of its own, though not bit for bit, since batches decide how upstream's kernels sum up.
    """
    options = OPTIONS | {"n_batch": 512, "n_ubatch": 512}
    alone, within = (open_context(TINY, **options) for _ in range(2))
    n_before = N_POS - n_obs
    decode_batches(alone, TOKENS[:n_before], batch_sizes(n_before, 512))
    alone.native.observe(n_obs, what)
    decode_batches(alone, TOKENS[n_before:N_POS], batch_sizes(n_obs, 512))
    within.native.observe(n_obs, what, n_before)
    decode_batches(within, TOKENS[:N_POS], batch_sizes(N_POS, 512))
    pairs = zip(*(gathered(context.native, Observe(n_obs, what)) for context in (alone, within)), strict=True)
    for expected, found in pairs:
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-2 * float(np.abs(expected).max()))


@pytest.mark.parametrize("n_obs", [1, 16, 100, 128, 129, 200])
def test_observing_changes_nothing(open_context: MakeContext, n_obs: int) -> None:
    """Logits and rows are those of stock; where more tokens observe than can at once, with ubatches of so many."""
    options = OPTIONS | {"n_batch": 512, "n_ubatch": 512}
    stock = open_context(TINY, **options | {"n_ubatch": 512 if n_obs <= 128 else 128})
    ours = open_context(TINY, **options)
    decode_batches(stock, TOKENS[:N_POS], batch_sizes(N_POS, 512))
    ours.read(TOKENS[:N_POS], observe=Observe(n_obs))
    np.testing.assert_array_equal(ours.state(), stock.state())
    np.testing.assert_array_equal(ours.last_logits(), stock.last_logits())


# ---- what is kept ----


def shape_of(native: Native) -> ModelShape:
    return ModelShape("llama", "", TINY.n_ctx, layers=native.layers())


def made_scores(context: Context, draft: DraftPlan) -> list[Floats] | None:
    """Of a policy whose model repeats the prompt."""
    scorer = draft.expected.policy.scorer
    if not scorer.needs_reconstruction:
        return None
    tokens = TOKENS[: N_POS - scorer.n_obs]
    reconstruction = Reconstruction(context.llama, tokens)

    def read(repeated: list[int]) -> None:
        decode_batches(context, repeated, batch_sizes(len(repeated), OPTIONS["n_batch"]))

    return reconstruction.scores(context.native, read, scorer)


def compressed(context: Context, policy: str, is_read: bool, folder: Path) -> list[np.ndarray]:
    """Kept positions of each KV head, and logits of tokens that follow."""
    draft = draft_plan(shape_of(context.native), parse_policy(policy), "30%", N_POS, profile=made_profile(TINY))
    assert draft is not None
    plan, scorer = draft.expected, draft.expected.policy.scorer
    made, n_read = None, 0
    if scorer.needs_reconstruction:
        n_read = N_POS - plan.policy.n_obs
        advance(context, TOKENS[:n_read], None, is_read, folder)
        made = made_scores(context, draft)
    n_ahead = plan.policy.lookahead
    observe = Observe(plan.n_last + n_ahead, scorer.gathers, n_ahead) if scorer.gathers and made is None else None
    advance(context, TOKENS[n_read:N_POS], observe, is_read, folder)
    following = TOKENS[N_POS:]
    decode_batches(context, following[:n_ahead], [1] * n_ahead)
    compress(context.native, draft, 1, made)
    logits = []
    for n in (1, 1, 1, 30, 1):
        decode_batches(context, following[n_ahead : n_ahead + n], [n])
        n_ahead += n
        logits.append(context.last_logits())
    return [*(head for layer in context.kept() for head in layer), *logits]


def advance(context: Context, tokens: list[int], observe: Observe | None, is_read: bool, folder: Path) -> None:
    """Read tokens, layer by layer or as ever."""
    if is_read:
        context.read(tokens, observe=observe, folder=folder)
    elif observe:
        decode_observed(context, tokens, observe)
    else:
        decode_batches(context, tokens, batch_sizes(len(tokens), OPTIONS["n_batch"]))


POLICIES = dict.fromkeys(
    [
        *policy_names(),
        *(f"uniform+{scorer}" for scorer in SCORERS),
        *(f"{allocator}+snapkv" for allocator in allocator_names()),
        "snapkv:lookahead=8",
        "adakv+kvzip:lookahead=4",
        "global+h2o",
    ]
)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_same_rows(open_context: MakeContext, tmp_path: Path, policy: str) -> None:
    options = OPTIONS | {"n_ctx": 1024}
    decoded, read = (open_context(TINY, **options) for _ in range(2))
    assert_equal(compressed(read, policy, True, tmp_path), compressed(decoded, policy, False, tmp_path))
    assert read.native.stats().bytes_archive == 0
    ours, theirs = read.native.stats(), decoded.native.stats()
    assert (ours.bytes_hot, ours.bytes_tail) == (theirs.bytes_hot, theirs.bytes_tail)
