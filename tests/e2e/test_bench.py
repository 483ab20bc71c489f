"""`bench` on tiny models, for real: what is measured is the stock cache and ours, each as it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from pyheadkv.bench import Setup, Trial, capsule, follow_up, run_bench
from pyheadkv.bench.capsule import run_capsules
from pyheadkv.bench.follow_up import run_follow_ups
from pyheadkv.bench.prefill import run_prefill
from pyheadkv.bench.random_model import RandomModel, write_model
from pyheadkv.bench.reading import read_apart, read_from_disk
from pyheadkv.bench.setup import ROOM
from pyheadkv.engine.native import Native
from pyheadkv.errors import BenchError
from pyheadkv.files.jsonl import Record
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.support import supported_shape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.text import parse_policy
from tests.e2e.conftest import WriteTiny
from tests.tiny import Tiny


def setup_of(path: Path) -> Setup:
    return Setup(path, supported_shape(read_gguf_metadata(path), path), n_threads=1, n_tokens=3, n_rounds=2)


def trial(budget: str, policy: str = "snapkv") -> Trial:
    return Trial(policy, parse_policy(policy), Budget.parse(budget))


@pytest.fixture
def setup(library: None, tiny_path: WriteTiny) -> Setup:
    return setup_of(tiny_path(Tiny()))


def test_stock_is_whole_and_ours_is_compressed(setup: Setup) -> None:
    trials = [trial("25%"), trial("100%"), trial("25%", "snapkv:lookahead=2"), trial("25%", "h2o")]
    quarter, whole, ahead, all_observe = run_bench(setup, [300], trials)
    row = setup.shape.bytes_per_token("f16", "f16")
    for record in (quarter, whole, ahead, all_observe):
        assert record["bytes"]["full"] == 300 * row
        assert record["stock"]["ms_token"]["low"] <= record["stock"]["ms_token"]["median"]
        assert min(record["ours"]["ms_token"].values()) > 0 and record["stock_to_ours"]["median"] > 0
        assert record["ours"]["ms_prefill"] > 0 and record["ours"]["ms_select"] > 0
    assert quarter["bytes"]["kept"] == 75 * row and whole["bytes"]["kept"] == 300 * row
    assert quarter["bytes"]["measured"] < 300 * row <= whole["bytes"]["measured"]
    assert quarter["bytes"]["peak"] >= 300 * row  # the whole prompt is there until rows are chosen


@pytest.mark.parametrize(("run", "ways"), [(run_follow_ups, follow_up.WAYS), (run_capsules, capsule.WAYS)])
def test_questions_are_asked_in_every_way(setup: Setup, run: Callable[..., list[Record]], ways: Iterable[str]) -> None:
    records = run(setup, [300], [5, 20], [trial("25%")])
    asked = [(record["way"], record["n_question"]) for record in records]
    assert sorted(asked) == sorted((way, n) for way in ways for n in (5, 20))
    for record in records:
        assert 0.2 < record["keep_ratio"] < 0.3 and record["n_prompt"] == 300
        spread = record["ours_to_stock"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]


def test_a_prompt_is_read_in_little_memory(setup: Setup) -> None:
    by_layers, without, by_batches = run_prefill(setup, [1000], [trial("25%")])
    full = 1000 * setup.shape.bytes_per_token("f16", "f16")
    assert by_layers["bytes_peak"] < full < by_batches["bytes_peak"]
    assert without["rss_peak"] == by_batches["rss_peak"] == [None, None]
    if read_from_disk() is not None:
        assert min(by_layers["rss_peak"]) > 0 and by_layers["stock_disk"] >= 0


def test_a_capsule_is_not_read_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Native.read
    monkeypatch.setattr(
        Native, "read", lambda self, tokens, **more: read.append(len(tokens)) or real(self, tokens, **more)
    )
    run_capsules(setup, [300], [20], [trial("25%")])
    assert read == [300, *[64, 20] * 2 * setup.n_rounds]


def test_observing_or_repeating_all_needs_no_room_for_the_prompt_twice(setup: Setup) -> None:
    n_prompt = 2 * ROOM  # read again beside itself, it would not fit into the context
    for record in run_bench(setup, [n_prompt], [trial("25%", "h2o"), trial("25%", "kvzip")]):
        assert record["bytes"]["kept"] == n_prompt // 4 * setup.shape.bytes_per_token("f16", "f16")


def test_memory_is_that_of_a_process_of_its_own(setup: Setup) -> None:
    stock, ours = (read_apart(setup, 300, which) for which in (None, trial("25%")))
    if stock.rss["peak"] is None:
        pytest.skip("no /proc")
    for reading in (stock, ours):
        numbers = [reading.rss[name] for name in ("loaded", "whole", "read", "decoded")]
        assert all(n is not None and 0 < n <= (reading.rss["peak"] or 0) for n in numbers)
    assert stock.bytes_peak == 0 and ours.bytes_peak >= 300 * setup.shape.bytes_per_token("f16", "f16")


def test_what_goes_wrong_in_the_other_process_is_said_here(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    with pytest.raises(BenchError, match=r"damaged\.gguf is a damaged or truncated GGUF file") as caught:
        read_apart(replace(setup, path=tmp_path / "damaged.gguf"), 300, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has_bias", [False, True])
def test_quantised_random_models_are_read(library: None, tmp_path: Path, has_bias: bool) -> None:
    model = RandomModel((4,), (2,), 64, 256, 512, 64, 1024, has_bias=has_bias)
    setup = setup_of(write_model(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType.Q4_0))
    assert setup.shape.n_head_kv == (2,) and setup.shape.architecture == ("qwen2" if has_bias else "llama")
    [record] = run_bench(setup, [200], [trial("25%")])
    assert record["bytes"]["kept"] == 50 * setup.shape.bytes_per_token("f16", "f16")
