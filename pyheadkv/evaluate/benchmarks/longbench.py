"""LongBench (arXiv 2308.14508): its English and code tasks, with its metrics and output limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyheadkv.evaluate.benchmarks.rows import Row, Source
from pyheadkv.evaluate.cases import Case


@dataclass(frozen=True)
class _Task:
    """How a task is asked and scored; {input} is the row's own question."""

    metric: str
    max_new_tokens: int
    ask: str
    before: str = ""
    first_line: bool = False


_SHORT = "Question about the text above: {input}\nReply with nothing but the answer, as short as it can be.\nAnswer:"
_PAPER = (
    "Question about the paper above: {input}\nReply with a short phrase, with yes or no where that is asked, or with "
    "unanswerable where the paper does not tell.\nAnswer:"
)
_SUMMARY = "Sum up all of the above on about one page.\nSummary:"
_MEETING = "About the meeting above: {input}\nReply in a few sentences.\nAnswer:"
_EXAMPLES = "Examples come first; complete the last item in the same way."
_COUNT = "How many different paragraphs are there above, when the same one counts once? Reply with the number.\nNumber:"
_WHICH = (
    "This sums up one of the paragraphs above:\n\n{input}\n\nWhich paragraph? Reply as in: Paragraph 1\nThe answer is:"
)
_CODE = "{input}\nWhat is the next line of this code? Reply with that line only."

TASKS = {
    "narrativeqa": _Task("qa_f1", 128, _SHORT),
    "qasper": _Task("qa_f1", 128, _PAPER),
    "multifieldqa_en": _Task("qa_f1", 64, _SHORT),
    "hotpotqa": _Task("qa_f1", 32, _SHORT),
    "2wikimqa": _Task("qa_f1", 32, _SHORT),
    "musique": _Task("qa_f1", 32, _SHORT),
    "gov_report": _Task("rouge_l", 512, _SUMMARY),
    "qmsum": _Task("rouge_l", 512, _MEETING),
    "multi_news": _Task("rouge_l", 512, _SUMMARY),
    "trec": _Task("label", 64, "{input}", _EXAMPLES, first_line=True),
    "triviaqa": _Task("qa_f1", 32, "{input}", _EXAMPLES, first_line=True),
    "samsum": _Task("rouge_l", 128, "{input}", _EXAMPLES, first_line=True),
    "passage_count": _Task("number", 32, _COUNT),
    "passage_retrieval_en": _Task("number", 32, _WHICH),
    "lcc": _Task("code_sim", 64, _CODE),
    "repobench-p": _Task("code_sim", 64, _CODE),
}


def cases(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The case of a row. ValueError: a task that cannot be scored here."""
    name = row["dataset"].removesuffix("_e")
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not one of {', '.join(TASKS)} (the Chinese ones need to be cut into words)")
    task = TASKS[name]
    question = task.ask.replace("{input}", row["input"]).strip("\n")
    before = f"{task.before}\n\n" if task.before else ""
    yield Case(
        id=f"{name}_{row.get('_id') or n}",
        task=f"longbench {name}",
        kind=name,
        context=row["context"],
        question=question,
        answers=tuple(str(answer) for answer in row["answers"]),
        metric=task.metric,
        max_new_tokens=task.max_new_tokens,
        prompt=f"{before}{row['context']}\n\n{question}",
        first_line=task.first_line,
        classes=tuple(row["all_classes"] or ()),
    )
