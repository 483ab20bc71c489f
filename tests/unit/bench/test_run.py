"""What `bench` measures, on a Llama without a model: turns, positions, and what comes back from other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyheadkv.bench import reading, run, setup
from pyheadkv.bench.prefill import WAYS, run_prefill
from pyheadkv.bench.reading import measure_ours, measure_stock, read_apart
from pyheadkv.bench.run import run_bench
from pyheadkv.bench.setup import Setup, Trial
from pyheadkv.bench.speed import Spread
from pyheadkv.cache import prefill
from pyheadkv.chat import session
from pyheadkv.errors import BenchError, BudgetError, HeadKVError, ProfileError, UsageError
from pyheadkv.files.jsonl import Record
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.text import parse_policy
from tests.unit.fake_llama import LAYERS, ROW_BYTES, VOCABULARY, FakeLlama, FakeNative, without_library

SHAPE = ModelShape("llama", "fake", 1024, LAYERS)
SETUP = Setup(Path("m.gguf"), SHAPE, n_tokens=3, n_rounds=2)


def trial(policy: str = "snapkv:n_obs=8,n_sink=2", budget: str = "25%") -> Trial:
    return Trial(policy, parse_policy(policy), Budget.parse(budget))


class Native(FakeNative):
    def reset_peak(self) -> None:
        self.memory.call("reset_peak")


class Llama(FakeLlama):
    """Remembers every single token that it decoded, and the position."""

    def __init__(self, log: list[tuple[str, int]], **options: Any) -> None:
        super().__init__(options["n_ctx"])
        self.log = log
        self.name = "ours" if options["n_cells"] else "stock"
        self._ctx.get_logits_ith = lambda i: None

    def n_vocab(self) -> int:
        return VOCABULARY

    def eval(self, tokens: list[int]) -> None:
        if len(tokens) == 1:
            self.log.append((self.name, self.n_tokens))
        super().eval(tokens)

    def save_state(self) -> SimpleNamespace:
        return SimpleNamespace(n_tokens=self.n_tokens, ids=self.input_ids.copy(), tokens=list(self.memory.tokens))

    def load_state(self, state: SimpleNamespace) -> None:
        assert self.memory.reserved >= state.n_tokens
        self.n_tokens, self.memory.tokens = state.n_tokens, list(state.tokens)
        self.input_ids[: state.n_tokens] = state.ids[: state.n_tokens]


class World:
    """The Llamas that were opened, and what they decoded."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.llamas: list[Llama] = []

    @contextmanager
    def opened(self, path: Path, **options: Any) -> Iterator[Llama]:
        self.llamas.append(Llama(self.log, **options))
        yield self.llamas[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    without_library(monkeypatch)
    monkeypatch.setattr(session, "Native", Native)
    monkeypatch.setattr(prefill, "Native", Native)
    monkeypatch.setattr(setup, "opened", world.opened)
    return world


@pytest.fixture
def in_this_process(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    def read(setup: Setup, n_prompt: int, trial: Trial | None) -> reading.Reading:
        found = measure_stock(setup, n_prompt) if trial is None else measure_ours(setup, n_prompt, trial)
        world.log.clear()
        return found

    monkeypatch.setattr(run, "read_apart", read)
    return world


def test_both_sides_decode_the_same_positions_in_turns(in_this_process: World) -> None:
    run_bench(SETUP, [100], [trial()])
    turn = [100, 101, 102]
    assert in_this_process.log == [(name, n) for _ in range(3) for name in ("stock", "ours") for n in turn]


def test_prompts_are_read_in_turns_and_in_every_way(world: World) -> None:
    records = run_prefill(SETUP, [100], [trial()], with_memory=False)
    assert [record["way"] for record in records] == list(WAYS)
    for i, (record, way) in enumerate(zip(records, WAYS, strict=True)):
        n_rounds = SETUP.n_rounds
        opened = world.llamas[2 * i * n_rounds : 2 * (i + 1) * n_rounds]  # caches of its own for each round
        for stock, ours in zip(opened[::2], opened[1::2], strict=True):
            assert (stock.name, ours.name) == ("stock", "ours")
            assert sum(stock.batches) == 64 + 100
            by_layers = ours.memory.calls.count("read(100)")
            # short prompts are read layer by layer where the archive is kept
            assert by_layers == (way == "by layers, archive kept")
            assert by_layers == 1 or sum(ours.batches) == 64 + 100
        assert record["keep_ratio"] == 0.25 and record["bytes_full"] == 100 * 4 * 256
        assert record["rss_peak"] == [None, None]
        assert record["ours_to_stock"]["low"] <= record["ours_to_stock"]["median"] <= record["ours_to_stock"]["high"]


def test_with_a_lookahead_both_start_after_it(in_this_process: World) -> None:
    ahead = trial("snapkv:n_obs=8,n_sink=2,lookahead=4")
    run_bench(SETUP, [100], [ahead, trial()])
    positions = [n for _, n in in_this_process.log]
    assert positions[:8] == [100, 100, 101, 101, 102, 102, 103, 103]
    assert positions[8:26] == [104, 105, 106] * 6 and positions[26:] == [100, 101, 102] * 6
    stock, ours = in_this_process.llamas[-2:]
    assert stock.memory.tokens[:100] == ours.memory.tokens[:100]


def test_without_memory_a_prompt_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "read_apart", None)  # must not be called
    shown: list[tuple[int, int]] = []
    records = run_bench(
        SETUP,
        [100],
        [trial(), trial("snapkv:n_obs=4")],
        with_memory=False,
        on_progress=lambda *at: shown.append(at[:2]),
    )
    assert [llama.name for llama in world.llamas] == ["stock", "ours"] and shown[-1] == (100, 100)
    for record in records:
        assert record["stock"]["ms_prefill"] > 0 and "ms_prefill" not in record["ours"]
        assert record["ours"]["ms_select"] > 0 and record["bytes"]["peak"] is None


def test_the_prompt_is_compressed_by_the_plan_and_read_by_the_session(in_this_process: World) -> None:
    [record] = run_bench(SETUP, [100], [trial()])
    stock_apart, ours_apart, stock, ours = in_this_process.llamas
    assert [llama.name for llama in in_this_process.llamas] == ["stock", "ours", "stock", "ours"]
    for llama in (ours_apart, ours):
        assert llama.memory.n_prefix == 92  # all but the window
        assert llama.memory.rows is not None and llama.memory.rows.sum() == 100  # 25 % of 100 positions of 4 heads
    for llama in (stock_apart, stock):
        assert llama.memory.n_prefix == 0 and llama.memory.calls == []
    assert sum(ours_apart.batches) == 64 + 3  # the warm-up, the answer
    assert ours_apart.memory.calls.count("read(100)") == 1  # the prompt, layer by layer
    assert record["keep_ratio"] == 0.25 and record["budget"] == "25%" and record["n_prompt"] == 100
    # by the plan's account, and by the fake's, whose rows have other bytes
    assert (record["bytes"]["full"], record["bytes"]["kept"]) == (100 * 4 * 256, 100 * 256)
    assert record["bytes"]["measured"] == (100 + 11 * 4) * ROW_BYTES


def test_records_are_there_as_soon_as_they_are_measured(in_this_process: World) -> None:
    seen: list[Record] = []
    shown: list[tuple[int, int, str]] = []
    trials = [trial(), trial(budget="50%")]
    records = run_bench(
        SETUP, [64, 128], trials, on_progress=lambda *args: shown.append(args), on_record=lambda it: seen.append(it)
    )
    assert seen == records and [(it["n_prompt"], it["budget"]) for it in records] == [
        (n, budget) for n in (64, 128) for budget in ("25%", "50%")
    ]
    assert [done for done, _, _ in shown] == sorted(done for done, _, _ in shown)
    assert shown[0][0] == 0 and shown[-1] == (4 * 192, 4 * 192, "done")


@pytest.mark.parametrize(
    ("n_prompt", "asked", "error", "words"),
    [
        (1022, trial(), UsageError, "a prompt of 1022 tokens and what comes after it need 1025 positions, .* has 1024"),
        (100, trial(budget="full"), UsageError, "budget full compresses nothing of 64 tokens"),
        (100, trial(budget="5000"), UsageError, "budget 5000 compresses nothing of 64 tokens"),
        (100, trial(budget="3"), BudgetError, "3"),
        (100, trial("headkv"), ProfileError, "needs a profile"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    in_this_process: World, n_prompt: int, asked: Trial, error: type[HeadKVError], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_bench(SETUP, [64, n_prompt], [trial(), asked])
    assert in_this_process.llamas == []


def test_spread() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 9.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


# ---- processes ----


class Deadly:
    """A trial that ends the process which gets it."""

    name, budget = "deadly", SimpleNamespace(request="10%")

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (7,)


def test_a_process_that_ends_without_a_word() -> None:
    with pytest.raises(BenchError, match=r"deadly at 10%: the process .* ended with 7 before it was done"):
        read_apart(SETUP, 100, Deadly())  # type: ignore[arg-type]
