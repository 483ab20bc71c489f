"""What a shell may complete: the values that options take. A shell completes files by itself where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_BUDGETS = ("1.5%", "5%", "10%", "25%", "50%", "full")
_SUFFIX = ".gguf"


def models(incomplete: str) -> list[str]:
    """The demo, GGUF files, and folders on the way to them."""
    folder, _, _ = incomplete.rpartition("/")
    try:
        entries = sorted((Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()).iterdir())
    except OSError:
        entries = []
    before = incomplete[: len(incomplete) - len(incomplete.rpartition("/")[2])]
    files = [f"{before}{it.name}" for it in entries if it.suffix == _SUFFIX and it.is_file()]
    folders = [f"{before}{it.name}/" for it in entries if it.is_dir() and not it.name.startswith(".")]
    return _beginning(["demo", *files, *folders], incomplete)


def policies(incomplete: str) -> list[str]:
    """Names of the policies there are."""
    from pyheadkv.policy.policy import policy_names

    return _beginning(policy_names(), incomplete)


def budgets(incomplete: str) -> list[str]:
    """A few that are useful."""
    return _beginning(_BUDGETS, incomplete)


def cache_types(incomplete: str) -> list[str]:
    """All that there are."""
    from pyheadkv.model.shape import CACHE_TYPES

    return _beginning(CACHE_TYPES, incomplete)


def _beginning(values: Iterable[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]
