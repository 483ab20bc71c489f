"""Results as Markdown tables, which a terminal shows as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from pyheadkv.cache.stats import mib
from pyheadkv.files.jsonl import Record

NOTE = "Medians over the rounds, quartiles in brackets. stock / ours: above 1 is faster than stock."
RANDOM_NOTE = "Random weights: only times and bytes mean something, and only those of a layer hold for the whole model."


def tables(records: Sequence[Record], is_random: bool = False) -> Iterable[Table]:
    """Speed, memory where it was measured, and, of a model that has some of its layers only, times of a layer."""
    yield _table("Speed", _SPEED, map(_speed, records))
    yield _table("K and V buffers, MiB", _BUFFERS, map(_buffers, records))
    if all("rss" in record["ours"] for record in records):
        yield _table("Resident memory of a process, MiB", _RESIDENT, map(_resident, records))
    if is_random:
        yield _table("One layer", _LAYER, map(_layer, records))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for i, column in enumerate((*_HEAD, *columns)):
        table.add_column(column, justify="left" if i == 1 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


_HEAD = ("context", "policy", "kept")
_SPEED = (
    "stock ms/token",
    "ours ms/token",
    "stock / ours",
    "tokens/s, stock and ours",
    "prefill s, stock and ours",
    "scoring and selection ms",
)
_BUFFERS = ("full", "rows kept", "measured", "peak")
_RESIDENT = (
    "stock, loaded",
    "prompt read",
    "peak",
    "ours, loaded",
    "prompt read, whole",
    "compressed",
    "some tokens later",
    "peak",
)
_LAYER = ("stock ms/token", "ours ms/token", "full MiB", "measured MiB")


def _head(record: Record) -> tuple[str, str, str]:
    return f"{record['n_prompt']}", record["policy"], f"{100 * record['keep_ratio']:.1f} %"


def _speed(record: Record) -> Sequence[str]:
    stock, ours = record["stock"], record["ours"]
    choosing = ours["ms_scoring"] + ours["ms_select"]
    return (
        *_head(record),
        _spread(stock["ms_token"]),
        _spread(ours["ms_token"]),
        _spread(record["stock_to_ours"]),
        f"{stock['tok_s']:.1f}, {ours['tok_s']:.1f}",
        ", ".join(_seconds(side.get("ms_prefill")) for side in (stock, ours)),
        f"{choosing:.0f} ({100 * choosing / stock['ms_prefill']:.2f} %)",
    )


def _buffers(record: Record) -> Sequence[str]:
    return (*_head(record), *(mib(record["bytes"][name]) for name in ("full", "kept", "measured", "peak")))


def _resident(record: Record) -> Sequence[str]:
    stock, ours = record["stock"]["rss"], record["ours"]["rss"]
    return (
        *_head(record),
        *(mib(stock[name]) for name in ("loaded", "whole", "peak")),
        *(mib(ours[name]) for name in ("loaded", "whole", "read", "decoded", "peak")),
    )


def _layer(record: Record) -> Sequence[str]:
    n, n_bytes = record["n_layer"], record["bytes"]
    times = (record[side]["ms_token"]["median"] / n for side in ("stock", "ours"))
    return (*_head(record), *(f"{ms:.3f}" for ms in times), *(mib(n_bytes[k] / n) for k in ("full", "measured")))


def _spread(spread: Record) -> str:
    return f"{spread['median']:.2f} [{spread['low']:.2f}, {spread['high']:.2f}]"


def _seconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms / 1000:.1f}"
