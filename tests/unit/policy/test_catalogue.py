"""`pyheadkv policies`: everything is listed, by what policies, allocators and scorers say themselves."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from pyheadkv.cli.app import app
from pyheadkv.policy.allocators import allocator_names
from pyheadkv.policy.catalogue import allocator_entries, policy_entries, scorer_entries
from pyheadkv.policy.policy import policy_names
from pyheadkv.policy.scorers import SCORERS
from pyheadkv.policy.text import parse_policy


def test_everything_is_listed_and_says_what_it_is() -> None:
    listed = {"policies": policy_entries(), "allocators": allocator_entries(), "scorers": scorer_entries()}
    assert [entry.name for entry in listed["policies"]] == list(policy_names())
    assert [entry.name for entry in listed["allocators"]] == list(allocator_names())
    assert [entry.name for entry in listed["scorers"]] == list(SCORERS)
    for entries in listed.values():
        for entry in entries:
            assert entry.summary and "\n" not in entry.summary
            assert entry.name in ("auto", "uniform") or entry.sources
            assert all(re.fullmatch(r"\d{4}\.\d{5}", source) for source in entry.sources), entry.name


ROTATED_LAST = "layers that rotate their queries last (not GPT-2, SmolLM3, Ministral 3, Hunyuan)"


@pytest.mark.parametrize(
    ("name", "sources", "needs"),
    [
        ("headkv-r2", ("2410.19258", "2404.14469"), ("head scores", "the question in the prompt")),
        ("kvzip", ("2505.23416",), ("a reconstruction pass",)),
        ("headkv+expected_attention", ("2410.19258", "2510.00636"), ("head scores", ROTATED_LAST)),
        ("snapkv:retrieval_share=0.1", ("2404.14469",), ("head scores", "the question in the prompt")),
        ("taskkv+h2o", ("2501.15113", "2306.14048"), ("the prompt's attention a second time",)),
        ("keydiff", ("2504.15364",), ()),
    ],
)
def test_sources_and_needs(name: str, sources: tuple[str, ...], needs: tuple[str, ...]) -> None:
    (entry,) = policy_entries([parse_policy(name)])
    assert (entry.sources, entry.needs) == (sources, needs)


@pytest.mark.parametrize("name", [name for name in policy_names() if name != "auto"])
def test_listed_settings_can_be_typed(name: str) -> None:
    (entry,) = policy_entries([parse_policy(name)])
    typed = ",".join(f"{key}={value}" for key, value in entry.settings.items())
    (again,) = policy_entries([parse_policy(f"{name}:{typed}")])
    assert again.settings == entry.settings


def test_as_text_and_json() -> None:
    text = CliRunner().invoke(app, ["policies"], env={"COLUMNS": "200"}).stdout
    for name in (*policy_names(), *allocator_names(), *SCORERS):
        assert re.search(rf"^{re.escape(name)} ", text, flags=re.MULTILINE), name
    report = json.loads(CliRunner().invoke(app, ["policies", "--json"]).stdout)
    assert list(report) == ["policies", "allocators", "scorers"]
    assert {"name", "summary", "sources", "needs", "settings"} == set(report["scorers"][0])
    card = CliRunner().invoke(app, ["policies", "headkv:beta=1.1"], env={"COLUMNS": "200"}).stdout
    assert card.splitlines()[0].strip() == "headkv" and "beta=1.1" in card and "vote_share=0.5" in card
    one = json.loads(CliRunner().invoke(app, ["policies", "--json", "headkv:beta=1.1"]).stdout)
    assert list(one) == ["policies"] and one["policies"][0]["settings"]["beta"] == 1.1


def test_unknown_name() -> None:
    result = CliRunner().invoke(app, ["policies", "h3o"])
    assert result.exit_code == 1 and result.stderr.startswith("error: unknown policy 'h3o'")
    assert result.stderr.count("\n") == 1
