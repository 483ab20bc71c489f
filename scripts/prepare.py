#!/usr/bin/env python3
"""Set up a checkout: .venv with the dependencies, and the native library in pyheadkv/lib.

Run by scripts/pyheadkv before every start and by scripts/check; when nothing changed it takes a moment. What is done
is said on stderr, one line a step; the rest goes to build/setup.log and is shown when a step fails.

It calls CMake itself, and not `pip install -e .`: a changed native source then costs one `cmake --build` of what
depends on it (pip would set up a build environment each time), nothing is printed on import, and the library lies where
the installed package has it. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from patches import PatchError
from pin import PinError, find_sdist, read_pin

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD = ROOT / "build"
LOG = BUILD / "setup.log"
LIBRARY_DIR = ROOT / "pyheadkv" / "lib"
MIN_CMAKE = (3, 21)
BUILD_SCRIPTS = ("patches.py", "pin.py", "prepare.py")
STOCK = BUILD / "stock"
SANITIZED = BUILD / "sanitize"
SANITIZED_THREADS = BUILD / "sanitize-thread"
# native tests in which several threads work, without llama
THREAD_TESTS = ("test-scratch", "test-archive", "test-gather", "test-hot", "test-select")
STOCK_OPTIONS = ("-DHEADKV_STOCK=ON", "-DHEADKV_BUILD_TESTS=OFF")
# llama-cpp-python without a library of its own: ours takes its place
BINDING_ONLY = "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"


class SetupError(Exception):
    """A step that failed; its message is one line for the user."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_step(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run one command into the log; raises SetupError with the end of its output."""
    with LOG.open("ab") as log:
        start = log.tell()
        log.write(f"\n$ {shlex.join(map(str, command))}\n".encode())
        log.flush()
        env = os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{PYTHON.parent}"} | (environment or {})
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
    if done.returncode != 0:
        said = LOG.read_bytes()[start:].decode(errors="replace").strip().splitlines()
        say("\n".join(said[-25:]))
        raise SetupError(f"{Path(command[0]).name} failed with exit code {done.returncode}; all it said is in {LOG}")


@contextmanager
def locked() -> Iterator[None]:
    """Let one set-up of this checkout run at a time."""
    import fcntl  # not on Windows, where this script is not used

    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_text(path: Path) -> str:
    """Text of a stamp; "" when there is none."""
    return path.read_text() if path.is_file() else ""


# ---- Python ----


def requirements(dev: bool) -> list[str]:
    """Dependencies as pyproject.toml names them."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"]["dev"] if dev else [])]


def python_stamp(dev: bool) -> tuple[Path, str]:
    """The stamp of the virtual environment and what it says when nothing has to be installed."""
    wanted = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "patches" / "UPSTREAM").read_bytes()
    return VENV / f"headkv-stamp{'-dev' if dev else ''}", hashlib.sha256(wanted).hexdigest()


def is_python_ready(dev: bool) -> bool:
    """True if the dependencies are installed; those for developers hold the others."""
    stamps = [python_stamp(True)] if dev else [python_stamp(True), python_stamp(False)]
    return PYTHON.exists() and any(read_text(stamp) == wanted for stamp, wanted in stamps)


def prepare_python(dev: bool = False) -> None:
    """Make .venv and install the dependencies, unless that was done."""
    if is_python_ready(dev):
        return
    if sys.version_info < (3, 10):  # noqa: UP036 - this runs under whatever python3 is
        raise SetupError(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    if not PYTHON.exists():
        say("making .venv")
        run_step([sys.executable, "-m", "venv", "--clear", VENV])
    say("installing the dependencies (73 MiB of llama.cpp among them, once)")
    sdist = find_sdist(read_pin(ROOT / "patches"))
    pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    run_step([*pip, sdist], {"CMAKE_ARGS": BINDING_ONLY})
    run_step([*pip, *requirements(dev)])
    stamp, wanted = python_stamp(dev)
    stamp.write_text(wanted)


# ---- the native library ----


def find_tools() -> Path:
    """Path of cmake; cmake and ninja are installed into .venv where the system has none or too old ones."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise SetupError("no C++ compiler found (c++, g++ or clang++)")
    cmake = shutil.which("cmake")
    if not cmake or cmake_version(cmake) < MIN_CMAKE:
        cmake = str(PYTHON.parent / "cmake")
    missing = [name for name in ("cmake", "ninja") if not shutil.which(cmake if name == "cmake" else name)]
    missing = [name for name in missing if not (PYTHON.parent / name).exists()]
    if missing:
        say(f"installing {' and '.join(missing)}")
        run_step([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *missing])
    return Path(cmake)


