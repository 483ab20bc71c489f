"""Prompts are read layer by layer on devices too: rows travel from a scratch for one layer to host memory and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.llama import count_read
from pyheadkv.engine.native import Compression, Observe
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context
from tests.e2e.devices import fake_devices, has_device, n_devices
from tests.e2e.test_device import LAYOUTS, N_CTX, N_OBS, N_PROMPT, TOKENS, open_device

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


def open_both(open_context: MakeContext, **options: Any) -> tuple[Context, Context]:
    """For stock and for us. The number of cells is that of reading: how a GPU's kernel sums up depends on it."""
    stock, ours = (open_device(open_context, logits_all=False, **options) for _ in range(2))
    stock.native.reserve(N_CTX)
    return stock, ours


def read(context: Context, tokens: list[int], folder: Path | None, observe: Observe | None = None) -> np.ndarray:
    """Logits of the last token."""
    context.native.read(tokens, observe=observe, folder=folder)
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


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_same_rows_are_chosen_and_go_where_they_belong(
    open_context: MakeContext, tmp_path: Path, layout: str
) -> None:
    with devices(layout):
        stock, ours = open_both(open_context, **ALL_LAYOUTS[layout])
        stock.llama.eval(TOKENS[: N_PROMPT - N_OBS])
        stock.native.observe(N_OBS)
        stock.llama.eval(TOKENS[N_PROMPT - N_OBS : N_PROMPT])
        read(ours, TOKENS[:N_PROMPT], tmp_path, Observe(N_OBS))
        for context in (stock, ours):
            context.native.compress(Compression(np.full(8, 20), SCORER, 4, 2))
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
