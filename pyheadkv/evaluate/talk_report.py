"""Chats as a table: right answers at each turn, beside those of the whole cache of the same chats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pyheadkv.evaluate.metrics import mean_and_error
from pyheadkv.evaluate.report import value_text
from pyheadkv.evaluate.results import FULL
from pyheadkv.files.jsonl import Record

_TURN = "turn "


def turn_tables(records: Sequence[Record]) -> str:
    """Markdown, one table for each length: for each trial the share of right answers at each turn.

    Parameters
    ----------
    records
        of chats, among them those of the whole cache
    """
    by_length: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_length[record["length"]].append(record)
    return "\n".join(_table(length, own) for length, own in by_length.items())


def _table(length: str, records: Sequence[Record]) -> str:
    full = {record["case"]: record["figures"] for record in records if record["policy"] == FULL}
    trials: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        trials[record["policy"], record["budget"]].append(record)
    turns = [name for name in records[0]["figures"] if name.startswith(_TURN)]
    lines = [
        f"Right answers in {len(full)} chats, {length}, % ± one standard error; in brackets the difference to the "
        "whole cache over the same chats:",
        "",
        f"| policy, rows that are not kept | kept | {' | '.join(turns)} |",
        "|---" * (2 + len(turns)) + "|",
    ]
    for (policy, budget), own in trials.items():
        cells = [
            _cell([(record["figures"][turn], full[record["case"]][turn]) for record in own], policy) for turn in turns
        ]
        lines.append(f"| {policy} | {budget} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(pairs: Sequence[tuple[float, float]], policy: str) -> str:
    words = value_text(_TURN, *mean_and_error([ours for ours, _ in pairs]))
    if policy == FULL:
        return words
    return f"{words} ({value_text(_TURN, *mean_and_error([ours - whole for ours, whole in pairs]))})"
