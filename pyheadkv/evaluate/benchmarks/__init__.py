"""Files of known benchmarks, given as a path or fetched from their place at the hub, as cases.

`rows` reads files, `hub` fetches them, `longbench`, `loogle`, `ruler` and `babilong` each know their fields, output
limits and metrics. What stands around text and question is worded here; the benchmarks' own prompts differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import EvaluationError, one_line
from pyheadkv.evaluate.benchmarks import babilong, longbench, loogle, ruler
from pyheadkv.evaluate.benchmarks.fit import fit_cases
from pyheadkv.evaluate.benchmarks.hub import Notice, fetch
from pyheadkv.evaluate.benchmarks.rows import Row, Source, read_rows
from pyheadkv.evaluate.cases import Case, case_of_row

__all__ = ["fit_cases", "load_cases"]


@dataclass(frozen=True)
class Layout:
    """A layout of rows, known by its fields."""

    name: str
    fields: frozenset[str]
    cases: Callable[[Row, Source, int], Iterable[Case]]


LAYOUTS = (
    Layout("pyheadkv", frozenset({"metric"}), lambda row, source, n: [case_of_row(row)]),
    Layout("LongBench", frozenset({"input", "context", "answers", "all_classes", "dataset"}), longbench.cases),
    Layout("LooGLE, a document a row", frozenset({"input", "qa_pairs"}), loogle.cases_of_document),
    Layout("LooGLE, a question a row", frozenset({"context", "question", "answer", "doc_id"}), loogle.cases),
    Layout("RULER", frozenset({"input", "outputs"}), ruler.cases),
    Layout(
        "RULER as kvpress has it",
        frozenset({"context", "question", "answer_prefix", "answer", "task", "max_new_tokens"}),
        ruler.split_cases,
    ),
    Layout("BABILong", frozenset({"input", "question", "target"}), babilong.cases),
)


def load_cases(text: str, on_notice: Notice | None = None) -> list[Case]:
    """Cases of a file in pyheadkv's own layout or a benchmark's, or of BENCHMARK:NAME at the hub.

    Parameters
    ----------
    text
        a path to JSON lines, JSON or Parquet, or longbench:hotpotqa, loogle:longdep_qa, ruler:4096, babilong:qa1/4k
    on_notice
        called with one line before something is downloaded

    Raises
    ------
    EvaluationError
        the file cannot be had or read, or has no layout that is known
    UsageError
        a library is missing
    """
    source = (None if Path(text).exists() else fetch(text, on_notice)) or Source(Path(text))
    rows = read_rows(source)
    if not rows:
        raise EvaluationError(f"{source.name} has no cases")
    layout = next((layout for layout in LAYOUTS if layout.fields <= rows[0].keys()), None)
    if layout is None:
        known = ", ".join(layout.name for layout in LAYOUTS)
        fields = ", ".join(sorted(rows[0]))[:120]
        raise EvaluationError(f"{source.name}: rows with the fields {fields} are no cases; known are {known}")
    return _unique(source, layout, rows)


def _unique(source: Source, layout: Layout, rows: Iterable[Row]) -> list[Case]:
    cases: dict[str, Case] = {}
    for n, row in enumerate(rows, 1):
        try:
            made = list(layout.cases(row, source, n))
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)[:160]
            raise EvaluationError(f"{source.name}, row {n} ({layout.name}): {reason}") from None
        for case in made:
            if case.id in cases:
                raise EvaluationError(f"{source.name}, row {n}: id {case.id[:80]!r} is there twice")
            cases[case.id] = case
    return list(cases.values())
