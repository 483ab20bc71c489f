"""The right library, before llama_cpp looks for one."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyheadkv.engine import library as _library
from pyheadkv.errors import LibraryError


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a library in it, found through HEADKV_LIB_DIR; llama_cpp of the right version, not imported."""
    for name in ("libllama.so", "libllama.dylib", "llama.dll"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HEADKV_LIB_DIR", str(tmp_path))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "somewhere else")
    monkeypatch.setattr(metadata, "version", lambda name: _library.LLAMA_CPP_PYTHON_VERSION)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    return tmp_path


def import_llama_cpp(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """Pretend that llama_cpp was imported and loaded `library`."""
    module = SimpleNamespace(_lib=SimpleNamespace(_name=str(library)))
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", module)  # type: ignore[arg-type]


def test_llama_cpp_is_sent_to_our_library(built: Path) -> None:
    assert _library.prepare() == built
    assert os.environ["LLAMA_CPP_LIB_PATH"] == str(built)


def test_a_build_for_many_processors_is_told_where_its_backends_are(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(_library, "ggml", lambda: SimpleNamespace(ggml_backend_load_all_from_path=told.append))
    _library.prepare()
    assert told == []
    (built / f"{_library._PREFIX}ggml-cpu-haswell.so").touch()
    _library.prepare()
    _library.prepare()
    assert told == [os.fsencode(built)]


def test_without_a_setting_the_library_is_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADKV_LIB_DIR", raising=False)
    assert _library.library_dir() == Path(_library.__file__).parents[1] / "lib"


def test_no_library_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADKV_LIB_DIR", str(tmp_path))
    with pytest.raises(LibraryError, match=re.escape(str(tmp_path))):
        _library.prepare()


def test_another_version_is_refused_and_nothing_is_set(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.3.35")
    with pytest.raises(LibraryError, match=r"0\.3\.35.*0\.3\.36"):
        _library.prepare()
    assert os.environ["LLAMA_CPP_LIB_PATH"] == "somewhere else"


def test_missing_llama_cpp_python_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(LibraryError, match=r"llama-cpp-python .* is not installed"):
        _library.prepare()


def test_llama_cpp_imported_first_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_llama_cpp(monkeypatch, built / "other" / "libllama.so")
    with pytest.raises(LibraryError, match="import pyheadkv before llama_cpp"):
        _library.prepare()


def test_llama_cpp_imported_first_with_our_library_is_fine(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_llama_cpp(monkeypatch, built / f"{_library._PREFIX}llama{_library._SUFFIX}")
    assert _library.prepare() == built
