"""Sentences with something to find in them, and the questions that only they answer.

Kinds: **digits**, **words**, **codes** (letters and digits) and **facts** (a short phrase) are copied from a sentence.
**reasoning** follows HeadKV-R2 (arXiv 2410.19258, section 3.1): the needle is (r, c1, c2), reasoning facts and two
answers of the same shape; which one is right follows from r alone. Every such needle is asked both ways, so each answer
is once the right one. The paper has one needle of this kind and a fixed order; here names, facts, values, order and
places are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyheadkv.calibrate import phrases

COPY_KINDS = ("digits", "words", "codes", "facts")
REASONING = "reasoning"
KINDS = (*COPY_KINDS, REASONING)


@dataclass(frozen=True)
class Question:
    """A question about a needle.

    Parameters
    ----------
    kind
        one of `KINDS`
    text
        the question
    prefix
        how the answer begins, put into the model's mouth
    answer
        the rest of it, word for word as in the needle
    wrong
        the answer beside it, of the same shape; only for reasoning
    facts
        whole sentences that lead to the right answer; only for reasoning
    """

    kind: str
    text: str
    prefix: str
    answer: str
    wrong: str | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needle:
    """Sentences to be hidden, each part in a place of its own, and what can be asked about them."""

    parts: tuple[str, ...]
    questions: tuple[Question, ...]


class Supply:
    """Names and values for one page, none of them used twice, so that each answer stands in it once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._left: dict[str, list[str]] = {}
        self._used: set[str] = set()

    def draw(self, name: str, stock: Sequence[str]) -> str:
        """One item of a stock, which is known by its name."""
        if not self._left.get(name):
            self._left[name] = self.rng.sample(stock, len(stock))
        return self._left[name].pop()

    def person(self) -> str:
        """A first name."""
        return self.draw("people", phrases.PEOPLE)

    def digits(self, lowest: int, highest: int) -> str:
        """A number of `lowest` to `highest` digits."""
        return self._new(lambda: "".join(self.rng.choices("123456789", k=self.rng.randint(lowest, highest))))

    def code(self) -> str:
        """Letters and digits, 5 to 8 characters, some with a hyphen."""

        def make() -> str:
            text = "".join(self.rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=self.rng.randint(5, 7)))
            return f"{text[:3]}-{text[3:]}" if self.rng.random() < 0.4 else text

        return self._new(make, lambda text: any(map(str.isdigit, text)) and any(map(str.isalpha, text)))

    def word(self) -> str:
        """A rare word, or an adjective and a noun."""
        if self.rng.random() < 0.5:
            return self.draw("words", phrases.WORDS)
        return self._new(lambda: f"{self.rng.choice(phrases.ADJECTIVES)} {self.rng.choice(phrases.NOUNS)}")

    def _new(self, make: Callable[[], str], is_fit: Callable[[str], bool] = bool) -> str:
        text = make()
        while not is_fit(text) or any(text in other or other in text for other in self._used):
            text = make()
        self._used.add(text)
        return text


def make_needle(kind: str, supply: Supply) -> Needle:
    """Draw a needle of a kind; `Supply` keeps its values apart from those of the page's other needles."""
    return _reasoning(supply) if kind == REASONING else _copy(kind, supply)


def _copy(kind: str, supply: Supply) -> Needle:
    rng = supply.rng
    pattern = rng.choice(phrases.COPY[kind])
    make = {"digits": lambda: supply.digits(5, 8), "codes": supply.code, "words": supply.word}.get(kind)
    value = make() if make else supply.draw(pattern.sentence, pattern.values)
    who = supply.person()
    sentence, text, prefix = (
        part.format(who=who, x=value) for part in (pattern.sentence, pattern.question, pattern.prefix)
    )
    return Needle((sentence,), (Question(kind, text, prefix, value),))


def _reasoning(supply: Supply) -> Needle:
    rng = supply.rng
    people = (supply.person(), supply.person())
    relation, thing = rng.choice(phrases.RELATIONS), rng.choice(phrases.THINGS)
    traits = (supply.draw(relation.fact, relation.values), supply.draw(relation.fact, relation.values))
    values = tuple(supply.word() if thing.is_word else supply.digits(4, 6) for _ in people)
    facts = tuple(relation.fact.format(who=who, trait=trait) for who, trait in zip(people, traits, strict=True))
    answers = [
        thing.sentence.format(who=relation.someone.format(trait=trait), x=value)
        for trait, value in zip(traits, values, strict=True)
    ]
    reasons = " ".join(rng.sample(facts, 2))
    rng.shuffle(answers)
    parts = [reasons, " ".join(answers)]
    rng.shuffle(parts)
    is_together = rng.random() < 0.5
    questions = tuple(
        Question(
            REASONING,
            thing.question.format(who=people[i]),
            thing.prefix.format(who=people[i]),
            values[i],
            wrong=values[1 - i],
            facts=facts,
        )
        for i in (0, 1)
    )
    return Needle((" ".join(parts),) if is_together else tuple(parts), questions)
