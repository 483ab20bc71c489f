"""What fits into so much memory: the largest context, then the best cache, and the nearest where nothing does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError, ModelError, UsageError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.fit import Needs, Wanted, find_fit, measure
from pyheadkv.policy.text import parse_policy

MIB, GIB = 2**20, 2**30
LLAMA_8B = Needs(
    ModelShape("llama", "", 131072, (LayerShape(0, 32, 8, 128, 128),) * 32),
    parse_policy("snapkv"),
    None,
    n_embd=4096,
    n_ff=14336,
    bytes_weights=4_900_000_000,
)
TOKEN = 131072  # bytes of one in a whole cache, f16


def test_all_of_it_fits() -> None:
    fit = find_fit(LLAMA_8B, 64 * GIB, Wanted())
    assert str(fit) == "-c 131072 -ctk f16 -ctv f16 --budget full" and fit.reading == fit.answering
    assert 0 < fit.reading - 4_900_000_000 - 131072 * TOKEN < GIB


def test_what_is_beside_the_rows_counts_and_is_read_batch_by_batch() -> None:
    budget, types = Budget.parse("10%"), ("q8_0", "f16")
    with_windows = replace(LLAMA_8B, beside=lambda n_ctx, type_k, type_v: n_ctx if (type_k, type_v) == types else 0)
    by_batches = measure(replace(LLAMA_8B, by_layers=False), 8192, types, budget)
    fit = measure(with_windows, 8192, types, budget)
    assert (fit.reading, fit.answering) == (by_batches.reading + 8192, by_batches.answering + 8192)
    whole = [measure(needs, 8192, types, Budget.parse("full")).reading for needs in (with_windows, LLAMA_8B)]
    assert whole[0] - whole[1] == 8192


def test_less_memory_takes_quantised_rows_then_fewer_rows_then_a_shorter_context() -> None:
    chosen = [str(find_fit(LLAMA_8B, gib * GIB, Wanted())) for gib in (24, 16, 10, 8, 7, 6)]
    contexts = [int(text.split()[1]) for text in chosen]
    assert contexts[:2] == [131072, 131072] and contexts == sorted(contexts, reverse=True) and contexts[-1] < 131072
    assert chosen[0] == "-c 131072 -ctk f16 -ctv f16 --budget full"
    assert chosen[1] == "-c 131072 -ctk q8_0 -ctv q8_0 --budget full"
    assert len(set(chosen)) == len(chosen)


@given(st.floats(5.3, 40), st.sampled_from([None, 4096, 32768]), st.sampled_from([None, "25%", "full", "2GiB"]))
def test_what_is_found_fits_and_is_what_was_wanted(gib: float, n_ctx: int | None, budget: str | None) -> None:
    limit = int(gib * GIB)
    wanted = Wanted(n_ctx, None, Budget.parse(budget) if budget else None)
    try:
        fit = find_fit(LLAMA_8B, limit, wanted)
    except UsageError as error:
        nearest = re.search(r"; (-c .*) would fit$", str(error))
        if nearest:
            _, n_found, _, type_k, _, type_v, _, found = nearest[1].split()
            assert measure(LLAMA_8B, int(n_found), (type_k, type_v), Budget.parse(found)).bytes_peak <= limit
        return
    assert fit.bytes_peak <= limit
    assert n_ctx in (None, fit.n_ctx) and budget in (None, fit.budget.request)
    assert measure(LLAMA_8B, fit.n_ctx, (fit.type_k, fit.type_v), fit.budget) == fit


def test_reading_batch_by_batch_takes_the_whole_cache() -> None:
    by_layers = measure(LLAMA_8B, 32768, ("f16", "f16"), Budget.parse("10%"))
    whole = measure(replace(LLAMA_8B, by_layers=False), 32768, ("f16", "f16"), Budget.parse("10%"))
    n_prompt = 32768 - 1024
    assert by_layers.n_prompt == n_prompt and by_layers.answering == whole.answering
    assert whole.reading - by_layers.reading == n_prompt * TOKEN * 31 // 32 - 256 * MIB  # hidden states, in blocks
    assert (
        find_fit(replace(LLAMA_8B, by_layers=False), 8 * GIB, Wanted()).n_ctx
        < find_fit(LLAMA_8B, 8 * GIB, Wanted()).n_ctx
    )


def test_an_archive_in_memory_counts() -> None:
    settings: tuple[int, tuple[str, str], Budget] = (32768, ("f16", "f16"), Budget.parse("10%"))
    on_disk, in_memory = measure(LLAMA_8B, *settings), measure(replace(LLAMA_8B, has_archive=True), *settings)
    assert in_memory.reading - on_disk.reading == in_memory.answering - on_disk.answering == 32768 * TOKEN


def test_what_cannot_be_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"^nothing fits into 4096 MiB: -c 512 .* takes 4976 MiB, 4673 MiB of it weights$"
    ):
        find_fit(LLAMA_8B, 4 * GIB, Wanted())
    words = (
        r"^-c 131072 -ctk f16 .* takes \d+ MiB, more than 8192 MiB; -c \d+ -ctk f16 -ctv f16 --budget full would fit$"
    )
    wanted = Wanted(131072, ("f16", "f16"), Budget.parse("full"))
    with pytest.raises(UsageError, match=words):
        find_fit(LLAMA_8B, 8 * GIB, wanted)
    with pytest.raises(BudgetError, match="below the floor"):
        find_fit(LLAMA_8B, 8 * GIB, Wanted(budget=Budget.parse("3")))
    odd = replace(LLAMA_8B, shape=ModelShape("llama", "", 4096, (LayerShape(0, 2, 2, 80, 80),)))
    assert find_fit(odd, 6 * GIB, Wanted()).type_k == "f16"
    with pytest.raises(ModelError, match="q8_0 stores blocks of 32"):
        find_fit(odd, 6 * GIB, Wanted(types=("q8_0", "q8_0")))
