"""From a case to tokens: what is to be compressed, what comes after it, and what the answer should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.tasks.make import Sizes

if TYPE_CHECKING:
    import llama_cpp

IN, AFTER = "in", "after"
QUESTIONS = (IN, AFTER)
GOLD_TOKENS = 32  # of a long answer the beginning is enough, and each token costs a step


@dataclass(frozen=True)
class Prompted:
    """A case in tokens.

    Parameters
    ----------
    tokens
        to be compressed
    rest
        after them: the question, or the prose over which predictions are compared
    gold
        the beginning of the answer as it should be, at most `GOLD_TOKENS`; none for prose
    """

    case: Case
    tokens: list[int]
    rest: list[int]
    gold: list[int]

    @property
    def n_needed(self) -> int:
        """Positions for all of it, the model's answer included."""
        return len(self.tokens) + len(self.rest) + max(self.case.max_new_tokens, len(self.gold))


class CasePrompter:
    """Asks cases in the way of a model's chat template and tokenizer."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self.prompter = Prompter(llama)
        self._llama = llama

    @property
    def sizes(self) -> Sizes:
        """How long texts are for this model."""
        return Sizes(self.prompter.count, len(self.prompter.prompt("", "").tokens))

    def prompt(self, case: Case, question: str = IN) -> Prompted:
        """Make tokens of a case.

        Raises
        ------
        EvaluationError
            there is too little prose, or the prompt cannot be cut before its question
        CalibrationError
            the tokenizer changes the text
        """
        if case.metric == KL:
            return Prompted(case, *self._prose(case), [])
        prompt = self.prompter.prompt(case.message, case.answer_prefix)
        n_tokens, gold = len(prompt.tokens), self._gold(case, prompt.text)
        if question == AFTER:
            document = case.document().lstrip()  # templates may trim a message
            end = len(prompt.text[: prompt.text.index(document) + len(document)].encode())
            n_tokens = int(np.searchsorted(prompt.ends, end, side="right"))
        return Prompted(case, prompt.tokens[:n_tokens], prompt.tokens[n_tokens:], gold)

    def _prose(self, case: Case) -> tuple[list[int], list[int]]:
        tokens = self._llama.tokenize(case.context.encode(), special=False)
        n_all = case.n_tokens + case.max_new_tokens
        if len(tokens) < n_all:
            raise EvaluationError(f"case {case.id} has {len(tokens)} tokens of prose, {n_all} are needed")
        return tokens[: case.n_tokens], tokens[case.n_tokens : n_all]

    def _gold(self, case: Case, text: str) -> list[int]:
        """Tokens that hold bytes of the answer when it stands behind the prompt, as the model would write it."""
        blank = "" if text[-1:].isspace() else " "
        whole = self.prompter.prompt(case.message, f"{case.answer_prefix}{blank}{case.gold}")
        n_before = int(np.searchsorted(whole.ends, len(text.encode()), side="right"))
        return whole.tokens[n_before : n_before + GOLD_TOKENS]
