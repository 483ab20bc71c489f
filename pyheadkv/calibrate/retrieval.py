"""Retrieval scores of one question: let the model answer, and see which heads looked at the answer in the text."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pyheadkv.calibrate.needles import Question
from pyheadkv.calibrate.observer import Observer
from pyheadkv.calibrate.pages import Page
from pyheadkv.calibrate.prompts import Prompt, Prompter
from pyheadkv.calibrate.scores import Floats, copy_hits, span_mass

N_EXTRA = 4  # tokens that an answer may be longer than the one in the text
MIN_F1 = 0.5  # of the words of a fact, as in HeadKV's code; everything else must be there literally


@dataclass(frozen=True)
class Measured:
    """One question.

    Parameters
    ----------
    is_right
        whether the model answered it; what follows counts only then
    answer
        what the model said, as far as it was let
    copy, reasoning
        R and R2 of every query head, [sum of n_head]
    """

    is_right: bool
    answer: str
    copy: Floats
    reasoning: Floats


def measure_question(observer: Observer, prompter: Prompter, page: Page, question: Question) -> Measured:
    """Ask about a page; the page is read only if another one was read before.

    The answer is the model's own, greedy. R (HeadKV eq. 1) and R2 (eq. 2) are summed over its last N tokens, N being
    the length of the answer in the text: those that the model wrote while it gave the answer itself.
    """
    prompt = question_prompt(prompter, page, question)
    span = prompt.positions(question.answer)
    observer.read_only(prompt.tokens[:-1])
    token, said = prompt.tokens[-1], b""
    steps: list[tuple[Floats, Floats]] = []
    while len(steps) < len(span) + N_EXTRA and not _is_complete(question, said):
        attention = np.concatenate([layer[:, : len(prompt.tokens)] for layer in observer.observe([token])])
        token = observer.likeliest()
        piece = prompter.piece(token)
        if prompter.is_end(token) or b"\n" in piece or piece.strip().startswith(b"."):  # the sentence ends
            break
        said += piece
        steps.append((copy_hits(attention, span, prompt.tokens, token), span_mass(attention, span)))
    answer = said.decode(errors="replace")
    if not steps:
        zeros = np.zeros(sum(observer.n_head))
        return Measured(False, answer, zeros, zeros)
    copy, reasoning = (np.sum(column[-len(span) :], axis=0) for column in zip(*steps, strict=True))
    return Measured(is_right(question, answer), answer, copy, reasoning)


def question_prompt(prompter: Prompter, page: Page, question: Question) -> Prompt:
    """The page, then the question, then the beginning of the answer."""
    return prompter.prompt(f"{page.text}\n\n{question.text}", question.prefix)


def _is_complete(question: Question, said: bytes) -> bool:
    """Whether nothing more needs to be said; of a fact one knows that only when the sentence ends."""
    return question.kind != "facts" and plain(question.answer) in plain(said.decode(errors="replace"))


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer counts: a fact by the words it shares, anything else literally, but for case and signs."""
    if question.kind == "facts":
        return word_f1(answer, question.answer) > MIN_F1
    return plain(question.answer) in plain(answer)


def word_f1(found: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of the words, in [0, 1]."""
    words, truth = plain(found).split(), plain(wanted).split()
    n_same = sum((Counter(words) & Counter(truth)).values())
    return 2 * n_same / (len(words) + len(truth)) if n_same else 0.0


def plain(text: str) -> str:
    """Lower case without punctuation and articles, single spaces."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
