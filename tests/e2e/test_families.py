"""Models in which only some layers can be compressed: going back where windows and states cannot be cut, and scores.

That a ragged prefix is the masked oracle's is tested in tests/e2e/test_architectures.py, of each family.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.cache.prefill import Prefill
from pyheadkv.engine.llama import cut
from pyheadkv.errors import HeadKVError
from pyheadkv.policy.scorers import Scorer
from tests import architectures
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens, relative_error
from tests.e2e.test_scorers import observe, scorer_of
from tests.e2e.test_ubatch import FLAT_MAX_SWAPPED, LARGEST_NEAR_TIE, SCORER, assert_same_rows, scores_and_kept

TOKENS = make_tokens(900, architectures.N_VOCAB)
N_PROMPT, N_KEPT, N_OBS = 850, 300, 8
MAX_ERROR = 1e-2  # the same tokens in other batches: only the order of sums differs

OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_ubatch": 128, "n_batch": 128, "swa_full": False, "n_cells": 64}


@pytest.mark.parametrize("arch", ["gemma3", "gpt-oss", "jamba", "qwen35"])
def test_going_back_to_a_checkpoint(open_context: MakeContext, tmp_path: Path, arch: str) -> None:
    path = architectures.write(tmp_path / "model.gguf", arch)
    truth = open_context(path, **OPTIONS).decode(TOKENS[:N_PROMPT])[N_KEPT:]
    context = open_context(path, **OPTIONS)
    prefill = Prefill(context.llama, context.native)
    assert context.native.stats().bytes_beside > 0
    context.decode(TOKENS[:N_KEPT])
    prefill.checkpoints.keep()
    context.decode(TOKENS[N_KEPT:N_PROMPT])
    assert not cut(context.llama, N_KEPT + 5), "what its layers need is gone"
    assert context.n_pos == N_PROMPT, "nothing changed"
    assert prefill.checkpoints.cut(N_KEPT + 5) == N_KEPT
    assert relative_error(context.decode(TOKENS[N_KEPT:N_PROMPT]), truth) < MAX_ERROR
    prefill.cut(N_KEPT - 5)  # no checkpoint is as early: read again
    assert context.n_pos == context.native.stats().n_pos == N_KEPT - 5
    assert relative_error(context.decode(TOKENS[N_KEPT - 5 : N_PROMPT])[5:], truth) < MAX_ERROR


@pytest.mark.parametrize("arch", ["gemma2", "gemma3n", "jamba", "qwen35", "qwen2vl"])
def test_fused_is_unfused(open_context: MakeContext, tmp_path: Path, arch: str) -> None:
    path, logits = architectures.write(tmp_path / "model.gguf", arch), []
    rng = np.random.default_rng(1)
    kept: list[np.ndarray] = []
    for attention in ("fused", "unfused"):
        context = open_context(path, **OPTIONS)
        n_heads = sum(layer.n_head_kv for layer in context.native.layers())
        kept = kept or [np.sort(rng.choice(N_KEPT - N_OBS, n, replace=False)) for n in rng.integers(1, 200, n_heads)]
        context.decode(TOKENS[:N_KEPT])
        context.native.keep(kept, N_OBS)
        context.native.attention_set(attention)
        logits.append(context.decode(TOKENS[N_KEPT : N_KEPT + 20]))
    assert relative_error(logits[0], logits[1]) < MAX_ERROR


@pytest.mark.parametrize("arch", ["gemma2", "jamba", "qwen2vl"])
def test_without_a_store_it_is_stock(open_context: MakeContext, tmp_path: Path, arch: str) -> None:
    """A cache that starts small and grows, attached, and the one that upstream makes: the same bits."""
    path = architectures.write(tmp_path / "model.gguf", arch)
    stock = open_context(path, **OPTIONS | {"n_cells": 0}, attach=False)
    np.testing.assert_array_equal(
        open_context(path, **OPTIONS).decode(TOKENS[:N_PROMPT]), stock.decode(TOKENS[:N_PROMPT])
    )


@pytest.mark.parametrize(
    "arch",
    ["gemma3, a KV head of two", "gpt-oss", "jamba", "qwen35", "qwen2vl"],
)
def test_same_rows_are_kept(open_context: MakeContext, tmp_path: Path, arch: str) -> None:
    """However the prompt was cut into ubatches."""
    path, runs = architectures.write(tmp_path / "model.gguf", arch), []
    for n_ubatch in (128, 32, 512):
        context = open_context(path, **OPTIONS | {"n_ubatch": n_ubatch, "n_batch": 512})
        runs.append(scores_and_kept(context, TOKENS[:600], 100, 1, SCORER))
    scores, truth = runs[0]
    for _, kept in runs[1:]:
        assert_same_rows(kept, truth, scores, LARGEST_NEAR_TIE, FLAT_MAX_SWAPPED)
    _, other = scores_and_kept(open_context(path, **OPTIONS), TOKENS[:600], 100, 1, replace(SCORER, pool_kernel=5))
    with pytest.raises(AssertionError):
        assert_same_rows(other, truth, scores, LARGEST_NEAR_TIE, FLAT_MAX_SWAPPED)


@pytest.mark.parametrize("arch", ["gemma3", "gemma3n", "gemma4, layers that read others' rows"])
def test_attention_of_layers_that_read_rows_is_averaged(open_context: MakeContext, tmp_path: Path, arch: str) -> None:
    context = open_context(architectures.write(tmp_path / "model.gguf", arch), **OPTIONS)
    scorer = Scorer(n_obs=8, pool_kernel=1)
    observe(context, TOKENS[:300], scorer, n_sink=4)
    for i in range(len(context.native.layers())):
        shares = context.native.score_read(i, scorer).sum(axis=1)
        assert ((shares > 0.5) & (shares <= 1)).all(), "the rest is paid to the tokens that observe"


@pytest.mark.parametrize(("twin", "arch"), [("qwen2", "qwen2vl"), ("qwen3", "qwen3vl")])
def test_text_is_rotated_as_without_sections(open_context: MakeContext, tmp_path: Path, twin: str, arch: str) -> None:
    """The first layers of both models have the same weights; text has the same position in each section."""
    scorer, scores = scorer_of("expected_attention"), []
    for name in (twin, f"{arch}, three sections"):
        context = open_context(architectures.write(tmp_path / f"{name}.gguf", name), **OPTIONS)
        observe(context, TOKENS[:300], scorer, n_sink=4)
        scores.append(np.log(context.native.score_read(0, scorer)))
        scores[-1] -= scores[-1].mean(axis=1, keepdims=True)  # what tells positions from one another
    assert relative_error(scores[1], scores[0]) < MAX_ERROR


def test_a_fourth_section_has_no_expected_attention(open_context: MakeContext, tmp_path: Path) -> None:
    """Text has position 0 there."""
    context = open_context(architectures.write(tmp_path / "model.gguf", "qwen2vl"), **OPTIONS)
    scorer = scorer_of("expected_attention")
    with pytest.raises(HeadKVError, match="before rotation cannot be found: take another scorer"):
        observe(context, TOKENS[:300], scorer, n_sink=4)
        context.native.score_read(0, scorer)
