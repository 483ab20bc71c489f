"""Plans: exact rows and bytes, when there is nothing to do, and that the package imports without a library."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyheadkv.errors import BudgetError, PolicyError, ProfileError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy import allocators
from pyheadkv.policy.allocators import Allocator, AllocRequest, register_allocator
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import Plan, make_plan
from pyheadkv.policy.policy import Policy
from pyheadkv.policy.scorers import Scorer
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile

SMOLLM2 = ModelShape("llama", "", 8192, tuple(LayerShape(il, 9, 3, 64, 64) for il in range(30)))
UNEQUAL = ModelShape(
    "deci", "", 8192, (LayerShape(0, 8, 2, 128, 128), LayerShape(2, 4, 4, 64, 32), LayerShape(3, 4, 1, 32, 32))
)
SKEWED = Profile(((0.4, 0.0), (0.1, 0.1, 0.1, 0.1), (0.2,)), "made", source="skewed.json")
SNAPKV, HEADKV = Policy.preset("snapkv"), Policy.preset("headkv")


def must(plan: Plan | None) -> Plan:
    """The plan, which must exist."""
    assert plan is not None
    return plan


def test_a_uniform_plan() -> None:
    plan = must(make_plan(SMOLLM2, SNAPKV, Budget.parse("10%"), 1000))
    assert plan.rows == ((100,) * 3,) * 30
    assert (plan.rows_full, plan.rows_kept, plan.keep_ratio) == (90_000, 9000, 0.1)
    assert (plan.bytes_full, plan.bytes_kept) == (90_000 * 256, 9000 * 256)


def test_a_headkv_plan() -> None:
    plan = must(make_plan(UNEQUAL, parse_policy("headkv:beta=2"), Budget.parse("36"), 500, profile=SKEWED))
    # b = 36 - 16, p = 10: 10 + 70 * score for each of 7 heads, and the window
    assert plan.rows == ((16 + 38, 16 + 10), (16 + 17,) * 4, (16 + 24,))


def test_flat_rows_are_layer_major_uint32() -> None:
    plan = must(make_plan(UNEQUAL, HEADKV, Budget.parse("36"), 500, profile=SKEWED))
    flat = plan.flat_rows()
    assert flat.dtype == np.uint32
    assert flat.tolist() == [*plan.rows[0], *plan.rows[1], *plan.rows[2]]


def test_json() -> None:
    plan = must(make_plan(UNEQUAL, HEADKV, Budget.parse("50%"), 100, type_k="q8_0", profile=SKEWED))
    found = json.loads(json.dumps(plan.to_json()))
    assert found["policy"] == "headkv:beta=1.2,temperature=1"
    assert found["budget"] == {"request": "50%", "rows": 350, "keep_ratio": 0.5, "bytes": plan.bytes_kept}
    assert found["rows_per_head"] == [list(layer) for layer in plan.rows]
    assert (found["n_prompt"], found["n_sink"], found["n_obs"]) == (100, 4, 16)
    assert (found["rows_full"], found["rows_kept"]) == (700, 350)
    assert found["bytes_full"] == 100 * (2 * (136 + 256) + 4 * (68 + 64) + (34 + 64))


@pytest.mark.parametrize(
    ("budget", "n_prompt"),
    [
        ("full", 1000),
        ("10%", 20),  # nothing but sinks and window
        ("100%", 20),
        ("10%", 1),
        ("10%", 0),
        ("512", 512),  # the budget holds the whole prompt: stay whole until it is longer
        ("512", 100),
        ("1GiB", 1000),
    ],
)
def test_nothing_to_do(budget: str, n_prompt: int) -> None:
    assert make_plan(SMOLLM2, SNAPKV, Budget.parse(budget), n_prompt) is None


@pytest.mark.parametrize(
    ("budget", "n_prompt", "kept"),
    [
        ("100%", 21, 21 * 90),  # a plan all the same
        ("10%", 21, 20 * 90),  # raised to the floor
        ("512", 513, 512 * 90),
        ("23MB", 1000, 89_843),
    ],
)
def test_the_shortest_that_is_something_to_do(budget: str, n_prompt: int, kept: int) -> None:
    assert must(make_plan(SMOLLM2, SNAPKV, Budget.parse(budget), n_prompt)).rows_kept == kept


@pytest.mark.parametrize("request_", ["19", "449KB"])
def test_an_absolute_budget_below_the_floor(request_: str) -> None:
    with pytest.raises(BudgetError, match=r"below the floor of 20 rows per KV head \(4 sinks \+ 16 observed\)"):
        make_plan(SMOLLM2, SNAPKV, Budget.parse(request_), 1000)


def test_profiles_are_needed_and_must_fit() -> None:
    with pytest.raises(ProfileError, match="policy headkv needs a profile"):
        make_plan(SMOLLM2, HEADKV, Budget.parse("10%"), 1000)
    with pytest.raises(ProfileError, match=r"skewed\.json has 7 KV heads in 3 layers, this model has 90 in 30"):
        make_plan(SMOLLM2, HEADKV, Budget.parse("10%"), 1000, profile=SKEWED)
    assert make_plan(SMOLLM2, SNAPKV, Budget.parse("10%"), 1000, profile=SKEWED) is not None  # not used


def test_beta_of_user_then_profile_then_default() -> None:
    measured = Profile(SKEWED.scores, "made", beta=5.0)
    budget = Budget.parse("36")
    used = [
        must(make_plan(UNEQUAL, policy, budget, 500, profile=profile)).policy.params["beta"]
        for policy in (HEADKV, parse_policy("headkv:beta=1.5"))
        for profile in (SKEWED, measured)
    ]
    assert used == [1.2, 5.0, 1.5, 1.5]
    with pytest.raises(PolicyError, match=r"beta is 0\.5, expected above 1"):
        make_plan(UNEQUAL, HEADKV, budget, 500, profile=Profile(SKEWED.scores, "made", beta=0.5))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelShape, Policy, Budget, int, str, Profile | None]:
    """Any small model, policy, budget and prompt."""
    layers = draw(
        st.lists(
            st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 128]), st.sampled_from([64, 96])),
            min_size=1,
            max_size=4,
        )
    )
    shape = ModelShape("any", "", 8192, tuple(LayerShape(i, 2 * n, n, k, v) for i, (n, k, v) in enumerate(layers)))
    name = draw(st.sampled_from(["snapkv", "headkv"]))
    policy = Policy(
        name, Policy.preset(name).allocator, Scorer(n_obs=draw(st.integers(1, 17))), draw(st.integers(0, 5))
    )
    budget = draw(
        st.one_of(
            st.integers(1, 10_000).map(lambda n: Budget("ratio", "ratio", Fraction(n, 10_000))),
            st.integers(1, 200).map(lambda n: Budget("rows", "rows", n)),
            st.integers(1, 400_000).map(lambda n: Budget("bytes", "bytes", n)),
        )
    )
    scores = [[float(draw(st.integers(0, 9))) for _ in range(n)] for n, _, _ in layers]
    total = sum(sum(layer) for layer in scores)
    profile = Profile(tuple(tuple(s / total for s in layer) for layer in scores), "made") if total else None
    return shape, policy, budget, draw(st.integers(0, 300)), draw(st.sampled_from(["f16", "q8_0"])), profile


@given(cases())
def test_every_plan_is_exact(case: tuple[ModelShape, Policy, Budget, int, str, Profile | None]) -> None:
    shape, policy, budget, n_prompt, cache_type, profile = case
    assume(profile is not None or not policy.needs_profile)
    n = shape.n_kv_heads
    try:
        plan = make_plan(shape, policy, budget, n_prompt, type_k=cache_type, type_v=cache_type, profile=profile)
    except BudgetError:
        assert budget.kind != "ratio"  # a ratio is raised to the floor
        assert budget.total_rows(shape, n_prompt, cache_type, cache_type) < policy.floor_rows * n
        return
    if plan is None:
        whole = budget.total_rows(shape, n_prompt, cache_type, cache_type) == n * n_prompt
        assert n_prompt <= policy.floor_rows or (whole and budget.kind != "ratio")
        return
    flat = plan.flat_rows()
    assert int(flat.sum()) == plan.rows_kept <= plan.rows_full == n * n_prompt
    assert flat.min() >= policy.floor_rows
    assert flat.max() <= n_prompt
    assert math.isclose(plan.keep_ratio * plan.rows_full, plan.rows_kept)
    assert plan.bytes_kept == sum(
        rows * shape.row_bytes(i, cache_type, cache_type) for i, layer in enumerate(plan.rows) for rows in layer
    )
    if budget.kind == "bytes":
        assert plan.bytes_kept <= budget.value
    elif budget.kind == "rows":
        assert plan.rows_kept == int(budget.value) * n
    else:
        assert plan.rows_kept == max(policy.floor_rows * n, int(budget.value * plan.rows_full))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[50] * 3] * 29, "gave rows for 29 layers, expected 30"),
        ([[50] * 4] * 30, "gave rows for 4 KV heads of layer 0, expected 3"),
        ([[50] * 3] * 29 + [[50, 50, 51]], "gave 4501 rows, expected 4500"),
        ([[50] * 3] * 29 + [[50, 81, 19]], "gave KV head 2 of layer 29 19 rows, expected 20 to 100"),
        ([[101, 20, 29]] + [[50] * 3] * 29, "gave KV head 0 of layer 0 101 rows, expected 20 to 100"),
    ],
)
def test_a_foreign_allocator_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, rows: list[list[int]], message: str
) -> None:
    monkeypatch.setattr(allocators, "_ALLOCATORS", dict(allocators._ALLOCATORS))

    def allocate(request: AllocRequest) -> list[list[int]]:
        return rows

    register_allocator(Allocator("foreign", "made for this test", allocate))
    with pytest.raises(PolicyError, match=f"allocator foreign {message}"):
        make_plan(SMOLLM2, Policy("mine", "foreign"), Budget.parse("50%"), 100)


def test_planning_needs_no_library(tmp_path: Path) -> None:
    code = """
import sys
from pyheadkv import Budget, ModelShape, Policy, make_plan, parse_policy, read_profile
assert not {"llama_cpp", "cffi", "pyheadkv.chat.session", "pyheadkv.engine.native"} & set(sys.modules)
print(Budget.parse("25%").kind, parse_policy("snapkv"))
import pyheadkv
try:
    pyheadkv.nonsense
except AttributeError as error:
    print(error)
"""
    root = Path(__file__).parents[3]
    environment = os.environ | {"HEADKV_LIB_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "ratio snapkv\nmodule 'pyheadkv' has no attribute 'nonsense'\n"


def test_public_names_are_complete() -> None:
    import pyheadkv

    assert set(pyheadkv.__all__) == set(pyheadkv._HOME_OF)
    for name in set(pyheadkv.__all__) - {"HeadKV", "load"}:
        assert getattr(pyheadkv, name).__name__ == name
