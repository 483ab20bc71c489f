"""What others put into the cache beside tokens, as llama-cpp-python's handlers of images do: it is kept whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.llama import logits as computed_logits
from pyheadkv.errors import UsageError
from tests import architectures
from tests.e2e.context import make_tokens, relative_error

NOTICE = "an image or sound came in: it is kept whole, as is what follows it"
MAX_ERROR = 1e-2  # the text may be read layer by layer
N_BEFORE, N_IMAGE, N_AFTER = 40, 64, 300
TOKENS = make_tokens(N_BEFORE + N_AFTER, architectures.N_VOCAB)


def evaluate_image(llama: Any, n_embd: int) -> None:
    """Evaluate embeddings behind the tokens, and move the Llama on, as its handlers do."""
    from llama_cpp import llama_cpp as bindings

    n_pos_each = 4  # sections of M-RoPE; other models read the first
    batch = bindings.llama_batch_init(N_IMAGE * n_pos_each, n_embd, 1)
    values = np.random.default_rng(0).normal(size=N_IMAGE * n_embd)
    for i, value in enumerate(values):
        batch.embd[i] = value
    batch.n_tokens = N_IMAGE
    for i in range(N_IMAGE):
        for section in range(n_pos_each):
            batch.pos[section * N_IMAGE + i] = llama.n_tokens + i
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, False
    assert bindings.llama_decode(llama._ctx.ctx, batch) == 0
    bindings.llama_batch_free(batch)
    llama.n_tokens += N_IMAGE


def read_with_image(llama: Any) -> np.ndarray:
    """Logits of the last text, after another text and an image; nothing of the conversation before is left."""
    import llama_cpp

    llama.reset()
    llama_cpp.llama_memory_clear(llama._ctx.memory, True)
    llama.eval(TOKENS[:N_BEFORE])
    evaluate_image(llama, 256)
    llama.eval(TOKENS[N_BEFORE:-1])
    first = llama.n_tokens
    llama.eval(TOKENS[-1:])
    return llama.scores[first - 1 : llama.n_tokens].copy()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2vl"])
def test_image_is_kept_whole(library: None, tmp_path: Path, arch: str) -> None:
    path, notices = architectures.write(tmp_path / "model.gguf", arch), list[str]()
    llama = load(path, n_ctx=512, n_threads=1, logits_all=True)
    truth = read_with_image(llama)
    with HeadKV(llama, policy="snapkv", budget=0.1, on_notice=notices.append) as headkv:
        notices.clear()
        np.testing.assert_array_equal(read_with_image(llama), truth)
        assert not headkv.is_compressed
        assert notices == [NOTICE]
        llama.reset()
        headkv.clear()
        llama.eval(TOKENS)  # without an image it is compressed again
        assert headkv.is_compressed and notices.count(NOTICE) == 1
    llama.close()


@pytest.mark.parametrize("budget", ["full", "10%"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_image_behind_a_long_text(library: None, tmp_path: Path, arch: str, budget: str) -> None:
    """The text may be compressed, and its rows may be in an archive: they stay as they are."""
    path, logits = architectures.write(tmp_path / "model.gguf", arch), []
    for is_ours in (False, True):
        llama = load(path, n_ctx=1024, n_threads=1)
        headkv = HeadKV(llama, policy="snapkv", budget=budget) if is_ours else None
        llama.eval(TOKENS)
        evaluate_image(llama, 256)
        llama.eval(TOKENS[:50])
        logits.append(computed_logits(llama).copy())
        if headkv:
            assert headkv.is_compressed == (budget != "full")
            assert headkv.native.stats().n_pos == len(TOKENS) + N_IMAGE + 50
            with pytest.raises(UsageError, match="cannot be saved"):
                headkv.save(tmp_path / "a.capsule")
            headkv.close()
        llama.close()
    assert np.isfinite(logits[1]).all()
    assert budget != "full" or relative_error(logits[1], logits[0]) < MAX_ERROR
