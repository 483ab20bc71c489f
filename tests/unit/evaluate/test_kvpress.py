"""kvpress beside ours, on stand-ins of torch, transformers and kvpress: what is read, kept, asked and refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate import kvpress
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.kvpress import PressRunner, libraries, parse_press
from pyheadkv.evaluate.prompted import Prompted
from pyheadkv.evaluate.results import Results
from pyheadkv.evaluate.sweep import Sweep, run_sweep
from pyheadkv.policy.budget import Budget

N_VOCAB = 50
NEEDLE, NOTHING, END = 42, 7, 0
PROMPT = [NEEDLE, *range(1, 40)]


class Tensor(np.ndarray[Any, Any]):
    def numel(self) -> int:
        return self.size

    def unsqueeze(self, axis: int) -> Any:
        return np.expand_dims(self, axis).view(Tensor)

    def float(self) -> Any:
        return self

    def numpy(self) -> Any:
        return np.asarray(self)


def tensor(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


class Model:
    """Says the needle while its row is in the cache. A press at work keeps the last rows."""

    def __init__(self) -> None:
        self.press: Any = None
        self.positions: list[list[int]] = []

    def eval(self) -> Model:
        return self

    def __call__(self, input_ids: Tensor, position_ids: Tensor, past_key_values: Any, **_: Any) -> Any:
        self.positions.append(position_ids[0].tolist())
        layer = past_key_values.layers[0]
        rows = np.concatenate([np.asarray(layer.keys)[0, 0, :, 0], input_ids[0]])
        logits = np.zeros((1, 1, N_VOCAB), dtype=np.float32)
        logits[0, 0, END if input_ids[0, -1] in (NEEDLE, NOTHING) else NEEDLE if NEEDLE in rows else NOTHING] = 5
        if self.press is not None:
            rows = rows[-round(len(rows) * (1 - self.press.compression_ratio)) :]
        layer.keys = layer.values = tensor(rows[None, None, :, None])
        return SimpleNamespace(logits=tensor(logits))


@dataclass
class SnapKVPress:
    compression_ratio: float
    window_size: int = 64

    @contextmanager
    def __call__(self, model: Model) -> Iterator[None]:
        if self.window_size > 64:
            raise AssertionError("window too\nlong")
        model.press = self
        yield
        model.press = None


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model()

    def from_pretrained(folder: str, gguf_file: str, dtype: Any) -> Model:
        if gguf_file != "m.gguf":
            raise ValueError(f"no such\narchitecture: {gguf_file}")
        return model

    empty = tensor(np.zeros((1, 1, 0, 1), dtype=np.int64))
    torch = SimpleNamespace(
        arange=lambda a, b: tensor(np.arange(a, b)), tensor=tensor, no_grad=nullcontext, float32="f32"
    )
    torch.set_num_threads = lambda n: setattr(model, "n_threads", n)
    transformers = SimpleNamespace(
        AutoModelForCausalLM=SimpleNamespace(from_pretrained=from_pretrained),
        DynamicCache=lambda: SimpleNamespace(layers=[SimpleNamespace(keys=empty, values=empty)]),
    )
    press = SimpleNamespace(SnapKVPress=SnapKVPress, AdaKVPress=lambda press: press)
    for name, module in (("torch", torch), ("transformers", transformers), ("kvpress", press)):
        monkeypatch.setitem(sys.modules, name, module)
    return model


class CasePrompter:
    """Tokens are their numbers; prose has no question."""

    prompter = SimpleNamespace(piece=lambda token: f"{token} ".encode(), is_end=lambda token: token == END)

    def prompt(self, case: Case, question: str) -> Prompted:
        if case.metric == "kl":
            return Prompted(case, PROMPT, [1, 2], [])
        return Prompted(case, PROMPT, [1, 2] if question == "after" else [], [NEEDLE, END])


def make_case(metric: str = "all_substr") -> Case:
    return Case(f"a {metric}", "t", "t", "text", "?", (str(NEEDLE),), metric, 4, n_tokens=40)


def runner(name: str = "m.gguf") -> PressRunner:
    return PressRunner(Path(name), CasePrompter(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("question", ["in", "after"])
def test_a_method_that_loses_the_row_loses_the_answer(model: Model, question: str) -> None:
    """With the question in the prompt the first token of the answer still comes from the whole cache, as with ours."""
    peer = runner()
    reading = peer.read(make_case(), question)
    assert reading.full.figures["score"] == 1 and reading.full.keep_ratio == 1 and "42" in reading.full.output
    assert reading.full.bytes_measured == reading.full.bytes_full == len(PROMPT) * 2 * 2
    found = peer.measure(reading, parse_press("snapkv", Budget.parse("10%")))
    assert found.figures["score"] == (1 if question == "in" else 0)
    assert found.bytes_measured == found.bytes_kept == 4 * 2 * 2 and found.resolved == "kvpress:snapkv"
    assert found.figures["loglik"] <= reading.full.figures["loglik"]
    assert peer.measure(reading, parse_press("adakv", Budget.parse("100%"))).figures == reading.full.figures
    assert model.positions[0] == list(range(40))
    assert [40] in model.positions or [40, 41] in model.positions  # positions go on behind what was left out
    assert model.n_threads == 3  # type: ignore[attr-defined]


def test_prose(model: Model) -> None:
    peer = runner()
    reading = peer.read(make_case("kl"))
    figures = reading.full.figures
    assert figures["ms_token"] > 0 and figures["perplexity"] >= 1
    assert figures == {"kl": 0, "top1": 1, **{name: figures[name] for name in ("perplexity", "ms_token")}}
    found = peer.measure(reading, parse_press("snapkv", Budget.parse("10%")))
    assert found.figures["kl"] > 1 and found.figures["top1"] == 0


def test_in_a_sweep(model: Model) -> None:
    trials = [parse_press("snapkv:window_size=16", Budget.parse("10%"))]
    results = Results()
    records = run_sweep(runner(), Sweep("r", [make_case()], trials, "after", kvpress.CACHE), results)
    assert [(r["policy"], r["cache"], r["figures"]["score"]) for r in records] == [
        ("full", "kvpress", 1.0),
        ("kvpress:snapkv:window_size=16", "kvpress", 0.0),
    ]
    n_calls = len(model.positions)
    assert run_sweep(runner(), Sweep("r", [make_case()], trials, "after", kvpress.CACHE), results) == records
    assert len(model.positions) == n_calls


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("other", "--kvpress 'other' is not one of snapkv, adakv"),
        ("snapkv:window_size=big", "'window_size=big' cannot be read, expected name=number"),
    ],
)
def test_methods_as_typed(text: str, words: str) -> None:
    assert parse_press("snapkv:window_size=16,x=0.5", Budget.parse("10%")).settings == {"window_size": 16, "x": 0.5}
    with pytest.raises(UsageError, match=words):
        parse_press(text, Budget.parse("10%"))


def test_what_the_libraries_refuse_is_one_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"transformers cannot read x.gguf: no such architecture: x.gguf$"):
        runner("x.gguf").read(make_case())
    reading = runner().read(make_case())
    for text, words in (("snapkv:window_size=80", "window too long"), ("snapkv:nothing=1", "unexpected keyword")):
        with pytest.raises(EvaluationError, match=rf"kvpress:{text} at 10%, case a all_substr: .*{words}"):
            runner().measure(reading, parse_press(text, Budget.parse("10%")))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"--kvpress needs transformers .*: pip install torch transformers kvpress"):
        libraries()
    with pytest.raises(UsageError, match="--kvpress needs transformers"):
        runner()
