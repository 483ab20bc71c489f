"""`pyheadkv capsules` lists what can be read, and names what cannot; `ingest` refuses before a model is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyheadkv.cli import capsules, ingest
from pyheadkv.cli.options import CapsulesOptions, IngestOptions
from pyheadkv.errors import CapsuleError, UsageError
from pyheadkv.files.plain_text import size_text
from tests.unit.capsule.made import made, write_turns


def test_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_turns(tmp_path / "b.hkv", [made([1, 2, 3]), made([1, 2, 3, 4], 3)])
    write_turns(tmp_path / "a book.hkv", [made([1])])
    (tmp_path / "half.hkv").write_bytes((tmp_path / "b.hkv").read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("no capsule")
    capsules.run(CapsulesOptions(folder=tmp_path))
    shown = capsys.readouterr()
    head, *lines = shown.out.splitlines()
    assert head.split() == ["file", "name", "model", "tokens", "turns", "size", "date"]
    assert [line.split(".hkv")[0].rpartition("/")[2] for line in lines] == ["a book", "b"]
    size = (tmp_path / "b.hkv").stat().st_size
    assert f"made  a model  4       2      {size_text(size)}" in lines[1]
    assert shown.err.count("\n") == 1 and "half.hkv is damaged" in shown.err

    capsules.run(CapsulesOptions(folder=tmp_path, as_json=True))
    found = json.loads(capsys.readouterr().out)["capsules"]
    assert [(it["tokens"], it["tokens_with_rows"], it["turns"]) for it in found] == [(1, 1, 1), (4, 3, 2)]
    assert found[1]["bytes"] == size and found[1]["identity"]["model"] == "llama:1"


def test_an_empty_folder_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsules.run(CapsulesOptions(folder=tmp_path))
    assert "no capsules (.hkv) in" in capsys.readouterr().err
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        capsules.run(CapsulesOptions(folder=tmp_path / "none"))


def test_ingest_refuses_first(tmp_path: Path) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "book.hkv"
    with pytest.raises(UsageError, match="expected texts and a file to write"):
        ingest.run(IngestOptions(model="none", files=[book]))
    with pytest.raises(UsageError, match=r"book\.txt cannot be read"):
        ingest.run(IngestOptions(model="none", files=[book], output=out))
    out.write_text("mine")
    with pytest.raises(CapsuleError, match=r"book\.hkv exists"):
        ingest.run(IngestOptions(model="none", files=[book], output=out))
    assert out.read_text() == "mine"
