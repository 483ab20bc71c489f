"""Models whose layers lie on a Metal device give the answers of the CPU. Off a Mac: scripts/emulate_metal.py.

HEADKV_METAL_VARIANT says what that script has taken from the device: "no-kernel", "no-reduction", or nothing.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.library import library_dir
from pyheadkv.engine.native import Compression, Native
from pyheadkv.errors import ModelError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits, make_tokens, relative_error
from tests.e2e.devices import has_device
from tests.tiny import Tiny

BACKEND = next(library_dir().glob("libggml-metal.*"), None)

VARIANT = os.environ.get("HEADKV_METAL_VARIANT", "")

pytestmark = pytest.mark.skipif(BACKEND is None, reason="no Metal in this library")
with_attention = pytest.mark.skipif(VARIANT == "no-reduction", reason="this device has no attention")
whole_device = pytest.mark.skipif(VARIANT != "", reason="the device is not what it could be")

TINY = Tiny()
N_HEADS = sum(TINY.n_head_kv)
N_OBS, N_PROMPT = 8, 40
# tokens evaluated together after the compression: the fused kernel takes 1 to 8, the unfused graph more
BATCHES = (1, 1, 3, 8, 9)
KEPT = ([0, 1, 5, 9, 30], [3], [], list(range(20)))

PROMPT = (
    "The river ran past the old mill. Emma, the miller's daughter, watched the boats. The miller's daughter is called"
)
N_ANSWER = 3  # the first of them comes from the prompt, the others from the compressed cache

# upstream's kernels round activations to f16; other rows move the answer by 0.2 and more (test_ragged.py)
DEVICE_ERROR = 2e-2
# near-ties of scores may fall the other way
SAME_ROWS = 0.9


@pytest.fixture(autouse=True, scope="module")
def device() -> None:
    """Without it all would be computed on the CPU, and agree."""
    assert has_device()


def on_device(open_context: MakeContext, cache_type: str, is_device: bool) -> Context:
    return open_context(TINY, cache_type=cache_type, n_gpu_layers=99 if is_device else 0)


def decode_batches(context: Context, tokens: list[int]) -> Logits:
    return np.concatenate([context.decode(tokens[context.n_pos : context.n_pos + n]) for n in BATCHES])


@with_attention
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q5_0"])  # the last is always unfused
def test_attention_is_that_of_the_cpu(open_context: MakeContext, cache_type: str) -> None:
    tokens = make_tokens(N_PROMPT + sum(BATCHES), TINY.n_vocab, seed=5)
    answers = []
    for is_device in (False, True):
        context = on_device(open_context, cache_type, is_device)
        context.decode(tokens[:N_PROMPT])
        context.native.keep([np.array(kept, dtype=np.int64) for kept in KEPT], N_OBS)
        answers.append(decode_batches(context, tokens))
    assert relative_error(answers[1], answers[0]) < DEVICE_ERROR


@whole_device
def test_selection_is_that_of_the_cpu(open_context: MakeContext) -> None:
    tokens = make_tokens(N_PROMPT, TINY.n_vocab, seed=6)
    chosen = []
    for is_device in (False, True):
        context = on_device(open_context, "f16", is_device)
        context.arm_and_decode(tokens, N_OBS)
        context.native.compress(Compression(np.full(N_HEADS, N_OBS + 12, dtype=np.uint32), Scorer(n_obs=N_OBS), 2))
        heads = chain.from_iterable(((i, ih) for ih in range(n)) for i, n in enumerate(TINY.n_head_kv))
        chosen.append({(i, ih, int(pos)) for i, ih in heads for pos in context.native.positions(i, ih)})
    assert len(chosen[0] & chosen[1]) >= SAME_ROWS * len(chosen[0]) > 0


REFUSED = {
    "cache type": (Tiny(), "iq4_nl", "it has no attention for this cache type and head size"),
    "head size": (Tiny(head_size=56), "f16", "it has no attention for this cache type and head size"),
    "odd bytes": (Tiny(head_size=96), "q8_0", "rows of 102 bytes are no multiple of 4"),
}


def check_refused(open_context: MakeContext, tiny: Tiny, cache_type: str, reason: str) -> None:
    """The device's context cannot be compressed, and answers as the CPU does."""
    tokens = make_tokens(N_PROMPT, tiny.n_vocab, seed=7)
    options = {"cache_type": cache_type, "attach": False}
    expected = open_context(tiny, **options).decode(tokens)
    context = open_context(tiny, **options, n_gpu_layers=99)
    with pytest.raises(ModelError, match=f"the cache of layer 0 lies on MTL0.*: {reason}"):
        Native(context.llama)
    assert relative_error(context.decode(tokens), expected) < DEVICE_ERROR


@whole_device
@pytest.mark.parametrize("what", REFUSED)
def test_what_the_device_cannot_do_is_refused(open_context: MakeContext, what: str) -> None:
    check_refused(open_context, *REFUSED[what])


@pytest.mark.skipif(VARIANT != "no-reduction", reason="this device has SIMD-group reduction")
def test_device_without_reduction_is_refused(open_context: MakeContext) -> None:
    check_refused(open_context, TINY, "f16", "it has no attention for this cache type and head size")


@whole_device
def test_demo_model_answers_as_on_the_cpu(open_context: MakeContext, demo_path: Path) -> None:
    answers = []
    for is_device in (False, True):
        context = open_context(demo_path, n_ctx=256, n_gpu_layers=99 if is_device else 0)
        tokens = context.llama.tokenize(PROMPT.encode())
        context.arm_and_decode(tokens, N_OBS)
        n_heads = sum(layer.n_head_kv for layer in context.native.layers())
        context.native.compress(Compression(np.full(n_heads, N_OBS + 8, dtype=np.uint32), Scorer(n_obs=N_OBS), 2))
        answer = [int(context.llama.scores[context.n_pos - 1].argmax())]
        while len(answer) < N_ANSWER:
            answer.append(int(context.decode(answer[-1:])[0].argmax()))
        answers.append(answer)
    assert answers[1] == answers[0]
