"""Calibration of the demo model: exact spans, scores of the heads that are known to retrieve, stopping and going on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyheadkv
from pyheadkv.calibrate import CalibrationSettings, calibrate
from pyheadkv.calibrate.needles import REASONING
from pyheadkv.calibrate.observer import Observer
from pyheadkv.calibrate.pages import make_page
from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.calibrate.retrieval import measure_question, question_prompt
from pyheadkv.errors import CalibrationError, UsageError
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.profile import read_profile, write_profile

ROOT = Path(__file__).parents[2]
LENGTH = 384
N_HEAD_KV = (3,) * 30
LEADING = {(18, 2), (17, 1), (23, 0)}  # of exact copying; measured with other needles and other texts, too
SETTINGS = CalibrationSettings(n_examples=8, lengths=(LENGTH,), excerpt_tokens=120, mix={"reconstruction": 1})
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def llama(library: None, demo_path: Path) -> Iterator[Any]:
    llama = pyheadkv.load(demo_path, n_ctx=512, n_threads=1)
    yield llama
    llama.close()


@pytest.mark.parametrize("seed", range(4))
def test_spans_are_the_tokens_of_the_parts(llama: Any, seed: int) -> None:
    prompter = Prompter(llama)
    page = make_page(random.Random(seed), 300, prompter.count)
    for question in page.questions:
        prompt = question_prompt(prompter, page, question)
        for part in filter(None, (question.answer, question.wrong, *question.facts)):
            tokens = [prompt.tokens[i] for i in prompt.positions(part)]
            text = b"".join(map(prompter.piece, tokens)).decode()
            assert part in text and len(text) <= len(part) + 2  # a space or a quotation mark may belong to a token
            shorter = b"".join(map(prompter.piece, tokens[1:])).decode(), b"".join(map(prompter.piece, tokens[:-1]))
            assert part not in shorter[0] and part.encode() not in shorter[1]


def test_a_page_is_read_once_and_what_is_kept_is_the_same(llama: Any) -> None:
    """The attention of a question that shares the cache with others is that of the same question alone."""
    observer, prompter = Observer(llama), Prompter(llama)
    page = make_page(random.Random("shared"), LENGTH - 126, prompter.count)
    first, *_, last = page.questions
    measure_question(observer, prompter, page, first)
    shared = question_prompt(prompter, page, last).tokens
    observer.read_only(shared[:-1])
    together = observer.observe([shared[-1]])
    observer.forget()
    assert observer.native.stats().n_pos == 0
    observer.read_only(shared[:-1])
    alone = observer.observe([shared[-1]])
    assert len(alone) == 30
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape == (9, len(shared) - 1)
        np.testing.assert_allclose(one, other, atol=0.02)


def test_tokens_of_a_whole_tile_are_read_again_at_most(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Observer(llama)
    tokens = list(range(100, 400))
    observer.read_only(tokens)
    read: list[int] = []
    stock = llama.eval
    monkeypatch.setattr(llama, "eval", lambda batch: (read.append(len(batch)), stock(batch)))
    observer.read_only([*tokens[:280], *range(50)])
    observer.read_only([*tokens[:280], *range(50)])
    observer.read_only([*tokens[:100], *range(200)])
    assert read == [64, 200]
    assert llama.input_ids[: llama.n_tokens].tolist() == [*tokens[:100], *range(200)]
    observer.forget()


def test_what_does_not_fit_or_is_taken_is_refused(llama: Any) -> None:
    observer = Observer(llama)
    with pytest.raises(CalibrationError, match="a prompt of 513 tokens does not fit into the context of 512"):
        observer.read_only([1] * 513)
    with pyheadkv.HeadKV(llama, budget="50%"), pytest.raises(UsageError, match="has a HeadKV"):
        Observer(llama)


def test_calibration_of_the_demo_model(llama: Any, tmp_path: Path) -> None:
    """Stopped in the middle of a page and gone on with; few examples, but the heads that copy stand out."""
    part, seen = tmp_path / "p.part", []

    def stop(done: int, total: int, what: str) -> None:
        seen.append(done)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(llama, SETTINGS, part=part, on_progress=stop)
    kept = part.read_text().splitlines()
    assert len(kept) == 5 and llama.n_tokens == 0
    notices: list[str] = []
    profile = calibrate(llama, SETTINGS, part=part, on_notice=notices.append)
    assert part.read_text().splitlines()[:5] == kept

    _, *records = map(json.loads, part.read_text().splitlines())
    right = [record for record in records if record["kind"] != "reconstruction" and record["is_right"]]
    assert len(records) == 10 and len(right) >= 3
    copied = np.mean([record["copy"] for record in right if record["kind"] != REASONING], axis=0)
    assert copied.shape == (270,) and copied.max() <= 1
    by_head = copied.reshape(30, 3, 3).sum(axis=2)
    leading = [tuple(np.unravel_index(i, by_head.shape)) for i in np.argsort(-by_head, axis=None)[:6]]
    assert set(leading) >= LEADING

    scores = profile.kinds["reconstruction"]
    assert tuple(map(len, scores)) == N_HEAD_KV
    halves = [record["reconstruction"] for record in records if record["kind"] == "reconstruction"]
    correlation: Any = profile.calibration["split_half"]
    assert correlation["reconstruction"] == pytest.approx(np.corrcoef(*halves)[0, 1], abs=1e-3)
    assert correlation["reconstruction"] > 0.97
    write_profile(tmp_path / "p.json", profile)
    shape = pyheadkv.shape_from_metadata(read_gguf_metadata(llama.model_path))
    again = read_profile(tmp_path / "p.json", shape)
    assert np.concatenate(again.scores) == pytest.approx(np.concatenate(profile.scores))


def test_ctrl_c_at_the_command(library: None, demo_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyheadkv.cli.app", "calibrate", str(demo_path), "-t", "1", "--lengths", "384"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    part = tmp_path / f"{demo_path.stem}.headkv.json.part"
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background may ignore Ctrl-C, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end and child.poll() is None and _n_lines(part) < 3:
            time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=TIMEOUT_S)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert errors.startswith("note: stopped; what is measured is in ") and errors.count("\n") == 1
    assert _n_lines(part) >= 3
    other = subprocess.run([*command, "--seed", "1"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert other.returncode == 1
    assert "its seed is 0, not 1): --force begins anew" in other.stderr and other.stderr.count("\n") == 1


def _n_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
