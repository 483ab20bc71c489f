"""Models in which only some layers can be compressed: going back where windows and states cannot be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.cache.prefill import Prefill
from pyheadkv.engine.llama import cut
from tests import architectures
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens, relative_error

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
