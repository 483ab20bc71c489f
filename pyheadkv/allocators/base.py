"""What goes into an allocator and what an allocator is; the methods are one file each.

An allocator turns a budget into rows per KV head. It sees integers and, if it asks for them,
measured head scores; no model, no files, no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pyheadkv.allocators.apportion import Number, apportion
from pyheadkv.errors import PolicyError


@dataclass(frozen=True)
class AllocRequest:
    """Everything an allocator may know.

    Parameters
    ----------
    n_head_kv
        KV heads of each layer
    n_prompt
        tokens of the prompt, more than `n_obs`
    total_rows
        rows to deal over all KV heads, sinks and observation window included
    n_sink, n_obs
        first and last positions that every head keeps
    scores
        importance of each KV head, by layer, >= 0 and summing to 1; None without a profile
    params
        the allocator's parameters, complete
    """

    n_head_kv: tuple[int, ...]
    n_prompt: int
    total_rows: int
    n_sink: int
    n_obs: int
    scores: tuple[tuple[float, ...], ...] | None = None
    params: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_heads(self) -> int:
        """KV heads over all layers."""
        return sum(self.n_head_kv)

    def deal(self, targets: Sequence[Number]) -> list[list[int]]:
        """Deal `total_rows` in proportion to `targets`, one per KV head in layer-major order.

        The observation window is set aside first, so targets speak of the rows chosen by score,
        sinks included. Each head gets at least its sinks and window and at most the whole prompt;
        what a head cannot use goes to the others.

        Raises
        ------
        BudgetError
            `total_rows` does not hold the sinks and windows of all heads
        """
        n_choice = self.n_prompt - self.n_obs
        floors = [min(self.n_sink, n_choice)] * self.n_heads
        caps = [n_choice] * self.n_heads
        chosen = iter(apportion(targets, floors, caps, self.total_rows - self.n_obs * self.n_heads))
        return [[self.n_obs + next(chosen) for _ in range(n)] for n in self.n_head_kv]

    def mean_rows(self) -> Fraction:
        """Rows per KV head on average, exact."""
        return Fraction(self.total_rows, self.n_heads)


@dataclass(frozen=True)
class Param:
    """A parameter of an allocator, in the range ``above < value <= at_most``."""

    default: float
    above: float
    at_most: float


@dataclass(frozen=True)
class Allocator:
    """A named way to deal rows.

    Parameters
    ----------
    name, description
        for users; the description is one line
    allocate
        the method: rows[i][ih] for KV head ih of the i-th layer, summing to ``request.total_rows``
    needs_profile
        the method reads ``request.scores``
    params
        accepted parameters by name
    """

    name: str
    description: str
    allocate: Callable[[AllocRequest], list[list[int]]]
    needs_profile: bool = False
    params: Mapping[str, Param] = field(default_factory=dict)

    def check_params(self, params: Mapping[str, float]) -> None:
        """Raise PolicyError for an unknown parameter or a value out of range, naming the limit."""
        for key, value in params.items():
            param = self.params.get(key)
            if param is None:
                known = ", ".join(self.params) or "none"
                raise PolicyError(f"allocator {self.name} has no parameter {key!r}, it has {known}")
            if not (math.isfinite(value) and param.above < value <= param.at_most):
                limits = f"above {param.above:g} and at most {param.at_most:g}"
                raise PolicyError(f"{key} is {value:g}, expected {limits}")

    def complete(self, params: Mapping[str, float]) -> dict[str, float]:
        """`params` with the defaults filled in."""
        return {key: params.get(key, param.default) for key, param in self.params.items()}
