"""Prompts are read layer by layer on devices too: rows travel from a scratch for one layer to host memory and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.llama import count_read
from pyheadkv.engine.native import Compression, Observe
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context
from tests.e2e.devices import fake_devices
from tests.e2e.test_device import LAYOUTS, N_OBS, N_PROMPT, TOKENS, no_device, open_device

__all__ = ["no_device"]

SCORER = Scorer(n_obs=N_OBS, pool_kernel=1)
ALL_LAYOUTS: dict[str, dict[str, Any]] = {"one device": {}} | LAYOUTS


def read(context: Context, tokens: list[int], folder: Path | None, observe: Observe | None = None) -> np.ndarray:
    """Logits of the last token."""
    context.native.read(tokens, observe=observe, folder=folder)
    count_read(context.llama, tokens)
    return np.array(context.llama._ctx.get_logits_ith(-1)[: context.llama.n_vocab()])


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_reading_on_devices_is_stocks(
    no_device: None, open_context: MakeContext, tmp_path: Path, layout: str, cache_type: str, where: str
) -> None:
    folder = tmp_path if where == "file" else None
    with fake_devices(2):
        options = {"cache_type": cache_type, "logits_all": False} | ALL_LAYOUTS[layout]
        stock, ours = (open_device(open_context, **options) for _ in range(2))
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
    no_device: None, open_context: MakeContext, tmp_path: Path, layout: str
) -> None:
    with fake_devices(2):
        stock, ours = (open_device(open_context, logits_all=False, **ALL_LAYOUTS[layout]) for _ in range(2))
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
