"""The arithmetic of scripts/bench_cuda.py, with a program that takes the times it is told."""

from __future__ import annotations

import pytest

from bench_cuda import Row, kernel_verdicts, measure_row, model_verdicts, verdict


def measure(device: str, cache_type: str, size: int, group: int, rows: int, shape: str) -> dict[str, float]:
    """Stock takes 50 us, ours 40 and 44; ours reads 900 GB/s of the copy's 1000."""
    us = {"stock": 50.0, "even": 40.0, "uneven": 44.0, "copy": 36.0}[shape]
    return {"us": us, "gb_s": {"even": 900.0, "copy": 1000.0}.get(shape, 0.0)}


def row(rows: int = 8192, us_even: float = 40.0, us_uneven: float = 44.0, gb_s: float = 900.0) -> Row:
    return Row("f16", 128, 4, rows, 50.0, us_even, us_uneven, gb_s, 1000.0)


def test_a_row_is_made_of_four_measurements() -> None:
    measured = measure_row(measure, "GPU", "f16", 128, 4, 8192)
    assert measured == row()
    assert (measured.ratio, measured.uneven, measured.copy_share) == (0.8, 1.1, 0.9)
    assert str(measured) == "| f16 | 128 | 4 | 8192 | 50.0 | 40.0 | 0.80 | 1.10 | 900 | 90% |"


def test_the_worst_row_decides() -> None:
    fine, slow = row(), row(us_even=51.0, us_uneven=60.0, gb_s=700.0)
    assert [line.rsplit(", ", 1)[1] for line in kernel_verdicts([fine])] == ["yes", "yes", "yes"]
    assert [line.rsplit(", ", 1)[1] for line in kernel_verdicts([fine, slow])] == ["NO", "NO", "NO"]


def test_short_prefixes_need_not_reach_the_bandwidth() -> None:
    short = row(rows=8191, gb_s=100.0)  # of each of 8 KV heads: 65528 in the layer
    assert kernel_verdicts([short])[1].endswith("not measured")
    assert kernel_verdicts([short, row()])[1].endswith("0.9, yes")


@pytest.mark.parametrize(
    ("value", "is_most", "ending"), [(2.0, True, "2, yes"), (2.1, True, "2.1, NO"), (1.9, False, "1.9, NO")]
)
def test_limits_are_inclusive(value: float, is_most: bool, ending: str) -> None:
    assert verdict("x", [value], 2.0, is_most).endswith(ending)


def test_a_model_is_judged_by_decoding_and_choosing() -> None:
    record = {
        "stock_to_ours": {"median": 2.6, "low": 2.4, "high": 2.7},
        "stock": {"ms_prefill": 1000.0},
        "ours": {"ms_scoring": 12.0, "ms_select": 9.0},
    }
    decoding, choosing = model_verdicts(record)
    assert decoding.endswith("at least 2.5: 2.6, yes")
    assert choosing.endswith("at most 0.02: 0.021, NO")
