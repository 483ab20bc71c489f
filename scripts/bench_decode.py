#!/usr/bin/env python3
"""Decode speed of stock llama.cpp's full cache and of ours, in turns in one run, and what selection costs.

    scripts/pyheadkv inspect demo                                # sets everything up once
    .venv/bin/python scripts/bench_decode.py demo                # the README's table
    .venv/bin/python scripts/bench_decode.py demo --equal-rows   # ours keeps every row: the layout and the kernel alone

Each line is one context of N tokens. "stock" is a context of the same library that was never attached: upstream's cache
and flash attention, bit for bit. Both read the same prompt (the second copies the first one's state, up to the
observation window), then decode the same tokens, some of stock and some of ours in turns. Medians over the rounds.

selection / prefill: reading scores, choosing, gathering, shrinking, and what scoring adds to the window's decode
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyheadkv
from pyheadkv.models import resolve_model
from pyheadkv.native import Native
from pyheadkv.policy import parse_policy

WORDS = "the quick brown fox jumps over the lazy dog and seven wise men count the stars above a quiet harbour town"


HEADER = """\
| context | kept | stock ms/token | ours ms/token | stock / ours | selection / prefill | KV full MiB | KV measured MiB |
|---|---|---|---|---|---|---|---|"""
LINE = (
    "| {n_ctx} | {kept:.1f} % | {ms_stock:.2f} | {ms_ours:.2f} | {ratio:.2f} "
    "| {select_percent:.2f} % | {mib_full:.1f} | {mib_measured:.1f} |"
)


@dataclass
class Row:
    """Medians of one context length; times in ms."""

    n_ctx: int
    budget: str
    keep_ratio: float
    ms_stock: float
    ms_ours: float
    ratio: float  # median over the rounds of stock / ours
    ms_prefill: float
    ms_scoring: float  # what scoring adds to the window's decode
    ms_select: float  # reading scores, choosing, gathering, shrinking
    select_percent: float
    mib_full: float
    mib_measured: float


def make_prompt(llama, n_tokens: int) -> list[int]:
    """n_tokens tokens of varied plain words (numbered, so that no two sentences are alike)."""
    words, text = WORDS.split(), []
    while len(text) < n_tokens:
        i = len(text)
        text.append(words[(i * 7 + i // 5) % len(words)] if i % 11 else str(i))
    return llama.tokenize(" ".join(text).encode())[:n_tokens]


def decode_ms(llama, n_past: int, tokens: list[int]) -> float:
    """Milliseconds a token, decoded one by one after n_past tokens; the tokens are taken back."""
    llama.n_tokens = n_past
    start = time.perf_counter()
    for token in tokens:
        llama.eval([token])
    ms = (time.perf_counter() - start) * 1000 / len(tokens)
    llama.n_tokens = n_past
    return ms


def scoring_ms(llama, native: Native, window: list[int], n_rounds: int) -> tuple[float, float]:
    """Medians of decoding the window as it is, and of what scoring adds to it; the window is taken back."""
    n_past, times = llama.n_tokens, []
    for _ in range(n_rounds):
        pair = []
        for n_armed in (0, len(window)):
            native.score_arm(n_armed)
            start = time.perf_counter()
            llama.eval(window)
            pair.append((time.perf_counter() - start) * 1000)
            llama.n_tokens = n_past
        times.append(pair)
    native.score_arm(0)
    plain = statistics.median(a for a, _ in times)
    return plain, max(0.0, statistics.median(b - a for a, b in times))


def measure(path: Path, n_ctx: int, budget: str, args: argparse.Namespace) -> Row:
    import llama_cpp

    n_cells = n_ctx + args.tokens
    stock = llama_cpp.Llama(
        str(path), n_ctx=n_cells, n_threads=args.threads, n_threads_batch=args.threads, flash_attn=True, verbose=False
    )
    prompt = make_prompt(stock, n_ctx)
    n_obs = parse_policy(args.policy).n_obs
    start = time.perf_counter()
    stock.eval(prompt[:-n_obs])
    ms_prefill = (time.perf_counter() - start) * 1000

    ours = pyheadkv.load(path, n_ctx=n_cells, n_threads=args.threads)
    native = Native(ours)
    native.reserve(n_ctx)
    ours.load_state(stock.save_state())
    stock.eval(prompt[-n_obs:])
    ms_window, ms_scoring = scoring_ms(ours, native, prompt[-n_obs:], args.rounds)

    with pyheadkv.HeadKV(ours, policy=args.policy, budget=budget, profile=args.profile, min_prompt=0) as headkv:
        ours.eval(prompt[-n_obs:])  # scores, compresses
        if headkv.plan is None:
            raise SystemExit(f"error: budget {budget} compresses nothing of {n_ctx} tokens")
        ms_select = headkv.stats().ms_select

        rounds = []
        for _ in range(args.rounds + 1):  # the first is the warm-up
            rounds.append([decode_ms(llama, n_ctx, prompt[: args.tokens]) for llama in (stock, ours)])
        rounds = rounds[1:]
        now = headkv.stats()

        return Row(
            n_ctx=n_ctx,
            budget=budget,
            keep_ratio=headkv.plan.keep_ratio,
            ms_stock=statistics.median(a for a, _ in rounds),
            ms_ours=statistics.median(b for _, b in rounds),
            ratio=statistics.median(a / b for a, b in rounds),
            ms_prefill=ms_prefill + ms_window,
            ms_scoring=ms_scoring,
            ms_select=ms_select,
            select_percent=100 * (ms_select + ms_scoring) / (ms_prefill + ms_window),
            mib_full=now.bytes_full / 2**20,
            mib_measured=now.bytes_measured / 2**20,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path, demo, or user/repo[:quant]")
    parser.add_argument("-c", "--contexts", default="512,2048,4096,8192", help="prompt lengths in tokens (%(default)s)")
    parser.add_argument("--budget", default="10%", help="rows to keep (%(default)s)")
    parser.add_argument("--equal-rows", action="store_true", help="keep every row: the same rows as stock")
    parser.add_argument("--policy", default="snapkv")
    parser.add_argument("--profile", default=None)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="tokens decoded in one turn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()

    path = resolve_model(args.model)
    budget = "100%" if args.equal_rows else args.budget
    if not args.json:
        print(HEADER)
    for n_ctx in map(int, args.contexts.split(",")):
        row = measure(path, n_ctx, budget, args)
        if args.json:
            print(json.dumps(asdict(row)), flush=True)
        else:
            print(LINE.format(**asdict(row), kept=100 * row.keep_ratio), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
