#!/usr/bin/env python3
"""Memory of a process that reads a long prompt: stock llama.cpp's cache and ours, each in a process of its own.

    .venv/bin/python scripts/bench_memory.py demo -c 8192 --budget 10%

RSS is the system's count of the whole process (model, compute buffers and Python included); KV is read from the buffers
that exist. `planned` is rows kept x bytes of a row; what is measured beyond it is the tail's free cells and alignment.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyheadkv
from pyheadkv.models import resolve_model

MIB = 2**20


def rss_mib() -> float:
    """Resident memory of this process now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def trim() -> None:
    """Give freed memory back to the system, so that what is counted is what is used."""
    ctypes.CDLL(None).malloc_trim(0)


def read_prompt(llama, n_tokens: int) -> list[int]:
    words = " ".join(f"{i} ships and {i * 7 % 1000} sails" for i in range(n_tokens))
    tokens = llama.tokenize(words.encode())[:n_tokens]
    llama.eval(tokens)
    return tokens


def run_stock(path: Path, args: argparse.Namespace) -> dict[str, float]:
    import llama_cpp

    llama = llama_cpp.Llama(
        str(path), n_ctx=args.context + args.tokens, n_threads=args.threads, flash_attn=True, verbose=False
    )
    loaded = rss_mib()
    tokens = read_prompt(llama, args.context)
    trim()
    read = rss_mib()
    for token in tokens[: args.tokens]:
        llama.eval([token])
    return {"loaded": loaded, "read": read, "decoded": rss_mib()}


def run_ours(path: Path, args: argparse.Namespace) -> dict[str, float]:
    llama = pyheadkv.load(path, n_ctx=args.context + args.tokens, n_threads=args.threads)
    with pyheadkv.HeadKV(llama, policy=args.policy, budget=args.budget, profile=args.profile) as headkv:
        loaded = rss_mib()
        whole = 0.0

        def remember(n_done: int, n_total: int) -> None:
            nonlocal whole
            whole = rss_mib()  # the last call is just before the compression

        headkv.on_progress = remember
        tokens = read_prompt(llama, args.context)
        trim()
        read, stats, plan = rss_mib(), headkv.stats(), headkv.plan
        if plan is None:
            raise SystemExit(f"error: budget {args.budget} compresses nothing of {args.context} tokens")
        for token in tokens[: args.tokens]:
            llama.eval([token])
        native = stats.native
        rows_tail_free = (native.n_cells - native.n_cells_used) * headkv.shape.bytes_per_token(
            headkv.type_k, headkv.type_v
        )
        return {
            "loaded": loaded,
            "whole": whole,
            "read": read,
            "decoded": rss_mib(),
            "kv_full": stats.bytes_full / MIB,
            "kv_planned": plan.bytes_kept / MIB,
            "kv_measured": stats.bytes_measured / MIB,
            "kv_tail_free": rows_tail_free / MIB,
            "kv_peak": native.bytes_peak / MIB,
            "over_plan_percent": 100 * (stats.bytes_measured - rows_tail_free) / plan.bytes_kept - 100,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path, demo, or user/repo[:quant]")
    parser.add_argument("-c", "--context", type=int, default=8192, help="prompt tokens (%(default)s)")
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--policy", default="snapkv")
    parser.add_argument("--profile", default=None)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded afterwards (%(default)s)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["stock", "ours"], help=argparse.SUPPRESS)  # the process of one side
    args = parser.parse_args()

    if args.only:
        run = run_stock if args.only == "stock" else run_ours
        print(json.dumps(run(resolve_model(args.model), args)))
        return 0

    sides = {}
    for side in ("stock", "ours"):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--only", side], check=True, stdout=subprocess.PIPE, text=True
        )
        sides[side] = json.loads(done.stdout.splitlines()[-1])
    if args.json:
        print(json.dumps(sides))
        return 0

    stock, ours = sides["stock"], sides["ours"]
    print(f"{args.model}, {args.context} tokens, budget {args.budget}; MiB")
    print("| RSS | stock | ours |")
    print("|---|---|---|")
    print(f"| model loaded | {stock['loaded']:.1f} | {ours['loaded']:.1f} |")
    print(f"| prompt read, cache whole | {stock['read']:.1f} | {ours['whole']:.1f} |")
    print(f"| prompt read, cache compressed | - | {ours['read']:.1f} |")
    print(f"| {args.tokens} tokens later | {stock['decoded']:.1f} | {ours['decoded']:.1f} |")
    print()
    print(
        f"KV of ours: full {ours['kv_full']:.2f}, planned {ours['kv_planned']:.2f}, measured {ours['kv_measured']:.2f} "
        f"(free cells of the tail {ours['kv_tail_free']:.2f}), peak {ours['kv_peak']:.2f}; "
        f"{ours['over_plan_percent']:+.2f} % beyond plan and tail"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
