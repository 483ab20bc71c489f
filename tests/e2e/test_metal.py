"""Models whose layers lie on a Metal device give the answers of the CPU. Off a Mac: scripts/emulate_metal.py."""

from __future__ import annotations

import ctypes
from itertools import chain

import numpy as np
import pytest

from pyheadkv._library import library_dir
from pyheadkv.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits, make_tokens, relative_error
from tests.tiny import Tiny

BACKEND = next(library_dir().glob("libggml-metal.*"), None)

pytestmark = pytest.mark.skipif(BACKEND is None, reason="no Metal in this library")

TINY = Tiny()
N_HEADS = sum(TINY.n_head_kv)
N_OBS, N_PROMPT = 8, 40
# tokens evaluated together after the compression: the fused kernel takes 1 to 8, the composed graph more
BATCHES = (1, 1, 3, 8, 9)
KEPT = ([0, 1, 5, 9, 30], [3], [], list(range(20)))

# upstream's kernels round activations to f16; other rows move the answer by 0.2 and more (test_ragged.py)
DEVICE_ERROR = 2e-2
# near-ties of scores may fall the other way
SAME_ROWS = 0.9


@pytest.fixture(autouse=True, scope="module")
def symbols() -> None:
    """Kernels of the emulation are libraries that look for its symbols."""
    ctypes.CDLL(str(BACKEND), mode=ctypes.RTLD_GLOBAL)


def on_device(open_context: MakeContext, cache_type: str, is_device: bool) -> Context:
    return open_context(TINY, cache_type=cache_type, n_gpu_layers=99 if is_device else 0)


def decode_batches(context: Context, tokens: list[int]) -> Logits:
    return np.concatenate([context.decode(tokens[context.n_pos : context.n_pos + n]) for n in BATCHES])


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_attention_is_that_of_the_cpu(open_context: MakeContext, cache_type: str) -> None:
    tokens = make_tokens(N_PROMPT + sum(BATCHES), TINY.n_vocab, seed=5)
    answers = []
    for is_device in (False, True):
        context = on_device(open_context, cache_type, is_device)
        context.decode(tokens[:N_PROMPT])
        context.native.keep([np.array(kept, dtype=np.int64) for kept in KEPT], N_OBS)
        answers.append(decode_batches(context, tokens))
    assert relative_error(answers[1], answers[0]) < DEVICE_ERROR


def test_selection_is_that_of_the_cpu(open_context: MakeContext) -> None:
    tokens = make_tokens(N_PROMPT, TINY.n_vocab, seed=6)
    chosen = []
    for is_device in (False, True):
        context = on_device(open_context, "f16", is_device)
        context.arm_and_decode(tokens, N_OBS)
        context.native.compress(np.full(N_HEADS, N_OBS + 12, dtype=np.uint32), Scorer(n_obs=N_OBS), 2)
        heads = chain.from_iterable(((i, ih) for ih in range(n)) for i, n in enumerate(TINY.n_head_kv))
        chosen.append({(i, ih, int(pos)) for i, ih in heads for pos in context.native.positions(i, ih)})
    assert len(chosen[0] & chosen[1]) >= SAME_ROWS * len(chosen[0]) > 0
