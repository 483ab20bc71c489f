"""Models whose layers lie on a CUDA device give the answers of the CPU. Without a card: scripts/emulate_cuda.py.

Where the runtime is the emulated one, the tests also say whether recorded graphs were replayed.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.library import library_dir
from pyheadkv.engine.native import Compression, Observe
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits, mean_kl
from tests.e2e.devices import SPLIT_LAYER, has_device, n_devices
from tests.e2e.on_device import DEVICE_ERROR, SAME_ROWS, attention_error, chosen_rows, same_rows
from tests.tiny import Tiny

BACKEND = next(library_dir().glob("libggml-cuda.*"), None)
RUNTIME = next(library_dir().glob("libcudart.*"), None)  # the emulated one lies beside the backend
HAS_GRAPHS = not os.environ.get("GGML_CUDA_DISABLE_GRAPHS")

pytestmark = pytest.mark.skipif(BACKEND is None, reason="no CUDA in this library")

PROMPT = (
    "The river ran past the old mill. Emma, the miller's daughter, watched the boats. Seven of them were blue, two "
    "were red, and the last one had no colour at all. The miller's daughter is called"
)
SECOND_TURN = ", and she counted nine boats. How many of them"
N_OBS, N_KEPT = 8, 16
N_DECODED = 4
# nats; the device rounds in other places than the CPU does: 1e-2 measured over the whole cache
MAX_KL = 5e-2


@pytest.fixture(autouse=True, scope="module")
def device() -> None:
    """Without it all would be computed on the CPU, and agree."""
    assert has_device()


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0", "q4_0", "q5_0"])  # the last is always unfused
def test_attention_is_that_of_the_cpu(open_context: MakeContext, cache_type: str) -> None:
    assert attention_error(open_context, cache_type) < DEVICE_ERROR


def test_head_size_without_a_kernel_is_unfused(open_context: MakeContext) -> None:
    assert attention_error(open_context, "f16", Tiny(head_size=112)) < DEVICE_ERROR


LAYOUTS: dict[str, dict[str, Any]] = {
    "half of the layers": {"n_gpu_layers": 2},  # the output and the last layer
    "two devices": {"split_mode": SPLIT_LAYER, "tensor_split": [1, 1], "n_gpu_layers": 99},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hot_rows_lie_where_their_layers_do(open_context: MakeContext, layout: str) -> None:
    if layout == "two devices" and n_devices() < 2:
        pytest.skip("there is one device")
    assert attention_error(open_context, "f16", **LAYOUTS[layout]) < DEVICE_ERROR


def test_selection_is_that_of_the_cpu(open_context: MakeContext) -> None:
    assert same_rows(open_context) >= SAME_ROWS


# ---- the demo model ----


@dataclass(frozen=True)
class Conversation:
    """Logits of the prompt's last tokens, over the whole cache, and of what came behind; and the chosen rows."""

    prompt: Logits
    rows: set[tuple[int, int, int]]
    answer: Logits  # one token after another, then a second turn at once


def n_replayed() -> int:
    """Graphs that the emulated runtime launched so far."""
    assert RUNTIME is not None
    count = ctypes.CDLL(str(RUNTIME)).cudaemu_n_graphs
    count.restype = ctypes.c_uint64
    return int(count())


def read_prompt(context: Context, is_swept: bool) -> Logits:
    """Logits of the last tokens, which observe: of the very last one where the prompt is read layer by layer."""
    tokens = context.llama.tokenize(PROMPT.encode())
    if not is_swept:
        return context.arm_and_decode(tokens, N_OBS)[-N_OBS:]
    context.read(tokens, observe=Observe(N_OBS))
    return context.last_logits()[None]


def converse(context: Context, answer: list[int], is_swept: bool = False) -> Conversation:
    """Read the prompt, choose, decode `answer`, read a second turn."""
    prompt = read_prompt(context, is_swept)
    n_heads = sum(layer.n_head_kv for layer in context.native.layers())
    context.native.compress(Compression(np.full(n_heads, N_OBS + N_KEPT, dtype=np.uint32), Scorer(n_obs=N_OBS), 2))
    rows = chosen_rows(context)
    logits = [context.decode_each(answer), context.decode(context.llama.tokenize(SECOND_TURN.encode(), add_bos=False))]
    return Conversation(prompt, rows, np.concatenate(logits))


ALL_LAYERS, HALF_OF_THEM = 99, 15
WAYS = {  # layers on the device, cache type, is the prompt read layer by layer
    "f16": (ALL_LAYERS, "f16", False),
    "q8_0": (ALL_LAYERS, "q8_0", False),
    "f16, layer by layer": (ALL_LAYERS, "f16", True),
    "q8_0, half of the layers": (HALF_OF_THEM, "q8_0", False),
    "f16, half of the layers, layer by layer": (HALF_OF_THEM, "f16", True),
}


@pytest.mark.parametrize("way", WAYS)
def test_demo_model_converses_as_on_the_cpu(open_context: MakeContext, demo_path: Path, way: str) -> None:
    n_layers, cache_type, is_swept = WAYS[way]
    cpu, gpu = (open_context(demo_path, n_ctx=256, cache_type=cache_type, n_gpu_layers=n) for n in (0, n_layers))
    answer = cpu.llama.tokenize(b" Emma. She", add_bos=False)[:N_DECODED]
    expected = converse(cpu, answer)
    before = n_replayed() if RUNTIME else 0
    said = converse(gpu, answer, is_swept)
    assert len(said.rows & expected.rows) >= SAME_ROWS * len(expected.rows) > 0
    assert mean_kl(said.prompt, expected.prompt[-len(said.prompt) :]) < MAX_KL
    assert mean_kl(said.answer, expected.answer) < MAX_KL
    if RUNTIME:
        assert (n_replayed() > before) == HAS_GRAPHS
