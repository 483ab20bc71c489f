"""Metrics: hand-made cases, and the scoring that the development sets come with, where it is there."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.evaluate import metrics
from pyheadkv.evaluate.metrics import METRICS, digits_share, is_settled, mean_and_error, score


@pytest.mark.parametrize(
    ("metric", "output", "answers", "wanted"),
    [
        ("all_substr", "It is 12 and NINE.", ["12", "nine", "x"], 2 / 3),
        ("any_substr", "It is 12.", ["13", "12"], 1),
        ("any_substr", "It is 12.", ["13"], 0),
        ("first_word", "The Kitchen, I think", ["kitchen"], 1),
        ("first_word", "I think the kitchen", ["kitchen"], 0),
        ("first_word", "", ["kitchen"], 0),
        ("qa_f1", "the old grey house", ["a grey house", "barn"], 0.8),
        ("qa_f1", "nothing", ["house"], 0),
        ("rouge_l", "a b x c", ["a b c d"], 0.75),
        ("rouge_l", "", ["a"], 0),
        ("number", "3 or 4, say 3", ["Paragraph 3"], 2 / 3),
        ("number", "13", ["Paragraph 3"], 0),
        ("number", "none", ["Paragraph 3"], 0),
    ],
)
def test_metrics(metric: str, output: str, answers: list[str], wanted: float) -> None:
    assert score(metric, output, answers) == pytest.approx(wanted)


def test_first_line() -> None:
    assert score("qa_f1", "\nred\nblue", ["red"], first_line=True) == 1
    assert score("qa_f1", "\nred\nblue", ["red"]) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Any:
    path = shared / "tools" / "score.py"
    if not path.is_file():
        pytest.skip(f"no {path}")
    spec = importlib.util.spec_from_file_location("score", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = st.lists(
    st.sampled_from(("the", "The", "a", "red,", "Red.", "12", "123", "4", "blue-green\n", "\n", "an")), max_size=8
)


@given(WORDS, st.lists(st.sampled_from(["red", "the red 12", "123", "Blue-Green 4"]), min_size=1, max_size=3))
def test_like_the_scoring_of_the_development_sets(reference: Any, words: list[str], answers: list[str]) -> None:
    output = " ".join(words)
    for metric in METRICS:
        if metric == "number" and not any(map(str.isdigit, answers[0])):
            continue
        wanted = reference.score({"metric": metric, "answers": answers}, output)
        assert score(metric, output, answers) == pytest.approx(wanted), metric


@pytest.mark.parametrize(
    ("output", "answers", "wanted"),
    [
        ("it is 1234567.", ["1234567"], 1),
        ("it is 123.", ["1234567"], 3 / 7),
        ("it is 9934567 or 12", ["1234567"], 5 / 7),
        ("12 34", ["12", "35"], 3 / 4),
        ("nothing", ["12"], 0),
        ("12", ["twelve"], None),
    ],
)
def test_digits_share(output: str, answers: list[str], wanted: float | None) -> None:
    assert digits_share(output, answers) == (wanted if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("output", "answers", "wanted"),
    [
        ("it is 1234", ["1234"], True),
        ("it is 1235", ["1234"], False),  # may go on, and then be too long, but not become the answer: cheap to wait
        ("it is 1235.", ["1234"], True),
        ("it is 12345", ["1235"], True),
        ("it is 12.", ["1234"], False),
        ("it is 1235. ", ["1234", "1111"], False),
        ("it is 1234, 1111", ["1234", "1111"], True),
        ("it is 1234 red", ["blue"], False),
    ],
)
def test_settled(output: str, answers: list[str], wanted: bool) -> None:
    assert is_settled("all_substr", output, answers) is wanted


@given(st.text("0123 .", max_size=12), st.text("0123 .", max_size=12))
def test_what_is_right_is_settled_and_stays_right(output: str, more: str) -> None:
    is_right = score("all_substr", output, ["123"]) == 1
    assert is_settled("all_substr", output, ["123"]) or not is_right
    assert score("all_substr", output + more, ["123"]) == 1 or not is_right
    assert not is_settled("qa_f1", output, ["123"])


def test_kl_and_agreement() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    full = np.array([metrics.log_softmax(row) for row in logits])
    assert np.exp(full.astype(np.float64)).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert metrics.kl_divergence(full, full) == 0 and metrics.top1_agreement(full, full) == 1
    p, q = np.log(np.array([[0.5, 0.5]], dtype=np.float32)), np.log(np.array([[0.25, 0.75]], dtype=np.float32))
    assert metrics.kl_divergence(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert metrics.kl_divergence(p, q) != pytest.approx(metrics.kl_divergence(q, p), abs=1e-3)
    other = full.copy()
    other[1, full[1].argmin()] = 1
    assert metrics.top1_agreement(full, other) == pytest.approx(2 / 3)


def test_mean_and_error() -> None:
    assert mean_and_error([1, 1, 0, 0]) == pytest.approx((0.5, math.sqrt(1 / 3 / 4)))
    mean, error = mean_and_error([0.3])
    assert mean == 0.3 and math.isnan(error)
