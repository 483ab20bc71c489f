#!/usr/bin/env python3
"""Time of the fused attention kernel on a GPU against llama.cpp's own on as many rows, as Markdown tables.

    CMAKE_ARGS=-DGGML_CUDA=on scripts/check     builds the program that measures, and its test (test-device)
    scripts/bench_cuda.py                       all figures, and which of those that are asked for are reached
    scripts/bench_cuda.py --rows 1024 --types f16 --groups 4 --no-model

One run of tests/native/bench-device.cpp for each figure; what it does is said there. `ratio` is ours / stock, below 1
is faster; `uneven / even` is one KV head with 100 times the rows of the others against equal heads with as many in
all; `of copy` is the share of the bandwidth that a copy within the device reaches, reading and writing counted. At last
`pyheadkv bench` decodes with a model of Llama-8B's shape and random weights, of which a tenth of 128k positions is
kept (some 24 GB of device memory).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "release" / "tests" / "native" / "bench-device"
N_HEAD_KV = 8
LIMIT_S = 300
MODEL_LIMIT_S = 3600
MODEL = ("--shape", "llama-8b", "-c", "128k", "--budgets", "10%", "--policies", "snapkv", "-ngl", "-1", "--json")

MAX_RATIO = 1.0  # ours / stock
MIN_COPY_SHARE = 0.8
COPY_ROWS = 65536  # of a layer: from here on the share of the copy's bandwidth is asked for
MAX_UNEVEN = 1.15
MIN_SPEEDUP = 2.5  # of decoding, stock / ours
MAX_CHOOSING = 0.02  # of the time that reading the prompt takes

Measure = Callable[[str, str, int, int, int, str], dict[str, float]]


@dataclass(frozen=True)
class Row:
    """One line of the table: times in microseconds a node, bandwidths in GB/s."""

    cache_type: str
    size: int
    group: int
    rows: int
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
            f"| {self.cache_type} | {self.size} | {self.group} | {self.rows} | {self.us_stock:.1f} | "
            f"{self.us_even:.1f} | {self.ratio:.2f} | {self.uneven:.2f} | {self.gb_s:.0f} | {self.copy_share:.0%} |"
        )


def run_program(device: str, cache_type: str, size: int, group: int, rows: int, shape: str) -> dict[str, float]:
    """{"us": microseconds of a node, "gb_s": bytes of its rows in that time}; exits where the program fails."""
    command = [str(PROGRAM), device, cache_type, str(size), str(N_HEAD_KV), str(group), str(rows), shape]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command[1:])}: {(done.stderr or done.stdout).strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure_row(measure: Measure, device: str, cache_type: str, size: int, group: int, rows: int) -> Row:
    """All shapes of one line."""
    took = {
        shape: measure(device, cache_type, size, group, rows, shape) for shape in ("stock", "even", "uneven", "copy")
    }
    us = [took[shape]["us"] for shape in ("stock", "even", "uneven")]
    return Row(cache_type, size, group, rows, *us, gb_s=took["even"]["gb_s"], gb_s_copy=took["copy"]["gb_s"])


def verdict(what: str, values: Iterable[float], limit: float, is_most: bool) -> str:
    """One line: the worst of the values, and whether it keeps the limit."""
    found = list(values)
    if not found:
        return f"- {what}: not measured"
    worst = max(found) if is_most else min(found)
    is_kept = worst <= limit if is_most else worst >= limit
    return f"- {what}, {'at most' if is_most else 'at least'} {limit:g}: {worst:.3g}, {'yes' if is_kept else 'NO'}"


def kernel_verdicts(rows: Sequence[Row]) -> list[str]:
    """What is asked of the kernel."""
    long = [row.copy_share for row in rows if row.rows * N_HEAD_KV >= COPY_ROWS]
    return [
        verdict("time of ours over stock's", (row.ratio for row in rows), MAX_RATIO, True),
        verdict(f"share of the copy's bandwidth from {COPY_ROWS} rows on", long, MIN_COPY_SHARE, False),
        verdict("uneven over even heads", (row.uneven for row in rows), MAX_UNEVEN, True),
    ]


def model_verdicts(record: dict[str, Any]) -> list[str]:
    """What is asked of a whole model; `record` is one result of `pyheadkv bench --json`."""
    ours = record["ours"]
    choosing = (ours["ms_scoring"] + ours["ms_select"]) / record["stock"]["ms_prefill"]
    return [
        verdict("decoding, stock over ours", [record["stock_to_ours"]["median"]], MIN_SPEEDUP, False),
        verdict("scoring and selection over reading the prompt", [choosing], MAX_CHOOSING, True),
    ]


def run_model() -> list[str]:
    """Decode with a model of Llama-8B's shape; what went wrong is said in place of a verdict."""
    command = [sys.executable, "-m", "pyheadkv.cli.app", "bench", *MODEL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=MODEL_LIMIT_S)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [f"- pyheadkv bench {' '.join(MODEL)}: not measured: {said[-1] if said else done.returncode}"]
    return model_verdicts(json.loads(done.stdout)["results"][0])


def main() -> int:
    """Entry point; returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="GPU", help="as ggml names it: CUDA0, CPU; GPU is the first one")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="head sizes")
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8], help="query heads of a KV head")
    parser.add_argument("--rows", nargs="+", type=int, default=[1024, 8192, 32768, 131072], help="of each KV head")
    parser.add_argument("--no-model", action="store_true", help="the kernel only")
    arguments = parser.parse_args()
    if not PROGRAM.is_file():
        sys.exit(f"error: {PROGRAM.relative_to(ROOT)} is not built: run CMAKE_ARGS=-DGGML_CUDA=on scripts/check")

    print(f"{arguments.device}, {N_HEAD_KV} KV heads, 1 token, microseconds a node:\n")
    print("| type | head size | group | rows | stock | even | ratio | uneven / even | GB/s | of copy |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for cache_type in arguments.types:
        for size in arguments.sizes:
            for group in arguments.groups:
                for n in arguments.rows:
                    rows.append(measure_row(run_program, arguments.device, cache_type, size, group, n))
                    print(rows[-1], flush=True)
    print("\nAsked for:\n")
    print("\n".join(kernel_verdicts(rows)), flush=True)
    if not arguments.no_model:
        print("\n".join(run_model()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
