"""RULER (arXiv 2404.06654), as its own scripts write it and as kvpress publishes it.

Its own files do not name their task: the name of the file does, or that of its folder (niah_single_1/validation.jsonl).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyheadkv.evaluate.benchmarks.rows import Row, Source
from pyheadkv.evaluate.cases import Case

LIMITS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
_TASK = re.compile(rf"({'|'.join(LIMITS)})(?:_\w+)?")


def cases(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The case of a row of RULER's own: the last line of its input is the question."""
    task = next((name for name in (source.place.stem, source.place.parent.name) if _TASK.fullmatch(name)), None)
    if task is None:
        raise ValueError(f"the task is unknown: name the file or its folder after it, as in {', '.join(LIMITS)}_...")
    prompt = row["input"].strip("\n")
    context, _, question = prompt.rpartition("\n")
    prefix, limit = row.get("answer_prefix") or "", LIMITS[task.partition("_")[0]]
    yield _case(f"{task}_{n}", task, context.rstrip("\n"), question, prefix, row["outputs"], prompt, limit)


def split_cases(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The case of a row of which context and question are apart; they follow each other as they are."""
    prompt = f"{row['context']}{row['question']}"
    limit, task, prefix = int(row["max_new_tokens"]), str(row["task"]), row["answer_prefix"] or ""
    yield _case(f"{task}_{n}", task, row["context"], row["question"], prefix, row["answer"], prompt, limit)


def _case(
    name: str, task: str, context: str, question: str, prefix: str, answers: list[str], prompt: str, limit: int
) -> Case:
    if not answers:
        raise ValueError("there are no answers")
    return Case(
        id=name,
        task=f"ruler {task}",
        kind=task,
        context=context,
        question=question,
        answers=tuple(str(answer) for answer in answers),
        metric="any_substr" if task.startswith("qa") else "all_substr",
        max_new_tokens=limit,
        answer_prefix=prefix.strip(),
        prompt=prompt,
    )
