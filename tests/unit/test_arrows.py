"""Who may import whom, in Python and in C++: arrows go one way, by the tables below, and in no circle."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# packages, and the packages that their modules may import, beside their own and what those may import
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "model": {"files"},
    "profile": {"model"},
    "policy": {"profile"},
    "engine": {"model"},
    "cache": {"engine", "policy"},
    "capsule": {"engine"},
    "chat": {"cache", "capsule"},
    "server": {"chat"},
    "llm_plugin": {"chat"},
    "plots": {"profile"},
    "export": {"profile"},
    "calibrate": {"cache"},
    "evaluate": {"calibrate", "chat", "plots"},  # chats are measured as everybody chats
    "bench": {"chat", "plots"},
    "cli": {"bench", "evaluate", "export", "server"},
}
# the machinery that only some may touch
KEEPERS = {
    "cffi": {"engine"},
    "ctypes": {"engine"},
    "llama_cpp": {"engine", "cache", "chat", "calibrate", "evaluate", "bench", "server"},
}
# folders of native/: a file includes headers of its own folder and of those behind it, and never in a circle
NATIVE_ORDER = ("bind", "cache", "score", "attend", "rows", "core")
SEEN_BY_UPSTREAM = {"headkv-hooks.h": "bind/headkv-hooks.h"}  # included by its bare name


def below(package: str) -> set[str]:
    """Packages that a module of `package` may import."""
    return {package}.union(*(below(other) for other in ARROWS[package]))


@cache
def imported_modules(source: str) -> set[str]:
    """Dotted names of all modules that a source text imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            is_module = {alias.name: bool(find_file(f"{module}.{alias.name}")) for alias in node.names}
            found |= {f"{module}.{name}" if is_module[name] else module for name in is_module}
    return found


@cache
def find_file(module: str) -> Path | None:
    """The source of one of our modules or packages."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def forbidden_imports(package: str, source: str) -> list[str]:
    """What a module of `package` imports against the arrows."""
    found = []
    for module in sorted(imported_modules(source)):
        first, _, rest = module.partition(".")
        if first in KEEPERS and package not in KEEPERS[first]:
            found.append(module)
        # the version, which is in the package itself, is for the command line
        if first == "pyheadkv" and (rest.partition(".")[0] not in below(package) if rest else package != "cli"):
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
    package = path.relative_to(ROOT / "pyheadkv").with_suffix("").parts[0]
    assert package in ARROWS, f"give {package} its place in this file"
    assert forbidden_imports(package, path.read_text()) == []


def test_python_modules_import_each_other_in_no_circle() -> None:
    imports: dict[str, set[str]] = {}
    for path in PYTHON_FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        imports[module] = {name for name in imported_modules(path.read_text()) if name != module}
    assert find_circle(imports) == []


INSIDE_OF_LLAMA = ROOT / "pyheadkv" / "engine" / "llama.py"  # the only file that knows it


def private_names(source: str) -> list[str]:
    """Private attributes and modules of others that a source text touches: all that it does not define itself."""
    tree, found = ast.parse(source), []
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            found += [node.attr] if owner not in ("self", "cls") else []
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pyheadkv"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [part for part in parts if is_private(part)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            found += [name] if is_private(str(name)) else []
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_attributes_are_touched_in_one_file(path: Path) -> None:
    names = private_names(path.read_text())
    assert names == [] if path != INSIDE_OF_LLAMA else "_model" in names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("llama._ctx.kv_cache_seq_rm(-1, 0, -1)", "_ctx"),
        ("self.llama._model = None", "_model"),
        ("from llama_cpp import _logger", "_logger"),
        ("import x\nfrom llama_cpp._internals import LlamaModel", "_internals"),
        ("getattr(llama, '_ctx')", "_ctx"),
    ],
)
def test_private_attribute_is_found(source: str, name: str) -> None:
    assert private_names(source) == [name]


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
    ("package", "source"),
    [
        ("model", "from pyheadkv.policy.budget import Budget"),
        ("policy", "import pyheadkv.engine.native"),
        ("policy", "def f():\n    from pyheadkv.chat.session import load"),
        ("engine", "from pyheadkv.policy import scorers"),
        ("chat", "from pyheadkv import __version__"),
        ("chat", "from pyheadkv.cli.app import main"),
        ("model", "from pyheadkv import profile"),
        ("policy", "import ctypes"),
        ("chat", "import cffi"),
        ("cli", "from llama_cpp import llama_cpp"),
    ],
)
def test_python_arrow_that_turns_back_is_found(package: str, source: str) -> None:
    assert forbidden_imports(package, source) != []


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
