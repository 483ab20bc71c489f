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
    figure, (time, speed, memory) = new_figure(3, 4, 3.8)
    first = next(iter(lines.values()))
    _line(time, STOCK, first, lambda record: record["stock"]["ms_token"])
    _line(memory, STOCK, first, lambda record: _only(record["bytes"]["full"]))
    for name, own in lines.items():
        _line(time, name, own, lambda record: record["ours"]["ms_token"])
        _line(speed, name, own, lambda record: record["stock_to_ours"])
        _line(memory, name, own, lambda record: _only(record["bytes"]["measured"]))
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
    style: Any = {"color": "black", "linestyle": "--"} if name == STOCK else {}
    lengths = [record["n_prompt"] for record in records]
    axes.errorbar(lengths, medians, bars, marker="o", capsize=3, label=name, **style)


def _only(n_bytes: float) -> Record:
    """The spread of one value, in MiB."""
    return dict.fromkeys(("low", "median", "high"), n_bytes / MIB)


def _finish(axes: Any, words: str, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel(words)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
