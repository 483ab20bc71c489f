"""Models whose layers lie on a Metal device give the answers of the CPU. Off a Mac: scripts/emulate_metal.py.

HEADKV_METAL_VARIANT says what that script has taken from the device: "no-kernel", "no-reduction", or nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.library import library_dir
from pyheadkv.engine.native import Compression, Native
from pyheadkv.errors import ModelError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens, relative_error
from tests.e2e.devices import has_device
from tests.e2e.on_device import DEVICE_ERROR, N_OBS, N_PROMPT, SAME_ROWS, TINY, attention_error, same_rows
from tests.tiny import Tiny

BACKEND = next(library_dir().glob("libggml-metal.*"), None)

VARIANT = os.environ.get("HEADKV_METAL_VARIANT", "")

pytestmark = pytest.mark.skipif(BACKEND is None, reason="no Metal in this library")
with_attention = pytest.mark.skipif(VARIANT == "no-reduction", reason="this device has no attention")
whole_device = pytest.mark.skipif(VARIANT != "", reason="the device is not what it could be")

PROMPT = (
    "The river ran past the old mill. Emma, the miller's daughter, watched the boats. The miller's daughter is called"
)
N_ANSWER = 3  # the first of them comes from the prompt, the others from the compressed cache


@pytest.fixture(autouse=True, scope="module")
def device() -> None:
    """Without it all would be computed on the CPU, and agree."""
    assert has_device()


@with_attention
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q5_0"])  # the last is always unfused
def test_attention_is_that_of_the_cpu(open_context: MakeContext, cache_type: str) -> None:
    assert attention_error(open_context, cache_type) < DEVICE_ERROR


@whole_device
def test_selection_is_that_of_the_cpu(open_context: MakeContext) -> None:
    assert same_rows(open_context) >= SAME_ROWS


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
