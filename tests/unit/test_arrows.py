"""Who may import whom, in Python and in C++: arrows go down only (the tables below are the house's map).

A new module has to be given its place here, so that nobody puts one in by accident.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# cli -> session, calibrate, export, evaluate -> plan -> policy -> {allocators, scorers} -> {budget, profile} -> shape
# -> errors; session -> native. A module imports from lower levels only, or from its own folder.
LEVELS = {
    "errors": 0,
    "targets": 1,
    "_abi": 1,
    "_library": 1,
    "gguf_header": 1,
    "jsonl": 2,
    "models": 3,
    "demo": 4,
    "plain_text": 1,
    "cache_folder": 1,
    "drawing": 2,
    "loops": 1,
    "shape": 1,
    "key_limits": 2,
    "model_file": 3,
    "protect": 1,
    "sampling": 1,
    "requantize": 2,
    "weights": 3,
    "budget": 2,
    "fingerprint": 2,
    "profile": 2,
    "allocators": 3,
    "scorers": 3,
    "policy": 4,
    "roles": 4,
    "catalogue": 5,
    "plan": 5,
    "native": 5,
    "compression": 7,
    "loading": 7,
    "interrupt": 6,
    "reader": 7,
    "lookup": 8,
    "metadata": 7,
    "stats": 7,
    "template": 6,
    "repeat": 8,
    "prompt": 9,
    "session": 10,
    "calibrate": 10,
    "export": 10,
    "heatmap": 10,
    "evaluate": 11,
    "bench": 11,
    "cli": 12,
}
# the machinery that only some may touch
KEEPERS = {
    "cffi": {"native"},
    "ctypes": {"native", "requantize"},
    "llama_cpp": {
        "native",
        "loading",
        "prompt",
        "reader",
        "repeat",
        "requantize",
        "session",
        "template",
        "calibrate",
        "evaluate",
        "bench",
    },
}
# folders of native/: a file includes headers of its own folder and of those behind it, and never in a circle
NATIVE_ORDER = ("bind", "cache", "score", "attend", "rows", "core")
SEEN_BY_UPSTREAM = {"headkv-hooks.h": "bind/headkv-hooks.h"}  # included by its bare name


def unit_of(module: str) -> str:
    """The part of the house that `pyheadkv.a.b` belongs to: "a"; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imported_modules(source: str) -> set[str]:
    """Dotted names of all modules that a source text imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            for alias in node.names:
                is_module = module == "pyheadkv" and alias.name in LEVELS
                found.add(f"{module}.{alias.name}" if is_module else module)
    return found


def forbidden_imports(unit: str, source: str) -> list[str]:
    """What a module of `unit` imports against the arrows."""
    found = []
    for module in sorted(imported_modules(source)):
        package = module.partition(".")[0]
        if package in KEEPERS and unit not in KEEPERS[package]:
            found.append(module)
        if package != "pyheadkv":
            continue
        target = unit_of(module)
        is_up = LEVELS[target] >= LEVELS[unit] and target != unit if target else unit != "cli"
        if is_up:
            found.append(module)
    return found


def included(source: str) -> list[str]:
    """Names of all headers that a source text includes by name."""
    names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', source, flags=re.MULTILINE)
    return [SEEN_BY_UPSTREAM.get(name, name) for name in names]


def forbidden_includes(folder: str, source: str) -> list[str]:
    """What a native source of `folder` includes against the arrows; "" is headkv.h, which all may include."""
    found = []
    for header in included(source):
        target = header.partition("/")[0] if "/" in header else ""
        if target in NATIVE_ORDER:
            is_up = folder not in NATIVE_ORDER or NATIVE_ORDER.index(target) < NATIVE_ORDER.index(folder)
        else:  # upstream's; what needs none of it is built and tested in seconds
            is_up = folder in ("", "core") and header != "headkv.h"
        if is_up:
            found.append(header)
    return found


def find_circle(includes: dict[str, set[str]]) -> list[str]:
    """A way along `includes` that comes back to where it began; [] if there is none."""
    done: set[str] = set()

    def follow(unit: str, path: list[str]) -> list[str]:
        if unit in path:
            return [*path[path.index(unit) :], unit]
        if unit in done:
            return []
        for target in sorted(includes.get(unit, ())):
            if circle := follow(target, [*path, unit]):
                return circle
        done.add(unit)
        return []

    return next((circle for unit in sorted(includes) if (circle := follow(unit, []))), [])


PYTHON_FILES = [path for path in sorted((ROOT / "pyheadkv").rglob("*.py")) if path != ROOT / "pyheadkv" / "__init__.py"]
NATIVE = ROOT / "native"
KERNELS = ("cpu", "cuda", "metal")  # their folders in native/attend
NATIVE_FILES = sorted(
    path for path in NATIVE.rglob("*") if path.suffix in (".h", ".cpp") and path.parent.name not in KERNELS
)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_arrows(path: Path) -> None:
    unit = path.relative_to(ROOT / "pyheadkv").with_suffix("").parts[0]
    assert unit in LEVELS, f"give {unit} its level in this file"
    assert forbidden_imports(unit, path.read_text()) == []


def native_unit(path: Path) -> str:
    """FOLDER/NAME of a file pair."""
    return path.relative_to(NATIVE).with_suffix("").as_posix()


@pytest.mark.parametrize("path", NATIVE_FILES, ids=native_unit)
def test_native_arrows(path: Path) -> None:
    folder = path.parent.relative_to(NATIVE).as_posix()
    assert folder in (".", *NATIVE_ORDER), f"{folder} has no place in NATIVE_ORDER"
    assert forbidden_includes("" if folder == "." else folder, path.read_text()) == []


def test_native_files_include_each_other_in_no_circle() -> None:
    includes: dict[str, set[str]] = {}
    for path in NATIVE_FILES:
        unit = native_unit(path)
        includes.setdefault(unit, set()).update(
            {Path(name).with_suffix("").as_posix() for name in included(path.read_text())} - {unit}
        )
    assert len(includes) > 20
    assert find_circle(includes) == []


KERNEL_FILES = sorted(path for name in KERNELS for path in (NATIVE / "attend" / name).iterdir())


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_kernel_knows_only_ggml_itself_and_the_node(path: Path) -> None:
    headers = re.findall(r'#\s*include\s*"([^"]+)"', path.read_text())
    others = [
        name
        for name in headers
        if (name.startswith(("headkv", "llama")) and not name.startswith(f"headkv-{path.parent.name}")) or "/" in name
    ]
    assert {name for name in others if not name.startswith("ggml-")} <= {"attend/node.h"}


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("shape", "from pyheadkv.budget import Budget"),
        ("budget", "import pyheadkv.native"),
        ("plan", "def f():\n    from pyheadkv.session import load"),
        ("policy", "from pyheadkv import plan"),
        ("session", "from pyheadkv import __version__"),
        ("session", "from pyheadkv.cli.app import main"),
        ("budget", "from pyheadkv.profile import Profile"),
        ("plan", "import ctypes"),
        ("session", "import cffi"),
        ("cli", "from llama_cpp import llama_cpp"),
    ],
)
def test_python_arrow_that_turns_back_is_found(unit: str, source: str) -> None:
    assert forbidden_imports(unit, source) != []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", '#include "rows/buffer.h"'),
        ("core", '#include "ggml.h"'),
        ("core", '# include "llama-graph.h"'),
        ("rows", '#include "cache/store.h"'),
        ("attend", '#include "score/observe.h"'),
        ("cache", '#include "headkv-hooks.h"'),
        ("", '#include "llama.h"'),
        ("", '#include "core/error.h"'),
    ],
)
def test_include_that_turns_back_is_found(folder: str, source: str) -> None:
    assert forbidden_includes(folder, source) != []


def test_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": {"upstream"}}) == []
