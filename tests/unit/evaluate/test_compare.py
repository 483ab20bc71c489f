"""Paired differences, and several cache types on one axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyheadkv.evaluate.compare import comparisons
from pyheadkv.evaluate.plots import write_bytes, write_curves
from pyheadkv.evaluate.report import byte_sheets, markdown, pair_sheet, sheets
from pyheadkv.evaluate.results import FULL, cells


def record(policy: str, i: int, value: float, *, budget: str = "10%", cache: str = "f16", figure: str = "score") -> Any:
    n_bytes = {"f16": 2.0, "q8_0": 1.0, "kvpress": 3.0}[cache] * 2**20 * (1 if budget == FULL else 0.1)
    return {
        "run": cache,
        "question": "in",
        "case": f"c{i}",
        "mark": "m",
        "policy": policy,
        "budget": budget,
        "cache": cache,
        "task": "kl" if figure == "kl" else "single",
        "length": "2k",
        "figures": {figure: value},
        "keep_ratio": 1.0 if budget == FULL else 0.1,
        "bytes_kept": n_bytes,
        "bytes_measured": n_bytes + 2**20,
    }


def both(first: list[float], second: list[float], **more: Any) -> list[Any]:
    return [
        record(name, i, value, **more)
        for name, values in (("a", first), ("b", second))
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("first", "second", "figure", "verdict"),
    [
        ([1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0], "score", "a is better"),
        ([0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], "score", "b is better"),
        ([0.9] * 6, [0.1] * 6, "kl", "b is better"),
        ([1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1], "score", "no difference seen"),
        ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], "score", "no difference seen"),
        ([1, 1, 1, 1], [0, 0, 0, 0], "score", "too few cases"),
    ],
)
def test_a_gain_is_what_is_more_than_two_errors(
    first: list[float], second: list[float], figure: str, verdict: str
) -> None:
    (found,) = comparisons(both(first, second, figure=figure))
    assert found.verdict == verdict and found.n == len(first)
    assert found.difference == pytest.approx(sum(first) / len(first) - sum(second) / len(second))


def test_differences_are_of_the_same_cases() -> None:
    """The means differ by chance of the cases; where both were measured, a is always a little better."""
    values = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2]
    records = both([value + 0.01 for value in values], [*values, 1.0, 1.0, 1.0])
    (found,) = comparisons(records)
    assert found.n == 6 and found.difference == pytest.approx(0.01) and found.verdict == "a is better"
    assert comparisons([r for r in records if r["policy"] == "a"]) == []
    row = pair_sheet([found]).rows[0]
    assert row == ("single, 2k, question in: score", "10%", "a - b", "6", "1.0 ±0.0", "a is better")


@pytest.fixture
def several() -> list[Any]:
    """Two cache types and kvpress, three cases each."""
    found = []
    for cache in ("f16", "q8_0"):
        for i in range(3):
            found.append(record(FULL, i, 1.0, budget=FULL, cache=cache))
            found.append(record("snapkv:n_obs=8", i, 0.5, cache=cache))
    for i in range(3):
        found.append(record(FULL, i, 1.0, budget=FULL, cache="kvpress"))
        found.append(record("kvpress:snapkv", i, 0.25, cache="kvpress"))
    return found


def test_cache_types_have_names_of_their_own(several: list[Any]) -> None:
    assert list(dict.fromkeys(cell.label for cell in cells(several))) == [
        "full@f16",
        "snapkv:n_obs=8@f16",
        "full@q8_0",
        "snapkv:n_obs=8@q8_0",
        "full@kvpress",
        "kvpress:snapkv",
    ]
    alone = [r for r in several if r["cache"] == "q8_0"]
    assert [cell.label for cell in cells(alone)] == ["full", "snapkv:n_obs=8"]
    (sheet,) = sheets(cells(several))
    assert [row[0] for row in sheet.rows] == ["snapkv:n_obs=8@f16", "snapkv:n_obs=8@q8_0", "kvpress:snapkv"]
    assert all(row[-1] == "100.0 ±0.0" for row in sheet.rows)


def test_all_on_one_axis_of_bytes(several: list[Any], tmp_path: Path) -> None:
    found = cells(several)
    (sheet,) = byte_sheets(found)
    assert [(row[0], row[3]) for row in sheet.rows] == [
        ("snapkv:n_obs=8@q8_0", "1.10"),
        ("snapkv:n_obs=8@f16", "1.20"),
        ("kvpress:snapkv", "1.30"),
        ("full@q8_0", "2.00"),
        ("full@f16", "3.00"),
        ("full@kvpress", "4.00"),
    ]
    assert "over bytes of the cache" in markdown(found, comparisons(several), "T", [])
    alone = cells([r for r in several if r["cache"] == "f16"])
    assert byte_sheets(alone) == [] and not write_bytes(alone, tmp_path / "none.png")
    pytest.importorskip("matplotlib")
    assert write_bytes(found, tmp_path / "bytes.png") and (tmp_path / "bytes.png").stat().st_size > 1000
    write_curves(found, tmp_path / "quality.png")
    pairs = {(c.budget, c.first, c.second) for c in comparisons(several)}
    assert (FULL, "full@f16", "full@q8_0") in pairs and ("10%", "snapkv:n_obs=8@f16", "kvpress:snapkv") in pairs
