"""How much of the KV cache may be kept: parse a request, turn it into an exact number of rows.

The only place with arithmetic between rows and bytes. A budget counts prompt rows over all (layer,
KV head), sinks and observation window included; rows of generated tokens come on top. Ratios are
against the model's own full cache (KV heads, not query heads):

    "25%"      a quarter of all rows of the prompt, whatever its length
    "512"      512 rows per KV head on average
    "64MiB"    as many rows as fit into 64 MiB (KiB MiB GiB: powers of 1024, KB MB GB: of 1000)
    "full"     no compression

In a program a number will do: an int is rows per KV head, a float or fraction in (0, 1] a share of all rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import numpy as np

from pyheadkv.errors import BudgetError
from pyheadkv.model.shape import ModelShape

_UNITS = {"kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_BUDGET = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(%|[kmg]i?b|)", re.IGNORECASE)
_FORMS = "expected a percentage (25%), rows per KV head (512), a size (64MiB) or full"
_NUMBERS = "expected rows per KV head as an int (512), or a share of all rows as a float in (0, 1]"


@dataclass(frozen=True)
class Budget:
    """A user's request; `total_rows` says what it comes to for one model and prompt.

    >>> Budget.parse("10%") == Budget.parse(0.1)
    True
    >>> Budget.parse(512).kind
    'rows'

    Parameters
    ----------
    request
        the user's words
    kind
        "full", "ratio" (of all rows), "rows" (per KV head on average) or "bytes" (in all)
    value
        the ratio in (0, 1], the rows or the bytes, exact; 1 for "full"

    Raises
    ------
    BudgetError
        by `parse`, for what cannot be read; by `total_rows`, where a budget does not hold a row
    """

    request: str
    kind: Literal["full", "ratio", "rows", "bytes"]
    value: Fraction | int

    def to_json(self, rows: int, keep_ratio: float, n_bytes: int) -> dict[str, object]:
        """The object "budget" of a report: what was asked for, and the rows and bytes that it came to."""
        return {"request": self.request, "rows": rows, "keep_ratio": keep_ratio, "bytes": n_bytes}

    @classmethod
    def parse(cls, budget: BudgetLike) -> Budget:
        """Read a budget as typed by a user or given by a program; the forms are listed above.

        Raises
        ------
        BudgetError
            nonsense, zero, negative, above 100 %, a bare fraction typed such as "0.2", or no number at all
        """
        if isinstance(budget, Budget):
            return budget
        if not isinstance(budget, str):
            return cls(*_from_number(budget))
        request = budget.strip()
        if request.lower() == "full":
            return cls(request, "full", 1)
        match = _BUDGET.fullmatch(request)
        if match is None:
            raise BudgetError(f"budget {request[:40]!r} cannot be read, {_FORMS}")
        number, unit = Fraction(match[1]), match[2].lower()
        if number <= 0:
            raise BudgetError(f"budget {request} must be above 0")
        if unit == "%":
            if number > 100:
                raise BudgetError(f"budget {request} is above 100%")
            return cls(request, "ratio", number / 100)
        if unit:
            if number * _UNITS[unit] < 1:
                raise BudgetError(f"budget {request} is less than one byte")
            return cls(request, "bytes", int(number * _UNITS[unit]))
        if "." in match[1]:
            percent = f", type {float(number * 100):g}% for that part of the rows" if number <= 1 else ""
            raise BudgetError(f"budget {request} is ambiguous{percent} or a whole number for rows per KV head")
        return cls(request, "rows", int(number))

    def total_rows(
        self,
        shape: ModelShape,
        n_prompt: int,
        type_k: str = "f16",
        type_v: str = "f16",
        *,
        floor_rows: int = 0,
    ) -> int:
        """Rows over all (layer, KV head) that this budget allows for a prompt, at most all of them.

        Parameters
        ----------
        n_prompt
            tokens of the prompt
        type_k, type_v
            cache types; only a budget in bytes depends on them
        floor_rows
            rows per KV head below which a *ratio* never goes: max(floor, ratio * n_prompt), since a
            ratio of a short prompt would not even hold the sinks and the observation window.
            Absolute budgets are never raised.

        Returns
        -------
        int
            ratio and rows are rounded down. Bytes: the most rows that never take more than the
            request, however an allocator deals them to layers whose rows differ in size (the widest
            rows are counted first).
        """
        n_full = n_prompt * shape.n_kv_heads
        if self.kind == "full":
            return n_full
        if self.kind == "ratio":
            floors = min(floor_rows, n_prompt) * shape.n_kv_heads
            return max(floors, int(self.value * n_full))
        if self.kind == "rows":
            return min(int(self.value), n_prompt) * shape.n_kv_heads
        return _rows_in_bytes(shape, int(self.value), n_prompt, type_k, type_v)

    def keep_ratio(self, shape: ModelShape, n_prompt: int, type_k: str = "f16", type_v: str = "f16") -> float:
        """Share of a prompt's rows that is asked for, before any floor, in (0, 1]."""
        return self.total_rows(shape, n_prompt, type_k, type_v) / max(1, n_prompt * shape.n_kv_heads)

    def check(
        self,
        shape: ModelShape,
        n_ctx: int,
        floor_rows: int,
        type_k: str = "f16",
        type_v: str = "f16",
        *,
        floor_words: str = "",
    ) -> None:
        """Refuse a budget that is below the floor even when the whole context is used.

        Parameters
        ----------
        n_ctx
            positions in the context
        floor_rows
            rows that every KV head must keep
        floor_words
            its parts, for the message, for example "4 sinks + 16 observed"

        Raises
        ------
        BudgetError
            naming the budget and the floor
        """
        floor = min(floor_rows, n_ctx)
        total = self.total_rows(shape, n_ctx, type_k, type_v)
        if total >= floor * shape.n_kv_heads:
            return
        mean = total / shape.n_kv_heads
        what = self.request if self.kind == "rows" else f"{self.request} ({mean:.3g} rows at {n_ctx} tokens)"
        why = f" ({floor_words})" if floor_words else ""
        raise BudgetError(f"budget {what} is below the floor of {floor} rows per KV head{why}")