def cmake_version(cmake: str) -> tuple[int, ...]:
    said = subprocess.run([cmake, "--version"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0, 0)


def build_settings(options: Sequence[str]) -> str:
    """All that decides how the build is configured, as text."""
    return "\n".join([*options, *(f"{name}={os.environ.get(name, '')}" for name in ("CMAKE_ARGS", "CC", "CXX"))])


def sources_stamp() -> str:
    """Hash over names, sizes and times of all that the library is built from."""
    digest = hashlib.sha256(build_settings([]).encode())
    files = [ROOT / "CMakeLists.txt", *(ROOT / "scripts" / name for name in BUILD_SCRIPTS)]
    for folder in ("native", "patches"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path.relative_to(ROOT)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def is_native_ready() -> bool:
    return any(LIBRARY_DIR.glob("libllama.*")) and read_text(BUILD / "release-stamp") == sources_stamp()


def configure(cmake: Path, folder: Path, options: Sequence[str]) -> None:
    """Configure a build folder; one that was configured with other settings forgets them first."""
    settings = folder / "headkv-settings"
    wanted = build_settings(options)
    if read_text(settings) != wanted:
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
    given = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    tests = "ON" if (ROOT / "tests" / "native" / "CMakeLists.txt").is_file() else "OFF"
    ours = [f"-DPython3_EXECUTABLE={PYTHON}", f"-DHEADKV_BUILD_TESTS={tests}"]
    run_step([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *ours, *options, *given])
    settings.write_text(wanted)


def build(cmake: Path, folder: Path, *targets: str) -> None:
    """Build targets of a configured folder."""
    # ccache then knows the files of another checkout as the same
    environment = {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
    jobs = str(os.cpu_count() or 1)
    run_step([cmake, "--build", folder, "--target", *targets, "--parallel", jobs], environment)


def link_library() -> None:
    """Let llama_cpp find the library where it looks by itself, for whoever imports it before pyheadkv."""
    for package in (VENV / "lib").glob("python*/site-packages/llama_cpp"):
        link = package / "lib"
        if link.is_symlink() and link.readlink() != LIBRARY_DIR:
            link.unlink()
        if not link.is_symlink() and not link.exists():
            link.symlink_to(LIBRARY_DIR, target_is_directory=True)


def prepare_native(tests: bool = False) -> None:
    """Build the library into pyheadkv/lib, unless that was done; `tests` builds those of tests/native as well.

    With `tests` CMake always configures, so that a patched tree that was touched by hand is made again.
    """
    stamp = sources_stamp()
    link_library()
    if not tests and is_native_ready():
        return
    folder = BUILD / "release"
    cmake = find_tools()
    is_first = not any(LIBRARY_DIR.glob("libllama.*"))
    say("building llama.cpp (about 4 minutes the first time)" if is_first else "building what changed")
    if tests or not (folder / "build.ninja").is_file() or read_text(folder / "headkv-settings") != build_settings([]):
        configure(cmake, folder, [])
    build(cmake, folder, "all" if tests else "pyheadkv-libraries")
    # not written over: a running program goes on with the files that it has mapped
    shutil.rmtree(LIBRARY_DIR, ignore_errors=True)
    run_step([cmake, "--install", folder, "--component", "pyheadkv", "--prefix", ROOT])
    (BUILD / "release-stamp").write_text(stamp)


def stock_stamp() -> str:
    """Hash over all that the stock library is built from: the pin, and how it is configured."""
    files = [ROOT / "CMakeLists.txt", ROOT / "patches" / "UPSTREAM"]
    settings = build_settings(STOCK_OPTIONS).encode()
    return hashlib.sha256(settings + b"".join(path.read_bytes() for path in files)).hexdigest()


def prepare_stock() -> None:
    """Build upstream alone into build/stock/bin, once for each pin: what the tests hold the patched library against."""
    stamp = BUILD / "stock-stamp"
    if read_text(stamp) == stock_stamp():
        return
    cmake = find_tools()
    say("building llama.cpp without patches, to compare with (about 3 minutes, once)")
    configure(cmake, STOCK, STOCK_OPTIONS)
    build(cmake, STOCK, "pyheadkv-libraries")
    stamp.write_text(stock_stamp())


def prepare_sanitized() -> None:
    """Build all with the address and undefined-behaviour sanitizers, and THREAD_TESTS with that of threads."""
    cmake = find_tools()
    say("building with sanitizers (about 20 minutes the first time)")
    kind = "-DCMAKE_BUILD_TYPE=RelWithDebInfo"
    configure(cmake, SANITIZED, ["-DHEADKV_SANITIZE=address,undefined", kind])
    build(cmake, SANITIZED, "all")
    # libgomp is not made for it
    configure(cmake, SANITIZED_THREADS, ["-DHEADKV_SANITIZE=thread", kind, "-DGGML_OPENMP=OFF"])
    build(cmake, SANITIZED_THREADS, *THREAD_TESTS)


def main() -> int:
    """Entry point of scripts/pyheadkv; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with_library = not os.environ.get("HEADKV_LIB_DIR")  # somebody's own library is not ours to build
    if is_python_ready(dev=False) and (not with_library or is_native_ready()):
        if with_library:
            link_library()
        return 0
    try:
        with locked():
            prepare_python()
            if with_library:
                prepare_native()
    except (SetupError, PatchError, PinError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
