"""pyheadkv: a key/value cache for llama.cpp in which every KV head keeps its own number of rows.

The planning side (budgets, policies, plans) needs no native library. `HeadKV` and `load` do; they
are imported on first use, and only then a missing library is an error.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from pyheadkv.engine import library as _library
from pyheadkv.errors import LibraryError

if TYPE_CHECKING:
    from pyheadkv.chat.ingest import ingest
    from pyheadkv.chat.session import HeadKV, load
    from pyheadkv.errors import HeadKVError
    from pyheadkv.model.shape import ModelShape, shape_from_metadata
    from pyheadkv.policy.allocators import Allocator, AllocRequest, Param, register_allocator
    from pyheadkv.policy.budget import Budget
    from pyheadkv.policy.plan import Plan, make_plan
    from pyheadkv.policy.policy import Policy, register_policy
    from pyheadkv.policy.scorers import Scorer, ScorerKind, register_scorer
    from pyheadkv.policy.text import parse_policy
    from pyheadkv.profile import Profile, read_profile, write_profile

__version__ = "0.1.0"

__all__ = [
    "AllocRequest",
    "Allocator",
    "Budget",
    "HeadKV",
    "HeadKVError",
    "ModelShape",
    "Param",
    "Plan",
    "Policy",
    "Profile",
    "Scorer",
    "ScorerKind",
    "ingest",
    "load",
    "make_plan",
    "parse_policy",
    "read_profile",
    "register_allocator",
    "register_policy",
    "register_scorer",
    "shape_from_metadata",
    "write_profile",
]

_HOMES = {
    "pyheadkv.policy.allocators": ("Allocator", "AllocRequest", "Param", "register_allocator"),
    "pyheadkv.policy.budget": ("Budget",),
    "pyheadkv.errors": ("HeadKVError",),
    "pyheadkv.policy.plan": ("Plan", "make_plan"),
    "pyheadkv.policy.policy": ("Policy", "register_policy"),
    "pyheadkv.policy.text": ("parse_policy",),
    "pyheadkv.profile": ("Profile", "read_profile", "write_profile"),
    "pyheadkv.policy.scorers": ("Scorer", "ScorerKind", "register_scorer"),
    "pyheadkv.chat.ingest": ("ingest",),
    "pyheadkv.chat.session": ("HeadKV", "load"),
    "pyheadkv.model.shape": ("ModelShape", "shape_from_metadata"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# llama_cpp looks for its library when it is imported, so it must be told before anybody does that
with suppress(LibraryError):
    _library.prepare()


def __dir__() -> list[str]:
    """The public names; modules are found by those who import them."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
