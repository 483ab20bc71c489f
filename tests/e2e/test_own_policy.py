"""A policy of one's own, a file outside the package: through the command line, and in a session that frees the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV
from pyheadkv.errors import PolicyError
from pyheadkv.policy import allocators, policy, scorers, text
from pyheadkv.policy.scorers import ScorerKind, register_scorer
from tests.e2e.conftest import MakeContext, WriteTiny
from tests.e2e.context import make_tokens
from tests.reference.llama import forward, round_f16
from tests.reference.score import Array, causal_attention
from tests.reference.select import select_positions
from tests.tiny import Tiny, make_weights

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "examples" / "falling.py"
TINY = Tiny(n_head=(4, 4, 4), n_head_kv=(2, 2, 2))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file registers is forgotten after the test."""
    monkeypatch.setattr(allocators, "_ALLOCATORS", dict(allocators._ALLOCATORS))
    monkeypatch.setattr(policy, "_PRESETS", dict(policy._PRESETS))
    monkeypatch.setattr(text, "_OF_FILES", {})
    known = dict(scorers.SCORERS)
    for module in (policy, scorers):
        monkeypatch.setattr(module, "SCORERS", known)


def inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyheadkv.cli.app", "inspect", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_from_the_command_line(library: None, tiny_path: WriteTiny, tmp_path: Path) -> None:
    model = tiny_path(TINY)
    done = inspect(model, "--policy", f"{EXAMPLE}:steepness=3", "--budget", "20%", "-c", "1000", "--json")
    assert done.returncode == 0, done.stderr
    rows = [sum(layer) for layer in json.loads(done.stdout)["plan"]["rows_per_head"]]
    assert rows[0] > rows[1] > rows[2] and sum(rows) == 1200
    broken = tmp_path / "broken.py"
    broken.write_text(EXAMPLE.read_text().replace("request.deal(", "request.deal(1 / 0 * "))
    done = inspect(model, "--policy", broken, "-c", "1000")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: {broken}: allocator falling raised ZeroDivisionError: division by zero\n"


def test_in_a_session(open_context: MakeContext) -> None:
    llama: Any = open_context(TINY, attach=False).llama
    with HeadKV(llama, policy=str(EXAMPLE), budget="20%") as headkv:
        llama.eval(make_tokens(400, 64))
        assert headkv.plan is not None and headkv.plan.policy.name == "falling"
        n_obs = headkv.policy.n_obs
        kept = [[len(headkv.native.positions(i, ih)) + n_obs for ih in range(2)] for i in range(3)]
        assert tuple(map(tuple, kept)) == headkv.plan.rows
        assert kept[0][0] > kept[1][0] > kept[2][0] and sum(map(sum, kept)) == 480


def test_faults_are_found_before_a_prompt_is_read(open_context: MakeContext, tmp_path: Path) -> None:
    llama: Any = open_context(TINY, attach=False).llama
    broken = tmp_path / "broken.py"
    broken.write_text(EXAMPLE.read_text().replace("return request.deal(", "return request.params and ("))
    with pytest.raises(PolicyError, match=r"broken\.py: allocator falling raised TypeError"):
        HeadKV(llama, policy=str(broken))
    assert "eval" not in vars(llama)


def layer_h2o(q: Array, k: Array, n_obs: int) -> Array:
    """Attention of all queries, mean over all heads of the layer: the reference of the scorer below."""
    row = causal_attention(q, k, len(k)).mean(axis=(0, 1))[: len(k) - n_obs]
    return np.tile(row, (k.shape[1], 1))


def test_a_scorer_and_an_allocator_of_ones_own(open_context: MakeContext) -> None:
    """One entry and one reference; the allocator is the example's."""
    register_scorer("layer-h2o", ScorerKind("all queries, all heads", "made up", observers="prompt", fold="layer"))
    allocators.run_file(EXAMPLE)
    tokens = make_tokens(400, 64)
    llama: Any = open_context(TINY, attach=False, n_ctx=512).llama
    with HeadKV(llama, policy="falling+layer-h2o:n_obs=8,pool=1", budget="20%") as headkv:
        llama.eval(tokens)
        plan = headkv.plan
        assert plan is not None and plan.rows[0][0] > plan.rows[2][0]
        kept = headkv.native.positions(0, 1)
    truth = forward(TINY, make_weights(TINY), tokens, is_f16=True)
    scores = layer_h2o(round_f16(truth.q[0]), truth.k[0], 8)
    expected = select_positions(scores[1], 4, plan.rows[0][1] - 8)
    assert len(kept) == len(expected) and len(np.intersect1d(kept, expected)) >= len(kept) - 2  # near ties
