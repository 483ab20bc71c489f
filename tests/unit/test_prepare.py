"""Set-up puts the library where llama_cpp looks by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import prepare


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "llama_cpp"
    package.mkdir(parents=True)
    monkeypatch.setattr(prepare, "VENV", tmp_path / "venv")
    monkeypatch.setattr(prepare, "LIBRARY_DIR", tmp_path / "ours")
    return package


def test_the_link_is_made_once_and_follows_the_checkout(package: Path, tmp_path: Path) -> None:
    link = package / "lib"
    for library_dir in (tmp_path / "ours", tmp_path / "moved"):
        prepare.LIBRARY_DIR = library_dir
        for _ in range(2):  # also while the library is being built anew, and is not there
            prepare.link_library()
            assert link.is_symlink() and link.readlink() == library_dir


def test_a_library_of_somebody_else_stays(package: Path) -> None:
    (package / "lib").mkdir()
    prepare.link_library()
    assert not (package / "lib").is_symlink()


def test_without_llama_cpp_nothing_is_made(package: Path) -> None:
    package.rmdir()
    prepare.link_library()
    assert not package.exists()
