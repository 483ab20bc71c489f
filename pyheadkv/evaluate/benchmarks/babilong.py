"""BABILong (arXiv 2406.10149): facts of bAbI in long text. The first sentence must name the answer alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyheadkv.evaluate.benchmarks.rows import Row, Source
from pyheadkv.evaluate.cases import Case

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_THINGS = ("apple", "football", "milk")
_YES_NO = ("yes", "no")
MAX_NEW_TOKENS = 20
# task -> (what the answer is one of, how to reply)
TASKS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), (_PLACES, "Reply with one word, the name of the place.")),
    "qa5": (("Bill", "Fred", "Jeff", "Mary", *_THINGS), "Reply with one word, a name or a thing."),
    **dict.fromkeys(("qa6", "qa9"), (_YES_NO, "Reply with yes or no.")),
    "qa7": (("none", "one", "two", "three"), "Reply with one word, a number or none."),
    "qa8": (("nothing", *_THINGS), "Reply with the things, commas between them, or with nothing."),
    "qa10": ((*_YES_NO, "maybe"), "Reply with yes, no or maybe."),
}
_ASK = "Some sentences hidden in the text above tell facts; where they disagree, the last one holds."


def cases(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The case of a row; which task it is of says the file or its folder (data/qa1/4k.json)."""
    name = _task(source)
    question = row["question"].strip()
    classes, ask = TASKS[name]
    labels = tuple(label for label in classes if label.lower() not in question.lower())
    target = row["target"].strip()
    if not target:
        raise ValueError("the target is empty")
    yield Case(
        id=f"{name}_{n}",
        task=f"babilong {name}",
        kind=name,
        context=row["input"],
        question=f"{_ASK} {ask}\nQuestion: {question}\nAnswer:",
        answers=(target,),
        metric="only_label",
        max_new_tokens=MAX_NEW_TOKENS,
        classes=labels,
    )


def _task(source: Source) -> str:
    for text in (source.place.stem, source.place.parent.name):
        match = re.search(r"qa(?:10|[1-9])(?!\d)", text)
        if match:
            return match[0]
    raise ValueError("the task is unknown: name the file or its folder after it, qa1 to qa10")
