"""What scripts/gpu-check measures of a card, and what is asked of it: arithmetic and Markdown, nothing is run here.

`ratio` is ours / stock, below 1 is faster; `uneven / even` is one KV head with 100 times the rows of the others against
equal heads with as many in all; `of copy` is the share of the bandwidth that a copy within the device reaches, reading
and writing counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

N_HEAD_KV, HEAD_SIZE, GROUP = 8, 128, 4  # Llama 3.1 8B's

MAX_RATIO = 1.0  # ours / stock
MIN_COPY_SHARE = 0.8
COPY_ROWS = 65536  # of a layer: from here on the share of the copy's bandwidth is asked for
MAX_UNEVEN = 1.15
MIN_SPEEDUP = 2.5  # of decoding, stock / ours
MAX_CHOOSING = 0.02  # of the time that reading the prompt takes

# (cache type, rows of a KV head, new tokens, shape) -> {"us": of a node, "gb_s": bytes of its rows in that time}
Measure = Callable[[str, int, int, str], dict[str, float]]


@dataclass(frozen=True)
class KernelRow:
    """The attention of one layer: times in microseconds a node, bandwidths in GB/s."""

    cache_type: str
    n_rows: int
    n_tokens: int
    us_stock: float
    us_even: float
    us_uneven: float
    gb_s: float
    gb_s_copy: float

    @property
    def ratio(self) -> float:
        """Ours / stock."""
        return self.us_even / self.us_stock

    @property
    def uneven(self) -> float:
        """One long head among short ones / equal heads."""
        return self.us_uneven / self.us_even

    @property
    def copy_share(self) -> float:
        """Of the copy's bandwidth."""
        return self.gb_s / self.gb_s_copy

    def __str__(self) -> str:
        return (
            f"| {self.cache_type} | {self.n_rows} | {self.n_tokens} | {self.us_stock:.1f} | {self.us_even:.1f} | "
            f"{self.ratio:.2f} | {self.uneven:.2f} | {self.gb_s:.0f} | {self.copy_share:.0%} |"
        )


def measure_kernel(measure: Measure, cache_type: str, n_rows: int, n_tokens: int) -> KernelRow:
    """All shapes of one line."""
    took = {shape: measure(cache_type, n_rows, n_tokens, shape) for shape in ("stock", "even", "uneven", "copy")}
    stock, even, uneven = (took[shape]["us"] for shape in ("stock", "even", "uneven"))
    return KernelRow(cache_type, n_rows, n_tokens, stock, even, uneven, took["even"]["gb_s"], took["copy"]["gb_s"])


def kernel_table(rows: Sequence[KernelRow]) -> list[str]:
    """Markdown lines."""
    head = "| type | rows of a head | tokens | stock, us | ours, us | ratio | uneven / even | GB/s | of copy |"
    return [head, "|---" * 9 + "|", *map(str, rows)]


def model_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines; `records` are results of `pyheadkv bench --json`."""
    lines = [
        "| prompt | kept | stock, tokens/s | ours, tokens/s | stock / ours | reading, s | choosing / reading |",
        "|---" * 7 + "|",
    ]
    for record in records:
        stock, ours = record["stock"], record["ours"]
        lines.append(
            f"| {record['n_prompt']} | {record['keep_ratio']:.0%} | {stock['tok_s']:.1f} | {ours['tok_s']:.1f} | "
            f"{record['stock_to_ours']['median']:.2f} | {stock['ms_prefill'] / 1000:.1f} | {choosing(record):.1%} |"
        )
    return lines


def choosing(record: dict[str, Any]) -> float:
    """Time of scoring and selection over that of reading the prompt."""
    ours = record["ours"]
    return float((ours["ms_scoring"] + ours["ms_select"]) / record["stock"]["ms_prefill"])


def reading_table(readings: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines; each has "side", "n_prompt", "ms_prefill", and "bytes_before" and "bytes_peak" of the card."""
    lines = ["| prompt | cache | reading, s | memory of the card at most, MiB |", "|---" * 4 + "|"]
    for reading in readings:
        mib = (reading["bytes_peak"] - reading["bytes_before"]) / 2**20
        seconds = reading["ms_prefill"] / 1000
        lines.append(f"| {reading['n_prompt']} | {reading['side']} | {seconds:.1f} | {mib:.0f} |")
    return lines


def verdict(what: str, values: Iterable[float], limit: float, is_most: bool) -> str:
    """One line: the worst of the values, and whether it keeps the limit."""
    found = list(values)
    if not found:
        return f"- {what}: not measured"
    worst = max(found) if is_most else min(found)
    is_kept = worst <= limit if is_most else worst >= limit
    return f"- {what}, {'at most' if is_most else 'at least'} {limit:g}: {worst:.3g}, {'yes' if is_kept else 'NO'}"


def kernel_verdicts(rows: Sequence[KernelRow]) -> list[str]:
    """What is asked of the kernel."""
    long = [row.copy_share for row in rows if row.n_tokens == 1 and row.n_rows * N_HEAD_KV >= COPY_ROWS]
    return [
        verdict("time of ours over stock's", (row.ratio for row in rows), MAX_RATIO, True),
        verdict(f"share of the copy's bandwidth from {COPY_ROWS} rows on", long, MIN_COPY_SHARE, False),
        verdict("uneven over even heads", (row.uneven for row in rows), MAX_UNEVEN, True),
    ]


def model_verdicts(records: Sequence[dict[str, Any]]) -> list[str]:
    """What is asked of a whole model, at the longest prompt."""
    longest = [record for record in records if record["n_prompt"] == max(r["n_prompt"] for r in records)]
    speedups = [record["stock_to_ours"]["median"] for record in longest]
    return [
        verdict("decoding, stock over ours", speedups, MIN_SPEEDUP, False),
        verdict("scoring and selection over reading the prompt", map(choosing, longest), MAX_CHOOSING, True),
    ]
