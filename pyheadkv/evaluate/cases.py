"""A case: a long text, a question about it, and what the answer should be; JSON lines hold many.

    {"id": "single_2048_0", "task": "single", "kind": "serial", "context": "...", "question": "...",
     "prompt": "... the context ... the question", "answer_prefix": "The serial number is", "answers": ["4819230"],
     "metric": "all_substr", "max_new_tokens": 24, "bucket": "2k", "length_tokens": 2010, "depths": [0.4]}

Files with more fields load as they are. Without ``prompt`` the message is the context, an empty line and the question.
A case with the metric "kl" has no question: its context is `length_tokens` tokens of prose and at least
`max_new_tokens` more, over which the model's predictions are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.metrics import CLASS_METRICS, METRICS
from pyheadkv.files.jsonl import JsonLines
from pyheadkv.files.plain_text import Limit, open_text

KL = "kl"
KNOWN = (*METRICS, *CLASS_METRICS, KL)
_DATA_LIMIT = Limit(1 << 31)  # many long texts in one file


@dataclass(frozen=True)
class Case:
    """One thing to ask.

    Parameters
    ----------
    id
        unlike all others
    task
        cases of one task are averaged
    kind
        of the sentences in which the answers stand
    context
        the long text
    question
        after it
    answers
        strings to compare with, by `metric`
    metric
        one of `pyheadkv.evaluate.metrics.METRICS` or `CLASS_METRICS`, or "kl"
    max_new_tokens
        the answer is cut there
    answer_prefix
        how the answer begins, put into the model's mouth
    prompt
        the whole message; "" for context and question with an empty line between them
    n_tokens
        length, as known to whoever made it
    bucket
        name of the length under which cases are averaged
    first_line
        only the first line of the answer counts
    depths
        where the answers stand in the context, 0 to 1
    classes
        what the answer is chosen from, for `CLASS_METRICS`

    Raises
    ------
    ValueError
        a text has half of a character, as JSON can write it
    """

    id: str
    task: str
    kind: str
    context: str
    question: str
    answers: tuple[str, ...]
    metric: str
    max_new_tokens: int
    answer_prefix: str = ""
    prompt: str = ""
    n_tokens: int = 0
    bucket: str = ""
    first_line: bool = False
    depths: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no tokenizer takes."""
        texts = (self.context, self.question, self.prompt, self.answer_prefix, *self.answers, *self.classes)
        "".join(texts).encode()

    @property
    def length(self) -> str:
        """The length that figures are given for."""
        return self.bucket or str(self.n_tokens)

    @property
    def message(self) -> str:
        """The user's message."""
        return self.prompt or f"{self.context}\n\n{self.question}"

    @property
    def gold(self) -> str:
        """The right answer: all answers where all are wanted, else the first."""
        return ", ".join(self.answers) if self.metric == "all_substr" else "".join(self.answers[:1])

    @cached_property
    def mark(self) -> str:
        """Differs where anything of the case does."""
        return hashlib.sha256(json.dumps(_to_json(self)).encode()).hexdigest()[:12]

    def document(self) -> str:
        """The message up to the end of the context: all that is there before the question is known.

        Raises
        ------
        EvaluationError
            the prompt does not hold the context
        """
        at = self.message.rfind(self.context) if self.context else -1
        if at < 0:
            raise EvaluationError(
                f"case {self.id} cannot be asked after its text: its prompt does not hold its context"
            )
        return self.message[: at + len(self.context)]


def read_json_text(path: str | Path) -> str:
    """Text of a file with JSON objects or a list of them; what begins otherwise is not read on.

    Raises
    ------
    EvaluationError
        it cannot be read, is no text, or begins with something else
    """
    source = open_text(path, EvaluationError)
    head = source.start.lstrip()[:40]
    if head and head[0] not in "{[":
        raise EvaluationError(f"{path} is no list of JSON objects: it begins with {head.splitlines()[0]!r}")
    return source.read(_DATA_LIMIT)


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Write cases as JSON lines; `pyheadkv.evaluate.load_cases` gives them back.

    Raises
    ------
    EvaluationError
        the file cannot be written
    """
    JsonLines(Path(path), EvaluationError).write(_to_json(case) for case in cases)


def _to_json(case: Case) -> dict[str, object]:
    row: dict[str, object] = asdict(case)
    row["length_tokens"] = row.pop("n_tokens")
    return row


def case_of_row(row: Any) -> Case:
    """A case of a JSON object; ValueError says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    task = _get(row, "task", str)
    answers = _get(row, "answers", list)
    metric = _get(row, "metric", str)
    classes = _get(row, "classes", list, [])
    if metric not in KNOWN:
        raise ValueError(f"unknown metric {metric!r}, known are {', '.join(KNOWN)}")
    if metric in CLASS_METRICS and not (classes and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"metric {metric} needs classes, a list of strings")
    if not all(isinstance(answer, str) and answer for answer in answers) or not (answers or metric == KL):
        raise ValueError("answers must be strings, at least one")
    n_new = _get(row, "max_new_tokens", int)
    if n_new < 1:
        raise ValueError(f"max_new_tokens is {n_new}, expected at least 1")
    texts = {key: _get(row, key, str, "") for key in ("question", "answer_prefix", "prompt", "bucket")}
    return Case(
        id=_get(row, "id", str),
        task=task,
        kind=_get(row, "kind", str, task),
        context=_get(row, "context", str),
        answers=tuple(answers),
        metric=metric,
        max_new_tokens=n_new,
        n_tokens=_get(row, "length_tokens", int, 0),
        first_line=bool(row.get("first_line")),
        depths=tuple(float(depth) for depth in _get(row, "depths", list, [])),
        classes=tuple(classes),
        **texts,
    )


def _get(row: Mapping[str, Any], key: str, kind: type, default: object = None) -> Any:
    value = row.get(key, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "missing" if value is None else repr(value)[:80]
        raise ValueError(f"{key} is {found}, expected {kind.__name__}")
    return value
