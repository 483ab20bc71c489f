"""Where the native library is, and that llama_cpp loads it and no other.

llama_cpp looks for libllama once, when it is imported, in the folder named by LLAMA_CPP_LIB_PATH. So that has to be set
before; `import pyheadkv` does it. What is in the library is native.py's concern.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from importlib import metadata
from pathlib import Path

from pyheadkv.engine.llama import loaded_library
from pyheadkv.errors import LibraryError

LLAMA_CPP_PYTHON_VERSION = "0.3.36"  # of patches/UPSTREAM; its ctypes structs fit this llama.cpp only
LLAMA_CPP_COMMIT = "0c1e57098"

_FORMS = {"darwin": ("lib", ".dylib"), "win32": ("", ".dll")}  # of a library's file name
_PREFIX, _SUFFIX = _FORMS.get(sys.platform, ("lib", ".so"))


def library_dir() -> Path:
    """Folder with libllama and libggml*: HEADKV_LIB_DIR, or `lib` inside the package."""
    given = os.environ.get("HEADKV_LIB_DIR")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[1] / "lib"


def prepare() -> Path:
    """Make llama_cpp load our library; returns its folder. Calling it again does no harm.

    Raises
    ------
    LibraryError
        No library was built, llama-cpp-python is missing or has another version, or llama_cpp was imported first and
        loaded another library.
    """
    folder = library_dir()
    library = folder / f"{_PREFIX}llama{_SUFFIX}"
    if not library.is_file():
        raise LibraryError(f"no native library at {library}: build it with scripts/pyheadkv, or set HEADKV_LIB_DIR")
    _check_version()
    loaded = loaded_library()
    if loaded is not None and Path(loaded).resolve() != library.resolve():
        raise LibraryError(f"llama_cpp was imported first and loaded {loaded}: import pyheadkv before llama_cpp")
    os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
    if any(folder.glob(f"{_PREFIX}ggml-cpu-*")):
        _load_backends(folder)
    return folder


def ggml() -> ctypes.CDLL:
    """The libggml that belongs to our libllama."""
    return ctypes.CDLL(str(library_dir() / f"{_PREFIX}ggml{_SUFFIX}"))


@functools.cache
def _load_backends(folder: Path) -> None:
    """Of a build with a CPU backend for each kind of processor, load what fits this one: ggml must be told where."""
    ggml().ggml_backend_load_all_from_path(os.fsencode(folder))


def _check_version() -> None:
    try:
        found = metadata.version("llama_cpp_python")
    except metadata.PackageNotFoundError:
        raise LibraryError(f"llama-cpp-python {LLAMA_CPP_PYTHON_VERSION} is not installed") from None
    if found != LLAMA_CPP_PYTHON_VERSION:
        raise LibraryError(f"llama-cpp-python {found} is installed, the library fits {LLAMA_CPP_PYTHON_VERSION} only")
