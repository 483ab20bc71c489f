"""Asking one question: which steps are observed, which of them count, and when an answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pyheadkv.calibrate.needles import Question
from pyheadkv.calibrate.pages import Page
from pyheadkv.calibrate.prompts import Prompt
from pyheadkv.calibrate.reconstruction import REQUEST, measure_excerpt
from pyheadkv.calibrate.retrieval import N_EXTRA, is_right, measure_question, word_f1
from tests.reference import calibrate as reference

# one token for each character
END = ord("$")


class FakePrompter:
    """A token is a character."""

    def prompt(self, message: str, answer: str) -> Prompt:
        text = f"[{message}]{answer}"
        places = np.arange(len(text))
        return Prompt(text, [ord(char) for char in text], places, places + 1)

    def piece(self, token: int) -> bytes:
        return chr(token).encode()

    def is_end(self, token: int) -> bool:
        return token == END


class FakeObserver:
    """Two layers of 2 and 1 query heads; says what it is told to say, and remembers what it was given.

    In the step that writes character c, head 0 looks at the first c of the prompt, head 1 half as much, head 2 at the
    token before the last.
    """

    n_head = (2, 1)
    n_head_kv = (1, 1)

    def __init__(self, says: str = "") -> None:
        self.says = [ord(char) for char in says + "$"]
        self.tokens: list[int] = []
        self.observed: list[list[int]] = []
        self.steps: list[list[list[float]]] = []

    def read_only(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def observe(self, tokens: Sequence[int], reduce: str = "mean") -> list[np.ndarray]:
        before = list(self.tokens)
        self.tokens += tokens
        self.observed.append(list(tokens))
        weights = np.zeros((3, len(before)))
        if reduce == "mean":
            written = self.says[len(self.observed) - 1]
            if written in before:
                weights[0, before.index(written)], weights[1, before.index(written)] = 0.8, 0.4
            weights[2, -1] = 1
        else:
            weights[:] = np.arange(len(before)) * [[1], [2], [3]]
        self.steps.append(weights.tolist())
        return [weights[:2].astype(np.float32), weights[2:].astype(np.float32)]

    def likeliest(self) -> int:
        return self.says[len(self.observed) - 1]


PAGE = Page("Mira got the ticket 4711 for it.", ())
QUESTION = Question("digits", "Which?", "Mira got:", "4711")


def measure(says: str, question: Question = QUESTION, page: Page = PAGE) -> tuple[Any, FakeObserver]:
    observer = FakeObserver(says)
    prompter: Any = FakePrompter()
    return measure_question(observer, prompter, page, question), observer  # type: ignore[arg-type]


def test_each_step_is_observed_on_its_own_from_the_last_prompt_token_on() -> None:
    measured, observer = measure("4711, as I said")
    assert measured.is_right and measured.answer == "4711"
    # the query of the prompt's last token writes "4", and so on; "1", the last, is not read any more
    assert observer.observed == [[ord(char)] for char in ":471"]


def test_scores_are_summed_over_the_steps_of_the_answer() -> None:
    measured, observer = measure("1 4711")  # the first one looks at the answer, too, but is no part of it
    prompt = FakePrompter().prompt(f"{PAGE.text}\n\n{QUESTION.text}", QUESTION.prefix)
    span = prompt.positions("4711").tolist()
    steps = [[row[: len(prompt.tokens)] for row in step] for step in observer.steps[-4:]]
    copied = [ord(char) for char in "4711"]
    assert measured.copy == pytest.approx(reference.retrieval_score(steps, span, prompt.tokens, copied), rel=1e-6)
    assert measured.reasoning == pytest.approx(reference.reasoning_score(steps, span), rel=1e-6)
    assert measured.copy[:2] == pytest.approx([1, 1]) and measured.copy[2] == 0
    assert measured.reasoning == pytest.approx([0.8, 0.4, 0], rel=1e-6)


def test_generated_tokens_are_no_part_of_the_prompt() -> None:
    """Head 2 looks at the token before the last only: at answers that were generated, which count for nothing."""
    _, observer = measure("4711")
    assert len(observer.steps[-1][0]) > len(observer.steps[0][0])
    question = Question("digits", "Which?", "4", "7")
    measured, _ = measure("7", question, Page("a 7", ()))
    assert measured.reasoning[2] == 0


@pytest.mark.parametrize(
    ("says", "n_steps", "answer"),
    [
        ("47", 3, "47"),  # then the model ends
        ("", 1, ""),
        ("47\n11", 3, "47"),
        ("47. 11", 3, "47"),
        ("123456789", 4 + N_EXTRA, "12345678"),
    ],
)
def test_wrong_answers_end(says: str, n_steps: int, answer: str) -> None:
    measured, observer = measure(says)
    assert not measured.is_right and measured.answer == answer
    assert len(observer.observed) == n_steps
    assert measured.copy.shape == measured.reasoning.shape == (3,)


def test_a_fact_is_heard_to_its_end() -> None:
    question = Question("facts", "Where?", "It is", "under the old bridge")
    page = Page("It is under the old bridge.", ())
    measured, observer = measure(" under the old bridge. And", question, page)
    assert measured.is_right and measured.answer == " under the old bridge"
    assert len(observer.observed) == len(" under the old bridge.")


@pytest.mark.parametrize(
    ("kind", "answer", "said", "right"),
    [
        ("digits", "4711", " 4711", True),
        ("digits", "4711", "4712", False),
        ("codes", "AB-12C", "ab12c", True),
        ("words", "salty dragon", 'Salty  Dragon"', True),
        ("words", "salty dragon", "dragon", False),
        ("facts", "under the old bridge", "below the old bridge", True),
        ("facts", "under the old bridge", "under a tree", False),
        ("facts", "under the old bridge", "", False),
        ("reasoning", "381", "318", False),
    ],
)
def test_right_and_wrong(kind: str, answer: str, said: str, right: bool) -> None:
    assert is_right(Question(kind, "", "", answer), said) is right


def test_word_f1_of_published_definition() -> None:
    assert word_f1("a cat sat", "the cat sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert word_f1("cat cat", "cat") == pytest.approx(2 / 3)


def test_excerpt_is_scored_by_its_repetition_over_its_own_positions() -> None:
    observer = FakeObserver()
    prompter: Any = FakePrompter()
    excerpt = "A quiet lake."
    scores = measure_excerpt(observer, prompter, excerpt)  # type: ignore[arg-type]
    assert observer.observed == [[ord(char) for char in excerpt]]
    n_asked = len(f"[{excerpt}\n\n{REQUEST}]")
    assert len(observer.steps[0][0]) == n_asked
    positions = [p for p in range(1, 1 + len(excerpt)) if p >= 4]
    expected = [
        mean
        for layer in (observer.steps[0][:2], observer.steps[0][2:])
        for mean in reference.reconstruction_score(layer, 1, positions)
    ]
    assert scores == pytest.approx(expected)
