"""A picture of a run: time of a token, speed beside stock, and memory, over the prompt's length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyheadkv.cache.stats import MIB
from pyheadkv.errors import BenchError
from pyheadkv.files.jsonl import Record
from pyheadkv.plots.figure import new_figure, save_figure

STOCK = "stock"


def write_plot(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw.

    Raises
    ------
    UsageError
        matplotlib is missing
    BenchError
        the file cannot be written
    """
    lines: dict[str, list[Record]] = {}
    for record in records:
        lines.setdefault(f"{record['policy']}, {record['budget']}", []).append(record)
    figure = new_figure(12, 3.8)
    time, speed, memory = (figure.add_subplot(1, 3, i + 1) for i in range(3))
    first = next(iter(lines.values()))
    _line(time, STOCK, first, lambda record: record["stock"]["ms_token"])
    _flat(memory, STOCK, first, lambda record: record["bytes"]["full"] / MIB)
    for name, own in lines.items():
        _line(time, name, own, lambda record: record["ours"]["ms_token"])
        _line(speed, name, own, lambda record: record["stock_to_ours"])
        _flat(memory, name, own, lambda record: record["bytes"]["measured"] / MIB)
    speed.axhline(1, color="grey", linestyle=":")
    for axes, words in ((time, "ms a token"), (speed, "times as fast as stock"), (memory, "K and V buffers, MiB")):
        _finish(axes, words, sorted({record["n_prompt"] for record in records}))
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path, BenchError)


def _line(axes: Any, name: str, records: Sequence[Record], spread_of: Callable[[Record], Record]) -> None:
    """Medians, with bars from quartile to quartile."""
    found = [spread_of(record) for record in records]
    medians = [spread["median"] for spread in found]
    bars = [[s["median"] - s["low"] for s in found], [s["high"] - s["median"] for s in found]]
    axes.errorbar(_lengths(records), medians, bars, marker="o", capsize=3, label=name, **_style(name))


def _flat(axes: Any, name: str, records: Sequence[Record], value_of: Callable[[Record], float]) -> None:
    axes.plot(_lengths(records), list(map(value_of, records)), marker="o", label=name, **_style(name))


def _style(name: str) -> dict[str, str]:
    return {"color": "black", "linestyle": "--"} if name == STOCK else {}


def _lengths(records: Sequence[Record]) -> list[int]:
    return [record["n_prompt"] for record in records]


def _finish(axes: Any, words: str, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel(words)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