BudgetLike: TypeAlias = Budget | str | float | Fraction | np.integer[Any] | np.floating[Any]


def rows_to_bytes(rows: Sequence[Sequence[int]], row_bytes: Sequence[int]) -> int:
    """Bytes of the given rows, ``rows[i][ih]`` for KV head ih of the i-th layer, whose rows take ``row_bytes[i]``."""
    return sum(sum(heads) * n for heads, n in zip(rows, row_bytes, strict=True))


def _from_number(number: Any) -> tuple[str, Literal["ratio", "rows"], Fraction | int]:
    """Request, kind and value of a budget that is no text."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise BudgetError(f"budget {str(number)[:40]} of type {type(number).__name__} is no budget, {_NUMBERS}")
    if isinstance(number, Integral):
        if int(number) < 1:
            raise BudgetError(f"budget {number} must be above 0")
        return str(number), "rows", int(number)
    if not 0 < float(number) <= 1:  # nan too
        raise BudgetError(f"budget {number} is no share, {_NUMBERS}")
    ratio = Fraction(str(number))  # as it is written: 0.1 is a tenth, in every precision
    return f"{float(100 * ratio):.6g}%", "ratio", ratio


def _rows_in_bytes(shape: ModelShape, n_bytes: int, n_prompt: int, type_k: str, type_v: str) -> int:
    rows = 0
    costs = [(shape.row_bytes(i, type_k, type_v), layer.n_head_kv) for i, layer in enumerate(shape.layers)]
    for row_bytes, n_head_kv in sorted(costs, reverse=True):
        n = min(n_bytes // row_bytes, n_head_kv * n_prompt)
        rows += n
        n_bytes -= n * row_bytes
        if n < n_head_kv * n_prompt:
            break
    return rows
