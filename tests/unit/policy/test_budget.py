"""Budgets: what can be typed, and the exact rows it comes to."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy.budget import Budget, BudgetLike, rows_to_bytes
from pyheadkv.policy.plan import check_budget, choose_budget, make_plan
from pyheadkv.policy.policy import Policy

SMOLLM2 = ModelShape("llama", "", 8192, tuple(LayerShape(il, 9, 3, 64, 64) for il in range(30)))
# rows of 512, 160 and 128 bytes in f16
UNEQUAL = ModelShape(
    "deci", "", 8192, (LayerShape(0, 8, 2, 128, 128), LayerShape(2, 4, 4, 48, 32), LayerShape(3, 4, 1, 32, 32))
)

SHAPES = st.builds(
    lambda layers: ModelShape("any", "", 8192, tuple(LayerShape(i, n, n, dk, dv) for i, (n, dk, dv) in layers)),
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from([64, 96, 128]), st.sampled_from([64, 256])), min_size=1, max_size=5
    ).map(lambda layers: list(enumerate(layers))),
)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1.5%", "ratio", Fraction(3, 200)),
        ("10 %", "ratio", Fraction(1, 10)),
        ("100%", "ratio", Fraction(1)),
        ("0.1%", "ratio", Fraction(1, 1000)),
        ("512", "rows", 512),
        (" 1 ", "rows", 1),
        ("64MiB", "bytes", 64 * 1024**2),
        ("2gib", "bytes", 2 * 1024**3),
        ("500 MB", "bytes", 500_000_000),
        ("1.5GiB", "bytes", 3 * 1024**3 // 2),
        ("3kb", "bytes", 3000),
        ("3KiB", "bytes", 3072),
        ("0.3333GB", "bytes", 333_300_000),
        ("full", "full", 1),
        ("FULL", "full", 1),
    ],
)
def test_parse(text: str, kind: str, value: Fraction | int) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.value, budget.request) == (kind, value, text.strip())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (512, "512"),
        (np.int64(512), "512"),
        (np.uint8(200), "200"),
        (0.1, "10%"),
        (0.3, "30%"),
        (1.0, "100%"),
        (np.float32(0.1), "10%"),
        (np.float16(0.1), "10%"),
        (np.float64(0.015), "1.5%"),
        (Fraction(1, 4), "25%"),
    ],
)
def test_numbers_of_a_program_are_rows_or_a_share(number: BudgetLike, text: str) -> None:
    assert Budget.parse(number) == Budget.parse(text)
    assert choose_budget(number, None) == Budget.parse(text)
    plans = [make_plan(SMOLLM2, Policy.preset("snapkv"), budget, 2000) for budget in (number, text)]
    assert plans[0] == plans[1]


NO_BUDGETS = [0, -5, 0.0, -0.1, 1.5, 512.0, math.nan, math.inf, True, np.True_, np.array(0.1), b"10%", [512], 1j, {}]


@pytest.mark.parametrize("number", NO_BUDGETS, ids=repr)
def test_what_is_no_budget_is_refused(number: Any) -> None:
    for read in (
        Budget.parse,
        lambda budget: choose_budget(budget, None),
        lambda budget: make_plan(SMOLLM2, Policy.preset("snapkv"), budget, 2000),
        lambda budget: check_budget(SMOLLM2, Policy.preset("snapkv"), budget, 2000),
    ):
        with pytest.raises(BudgetError, match=r"^budget .*(expected rows per KV head as an int|must be above 0)"):
            read(number)


def test_none_is_the_default_only_where_there_is_one() -> None:
    assert choose_budget(None, None) == Budget.parse("25%")
    with pytest.raises(BudgetError, match="budget None of type NoneType is no budget"):
        make_plan(SMOLLM2, Policy.preset("snapkv"), None, 2000)  # type: ignore[arg-type]


FORMS = "expected a percentage (25%), rows per KV head (512), a size (64MiB) or full"
UNREADABLE = ["", "nan", "nan%", "inf", "1e3", "5 rows", "64M", "1,5%", "%", "MiB", "½%", "٣%", "--5", "5%%", "9" * 400]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "budget 0 must be above 0"),
        ("0%", "budget 0% must be above 0"),
        ("0.0MiB", "budget 0.0MiB must be above 0"),
        ("-5%", "budget -5% must be above 0"),
        ("-512", "budget -512 must be above 0"),
        ("100.1%", "budget 100.1% is above 100%"),
        ("250%", "budget 250% is above 100%"),
        ("0.2", "budget 0.2 is ambiguous, type 20% for that part of the rows or a whole number"),
        ("1.5", "budget 1.5 is ambiguous or a whole number"),
        ("0.0001KB", "budget 0.0001KB is less than one byte"),
        *((text, "cannot be read, " + FORMS) for text in UNREADABLE),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(message)) as error:
        Budget.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 160


@given(st.text(max_size=12))
def test_parse_raises_nothing_else(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert budget.value > 0


@pytest.mark.parametrize(
    ("text", "n_prompt", "rows"),
    [
        ("100%", 1000, 90_000),
        ("full", 1000, 90_000),
        ("10%", 1001, 9009),  # 9009.0 exactly
        ("29%", 100, 2610),  # 2609.9999999999995 in floats
        ("1.5%", 777, 1048),  # 1048.95 rounds down
        ("33.3%", 1, 29),  # 29.97
        ("512", 1000, 46_080),
        ("512", 100, 9000),  # no more than there is
        ("64MiB", 8192, 262_144),
        ("1MB", 8192, 3906),  # 3906.25
        ("255KB", 8192, 996),
        ("1GiB", 100, 9000),
    ],
)
def test_total_rows(text: str, n_prompt: int, rows: int) -> None:
    assert Budget.parse(text).total_rows(SMOLLM2, n_prompt) == rows


def test_a_ratio_is_raised_to_the_floor_and_nothing_else_is() -> None:
    assert Budget.parse("1%").total_rows(SMOLLM2, 1000, floor_rows=20) == 20 * 90
    assert Budget.parse("10%").total_rows(SMOLLM2, 1000, floor_rows=20) == 100 * 90
    assert Budget.parse("1%").total_rows(SMOLLM2, 7, floor_rows=20) == 7 * 90  # but not above the prompt
    assert Budget.parse("8").total_rows(SMOLLM2, 1000, floor_rows=20) == 8 * 90
    assert Budget.parse("23KB").total_rows(SMOLLM2, 1000, floor_rows=20) == 89


def test_bytes_depend_on_the_cache_type() -> None:
    half = Budget.parse("1MiB").total_rows(SMOLLM2, 8192, "q8_0", "q8_0")
    assert half == 1024**2 // 136


def test_bytes_of_unequal_rows_count_the_widest_first() -> None:
    # 2 heads x 10 rows of 512, then 4 x 10 of 160, then rows of 128
    assert Budget("x", "bytes", 511).total_rows(UNEQUAL, 10) == 0
    assert Budget("x", "bytes", 10_240 + 159).total_rows(UNEQUAL, 10) == 20
    assert Budget("x", "bytes", 10_240 + 320).total_rows(UNEQUAL, 10) == 22
    assert Budget("x", "bytes", 10_240 + 6400 + 1279).total_rows(UNEQUAL, 10) == 69
    assert Budget("x", "bytes", 10**9).total_rows(UNEQUAL, 10) == 70


@given(SHAPES, st.integers(1, 300), st.integers(1, 400_000), st.sampled_from(["f16", "q8_0"]))
def test_bytes_are_never_exceeded_and_no_row_is_wasted(
    shape: ModelShape, n_prompt: int, n_bytes: int, cache_type: str
) -> None:
    budget = Budget("x", "bytes", n_bytes)
    total = budget.total_rows(shape, n_prompt, cache_type, cache_type)
    assert 0 <= total <= n_prompt * shape.n_kv_heads

    def worst(n_rows: int) -> int:
        """Bytes of the most expensive choice of n_rows rows."""
        prices = [shape.row_bytes(i, cache_type, cache_type) for i, n in enumerate(shape.n_head_kv) for _ in range(n)]
        every = sorted(itertools.chain.from_iterable([price] * n_prompt for price in prices), reverse=True)
        return sum(every[:n_rows])

    assert worst(total) <= n_bytes
    assert total == n_prompt * shape.n_kv_heads or worst(total + 1) > n_bytes


@given(SHAPES, st.integers(1, 500), st.integers(1, 10_000))
def test_a_ratio_is_floored_exactly(shape: ModelShape, n_prompt: int, basis_points: int) -> None:
    total = Budget.parse(f"{basis_points / 100:.2f}%").total_rows(shape, n_prompt)
    assert total * 10_000 <= basis_points * n_prompt * shape.n_kv_heads < (total + 1) * 10_000


def test_check_refuses_what_can_never_hold_the_floor() -> None:
    words = {"floor_words": "4 sinks + 16 observed"}
    with pytest.raises(BudgetError) as error:
        Budget.parse("8").check(SMOLLM2, 2048, 20, **words)
    assert str(error.value) == "budget 8 is below the floor of 20 rows per KV head (4 sinks + 16 observed)"
    with pytest.raises(BudgetError) as error:
        Budget.parse("0.5%").check(SMOLLM2, 2048, 20, **words)
    assert str(error.value).startswith("budget 0.5% (10.2 rows at 2048 tokens) is below the floor of 20 rows")
    with pytest.raises(BudgetError, match=r"budget 100KiB \(4.44 rows at 2048 tokens\) is below"):
        Budget.parse("100KiB").check(SMOLLM2, 2048, 20)


@pytest.mark.parametrize(
    ("text", "n_ctx"), [("20", 2048), ("1%", 2048), ("450KiB", 2048), ("full", 8), ("19", 19), ("100%", 3)]
)
def test_check_lets_the_exact_floor_pass(text: str, n_ctx: int) -> None:
    Budget.parse(text).check(SMOLLM2, n_ctx, 20)


@pytest.mark.parametrize(("text", "n_ctx"), [("19", 2048), ("0.9%", 2048), ("449KiB", 2048), ("18", 19)])
def test_check_refuses_one_less(text: str, n_ctx: int) -> None:
    with pytest.raises(BudgetError, match="below the floor"):
        Budget.parse(text).check(SMOLLM2, n_ctx, 20)


def test_rows_to_bytes() -> None:
    rows = [[3, 5], [1, 0, 0, 7], [2]]
    assert rows_to_bytes(rows, [UNEQUAL.row_bytes(i) for i in range(3)]) == 8 * 512 + 8 * 160 + 2 * 128
    row_bytes = [UNEQUAL.row_bytes(i, "f32", "f16") for i in range(3)]
    assert rows_to_bytes(rows, row_bytes) == 8 * (512 + 256) + 8 * (192 + 64) + 2 * (128 + 64)
