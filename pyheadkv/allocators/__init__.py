"""Allocators: rows per KV head from a budget. One method a file, all registered here by name.

To add one: write a file with `allocate(request) -> rows` that ends in ``request.deal(targets)`` (a
method that looks at the prompt: ``request.with_always(open_rows)``), wrap it in an `Allocator` with a
one-line description, and list it below, or call `register_allocator` from your own program.
"""

from __future__ import annotations

from pyheadkv.allocators.adakv import ADAKV
from pyheadkv.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.allocators.duo import DUO
from pyheadkv.allocators.dynamickv import DYNAMICKV
from pyheadkv.allocators.global_top import GLOBAL
from pyheadkv.allocators.headkv import HEADKV
from pyheadkv.allocators.pyramid import PYRAMID
from pyheadkv.allocators.taskkv import TASKKV
from pyheadkv.allocators.uniform import UNIFORM
from pyheadkv.errors import PolicyError

__all__ = [
    "AllocRequest",
    "Allocator",
    "Param",
    "allocator_names",
    "get_allocator",
    "register_allocator",
]

_ALLOCATORS: dict[str, Allocator] = {
    allocator.name: allocator for allocator in (UNIFORM, HEADKV, PYRAMID, ADAKV, DYNAMICKV, GLOBAL, DUO, TASKKV)
}


def allocator_names() -> tuple[str, ...]:
    """Names of all registered allocators."""
    return tuple(_ALLOCATORS)


def get_allocator(name: str) -> Allocator:
    """Look up an allocator; PolicyError lists the known ones."""
    allocator = _ALLOCATORS.get(name)
    if allocator is None:
        raise PolicyError(f"unknown allocator {name!r}, known are {', '.join(_ALLOCATORS)}")
    return allocator


def register_allocator(allocator: Allocator) -> None:
    """Add an allocator under its name; PolicyError if the name is taken."""
    if allocator.name in _ALLOCATORS:
        raise PolicyError(f"allocator {allocator.name!r} exists already")
    _ALLOCATORS[allocator.name] = allocator
