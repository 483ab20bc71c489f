"""Allocators and their requests; the methods are one file each.

An allocator turns a budget into rows per KV head. It sees integers and, if it asks for them, measured
head scores, scores of the prompt's positions, or distances between heads; no model, no files, no
tokens.

    position   0        n_sink                            n_before_window   n_prompt
               |  sinks  | ... evictable ... [ span ) ... evictable ...|   window    |
               '-protected'                  '-protected               '--- kept ----'

Rows of a KV head = n_protected (sinks and protected spans) + its evictable rows + n_obs (window). Methods that
look at the prompt deal the evictable rows only: what is kept anyway neither counts nor competes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pyheadkv.errors import BudgetError, HeadKVError, PolicyError, one_line
from pyheadkv.policy.allocators.apportion import Number, apportion
from pyheadkv.policy.spans import Span, join_spans

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AllocRequest:
    """Everything an allocator may know.

    >>> request = AllocRequest(n_head_kv=(2, 2), n_prompt=100, total_rows=160, n_sink=4, n_obs=16)
    >>> request.evictable_rows()
    80
    >>> request.deal([3, 1, 1, 1])
    [[64, 32], [32, 32]]

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
    protected
        spans of positions [first, end) that every head keeps beside sinks and window (a system
        prompt, what a user marked); they may overlap
    token_scores
        for an allocator with `needs_token_scores`: float32 [n_head_kv, n_prompt - n_obs] of each
        layer, the higher the better, folded over the group and pooled. Read, never changed
    head_distance
        for an allocator with `needs_semantics`: how far each KV head's output is from the mean of
        its layer, by layer, >= 0

    Raises
    ------
    PolicyError
        a protected span is empty or outside the prompt
    """

    n_head_kv: tuple[int, ...]
    n_prompt: int
    total_rows: int
    n_sink: int
    n_obs: int
    scores: tuple[tuple[float, ...], ...] | None = None
    params: Mapping[str, float] = field(default_factory=dict)
    protected: tuple[tuple[int, int], ...] = ()
    token_scores: Sequence[npt.NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    head_distance: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        """Refuse spans that are not spans of this prompt."""
        for first, end in self.protected:
            if not 0 <= first < end <= self.n_prompt:
                raise PolicyError(f"protected span {first} to {end} is empty or outside 0 to {self.n_prompt}")

    @property
    def n_heads(self) -> int:
        """KV heads over all layers."""
        return sum(self.n_head_kv)

    @property
    def n_before_window(self) -> int:
        """Positions before the observation window."""
        return self.n_prompt - self.n_obs

    def protected_spans(self) -> tuple[Span, ...]:
        """Sinks and protected spans before the window: [first, end), in order, apart."""
        spans = [(0, self.n_sink), *self.protected]
        return join_spans([(first, min(end, self.n_before_window)) for first, end in spans])

    @property
    def n_protected(self) -> int:
        """Rows that every KV head keeps before the window."""
        return sum(end - first for first, end in self.protected_spans())

    @property
    def n_evictable_pos(self) -> int:
        """Positions that a KV head may keep or drop."""
        return self.n_before_window - self.n_protected

    def evictable_rows(self) -> int:
        """Rows left to deal over all KV heads; BudgetError if the total is below the floors or above the prompt."""
        floors, caps = self.n_heads * (self.n_protected + self.n_obs), self.n_heads * self.n_prompt
        if self.total_rows < floors:
            raise BudgetError(f"a budget of {self.total_rows} rows is below the floors of {floors} rows")
        if self.total_rows > caps:
            raise BudgetError(f"a budget of {self.total_rows} rows is above the {caps} rows that exist")
        return self.total_rows - floors

    def evictable_rows_by_layer(self) -> list[int]:
        """Open rows of each layer when every KV head has the same, to within one row."""
        n = self.n_heads
        equal = iter(apportion([1] * n, [0] * n, [self.n_evictable_pos] * n, self.evictable_rows()))
        return [sum(next(equal) for _ in range(n)) for n in self.n_head_kv]

    def with_protected(self, evictable_rows: Sequence[int]) -> list[list[int]]:
        """rows[i][ih] from the evictable rows of each KV head in layer-major order."""
        rest = iter(evictable_rows)
        return [[self.n_protected + self.n_obs + int(next(rest)) for _ in range(n)] for n in self.n_head_kv]

    def deal(self, targets: Sequence[Number]) -> list[list[int]]:
        """Deal `total_rows` in proportion to `targets`, one per KV head in layer-major order.

        The observation window is set aside first, so targets speak of the rows chosen by score,
        sinks included. Each head gets at least what is always kept and at most the whole prompt;
        what a head cannot use goes to the others.

        Raises
        ------
        BudgetError
            `total_rows` does not hold what is always kept
        """
        floors = [self.n_protected] * self.n_heads
        caps = [self.n_before_window] * self.n_heads
        chosen = iter(apportion(targets, floors, caps, self.total_rows - self.n_obs * self.n_heads))
        return [[self.n_obs + next(chosen) for _ in range(n)] for n in self.n_head_kv]

    def mean_rows(self) -> Fraction:
        """Rows per KV head on average, exact."""
        return Fraction(self.total_rows, self.n_heads)


def _check_rows(rows: tuple[tuple[object, ...], ...], request: AllocRequest, name: str) -> None:
    if len(rows) != len(request.n_head_kv):
        raise PolicyError(f"{name} gave rows for {len(rows)} layers, expected {len(request.n_head_kv)}")
    floor = request.n_protected + request.n_obs
    total = 0
    for i, layer in enumerate(rows):
        if len(layer) != request.n_head_kv[i]:
            raise PolicyError(
                f"{name} gave rows for {len(layer)} KV heads of layer {i}, expected {request.n_head_kv[i]}"
            )
        for ih, n in enumerate(layer):
            if not isinstance(n, (int, np.integer)):
                raise PolicyError(f"{name} gave KV head {ih} of layer {i} {n!r} rows, expected a whole number")
            if not floor <= n <= request.n_prompt:
                limits = f"{floor} to {request.n_prompt}"
                raise PolicyError(f"{name} gave KV head {ih} of layer {i} {n} rows, expected {limits}")
            total += int(n)
    if total != request.total_rows:
        raise PolicyError(f"{name} gave {total} rows, expected {request.total_rows}")


@dataclass(frozen=True, kw_only=True)
class Param:
    """A parameter of an allocator, and its limits.

    >>> beta = Param(default=1.2, above=1, at_most=100)
    >>> beta.accepts(1), beta.limits()
    (False, 'above 1 and at most 100')

    Parameters
    ----------
    default
        the value when none is given
    above, at_least
        lower limit, without or with itself
    at_most
        upper limit
    is_whole
        fractions are refused
    needs_sums
        above 0 it adds up scores of positions, which not every scorer's can be; such a scorer has it at 0
    """

    default: float
    at_most: float
    above: float = -math.inf
    at_least: float = -math.inf
    is_whole: bool = False
    needs_sums: bool = False

    def limits(self) -> str:
        """The range in words."""
        lower = f"at least {self.at_least:g}" if self.at_least > self.above else f"above {self.above:g}"
        return f"{lower} and at most {self.at_most:g}"

    def accepts(self, value: float) -> bool:
        """Whether a value is in range."""
        return math.isfinite(value) and self.above < value <= self.at_most and value >= self.at_least


@dataclass(frozen=True)
class Allocator:
    """A named way to deal rows; `rows` checks what it gives.

    >>> def equal(request):
    ...     return request.deal([1] * request.n_heads)
    >>> request = AllocRequest(n_head_kv=(2, 1), n_prompt=100, total_rows=90, n_sink=4, n_obs=16)
    >>> Allocator("equal", "the same for all", equal).rows(request)
    ((30, 30), (30,))

    Parameters
    ----------
    name, description
        for users; the description is one line
    allocate
        the method: rows[i][ih] for KV head ih of the i-th layer, summing to ``request.total_rows``
    needs_profile
        the method reads ``request.scores``
    needs_token_scores
        the method reads ``request.token_scores``
    needs_semantics
        the method reads ``request.head_distance``
    n_top
        positions that make up what a head sees, for these distances: those with the largest attention
    params
        accepted parameters by name
    ranks
        heads that it ranks together by token scores: the heads of a "layer", all of the "model", or ""
    source
        arXiv id of the paper, or ""
    file
        that it was read from, for messages; "" for those of the package
    """

    name: str
    description: str
    allocate: Callable[[AllocRequest], list[list[int]]]
    needs_profile: bool = False
    params: Mapping[str, Param] = field(default_factory=dict)
    needs_token_scores: bool = False
    needs_semantics: bool = False
    n_top: int = 256
    ranks: str = ""
    source: str = ""
    file: str = ""

    @property
    def needs_prompt(self) -> bool:
        """Whether the rows are decided by what the prompt is."""
        return self.needs_token_scores or self.needs_semantics

    def rows(self, request: AllocRequest) -> Rows:
        """Deal the rows, and check what the method gave: allocators may be anyone's, and rows go to native code.

        Returns
        -------
        rows[i][ih], summing to ``request.total_rows``, each between what is always kept and the prompt

        Raises
        ------
        BudgetError
            the rows do not hold what is always kept
        ProfileError, PolicyError
            an input that the method needs is missing or damaged, as `pyheadkv.policy.allocators.inputs` says
        HeadKVError
            the method's own, or a PolicyError that names what it gave or raised
        """
        name = f"{self.file}: allocator {self.name}" if self.file else f"allocator {self.name}"
        try:
            rows = tuple(tuple(layer) for layer in self.allocate(request))
        except HeadKVError:
            raise
        except Exception as error:  # the method is a program, and may raise anything
            raise PolicyError(f"{name} raised {type(error).__name__}: {one_line(error)}") from error
        _check_rows(rows, request, name)
        return rows

    def check_params(self, params: Mapping[str, float]) -> None:
        """Raise PolicyError for an unknown parameter or a value out of range, naming the limit."""
        for key, value in params.items():
            param = self.params.get(key)
            if param is None:
                known = ", ".join(self.params) or "none"
                raise PolicyError(f"allocator {self.name} has no parameter {key!r}, it has {known}")
            if not param.accepts(value):
                raise PolicyError(f"{key} is {value:g}, expected {param.limits()}")
            if param.is_whole and value != int(value):
                raise PolicyError(f"{key} is {value:g}, expected a whole number")

    def complete(self, params: Mapping[str, float]) -> dict[str, float]:
        """`params` with the defaults filled in."""
        return {key: params.get(key, param.default) for key, param in self.params.items()}
