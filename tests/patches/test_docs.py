"""Every path of this repository that a README names exists, and so does every native source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

READMES = ["README.md", "native/README.md", "patches/README.md"]
MADE_BY_THE_BUILD = ("pyheadkv/lib",)
# upstream has folders and files of its own that begin alike
PATH = re.compile(r"(?<![\w/.<-])(?:native|pyheadkv|patches|scripts|tests|\.ci|\.github)/[\w./*-]*\w")
SOURCE = re.compile(r"(?<![\w/.*-])headkv[\w-]*\.(?:h|cpp|cu|cuh|metal|m|patch)\b")


def missing_paths(text: str, root: Path) -> list[str]:
    """Paths that a text names and that are not there; `*` stands for any part of a name."""
    named = {name for name in PATH.findall(text) if not name.startswith(MADE_BY_THE_BUILD)}
    missing = [name for name in named if not any(root.glob(name))]
    missing += [name for name in set(SOURCE.findall(text)) if not any((root / "native").rglob(name))]
    return sorted(missing)


@pytest.mark.parametrize("name", READMES)
def test_paths_in_readme_exist(root: Path, name: str) -> None:
    assert missing_paths((root / name).read_text(), root) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see `native/headkv-gone.cpp`.", ["native/headkv-gone.cpp"]),
        ("run scripts/gone --all", ["scripts/gone"]),
        ("[allocators](pyheadkv/policy/allocators/gone.py)", ["pyheadkv/policy/allocators/gone.py"]),
        ("rows are in headkv-gone.h, not elsewhere", ["headkv-gone.h"]),
        ("`tests/gone-*.cpp`", ["tests/gone-*.cpp"]),
        (
            "`native/headkv.h`, scripts/check, `headkv.h`, patches/*.patch, ../x/native/y, pyheadkv/lib/z.so",
            [],
        ),
        ("see <https://example.org/native/gone>", []),
    ],
)
def test_missing_path_is_found(root: Path, text: str, missing: list[str]) -> None:
    assert missing_paths(text, root) == missing
