"""The arithmetic of scripts/gpu-check, with a program that takes the times it is told."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_figures import (
    KernelRow,
    kernel_table,
    kernel_verdicts,
    measure_kernel,
    model_table,
    model_verdicts,
    reading_table,
    verdict,
)


def measure(cache_type: str, n_rows: int, n_tokens: int, shape: str) -> dict[str, float]:
    """Stock takes 50 us, ours 40 and 44; ours reads 900 GB/s of the copy's 1000."""
    us = {"stock": 50.0, "even": 40.0, "uneven": 44.0, "copy": 36.0}[shape]
    return {"us": us, "gb_s": {"even": 900.0, "copy": 1000.0}.get(shape, 0.0)}


def row(
    n_rows: int = 8192, n_tokens: int = 1, us_even: float = 40.0, us_uneven: float = 44.0, gb_s: float = 900.0
) -> KernelRow:
    return KernelRow("f16", n_rows, n_tokens, 50.0, us_even, us_uneven, gb_s, 1000.0)


def test_a_row_is_made_of_four_measurements() -> None:
    measured = measure_kernel(measure, "f16", 8192, 1)
    assert measured == row()
    assert (measured.ratio, measured.uneven, measured.copy_share) == (0.8, 1.1, 0.9)
    table = kernel_table([measured])
    assert table[-1] == "| f16 | 8192 | 1 | 50.0 | 40.0 | 0.80 | 1.10 | 900 | 90% |"
    assert len({line.count("|") for line in table}) == 1


def test_the_worst_row_decides() -> None:
    fine, slow = row(), row(us_even=51.0, us_uneven=60.0, gb_s=700.0)
    assert [line.rsplit(", ", 1)[1] for line in kernel_verdicts([fine])] == ["yes", "yes", "yes"]
    assert [line.rsplit(", ", 1)[1] for line in kernel_verdicts([fine, slow])] == ["NO", "NO", "NO"]


@pytest.mark.parametrize("other", [row(n_rows=8191, gb_s=100.0), row(n_tokens=8, gb_s=100.0)])  # 8191: 65528 in all
def test_few_rows_and_many_tokens_need_not_reach_the_bandwidth(other: KernelRow) -> None:
    assert kernel_verdicts([other])[1].endswith("not measured")
    assert kernel_verdicts([other, row()])[1].endswith("0.9, yes")


@pytest.mark.parametrize(
    ("value", "is_most", "ending"), [(2.0, True, "2, yes"), (2.1, True, "2.1, NO"), (1.9, False, "1.9, NO")]
)
def test_limits_are_inclusive(value: float, is_most: bool, ending: str) -> None:
    assert verdict("x", [value], 2.0, is_most).endswith(ending)


def record(n_prompt: int, speedup: float) -> dict[str, Any]:
    return {
        "n_prompt": n_prompt,
        "keep_ratio": 0.1,
        "stock_to_ours": {"median": speedup},
        "stock": {"ms_prefill": 1000.0, "tok_s": 20.0},
        "ours": {"ms_scoring": 12.0, "ms_select": 9.0, "tok_s": 52.0},
    }


def test_a_model_is_judged_by_decoding_and_choosing_at_the_longest_prompt() -> None:
    records = [record(32768, 1.1), record(131072, 2.6)]
    decoding, choosing = model_verdicts(records)
    assert decoding.endswith("at least 2.5: 2.6, yes")
    assert choosing.endswith("at most 0.02: 0.021, NO")
    assert model_table(records)[-1] == "| 131072 | 10% | 20.0 | 52.0 | 2.60 | 1.0 | 2.1% |"


def test_nothing_measured_is_said() -> None:
    assert all(line.endswith("not measured") for line in kernel_verdicts([]) + model_verdicts([]))


def test_memory_of_others_does_not_count() -> None:
    reading = {"side": "ours", "n_prompt": 32768, "ms_prefill": 2500.0, "bytes_before": 2**20, "bytes_peak": 3 * 2**20}
    assert reading_table([reading])[-1] == "| 32768 | ours | 2.5 | 2 |"
