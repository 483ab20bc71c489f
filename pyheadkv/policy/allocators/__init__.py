"""Allocators: rows per KV head from a budget. One method a file, all registered here by name.

To add one: write a file with `allocate(request) -> rows` that ends in ``request.deal(targets)`` (a
method that looks at the prompt: ``request.with_protected(evictable_rows)``), wrap it in an `Allocator` with a
one-line description, and list it below, or call `register_allocator` from your own program.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import CodeType, ModuleType

from pyheadkv.errors import PolicyError, one_line
from pyheadkv.files.plain_text import read_text
from pyheadkv.policy.allocators.adakv import ADAKV
from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.duo import DUO
from pyheadkv.policy.allocators.dynamickv import DYNAMICKV
from pyheadkv.policy.allocators.global_top import GLOBAL
from pyheadkv.policy.allocators.headkv import HEADKV
from pyheadkv.policy.allocators.pyramid import PYRAMID
from pyheadkv.policy.allocators.taskkv import TASKKV
from pyheadkv.policy.allocators.uniform import UNIFORM

__all__ = [
    "AllocRequest",
    "Allocator",
    "Param",
    "allocator_names",
    "get_allocator",
    "register_allocator",
    "run_file",
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
    """Add an allocator under its name, for `parse_policy` and policies of one's own.

    >>> register_allocator(Allocator("equal", "the same for all", lambda request: request.deal([1] * request.n_heads)))
    >>> parse_policy("equal+snapkv").allocator
    'equal'

    Parameters
    ----------
    allocator
        its name has letters, digits and no name that is known

    Raises
    ------
    PolicyError
        the name is taken
    """
    if allocator.name in _ALLOCATORS:
        raise PolicyError(f"allocator {allocator.name!r} exists already")
    _ALLOCATORS[allocator.name] = allocator


def run_file(path: Path) -> None:
    """Run a Python file, and keep its name beside the allocators that it registers.

    Raises
    ------
    PolicyError
        it cannot be read, is no text, or raised something: one line that names the file
    """
    known = allocator_names()
    text = read_text(path, PolicyError)
    try:
        _run(compile(text, str(path), "exec"), path)
    except SyntaxError as error:
        raise PolicyError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # anyone's program
        raise PolicyError(f"{path} raised {type(error).__name__}: {one_line(error)}") from error
    for name in allocator_names():
        if name not in known:
            _ALLOCATORS[name] = replace(_ALLOCATORS[name], file=str(path))


def _run(code: CodeType, path: Path) -> None:
    """As a module that can be found under its name while it runs, which dataclasses need, and not afterwards."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    hidden = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        exec(code, vars(module))
    finally:
        del sys.modules[path.stem]
        if hidden is not None:
            sys.modules[path.stem] = hidden
