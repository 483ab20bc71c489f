"""Facts about an installation, for `--version`, `--version --verbose` and reports: no file of the user's is read."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import platformdirs

from pyheadkv import __version__
from pyheadkv.engine.devices import devices, system_info
from pyheadkv.engine.library import LLAMA_CPP_COMMIT, library_dir
from pyheadkv.engine.native import abi_version
from pyheadkv.errors import LibraryError
from pyheadkv.files.measured import processor
from pyheadkv.files.plain_text import size_text

_PACKAGES = ("llama-cpp-python", "numpy", "gguf", "huggingface-hub")
_EXTRAS = {"plots": "matplotlib", "serve": "fastapi", "llm": "llm", "bench": "pyarrow"}  # and a package that each needs
_VARIABLES = ("HEADKV_LIB_DIR", "HEADKV_SDIST", "HEADKV_DEBUG", "CMAKE_ARGS", "XDG_CACHE_HOME", "HF_HOME", "NO_COLOR")


def version_line() -> str:
    """Versions of all that matters."""
    try:
        native = f"ABI {abi_version()}"
    except LibraryError as error:
        native = f"no native library ({error})"
    return f"pyheadkv {__version__}, llama.cpp {LLAMA_CPP_COMMIT}, {native}"


def fact_lines() -> Iterator[str]:
    """Python, packages, the native library and its devices, folders and their sizes, variables that are set."""
    yield f"python       {platform.python_version()}, {platform.platform()}"
    yield f"processor    {processor()}, {os.cpu_count()} CPUs"
    yield f"packages     {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}"
    extras = [f"{extra} {'yes' if _version(package) else 'no'}" for extra, package in _EXTRAS.items()]
    yield f"extras       {', '.join(extras)}"
    yield f"library      {_folder(library_dir())}"
    try:
        yield f"built with   {system_info()}"
        for device in devices():
            memory = f"{size_text(device.bytes_free)} of {size_text(device.bytes_total)} free"
            yield f"device       {device.name}: {device.description}, {memory}"
    except LibraryError as error:
        yield f"device       unknown: {error}"
    yield f"cache        {_folder(platformdirs.user_cache_path('pyheadkv'))}"
    yield f"hub cache    {_folder(_hub_cache())}"
    given = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    yield f"environment  {_short(', '.join(given)) or 'nothing set'}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _folder(path: Path) -> str:
    """Where it is, and how much is in it."""
    if not path.is_dir():
        return f"{_short(str(path))}: none"
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return f"{_short(str(path))}: {size_text(sum(file.stat().st_size for file in files))} in {len(files)} files"


def _short(text: str) -> str:
    """A report is shown to others, who need no user's name."""
    home = str(Path.home())
    return text.replace(home, "~") if sys.platform != "win32" or len(home) > 3 else text
