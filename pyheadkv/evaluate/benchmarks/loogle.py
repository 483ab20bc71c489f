"""LooGLE (arXiv 2311.04939), in both layouts that it was published in.

Its answers are scored by ROUGE-L recall, and clozes by the masks that are exactly right; BLEU, METEOR, BERTScore and
judging by another model are left out.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable

from pyheadkv.evaluate.benchmarks.rows import Row, Source
from pyheadkv.evaluate.cases import Case

LIMITS = {"shortdep_qa": 300, "longdep_qa": 500, "shortdep_cloze": 50, "longdep_summarization": 500}
_ASK = "Answer a question about the text above.\nQuestion: {0}\nAnswer:"
_MASKS = (
    "Names are missing in this sentence about the text above: {0}\nThe same mask is the same name. Reply with one "
    'JSON object of masks and names and nothing else, as in {{"<mask-0>": "Anna"}}.'
)
_SUMMARY = "Sum up the paper above.\nSummary:"


def cases(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The case of a row with one question."""
    task = str(row.get("task") or source.place.stem)
    yield _case(task, str(row.get("id") or n), row["context"], row.get("question") or "", row["answer"])


def cases_of_document(row: Row, source: Source, n: int) -> Iterable[Case]:
    """The cases of a row with a document and all questions about it, which may be the text of a Python list."""
    pairs = row["qa_pairs"]
    if pairs == "none":
        yield _case("longdep_summarization", f"{n}", row["input"], "", row["output"])
        return
    for i, pair in enumerate(ast.literal_eval(pairs) if isinstance(pairs, str) else pairs):
        masked = isinstance(pair["A"], dict) or "<mask-" in pair["Q"]
        task = source.place.stem if source.place.stem in LIMITS else "shortdep_cloze" if masked else "shortdep_qa"
        yield _case(task, f"{n}_{i}", row["input"], pair["Q"], pair["A"])


def _case(task: str, name: str, context: str, question: str, answer: object) -> Case:
    task = "longdep_summarization" if task == "summarization" else task
    if task not in LIMITS:
        raise ValueError(f"task {task!r} is not one of {', '.join(LIMITS)}")
    is_cloze = task == "shortdep_cloze"
    ask = _MASKS if is_cloze else _ASK if question else _SUMMARY
    gold = json.dumps(answer, ensure_ascii=False) if isinstance(answer, dict) else str(answer)
    if not gold.strip():
        raise ValueError("the answer is empty")
    return Case(
        id=f"{task}_{name}",
        task=f"loogle {task}",
        kind=task,
        context=context,
        question=ask.format(question),
        answers=(gold,),
        metric="cloze" if is_cloze else "rouge_l_recall",
        max_new_tokens=LIMITS[task],
    )
