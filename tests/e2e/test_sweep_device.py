"""Prompts are read layer by layer on devices too: rows travel from a scratch for one layer to host memory and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.llama import count_read
from pyheadkv.engine.native import Compression, Observe
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context
from tests.e2e.devices import count_traffic, device_bytes, fake_devices, has_device, n_devices
from tests.e2e.sweep import batch_sizes, decode_batches
from tests.e2e.test_device import (
    F32,
    LAYOUTS,
    N_CTX,
    N_OBS,
    N_PROMPT,
    SPLIT_LAYER,
    SPLIT_NONE,
    TINY,
    TOKENS,
    no_device,
    open_device,
)
from tests.tiny import Tiny

__all__ = ["no_device"]

SCORER = Scorer(n_obs=N_OBS, pool_kernel=1)
ALL_LAYOUTS: dict[str, dict[str, Any]] = {"one device": {}} | LAYOUTS


@contextmanager
def devices(layout: str) -> Iterator[None]:
    """Those of this machine, or two fake ones where there are none."""
    if not has_device():
        with fake_devices(2):
            yield
    elif "two devices" in layout and n_devices() < 2:
        pytest.skip("there is one device")
    else:
        yield


def open_both(open_context: MakeContext, tiny: Tiny = TINY, **options: Any) -> tuple[Context, Context]:
    """For stock and for us. The number of cells is that of reading: how a GPU's kernel sums up depends on it.

    Where layers lie in host memory, upstream may still have a device compute some of their operations, which ones
    depends on those around them; and those of the next layer are not.
    """
    stock, ours = (open_device(open_context, tiny, logits_all=False, op_offload=False, **options) for _ in range(2))
    stock.native.reserve(N_CTX)
    return stock, ours


def read(context: Context, tokens: list[int], folder: Path | None, **options: Any) -> np.ndarray:
    """Logits of the last token."""
    context.native.read(tokens, folder=folder, **options)
    count_read(context.llama, tokens)
    return np.array(context.llama._ctx.get_logits_ith(-1)[: context.llama.n_vocab()])


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_reading_on_devices_is_stocks(
    open_context: MakeContext, tmp_path: Path, layout: str, cache_type: str, where: str
) -> None:
    folder = tmp_path if where == "file" else None
    with devices(layout):
        stock, ours = open_both(open_context, cache_type=cache_type, **ALL_LAYOUTS[layout])
        for begin, end in ((0, 50), (50, N_PROMPT)):  # the second reads the first one's rows back
            stock.llama.eval(TOKENS[begin:end])
            logits = read(ours, TOKENS[begin:end], folder)
            assert np.array_equal(logits, stock.llama._ctx.get_logits_ith(-1)[: len(logits)])
        assert np.array_equal(ours.native.state_save(), stock.native.state_save())
        for context in (stock, ours):
            context.llama.eval([TOKENS[N_PROMPT]])
        a, b = (np.array(x.llama._ctx.get_logits_ith(-1)[: len(logits)]) for x in (stock, ours))
        assert np.abs(a - b).max() < 1e-3  # rows in host memory are computed elsewhere
        for context in (stock, ours):
            context.close()


@pytest.mark.parametrize("is_at_once", [False, True])
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_same_rows_are_chosen_and_go_where_they_belong(
    open_context: MakeContext, tmp_path: Path, layout: str, is_at_once: bool
) -> None:
    how = Compression(np.full(8, 20), SCORER, 4, 2)
    with devices(layout):
        stock, ours = open_both(open_context, **ALL_LAYOUTS[layout])
        stock.native.observe(N_OBS, n_before=N_PROMPT - N_OBS)
        stock.llama.eval(TOKENS[:N_PROMPT])
        stock.native.compress(how)
        read(ours, TOKENS[:N_PROMPT], tmp_path, observe=Observe(N_OBS), compression=how if is_at_once else None)
        if not is_at_once:
            ours.native.compress(how)
        assert all(
            np.array_equal(a, b)
            for x, y in zip(stock.kept(), ours.kept(), strict=True)
            for a, b in zip(x, y, strict=True)
        )
        assert stock.native.stats().bytes_hot == ours.native.stats().bytes_hot
        for context in (stock, ours):
            context.llama.eval([TOKENS[N_PROMPT]])
        a, b = (x.llama._ctx.get_logits_ith(-1)[: ours.llama.n_vocab()] for x in (stock, ours))
        assert np.array_equal(a, b)
        for context in (stock, ours):
            context.close()


@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_a_block_waits_for_the_rows_of_the_block_before(
    open_context: MakeContext, tmp_path: Path, n_layer: int
) -> None:
    tiny, n_block = Tiny(n_head=(4,) * n_layer, n_head_kv=(2,) * n_layer), 20
    with devices("one device"):
        stock, ours = open_both(open_context, tiny)
        decode_batches(stock, TOKENS[:N_PROMPT], batch_sizes(N_PROMPT, 512, n_block))
        logits = read(ours, TOKENS[:N_PROMPT], tmp_path, bytes_hidden=n_block * tiny.n_embd * 4)
        assert np.array_equal(logits, stock.llama._ctx.get_logits_ith(-1)[: len(logits)])
        assert np.array_equal(ours.native.state_save(), stock.native.state_save())
        for context in (stock, ours):
            context.close()


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_reading_that_is_stopped_anywhere(open_context: MakeContext, tmp_path: Path, layout: str) -> None:
    """Rows may be on their way: what was there before is there, and can be read on."""

    def stop_at(n: int, n_done: int, n_total: int) -> None:
        if n * n_total == n_done * TINY.n_layer:
            raise KeyboardInterrupt

    with devices(layout):
        stock, ours = open_both(open_context, **ALL_LAYOUTS[layout])
        for begin, end in ((0, 50), (50, N_PROMPT)):
            stock.llama.eval(TOKENS[begin:end])
            before = ours.native.state_save()
            for n in range(1, TINY.n_layer + 1):
                with pytest.raises(KeyboardInterrupt):
                    read(ours, TOKENS[begin:end], tmp_path, on_progress=partial(stop_at, n))
                assert np.array_equal(ours.native.state_save(), before)
            read(ours, TOKENS[begin:end], tmp_path)
            assert np.array_equal(ours.native.state_save(), stock.native.state_save())
        for context in (stock, ours):
            context.close()


def test_two_layers_are_on_a_device_at_a_time(no_device: None, open_context: MakeContext, tmp_path: Path) -> None:
    n_layer, n_pos = 8, 512
    tiny = Tiny(n_head=(2,) * n_layer, n_head_kv=(2,) * n_layer, head_size=256)
    bytes_layer = n_pos * 2 * 2 * 256 * 2  # K and V of two heads, f16
    with fake_devices():
        context = open_context(tiny, n_ctx=512, n_cells=64, n_gpu_layers=99, split_mode=SPLIT_NONE, logits_all=False)
        before, _ = device_bytes()
        read(context, (TOKENS * 2)[:n_pos], tmp_path)
        after, peak = device_bytes()
        assert after <= before
        assert 2 * bytes_layer <= peak - before < 3 * bytes_layer  # and hidden states, and what is computed with
        assert context.native.stats().bytes_peak >= 2 * bytes_layer
        context.close()


@pytest.mark.parametrize("n_crossings", [0, 1])
def test_hidden_states_lie_where_the_next_layer_does(
    no_device: None, open_context: MakeContext, tmp_path: Path, n_crossings: int
) -> None:
    layout = {"split_mode": SPLIT_LAYER, "tensor_split": [1, 2]} if n_crossings else {}  # two layers on each
    with fake_devices(2):
        context = open_device(open_context, logits_all=False, **layout)
        with count_traffic() as traffic:
            read(context, TOKENS[:N_PROMPT], tmp_path)
        assert traffic.bytes_between == n_crossings * N_PROMPT * TINY.n_embd * F32
        assert traffic.bytes_to_host == TINY.n_vocab * F32 + bytes_rows(context)
        context.close()


def bytes_rows(context: Context) -> int:
    """K and V of all tokens."""
    return N_PROMPT * sum(
        layer.n_head_kv * size for layer, size in zip(context.native.layers(), context.native.row_bytes(), strict=True)
    )
