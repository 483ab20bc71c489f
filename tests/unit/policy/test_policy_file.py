"""--policy my_policy.py: a policy of one's own, and what is said when its file is at fault."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyheadkv.cli.app import app
from pyheadkv.errors import HeadKVError, PolicyError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy import allocators, policy, text
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import Plan, make_plan
from pyheadkv.policy.policy import policy_names
from pyheadkv.policy.text import parse_policy

EXAMPLE = Path(__file__).parents[2] / "examples" / "falling.py"
SHAPE = ModelShape("llama", "", 8192, tuple(LayerShape(i, 4, 2, 64, 64) for i in range(3)))
START = "from pyheadkv import *\n"
REGISTER = "register_allocator(Allocator('mine', 'mine', allocate))\nregister_policy(Policy('mine', 'mine'))\n"


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(allocators, "_ALLOCATORS", dict(allocators._ALLOCATORS))
    monkeypatch.setattr(policy, "_PRESETS", dict(policy._PRESETS))
    monkeypatch.setattr(text, "_OF_FILES", {})
    yield


def plan_of(line: str) -> Plan:
    plan = make_plan(SHAPE, parse_policy(line), Budget.parse("20%"), 300)
    assert plan is not None
    return plan


def test_example() -> None:
    plan = plan_of(str(EXAMPLE))
    means = [sum(layer) / 2 for layer in plan.rows]
    assert means[0] > means[1] > means[2] and sum(map(sum, plan.rows)) == 360
    assert plan.policy.params == {"steepness": 4}
    assert (plan.policy.scorer.name, plan.policy.n_obs, plan.policy.n_sink) == ("expected_attention", 4, 4)


def test_settings_follow_the_file_and_it_runs_once() -> None:
    flat = plan_of(f"{EXAMPLE}:steepness=1,n_obs=8")
    assert {n for layer in flat.rows for n in layer} == {60} and flat.policy.n_obs == 8
    assert str(flat.policy) == "falling:n_obs=8,steepness=1.0" and "falling" in policy_names()
    assert (
        plan_of(str(EXAMPLE)) == plan_of("falling") == plan_of(str(EXAMPLE.parent / ".." / "examples" / "falling.py"))
    )
    with pytest.raises(PolicyError, match="steepness is 0, expected at least 1 and at most 100"):
        plan_of(f"{EXAMPLE}:steepness=0")


def test_a_file_as_windows_writes_it(tmp_path: Path) -> None:
    source = f"from dataclasses import dataclass\n@dataclass\nclass Wide:\n    n: 'int' = 8\n{START}"
    source += "register_policy(Policy('wide', 'uniform', Scorer(n_obs=Wide().n)))\n"
    (tmp_path / "json.py").write_bytes(source.replace("\n", "\r\n").encode("utf-16"))
    assert parse_policy(str(tmp_path / "json.py")).n_obs == 8
    assert sys.modules["json"] is json  # its name is its own only while it runs


def test_its_allocator_goes_with_other_scorers() -> None:
    plan_of(str(EXAMPLE))
    assert plan_of("falling+knorm").rows[0] > plan_of("falling+knorm").rows[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "mine.py cannot be read: No such file or directory"),
        ("def f(:\n", "mine.py, line 1: invalid syntax"),
        ("1/0\n", "mine.py raised ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "mine.py raised ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "open('missing.txt')\n",
            "mine.py raised FileNotFoundError: [Errno 2] No such file or directory: 'missing.txt'",
        ),
        ("raise SystemExit(3)\n", "mine.py raised SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", "mine.py raised ValueError: two lines"),
        ("", "mine.py is empty"),
        ("a = '\0'\n", "mine.py is not text: it has a NUL byte at offset 5"),
        ("# a policy\n", "mine.py registers 0 policies, expected one: pyheadkv.register_policy"),
        (
            f"{START}for name in 'ab': register_policy(Policy(name, 'uniform'))\n",
            "mine.py registers 2 policies (a, b), expected one",
        ),
        (f"{START}register_policy(Policy('snapkv', 'uniform'))\n", "policy 'snapkv' exists already"),
        (f"{START}register_policy(Policy('mine', 'square'))\n", "unknown allocator 'square'"),
        (f"{START}register_policy(Policy('mine', 'adakv', Scorer('knorm')))\n", "cannot be compared between heads"),
    ],
)
def test_faulty_file_is_one_line_that_names_it(tmp_path: Path, source: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(PolicyError, match=re.escape(message)) as error:
        parse_policy(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[[60, 60]] * 2", "mine.py: allocator mine gave rows for 2 layers, expected 3"),
        ("[[60, 60], [60], [60] * 3]", "mine.py: allocator mine gave rows for 1 KV heads of layer 1, expected 2"),
        ("[[60, 60]] * 2 + [[60, 61]]", "mine.py: allocator mine gave 361 rows, expected 360"),
        ("[[60.0, 60]] * 3", "mine.py: allocator mine gave KV head 0 of layer 0 60.0 rows, expected a whole number"),
        ("[[60, None]] * 3", "mine.py: allocator mine gave KV head 1 of layer 0 None rows, expected a whole number"),
        ("[[130, -10]] * 3", "mine.py: allocator mine gave KV head 1 of layer 0 -10 rows, expected 20 to 300"),
        ("[[301, 20]] + [[20, 19]] * 2", "mine.py: allocator mine gave KV head 0 of layer 0 301 rows, expected 20"),
        ("[60] * 6", "mine.py: allocator mine raised TypeError: 'int' object is not iterable"),
        ("1 / 0", "mine.py: allocator mine raised ZeroDivisionError: division by zero"),
        ("request.scores[0]", "mine.py: allocator mine raised TypeError: 'NoneType' object is not subscriptable"),
    ],
)
def test_faulty_rows_are_one_line_that_names_the_file(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"{START}def allocate(request):\n    return {rows}\n{REGISTER}")
    with pytest.raises(HeadKVError, match=re.escape(message)) as error:
        plan_of(str(path))
    assert "\n" not in str(error.value)


def test_cli_lists_it_and_refuses_what_is_missing(tmp_path: Path) -> None:
    path = shutil.copy(EXAMPLE, tmp_path)
    result = CliRunner().invoke(app, ["policies", "--json", str(path)])
    entry = json.loads(result.stdout)["policies"][0]
    assert (entry["name"], entry["settings"]["steepness"]) == ("falling", 4)
    result = CliRunner().invoke(app, ["policies", str(tmp_path / "missing.py")])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'missing.py'} cannot be read: No such file or directory\n"
