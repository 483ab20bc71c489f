"""A few tokens behind many, read layer by layer with our kernel: what upstream's leaves, but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import logits
from pyheadkv.engine.load import opened
from pyheadkv.model.shape import CACHE_TYPES
from tests.e2e.conftest import MakeContext
from tests.e2e.context import relative_error
from tests.e2e.sweep import differences
from tests.e2e.test_sweep import TINY, TOKENS, open_pair
from tests.e2e.test_turns import N_QUESTION, Talk, make, tiny  # noqa: F401 (fixtures)

N_DOCUMENT, N_FUSED = 600, 63
MAX_ERROR = 2e-2  # upstream rounds queries as the cache's type has it, ours stay f32


@pytest.mark.parametrize("n", [1, 8, 25, N_FUSED])
@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_few_tokens_attend_by_our_kernel(open_context: MakeContext, kind: str, n: int) -> None:
    exact, ours = open_pair(open_context, TINY, attach=True, cache_type=kind)
    for context, n_fused in ((exact, 0), (ours, N_FUSED)):
        context.read(TOKENS[:N_DOCUMENT], n_fused=n_fused)
        context.read(TOKENS[N_DOCUMENT : N_DOCUMENT + n], n_fused=n_fused)
    error = relative_error(ours.last_logits(), exact.last_logits())
    assert 0 < error < MAX_ERROR


def test_more_tokens_do_not(open_context: MakeContext) -> None:
    stock, ours = open_pair(open_context, TINY)
    stock.llama.eval(TOKENS[:N_DOCUMENT])
    stock.llama.eval(TOKENS[N_DOCUMENT : N_DOCUMENT + N_FUSED + 1])
    ours.read(TOKENS[:N_DOCUMENT], n_fused=N_FUSED)
    ours.read(TOKENS[N_DOCUMENT : N_DOCUMENT + N_FUSED + 1], n_fused=N_FUSED)
    assert not differences(stock, ours, TOKENS[N_DOCUMENT + N_FUSED + 1])


def test_decoding_afterwards_does_not(open_context: MakeContext) -> None:
    """It ends with the reading: what is decoded behind attends as stock has it."""
    exact, ours = open_pair(open_context, TINY, attach=True)
    exact.read(TOKENS[:N_DOCUMENT])
    ours.read(TOKENS[:N_DOCUMENT], n_fused=N_FUSED)
    assert not differences(exact, ours, TOKENS[N_DOCUMENT])


@pytest.mark.parametrize("is_exact", [False, True])
def test_questions_are_read_so_unless_all_is_to_be_exact(
    make: Callable[..., HeadKV],  # noqa: F811
    tiny: Path,  # noqa: F811
    is_exact: bool,
) -> None:
    talk = Talk(make(exact=is_exact))
    talk.ask(2)
    n_first = N_DOCUMENT + N_QUESTION
    asked = [*talk.tokens, *TOKENS[:20]]
    next(talk.headkv.llama.generate(asked, temp=0.0))
    with opened(tiny, n_ctx=2048, n_cells=0, n_threads=1) as stock:
        stock.eval(asked[:n_first])
        stock.eval(asked[n_first:])
        error = relative_error(logits(talk.headkv.llama), logits(stock))
    assert error == 0 if is_exact else 0 < error < MAX_ERROR
