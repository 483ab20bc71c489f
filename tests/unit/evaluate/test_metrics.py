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

from pyheadkv.errors import UsageError
from pyheadkv.evaluate import metrics
from pyheadkv.evaluate.metrics import check_libraries, digits_share, is_settled, mean_and_error, score


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
        ("exact", "The red house.", ["a Red house"], 1),
        ("exact", "The red house there", ["a Red house"], 0),
        ("rouge_l_recall", "a b x c and much more", ["a b c d"], 0.75),
        ("code_sim", "\n# a comment\n```c\nreturn x;\nmore", ["return x;"], 1),
        ("code_sim", "return y;", ["return x;"], 16 / 18),
        ("code_sim", "", ["return x;"], 0),
        ("cloze", '{"<mask-0>": "Bob", "<mask-1>": "Rome"}', ["{'<mask-0>': 'Bob', '<mask-1>': 'Oslo'}"], 0.5),
        ("cloze", "It is Bob", ["{'<mask-0>': 'Bob'}"], 0),
        ("cloze", "[1]", ["{'<mask-0>': 'Bob'}"], 0),
    ],
)
def test_metrics(metric: str, output: str, answers: list[str], wanted: float) -> None:
    assert score(metric, output, answers) == pytest.approx(wanted)


KINDS = ("Price", "Other number", "Number", "City")
ROOMS = ("kitchen", "garden", "hallway")


@pytest.mark.parametrize(
    ("metric", "output", "answer", "classes", "wanted"),
    [
        ("label", "\nIt is a city\nPrice", "City", KINDS, 1),
        ("label", "City or price", "City", KINDS, 0.5),
        ("label", "other number", "Other number", KINDS, 1),  # "Number" is only a part of it
        ("label", "other number", "Number", KINDS, 0),
        ("label", "nothing", "City", KINDS, 0),
        ("only_label", "Mary is in the Kitchen. Not the garden.", "kitchen", ROOMS, 1),
        ("only_label", "kitchen or garden", "kitchen", ROOMS, 0),
        ("only_label", "garden", "kitchen", ROOMS, 0),
        ("only_label", "kitchen <example> garden", "kitchen", ROOMS, 1),
        ("only_label", "garden and kitchen", "kitchen,garden", ROOMS, 1),
        ("only_label", "garden", "kitchen,garden", ROOMS, 0),
    ],
)
def test_metrics_with_classes(metric: str, output: str, answer: str, classes: tuple[str, ...], wanted: float) -> None:
    assert score(metric, output, [answer], classes=classes) == wanted


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_libraries(["rouge_l", "code_sim", "qa_f1", "kl"])
    monkeypatch.setitem(metrics._LIBRARIES, "rouge_l", ("no_such_module", "rouge-score"))
    check_libraries(["code_sim", "qa_f1"])
    with pytest.raises(
        UsageError, match=r"rouge_l needs rouge-score, which is missing: pip install 'pyheadkv\[bench\]'"
    ):
        check_libraries(["qa_f1", "rouge_l"])


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
    output, classes = " ".join(words), ["red", "the red 12", "123", "Blue-Green 4", "blue"]
    for metric in ("all_substr", "any_substr", "first_word", "qa_f1", "rouge_l", "number", "label"):
        if metric == "number" and not any(map(str.isdigit, answers[0])):
            continue
        wanted = reference.score({"metric": metric, "answers": answers, "classes": classes}, output)
        assert score(metric, output, answers, classes=classes) == pytest.approx(wanted), metric


@given(WORDS, st.lists(st.sampled_from(["red", "12 The a", "blue-green"]), min_size=1, max_size=2))
def test_code_is_at_least_as_alike_as_by_matching_blocks(reference: Any, words: list[str], answers: list[str]) -> None:
    output = " ".join(words).strip()  # the reference leaves out empty lines and blanks, which real code has as well
    wanted = reference.score({"metric": "code_sim", "answers": answers}, output)
    assert score("code_sim", output.partition("\n")[0].strip(), answers) >= wanted - 1e-9


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


def test_perplexity() -> None:
    log_probs = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1, 1, 1]], dtype=np.float32))
    # token 1 after token 0: 1/4; token 2 after token 1: 4/5; what comes after the last is not known
    assert metrics.perplexity(log_probs, [0, 1, 2]) == pytest.approx(math.sqrt(4 * 5 / 4))
    assert math.isnan(metrics.perplexity(log_probs[:1], [0]))


def test_mean_and_error() -> None:
    assert mean_and_error([1, 1, 0, 0]) == pytest.approx((0.5, math.sqrt(1 / 3 / 4)))
    mean, error = mean_and_error([0.3])
    assert mean == 0.3 and math.isnan(error)
