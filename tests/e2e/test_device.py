"""K and V stay on their devices: what is computed where, and what travels. On a GPU, or on the CPU that plays one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.native import Compression
from pyheadkv.errors import ModelError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, make_tokens, relative_error
from tests.e2e.devices import (
    REFUSE_ATTENTION,
    REFUSE_PREFIX,
    SPLIT_LAYER,
    SPLIT_NONE,
    SPLIT_TENSOR,
    Traffic,
    count_traffic,
    fake_devices,
    has_device,
    watch,
)
from tests.tiny import Tiny

TINY = Tiny(n_head=(4,) * 4, n_head_kv=(2,) * 4)
N_HEADS = sum(TINY.n_head_kv)
N_PROMPT, N_OBS, N_CTX = 80, 8, 512
TOKENS = make_tokens(N_PROMPT + 300, TINY.n_vocab, seed=3)
KEPT = [[], [0], [1, 5, 40], list(range(60)), [7, 8, 9], list(range(0, 70, 2)), [71], list(range(30, 50))]
F32 = 4

# upstream's kernels round activations to f16; other rows move the answer by 0.2 and more (test_ragged.py)
DEVICE_ERROR = 2e-2
# of the same code for other batches of rows
SAME_KERNEL_ERROR = 1e-3


@pytest.fixture
def device() -> Iterator[None]:
    """One device at least."""
    if has_device():
        watch()
        yield
    else:
        with fake_devices():
            yield


def open_device(open_context: MakeContext, tiny: Tiny = TINY, **options: Any) -> Context:
    """A context whose layers lie on one device, unless the options say other things."""
    return open_context(tiny, **{"n_gpu_layers": 99, "split_mode": SPLIT_NONE, "n_ctx": N_CTX} | options)


def read_prompt(context: Context) -> Context:
    context.decode(TOKENS[:N_PROMPT])
    return context


def keep(context: Context) -> None:
    context.native.keep([np.array(kept, dtype=np.int64) for kept in KEPT], N_OBS)


def count_decode(context: Context, n: int) -> Traffic:
    with count_traffic() as traffic:
        context.decode(TOKENS[context.n_pos : context.n_pos + n])
    return traffic


@pytest.mark.parametrize("n", [1, 4, 20])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_decoding_has_stocks_splits_and_only_logits_travel(
    device: None, open_context: MakeContext, attention: str, cache_type: str, n: int
) -> None:
    context = read_prompt(open_device(open_context, cache_type=cache_type))
    stock = count_decode(context, n)
    assert stock.n_graphs > 0
    assert stock.bytes_to_host == n * TINY.n_vocab * F32, stock.names
    keep(context)
    context.native.attention_set(attention)
    for _ in range(2):  # the second time with the graph of the first
        assert count_decode(context, n) == stock


def test_nothing_travels_when_rows_are_gathered_and_the_tail_grows(device: None, open_context: MakeContext) -> None:
    context = read_prompt(open_device(open_context))
    with count_traffic() as traffic:
        keep(context)
    assert (traffic.bytes_to_host, traffic.names) == (0, "")
    n_cells = context.native.stats().n_cells
    for _ in range(40):
        assert count_decode(context, 7).bytes_to_host == 7 * TINY.n_vocab * F32
    assert context.native.stats().n_cells > n_cells


def test_only_scores_travel_when_rows_are_chosen(device: None, open_context: MakeContext) -> None:
    context = open_device(open_context)
    context.decode(TOKENS[: N_PROMPT - N_OBS])
    context.native.observe(N_OBS)
    assert count_decode(context, N_OBS).bytes_to_host == N_OBS * TINY.n_vocab * F32
    with count_traffic() as traffic:
        context.native.compress(Compression(np.full(N_HEADS, N_OBS + 9, dtype=np.uint32), Scorer(n_obs=N_OBS), 2))
    assert 0 < traffic.bytes_to_host <= sum(TINY.n_head) * N_CTX * F32
    assert all(name.startswith("headkv_observed") for name in traffic.names.split(", ")), traffic.names


@pytest.mark.parametrize("name", ["knorm", "keydiff"])
def test_keys_are_rated_where_they_lie(device: None, open_context: MakeContext, name: str) -> None:
    context = read_prompt(open_device(open_context))
    with count_traffic() as traffic:
        context.native.compress(Compression(np.full(N_HEADS, N_OBS + 9, dtype=np.uint32), Scorer(name, n_obs=N_OBS), 2))
    means = N_HEADS * TINY.head_size * F32  # of the keys' directions
    assert traffic.bytes_to_host == N_HEADS * N_PROMPT * F32 + (means if name == "keydiff" else 0), traffic.names


# ---- what only fake devices can be told to be ----


@pytest.fixture
def no_device() -> None:
    """None but fake ones."""
    if has_device():
        pytest.skip("there is a device, which would work beside the fake ones")


def answer(context: Context) -> np.ndarray:
    """Logits over a prefix: one token after another, then several."""
    keep(read_prompt(context))
    first = context.decode_each(TOKENS[N_PROMPT : N_PROMPT + 3])
    return np.concatenate([first, context.decode(TOKENS[N_PROMPT + 3 : N_PROMPT + 12])])


LAYOUTS: dict[str, dict[str, Any]] = {
    "half of the layers": {"n_gpu_layers": 3},  # the output and the last two
    "two devices": {"split_mode": SPLIT_LAYER, "tensor_split": [1, 1]},
    "two devices, half of the layers": {"split_mode": SPLIT_LAYER, "tensor_split": [1, 1], "n_gpu_layers": 3},
}


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_prefix_lies_where_its_layer_does(
    no_device: None, open_context: MakeContext, layout: str, cache_type: str
) -> None:
    expected = answer(open_device(open_context, cache_type=cache_type, n_gpu_layers=0))
    with fake_devices(2):
        context = open_device(open_context, cache_type=cache_type, **LAYOUTS[layout])
        stock = count_decode(read_prompt(context), 1)
        context.llama.reset()
        context.llama._ctx.kv_cache_clear()
        logits = answer(context)
        # a prefix on another device would be copied for each token
        assert count_decode(context, 1) == stock
        context.close()
    assert relative_error(logits, expected) < SAME_KERNEL_ERROR


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_device_without_our_kernel_composes(no_device: None, open_context: MakeContext, cache_type: str) -> None:
    expected = answer(open_device(open_context, cache_type=cache_type, n_gpu_layers=0))
    with fake_devices(refused=REFUSE_PREFIX):
        context = open_device(open_context, cache_type=cache_type)
        stock = count_decode(read_prompt(context), 1)
        context.llama.reset()
        context.llama._ctx.kv_cache_clear()
        logits = answer(context)
        assert count_decode(context, 1) == stock
        context.close()
    assert relative_error(logits, expected) < DEVICE_ERROR


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # fake devices, context, reason
    "unknown backend": ({"name": "Vulkan"}, {}, "layer 0 lies on Vulkan0: only main memory, CUDA and Metal"),
    "RPC": ({"name": "RPC"}, {}, "layer 0 lies on RPC0: only main memory"),
    "HIP": ({"name": "ROCm"}, {}, "layer 0 lies on ROCm0: only main memory"),
    "MUSA": ({"name": "MUSA"}, {}, "layer 0 lies on MUSA0: only main memory"),
    "half of the layers": ({"name": "SYCL"}, {"n_gpu_layers": 3}, "layer 2 lies on SYCL0: only main memory"),
    "tensor split": ({"n": 2}, {"split_mode": SPLIT_TENSOR}, "are split over devices: split the model by layers"),
    "no attention": ({"refused": REFUSE_ATTENTION}, {}, "it has no attention for this cache type and head size"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_device_names_the_reason_and_still_decodes(
    no_device: None, open_context: MakeContext, what: str
) -> None:
    from pyheadkv.engine.native import Native

    devices, options, reason = REFUSED[what]
    expected = open_device(open_context, n_gpu_layers=0).decode(TOKENS[:N_PROMPT])
    with fake_devices(**devices):
        context = open_device(open_context, attach=False, **options)
        with pytest.raises(ModelError, match=reason):
            Native(context.llama)
        assert relative_error(context.decode(TOKENS[:N_PROMPT]), expected) < SAME_KERNEL_ERROR
        context.close()


def test_rows_of_odd_bytes_are_refused(no_device: None, open_context: MakeContext) -> None:
    from pyheadkv.engine.native import Native

    tiny = Tiny(head_size=96)
    with fake_devices():
        context = open_context(tiny, cache_type="q8_0", n_gpu_layers=99, attach=False)
        with pytest.raises(ModelError, match="rows of 102 bytes are no multiple of 4: take another cache type"):
            Native(context.llama)
        context.close()
