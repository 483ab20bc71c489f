"""Chats about one text: several facts hidden in it, asked for one after the other, in every order.

The facts of a chat are of different kinds: a number, a word, a code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from pyheadkv.calibrate.pages import fill, hide, text_of
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.tasks import phrases
from pyheadkv.evaluate.tasks.make import SLACK, Sizes, length_name
from pyheadkv.evaluate.tasks.prose import Prose
from pyheadkv.evaluate.tasks.riddles import TOKENS_FOR_ONE

TURNS = "turns"
MAX_TURNS = len(phrases.ASKED)


@dataclass(frozen=True)
class Turn:
    """One question of a chat."""

    kind: str
    question: str
    prefix: str
    answer: str


@dataclass(frozen=True)
class Talk(Case):
    """A case with more than one question; `question` and `answers` are those of the first turn."""

    turns: tuple[Turn, ...] = ()


def make_talks(n_cases: int, n_turns: int, n_tokens: int, seed: int, prose: Prose, sizes: Sizes) -> list[Talk]:
    """Draw chats; the same arguments give the same ones, and more of them begin with the same ones.

    Parameters
    ----------
    n_tokens
        of the first prompt, at most

    Raises
    ------
    EvaluationError
        there is no room for what has to stand in the text
    """
    return [_talk(i, n_turns, n_tokens, seed, prose, sizes) for i in range(n_cases)]


def _talk(i: int, n_turns: int, n_tokens: int, seed: int, prose: Prose, sizes: Sizes) -> Talk:
    rng = random.Random(f"{seed} {TURNS} {n_turns} {n_tokens} {i}")
    things = rng.sample(phrases.THINGS, n_turns)
    keys = [
        f"{adjective} {thing}" for adjective, thing in zip(rng.sample(phrases.ADJECTIVES, n_turns), things, strict=True)
    ]
    facts = [_fact(rng, form, key) for form, key in zip(rng.sample(phrases.ASKED, n_turns), keys, strict=True)]
    sentences = [sentence for sentence, _ in facts]
    orders = list(permutations(range(n_turns)))
    turns = tuple(facts[j][1] for j in orders[i % len(orders)])  # another order for each chat
    first = turns[0]
    taken = sizes.n_frame + SLACK + sum(map(sizes.count, (*sentences, first.question, first.prefix)))
    if taken > n_tokens:
        raise EvaluationError(f"{n_turns} facts do not fit into {n_tokens} tokens, they need {taken}")
    context = text_of(hide(rng, sentences, fill(prose.draw(rng), n_tokens - taken, sizes.count)))
    return Talk(
        id=f"{TURNS}{n_turns}_{n_tokens}_{seed}_{i}",
        task=TURNS,
        kind=",".join(turn.kind for turn in turns),
        context=context,
        question=first.question,
        answers=(first.answer,),
        metric="all_substr",
        max_new_tokens=TOKENS_FOR_ONE,
        answer_prefix=first.prefix,
        n_tokens=n_tokens,
        bucket=length_name(n_tokens),
        depths=tuple(round(context.index(sentence) / len(context), 3) for sentence in sentences),
        turns=turns,
    )


def _fact(rng: random.Random, form: phrases.Asked, key: str) -> tuple[str, Turn]:
    value = _VALUES[form.value](rng)
    turn = Turn(form.kind, form.question.format(key=key), form.prefix.format(key=key), value)
    return form.sentence.format(key=key, x=value), turn


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "number": lambda rng: str(rng.randrange(10**4, 10**5)),
    "word": lambda rng: rng.choice(phrases.WORDS),
    "code": lambda rng: "".join(rng.sample("BCDFGHJKLMNPQRSTVWXZ", 3)) + str(rng.randrange(100, 1000)),
}
