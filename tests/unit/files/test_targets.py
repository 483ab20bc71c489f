"""Nothing writes over what is no regular file. All nodes are made in the test's own folder."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.bench import shapes
from pyheadkv.engine.sources import DEMO_GGUF, demo_model
from pyheadkv.errors import BenchError, EvaluationError, ExportError, HeadKVError, ModelError
from pyheadkv.evaluate.cases import write_cases
from pyheadkv.evaluate.results import Results
from pyheadkv.export.files import check_targets
from pyheadkv.files.jsonl import JsonLines
from pyheadkv.files.targets import check_target
from pyheadkv.plots.figure import save_figure
from pyheadkv.profile import Profile, write_profile

WORDS = {"folder": "a folder", "FIFO": "a FIFO", "socket": "a socket", "device": "a device"}


def make_node(kind: str, path: Path) -> Path:
    """A node of the kind; "link to ..." makes a link as well."""
    if kind.startswith("link to "):
        path.symlink_to(make_node(kind.removeprefix("link to "), path.with_name("node")))
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("devices cannot be made here")
    return path


@pytest.mark.parametrize("prefix", ["", "link to "])
@pytest.mark.parametrize("kind", WORDS)
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = make_node(prefix + kind, Path("out"))
    before = path.lstat()
    article = "a link to " if prefix else ""
    with pytest.raises(ExportError, match=f"^out is {article}{WORDS[kind]}, expected a file to write$"):
        check_target(path, ExportError)
    assert path.lstat() == before


def test_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"out cannot be written: nothing can be made in the folder {tmp_path}/none, No such file or directory"
    with pytest.raises(ExportError, match=f"{words}$"):
        check_target(tmp_path / "none" / "out", ExportError)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=rf"{words} \(-o names another place\)$"):
        check_target(Path("none/out"), ExportError, "-o")
    check_target(Path("out"), ExportError)
    assert not list(tmp_path.iterdir())


def test_files_links_to_files_and_nothing_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("none")
    for name in ("file", "link", "dangling", "new"):
        check_target(tmp_path / name, ExportError)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"file/out cannot be written: Not a directory$"):
        check_target(tmp_path / "file" / "out", ExportError)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "export": lambda path: check_targets([path], [], force=True),
    "profile": lambda path: write_profile(path, Profile(((1.0,),), "made")),
    "picture": lambda path: save_figure(None, path, ExportError),
    "measured": lambda path: JsonLines(path, EvaluationError).add({}),
    "measured before": lambda path: JsonLines(path, EvaluationError).read(),
    "results": lambda path: Results(path),
    "cases": lambda path: write_cases(path, []),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_refuses_a_fifo(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "out")
    with pytest.raises(HeadKVError, match=r"out is a FIFO, expected a file to write$"):
        WRITERS[name](tmp_path / "out")
    assert stat.S_ISFIFO((tmp_path / "out").lstat().st_mode)


def test_the_cache_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path)
    for name in (DEMO_GGUF, "random-llama-1b-1-q4_0.gguf"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="is a FIFO"):
        demo_model()
    with pytest.raises(BenchError, match="is a FIFO"):
        shapes.shape_file(shapes.ShapeModel("llama-1b", 1, "q4_0"))
