"""`pyheadkv export`, and what `pyheadkv inspect` shows of a profile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyheadkv.cli import calibrate, inspect
from pyheadkv.cli.app import app
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.profile import BudgetChoice, Profile, write_profile
from pyheadkv.profile.gguf_keys import profile_from_metadata
from tests.tiny import Tiny
from tests.unit.small_gguf import write_model

PROFILE = Profile(
    ((0.3, 0.2), (0.1, 0.4)),
    "made",
    kinds={"retrieval": ((0.4, 0.4), (0.1, 0.1)), "reconstruction": ((0.25, 0.25), (0.25, 0.25))},
    mix={"retrieval": 1.0},
    settings=(
        BudgetChoice(0.05, "headkv:beta=1.01", {"retrieval": 1.0}, {"needles": 0.9}),
        BudgetChoice(1.0, "headkv"),
    ),
)

Run = Callable[..., Any]
ROOT = Path(__file__).parents[3]


def read_metadata(path: Path) -> dict[str, object]:
    with open_header(path) as header:
        return header.metadata()


def read_back(path: Path) -> Profile | None:
    metadata = read_metadata(path)
    return profile_from_metadata(metadata, shape_from_metadata(metadata), "")


def sha256(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder with a small model.gguf and a profile for it, made.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADKV_DEBUG", raising=False)
    write_model(Path("model.gguf"))
    write_profile("made.json", replace(PROFILE, fingerprint=fingerprint("model.gguf")))
    monkeypatch.setattr(inspect, "read_gguf_metadata", read_metadata)  # without the library
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_export_and_remove(run: Run) -> None:
    done = run("export", "model.gguf", "-o", "out.gguf", "--profile", "made.json", "--budget", "12.5%")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "out.gguf\n", "")
    profile = read_back(Path("out.gguf"))
    assert profile is not None and (profile.method, profile.keep_ratio) == ("made", 0.125)
    assert run("export", "out.gguf", "--remove", "-o", "back.gguf").stdout == "back.gguf\n"
    assert sha256("back.gguf") == sha256("model.gguf")


def test_in_place(run: Run) -> None:
    original = sha256("model.gguf")
    assert run("export", "model.gguf", "--in-place", "--profile", "made.json").exit_code == 0
    assert read_back(Path("model.gguf")) is not None
    assert run("export", "model.gguf", "--in-place", "--remove").exit_code == 0
    assert sha256("model.gguf") == original


def test_mix(run: Run) -> None:
    run("export", "model.gguf", "-o", "out.gguf", "--profile", "made.json", "--score-mix", "reconstruction=2")
    profile = read_back(Path("out.gguf"))
    assert profile is not None and profile.mix == {"reconstruction": 2}
    assert profile.scores == PROFILE.kinds["reconstruction"]


def test_the_profile_beside_the_model_is_taken(run: Run) -> None:
    assert "there is no model.headkv.json: name" in run("export", "model.gguf", "-o", "out.gguf").stderr
    Path("made.json").rename("model.headkv.json")
    done = run("export", "model.gguf", "-o", "out.gguf")
    assert done.exit_code == 0 and "head scores of model.headkv.json" in done.stderr
    assert read_back(Path("out.gguf")) is not None


def test_measuring_now(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Path("model.headkv.json.part")

    def measure(path: Path, settings: object, part: Path) -> Profile:
        part.write_text("measured so far")
        return PROFILE

    monkeypatch.setattr(calibrate, "calibrate_model", measure)
    done = run("export", "model.gguf", "-o", "out.gguf", "--calibrate", "--score-mix", "reconstruction")
    assert done.exit_code == 0 and done.stdout == "out.gguf\n"
    profile = read_back(Path("out.gguf"))
    assert profile is not None and profile.mix == {"reconstruction": 1}
    assert not part.exists()
    # minutes of measuring are not begun in vain
    monkeypatch.setattr(calibrate, "calibrate_model", lambda *_, **__: pytest.fail("measured"))
    assert "out.gguf exists" in run("export", "model.gguf", "-o", "out.gguf", "--calibrate").stderr


@pytest.mark.parametrize(("stopped", "exit_code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_stopping_while_measuring(
    run: Run, monkeypatch: pytest.MonkeyPatch, stopped: BaseException, exit_code: int
) -> None:
    def stop(path: Path, settings: object, part: Path) -> Profile:
        part.write_text("measured so far")
        raise stopped

    monkeypatch.setattr(calibrate, "calibrate_model", stop)
    done = run("export", "model.gguf", "-o", "out.gguf", "--calibrate")
    assert done.exit_code == exit_code
    assert "what is measured is in model.headkv.json.part" in done.stderr and Path("model.headkv.json.part").is_file()


def test_what_is_no_file_is_not_written_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("fifo")
    Path("link.gguf").symlink_to("fifo")
    monkeypatch.setattr(calibrate, "calibrate_model", lambda *_, **__: pytest.fail("measured"))
    for arguments in (
        ["export", "model.gguf", "-o", "link.gguf", "--force", "--profile", "made.json"],
        ["export", "model.gguf", "-o", "link.gguf", "--force", "--calibrate"],
        ["calibrate", "model.gguf", "-o", "link.gguf"],
        ["inspect", "model.gguf", "--profile", "made.json", "--png", "link.gguf"],
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and done.stderr.endswith(
            "error: link.gguf is a link to a FIFO, expected a file to write\n"
        )
    assert Path("link.gguf").is_symlink() and Path("fifo").is_fifo()


def test_sigterm_leaves_no_half_file(run: Run) -> None:
    script = """if True:
        import os, signal
        from pyheadkv.cli.app import main
        from pyheadkv.export import files
        files.os.fsync = lambda _: signal.raise_signal(signal.SIGTERM)
        main()"""
    arguments = ["export", "model.gguf", "-o", "out.gguf", "--profile", "made.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"")
    assert sorted(path.name for path in Path().iterdir()) == ["made.json", "model.gguf"]


def test_an_unknown_origin_is_said(run: Run) -> None:
    write_profile("made.json", PROFILE)
    done = run("export", "model.gguf", "-o", "out.gguf", "--profile", "made.json")
    assert done.exit_code == 0 and "made.json does not say which model it was measured on" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "made.json"], "expected either -o OUT.gguf or --in-place"),
        (["-o", "o.gguf", "--in-place"], "expected either -o OUT.gguf or --in-place"),
        (
            ["-o", "o.gguf", "--profile", "made.json", "--calibrate"],
            "expected either --profile or --calibrate, not both",
        ),
        (["-o", "o.gguf", "--remove", "--budget", "5%"], "--remove goes with no --profile, --calibrate"),
        (["-o", "o.gguf", "--remove"], "model.gguf carries no profile: it has no key headkv.*"),
        (["-o", "o.gguf", "--profile", "made.json", "--budget", "512"], "budget 512 cannot be stored as a default"),
        (["-o", "o.gguf", "--profile", "made.json", "--budget", "x"], "budget 'x' cannot be read"),
        (
            ["-o", "o.gguf", "--profile", "made.json", "--score-mix", "x=1"],
            "headkv.mix names 'x', the kinds of scores",
        ),
        (["-o", "o.gguf", "--profile", "no.json"], "profile no.json cannot be read: No such file or directory"),
        (["-o", "made.json", "--profile", "made.json"], "made.json exists, it is only written over with --force"),
        (["-o", "model.gguf", "--profile", "made.json", "--force"], "model.gguf is the model itself"),
    ],
)
def test_known_errors_are_1_and_one_line(run: Run, arguments: list[str], message: str) -> None:
    done = run("export", "model.gguf", *arguments)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not Path("o.gguf").exists()


def test_inspect_without_profile(run: Run) -> None:
    done = run("inspect", "model.gguf")
    assert "profile          none\n" in done.stdout and "plan             snapkv" in done.stdout
    assert json.loads(run("inspect", "model.gguf", "--json").stdout)["profile"] is None


def test_inspect_finds_the_profile_in_the_file(run: Run) -> None:
    run("export", "model.gguf", "-o", "out.gguf", "--profile", "made.json", "--budget", "10%")
    for arguments in (["inspect", "out.gguf"], ["export", "out.gguf", "--inspect"]):
        text = run(*arguments).stdout
        assert "profile          made, from out.gguf" in text
        assert f"fingerprint      {fingerprint('model.gguf')}" in text
        assert "kinds of scores  retrieval, reconstruction; in use: retrieval=1.0" in text
        assert "default budget   10%" in text
        assert "up to      5%    headkv:beta=1.01; retrieval=1.0; needles 0.9" in text
        assert "plan             headkv" in text
        assert "layer  score by KV head  rows by KV head\n    0  7 4 " in text


def test_inspect_as_json(run: Run) -> None:
    report = json.loads(run("inspect", "model.gguf", "--profile", "made.json", "--json", "-c", "2000").stdout)
    profile = report["profile"]
    assert profile["scores"] == [[0.3, 0.2], [0.1, 0.4]]
    assert profile["kinds"]["reconstruction"] == [[0.25, 0.25], [0.25, 0.25]]
    assert (profile["mix"], profile["fingerprint"]) == ({"retrieval": 1.0}, fingerprint("model.gguf"))
    assert [setting["max_keep_ratio"] for setting in profile["settings"]] == [0.05, 1.0]
    rows = [n for layer in report["plan"]["rows_per_head"] for n in layer]
    assert rows[3] == max(rows) and rows[2] == min(rows)  # the policy follows the scores


def test_inspect_of_another_models_profile(run: Run) -> None:
    other = write_model(Path("other.gguf"), Tiny(seed=1))
    done = run("inspect", str(other), "--profile", "made.json")
    assert done.exit_code == 1 and "error: profile made.json: headkv.fingerprint is llama:" in done.stderr


def test_inspect_reports_a_damaged_profile_that_came_with_the_file(run: Run) -> None:
    run("export", "model.gguf", "--in-place", "--profile", "made.json")
    profile = Path("model.gguf").read_bytes().replace(b"llama:", b"lLama:")
    Path("other.gguf").write_bytes(profile)
    assert "profile          none: profile in other.gguf: headkv.fingerprint is" in run("inspect", "other.gguf").stdout
    content = Path("model.gguf").read_bytes().replace(b"headkv.method", b"headkv.m-thod")
    Path("model.gguf").write_bytes(content)
    text = run("inspect", "model.gguf").stdout
    assert "profile          none: profile in model.gguf: headkv.method is None" in text
    assert "plan             snapkv" in text


def test_png(run: Run) -> None:
    pytest.importorskip("matplotlib")
    done = run("inspect", "model.gguf", "--png", "map.png")
    assert done.exit_code == 1 and "map.png: nothing to draw, the model carries no profile" in done.stderr
    assert run("inspect", "model.gguf", "--profile", "made.json", "--png", "map.png").exit_code == 0
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
