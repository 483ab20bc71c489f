"""Riddles: sentences to hide in a long text, a question that only they answer, and the right answers.

After RULER (Hsieh et al., arXiv 2404.06654, section 3): single, multi-key, multi-value and multi-query needles and
variable tracking; and after HeadKV-R2 (arXiv 2410.19258, section 3.1): a fact in one place tells which of two values
in another place is the right one. All sentences, names and values are this package's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pyheadkv.evaluate.tasks import phrases

N_DIGITS = 7
TOKENS_FOR_ONE = 24  # of an answer with one number, a few words before it included
TOKENS_FOR_NEXT = 12


@dataclass(frozen=True)
class Riddle:
    """A hidden thing and its question.

    Parameters
    ----------
    kind
        of the sentences
    parts
        each to be hidden in a place of its own
    prefix
        how the answer begins; "" leaves that to the model
    answers
        all of them are wanted
    """

    kind: str
    parts: tuple[str, ...]
    question: str
    prefix: str
    answers: tuple[str, ...]

    @property
    def max_new_tokens(self) -> int:
        """Enough to give all answers."""
        return TOKENS_FOR_ONE + TOKENS_FOR_NEXT * (len(self.answers) - 1)


Draw = Callable[[random.Random, int], Riddle]


def single(rng: random.Random, i: int) -> Riddle:
    """One number in one sentence."""
    return _one_of(rng, i, n_keys=1)


def unprefixed(rng: random.Random, i: int) -> Riddle:
    """The same, asked as in a chat: how the answer begins is left to the model."""
    return replace(single(rng, i), prefix="")


def multikey(rng: random.Random, i: int) -> Riddle:
    """One number is asked for, four others stand in sentences of the same form."""
    return _one_of(rng, i, n_keys=5)


def multivalue(rng: random.Random, i: int) -> Riddle:
    """Three numbers of one thing, in three places."""
    keys = 3 * _keys(rng, 1)
    return _needles(rng, i, keys, keys[0], n_answers=3)


def multiquery(rng: random.Random, i: int) -> Riddle:
    """The numbers of two things are asked for, those of two others stand beside them."""
    keys = _keys(rng, 4)
    return _needles(rng, i, keys, f"{keys[0]} and the {keys[1]}", n_answers=2)


def tracking(rng: random.Random, i: int) -> Riddle:
    """A number goes from drawer to drawer; which ones hold it? Another chain, of another number, runs beside it."""
    labels = _distinct(rng, 6, lambda: "".join(rng.choices("BCDFGHJKLMNPQRSTVWXZ", k=4)))
    numbers = _numbers(rng, 2, n_digits=5)
    chains = labels[:4], labels[4:]
    parts = [f"Drawer {chain[0]} holds {n}." for chain, n in zip(chains, numbers, strict=True)]
    for chain in chains:
        parts += [f"Drawer {after} holds the same as drawer {before}." for before, after in pairwise(chain)]
    return Riddle(
        "drawers",
        tuple(parts),
        f"Which {len(chains[0])} drawers hold {numbers[0]}?",
        f"The {len(chains[0])} drawers that hold {numbers[0]} are",
        chains[0],
    )


def reasoning(rng: random.Random, i: int) -> Riddle:
    """Who somebody is stands in one place, what that somebody has in another, and a wrong answer beside it."""
    who, other = rng.sample(phrases.NAMES, 2)
    (fact, someone), (other_fact, other_someone) = rng.sample(phrases.TRAITS, 2)
    kind, has, question, prefix = phrases.HOLDINGS[i % len(phrases.HOLDINGS)]
    value, other_value = _numbers(rng, 2, n_digits=5)
    answers = [has.format(someone=someone, x=value), has.format(someone=other_someone, x=other_value)]
    rng.shuffle(answers)
    return Riddle(
        kind,
        (f"{fact.format(who=who)} {other_fact.format(who=other)}", " ".join(answers)),
        question.format(who=who),
        prefix.format(who=who),
        (value,),
    )


def _one_of(rng: random.Random, i: int, n_keys: int) -> Riddle:
    keys = _keys(rng, n_keys)
    return _needles(rng, i, keys, keys[0], n_answers=1)


def _needles(rng: random.Random, i: int, keys: Sequence[str], asked: str, n_answers: int) -> Riddle:
    """A number for each key; the first ones are asked for, by what their keys are called together."""
    form, values = phrases.FORMS[i % len(phrases.FORMS)], _numbers(rng, len(keys))
    question, prefix = (form.question, form.prefix) if n_answers == 1 else (form.question_many, form.prefix_many)
    parts = tuple(form.sentence.format(key=key, x=value) for key, value in zip(keys, values, strict=True))
    return Riddle(form.kind, parts, question.format(key=asked), prefix.format(key=asked), values[:n_answers])


def _keys(rng: random.Random, n: int) -> tuple[str, ...]:
    things = rng.sample(phrases.THINGS, n)  # no thing twice: the adjective alone should not decide
    return tuple(
        f"{adjective} {thing}" for adjective, thing in zip(rng.sample(phrases.ADJECTIVES, n), things, strict=True)
    )


def _numbers(rng: random.Random, n: int, n_digits: int = N_DIGITS) -> tuple[str, ...]:
    return _distinct(rng, n, lambda: str(rng.randrange(10 ** (n_digits - 1), 10**n_digits)))


def _distinct(rng: random.Random, n: int, make: Callable[[], str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[make()] = None
    return tuple(found)
