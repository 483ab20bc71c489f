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
# file pairs native/FOLDER/NAME.{h,cpp}: which headers of ours they may include
INCLUDES: dict[str, set[str]] = {
    "headkv": set(),
    "core/plan": set(),
    "core/select": {"core/plan"},
    "core/vote": set(),
    "core/worst_case": {"core/select"},
    "rows/buffer": {"headkv"},
    "rows/gather": {"rows/buffer"},
    "rows/graph": {"rows/buffer"},
    "rows/hot": {"cache/store", "cache/tail", "core/select", "rows/gather"},
    "attend/node": set(),
    "attend/attn": {"cache/store"},
    "score/keys": {"rows/graph"},
    "score/expected": {"rows/graph"},
    "score/observe": {"attend/attn", "cache/store"},
    "score/scorers": {
        "cache/store",
        "cache/tail",
        "core/select",
        "core/worst_case",
        "headkv",
        "rows/graph",
        "score/expected",
        "score/keys",
    },
    "cache/select": {"cache/store", "core/plan", "core/vote", "headkv", "score/scorers"},
    "cache/store": {
        "cache/select",
        "cache/tail",
        "core/plan",
        "core/select",
        "headkv",
        "rows/buffer",
        "rows/hot",
        "score/expected",
        "score/keys",
    },
    "cache/tail": {"cache/store"},
    "cache/support": {"attend/attn", "cache/tail", "rows/gather"},
    "bind/headkv-hooks": {"attend/attn", "cache/store", "cache/tail", "score/observe"},
    "bind/api": {"cache/store", "cache/support", "cache/tail", "headkv", "score/scorers"},
}
STANDARD_ONLY = ("headkv", "core/")  # no header of llama.cpp or ggml, so that their tests build in seconds


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


def forbidden_includes(unit: str, source: str) -> list[str]:
    """What a native source of `unit` includes against the arrows."""
    found = []
    for header in re.findall(r'^\s*#\s*include\s*"([^"]+)"', source, flags=re.MULTILINE):
        ours = header.removesuffix(".h")
        ours = f"bind/{ours}" if ours == "headkv-hooks" else ours
        if ours in INCLUDES and ours != unit and ours not in INCLUDES[unit]:
            found.append(header)
        if ours not in INCLUDES and unit.startswith(STANDARD_ONLY):
            found.append(header)
    return found


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


@pytest.mark.parametrize("path", NATIVE_FILES, ids=lambda path: str(path.relative_to(NATIVE)))
def test_native_arrows(path: Path) -> None:
    unit = path.relative_to(NATIVE).with_suffix("").as_posix()
    assert unit in INCLUDES, f"say in this file what {unit} may include"
    assert forbidden_includes(unit, path.read_text()) == []


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
    ("unit", "source"),
    [
        ("core/plan", '#include "core/select.h"'),
        ("core/plan", '#include "ggml.h"'),
        ("core/select", '#include "cache/store.h"'),
        ("core/select", '# include "llama-graph.h"'),
        ("cache/store", '#include "headkv-hooks.h"'),
        ("headkv", '#include "llama.h"'),
    ],
)
def test_include_that_turns_back_is_found(unit: str, source: str) -> None:
    assert forbidden_includes(unit, source) != []
