"""What a shell completes, asked as a shell asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyheadkv.cli import completion
from pyheadkv.cli.app import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.gguf", "b.gguf", "notes.txt", "models/c.gguf", ".hidden/d.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(*words: str) -> list[str]:
    """Answer to bash, where the last word is being typed."""
    line = ["pyheadkv", *words]
    env = {"_PYHEADKV_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1)}
    return CliRunner().invoke(app, [], env=env, prog_name="pyheadkv").stdout.split()


def test_models(folder: Path) -> None:
    assert completion.models("") == ["demo", "a.gguf", "b.gguf", "models/"]
    assert completion.models("models/") == ["models/c.gguf"]
    assert completion.models(f"{folder}/b") == [f"{folder}/b.gguf"]
    assert completion.models("nowhere/x") == []
    assert "/etc/" in completion.models("/e")


def test_a_shell_is_answered() -> None:
    assert completed("sel") == ["selftest"]
    assert completed("chat", "d") == ["demo"]
    assert completed("chat", "demo", "--policy", "head") == [
        "headkv",
        "headkv-r",
        "headkv-r2",
        "headkv+expected_attention",
        "headkv+kvzip",
    ]
    assert completed("inspect", "demo", "-ctk", "q8") == ["q8_0"]
    assert completed("chat", "demo", "--budget", "1") == ["1.5%", "10%"]
    assert "snapkv" in completed("policies", "s")
