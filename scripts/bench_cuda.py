#!/usr/bin/env python3
"""Time of the fused attention kernel on a GPU against llama.cpp's own on as many rows, as Markdown tables.

    CMAKE_ARGS=-DGGML_CUDA=on scripts/check     builds the program that measures, and its test (test-device)
    scripts/bench_cuda.py                       the figures that are asked for, several minutes
    scripts/bench_cuda.py --rows 1024 --types f16 --groups 4

One run of tests/native/bench-device.cpp for each figure; what it does is said there. `ratio` is ours / stock, below 1
is faster; `uneven / even` is one KV head with 100 times the rows of the others against equal heads with as many in
all; `of copy` is the share of the bandwidth that a copy within the device reaches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "release" / "tests" / "native" / "bench-device"
N_HEAD_KV = 8
LIMIT_S = 300


def measure(device: str, cache_type: str, size: int, group: int, rows: int, shape: str) -> dict[str, float]:
    """{"us": microseconds of a node, "gb_s": bytes of its rows in that time}; exits where the program fails."""
    command = [str(PROGRAM), device, cache_type, str(size), str(N_HEAD_KV), str(group), str(rows), shape]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command[1:])}: {(done.stderr or done.stdout).strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def print_row(device: str, cache_type: str, size: int, group: int, rows: int) -> None:
    """One line of the table."""
    took = {
        shape: measure(device, cache_type, size, group, rows, shape) for shape in ("stock", "even", "uneven", "copy")
    }
    stock, even, uneven = (took[shape]["us"] for shape in ("stock", "even", "uneven"))
    share = took["even"]["gb_s"] / took["copy"]["gb_s"]
    print(
        f"| {cache_type} | {size} | {group} | {rows} | {stock:.1f} | {even:.1f} | {even / stock:.2f} | "
        f"{uneven / even:.2f} | {took['even']['gb_s']:.0f} | {share:.0%} |",
        flush=True,
    )


def main() -> int:
    """Entry point; returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="GPU", help="as ggml names it: CUDA0, CPU; GPU is the first one")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="head sizes")
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8], help="query heads of a KV head")
    parser.add_argument("--rows", nargs="+", type=int, default=[1024, 8192, 32768, 131072], help="of each KV head")
    arguments = parser.parse_args()
    if not PROGRAM.is_file():
        sys.exit(f"error: {PROGRAM.relative_to(ROOT)} is not built: run CMAKE_ARGS=-DGGML_CUDA=on scripts/check")

    print(f"{arguments.device}, {N_HEAD_KV} KV heads, 1 token, microseconds a node:\n")
    print("| type | head size | group | rows | stock | even | ratio | uneven / even | GB/s | of copy |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cache_type in arguments.types:
        for size in arguments.sizes:
            for group in arguments.groups:
                for rows in arguments.rows:
                    print_row(arguments.device, cache_type, size, group, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
