"""Cases of a length: a riddle hidden in prose, or prose alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pyheadkv.calibrate.pages import fill, hide, text_of
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.tasks import riddles
from pyheadkv.evaluate.tasks.prose import Prose

TASKS: dict[str, riddles.Draw | None] = {
    "single": riddles.single,
    "open": riddles.unprefixed,
    "multikey": riddles.multikey,
    "multivalue": riddles.multivalue,
    "multiquery": riddles.multiquery,
    "tracking": riddles.tracking,
    "reasoning": riddles.reasoning,
    KL: None,
}
GROUPS = {"needles": ("single", "multikey", "multivalue", "multiquery"), "all": tuple(TASKS)}
KL_TOKENS = 128
SLACK = 8  # sentences counted one by one may make a few tokens less than the whole text


@dataclass(frozen=True)
class Sizes:
    """How long texts are for a model.

    Parameters
    ----------
    count
        tokens of a text
    n_frame
        tokens that a chat puts around a message
    """

    count: Callable[[str], int]
    n_frame: int


def parse_tasks(text: str) -> tuple[str, ...]:
    """Names of tasks and of groups of them, apart by commas -> names of tasks, each once.

    Raises
    ------
    EvaluationError
        an unknown name; lists those there are
    """
    names: dict[str, None] = {}
    for name in (part.strip() for part in text.split(",")):
        if name not in TASKS and name not in GROUPS:
            raise EvaluationError(f"unknown task {name!r}, known are {', '.join([*GROUPS, *TASKS])}")
        names |= dict.fromkeys(GROUPS.get(name, (name,)))
    return tuple(names)


def length_name(n_tokens: int) -> str:
    """2048 -> 2k, 1000 -> 1000."""
    return str(n_tokens) if n_tokens % 1024 else f"{n_tokens // 1024}k"


def make_cases(task: str, n_cases: int, n_tokens: int, seed: int, prose: Prose, sizes: Sizes) -> list[Case]:
    """Draw cases of a task; the same arguments give the same cases, and more of them begin with the same ones.

    Parameters
    ----------
    n_tokens
        of the whole prompt, at most; of "kl", exactly

    Raises
    ------
    EvaluationError
        there is no room for what has to stand in the text
    """
    return [_case(task, i, n_tokens, seed, prose, sizes) for i in range(n_cases)]


def _case(task: str, i: int, n_tokens: int, seed: int, prose: Prose, sizes: Sizes) -> Case:
    rng = random.Random(f"{seed} {task} {n_tokens} {i}")
    name = f"{task}_{n_tokens}_{seed}_{i}"
    draw = TASKS[task]
    if draw is None:
        return _passage(name, task, rng, n_tokens, prose, sizes)
    riddle = draw(rng, i)
    parts = list(riddle.parts)
    taken = sizes.n_frame + SLACK + sum(map(sizes.count, (*parts, riddle.question, riddle.prefix)))
    if taken > n_tokens:
        raise EvaluationError(f"task {task} does not fit into {n_tokens} tokens, it needs {taken}")
    context = text_of(hide(rng, parts, fill(prose.draw(rng), n_tokens - taken, sizes.count)))
    return Case(
        id=name,
        task=task,
        kind=riddle.kind,
        context=context,
        question=riddle.question,
        answers=riddle.answers,
        metric="all_substr",
        max_new_tokens=riddle.max_new_tokens,
        answer_prefix=riddle.prefix,
        n_tokens=n_tokens,
        bucket=length_name(n_tokens),
        depths=tuple(round(context.index(part) / len(context), 3) for part in parts),
    )


def _passage(name: str, task: str, rng: random.Random, n_tokens: int, prose: Prose, sizes: Sizes) -> Case:
    wanted, written, n_written = n_tokens + KL_TOKENS + SLACK, [], 0
    for paragraph in prose.draw(rng):
        written.append(paragraph)
        n_written += sizes.count(paragraph)
        if n_written >= wanted:
            break
    return Case(
        id=name,
        task=task,
        kind="prose",
        context="\n\n".join(written),
        question="",
        answers=(),
        metric=KL,
        max_new_tokens=KL_TOKENS,
        n_tokens=n_tokens,
        bucket=length_name(n_tokens),
    )
