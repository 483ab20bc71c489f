"""Results as Markdown tables, which a terminal shows as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.table import Table

from pyheadkv.cache.stats import mib
from pyheadkv.files.jsonl import Record

NOTE = "Medians over the rounds, quartiles in brackets. stock / ours: above 1 is faster than stock."
RANDOM_NOTE = "Random weights: only times and bytes mean something, and only those of a layer hold for the whole model."


Row = list[tuple[str, str]]  # heading and text of each column


def tables(records: Sequence[Record], is_random: bool = False) -> Iterable[Table]:
    """Speed, memory where it was measured, and, of a model that has some of its layers only, times of a layer."""
    yield _table("Speed", _speed, records)
    yield _table("K and V buffers, MiB", _buffers, records)
    if all("rss" in record["ours"] for record in records):
        yield _table("Resident memory of a process, MiB", _resident, records)
    if is_random:
        yield _table("One layer", _layer, records)


def prefill_table(records: Sequence[Record]) -> Table:
    """Of `pyheadkv.bench.prefill.run_prefill`."""
    return _table("Reading a prompt and choosing its rows", _prefill, records)


def follow_up_table(records: Sequence[Record]) -> Table:
    """Of `pyheadkv.bench.follow_up.run_follow_ups`."""
    return _table("A second question, to the first token of its answer", _follow_up, records)


def capsule_table(records: Sequence[Record]) -> Table:
    """Of `pyheadkv.bench.capsule.run_capsules`."""
    return _table("A capsule opened and a question asked, to the first token of its answer", _capsule, records)


def _table(title: str, row_of: Callable[[Record], Row], records: Sequence[Record]) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    rows = [[*_head(record), *row_of(record)] for record in records]
    for i, (heading, _) in enumerate(rows[0]):
        table.add_column(heading, justify="left" if i == 1 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(text for _, text in row))
    return table


def _head(record: Record) -> Row:
    kept = f"{100 * record['keep_ratio']:.1f} %"
    return [("context", str(record["n_prompt"])), ("policy", record["policy"]), ("kept", kept)]


def _speed(record: Record) -> Row:
    stock, ours = record["stock"], record["ours"]
    choosing = ours["ms_scoring"] + ours["ms_select"]
    return [
        ("stock ms/token", _spread(stock["ms_token"])),
        ("ours ms/token", _spread(ours["ms_token"])),
        ("stock / ours", _spread(record["stock_to_ours"])),
        ("tokens/s, stock and ours", f"{stock['tok_s']:.1f}, {ours['tok_s']:.1f}"),
        ("prefill s, stock and ours", ", ".join(_seconds(side.get("ms_prefill")) for side in (stock, ours))),
        ("scoring and selection ms", f"{choosing:.0f} ({100 * choosing / stock['ms_prefill']:.2f} %)"),
    ]


def _prefill(record: Record) -> Row:
    share = 100 * record["bytes_peak"] / record["bytes_full"]
    return [
        ("read", record["way"]),
        ("stock s", _seconds(record["stock_ms"]["median"])),
        ("ours s", _seconds(record["ours_ms"]["median"])),
        ("ours / stock", _spread(record["ours_to_stock"], digits=3)),
        ("K and V at the peak, MiB", f"{mib(record['bytes_peak'])} of {mib(record['bytes_full'])} ({share:.1f} %)"),
        ("read from disk, MiB, stock and ours", ", ".join(_mib(record[f"{side}_disk"]) for side in ("stock", "ours"))),
        ("RSS at the peak, MiB, stock and ours", ", ".join(map(_mib, record["rss_peak"]))),
    ]


def _follow_up(record: Record) -> Row:
    return [
        ("question", str(record["n_question"])),
        ("read by", record["way"]),
        ("stock ms", f"{record['stock_ms']['median']:.0f}"),
        ("ours ms", f"{record['ours_ms']['median']:.0f}"),
        ("ours / stock", _spread(record["ours_to_stock"])),
    ]


def _capsule(record: Record) -> Row:
    return [
        ("question", str(record["n_question"])),
        ("page cache", record["way"]),
        ("capsule MiB", mib(record["bytes"])),
        ("stock reads all, s", _seconds(record["stock_ms"]["median"])),
        ("ours ms", f"{record['ours_ms']['median']:.0f}"),
        ("ours / stock", _spread(record["ours_to_stock"], digits=3)),
    ]


def _buffers(record: Record) -> Row:
    names = {"full": "full", "kept": "rows kept", "measured": "measured", "peak": "peak"}
    return [(heading, mib(record["bytes"][name])) for name, heading in names.items()]


def _resident(record: Record) -> Row:
    stock, ours = record["stock"]["rss"], record["ours"]["rss"]
    return [
        ("stock, loaded", mib(stock["loaded"])),
        ("prompt read", mib(stock["whole"])),
        ("peak", mib(stock["peak"])),
        ("ours, loaded", mib(ours["loaded"])),
        ("prompt read, not yet compressed", mib(ours["whole"])),
        ("compressed", mib(ours["read"])),
        ("some tokens later", mib(ours["decoded"])),
        ("peak", mib(ours["peak"])),
    ]


def _layer(record: Record) -> Row:
    n, n_bytes = record["n_layer"], record["bytes"]
    times = [(f"{side} ms/token", f"{record[side]['ms_token']['median'] / n:.3f}") for side in ("stock", "ours")]
    return [*times, *((f"{name} MiB", mib(n_bytes[name] / n)) for name in ("full", "measured"))]


def _spread(spread: Record, digits: int = 2) -> str:
    median, low, high = (f"{spread[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _mib(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else mib(n_bytes)


def _seconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms / 1000:.1f}"
