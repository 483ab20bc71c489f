"""The public names: what `dir` shows, and docstrings with every parameter, the errors, and an example that runs."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import pyheadkv
import pyheadkv.policy.allocators as allocators_module
import pyheadkv.policy.policy as policy_module
import pyheadkv.policy.scorers as scorers_module
from pyheadkv import errors
from pyheadkv.model.shape import LayerShape, ModelShape

NEEDS_A_MODEL = {"HeadKV", "ingest", "load"}  # their examples are compiled, not run
SHAPE = ModelShape("llama", "", 4096, layers=(LayerShape(0, 4, 2, 64, 64),) * 2)
SECTION = r"^{}\n-+\n(.*?)(?=\n\n\w|\Z)"


def section(name: str, title: str) -> str:
    """Body of a section of a public object's docstring, "" without one."""
    found = re.search(SECTION.format(title), inspect.getdoc(getattr(pyheadkv, name)) or "", re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def terms(body: str) -> set[str]:
    """What a section explains: its lines that are not indented."""
    return {term for line in body.splitlines() if line[:1].strip() for term in line.split(", ")}


def test_dir_shows_the_public_names_and_no_modules() -> None:
    shown = {name for name in dir(pyheadkv) if not name.startswith("__")}
    assert shown == set(pyheadkv.__all__)
    assert "__version__" in dir(pyheadkv)


@pytest.mark.parametrize("name", pyheadkv.__all__)
def test_every_parameter_is_explained(name: str) -> None:
    thing = getattr(pyheadkv, name)
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    assert terms(section(name, "Parameters")) == set(inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", pyheadkv.__all__)
def test_every_error_is_named(name: str) -> None:
    thing: Any = getattr(pyheadkv, name)
    raised = terms(section(name, "Raises"))
    assert all(issubclass(getattr(errors, error), errors.HeadKVError) for error in raised)
    assert raised or (isinstance(thing, type) and not hasattr(thing, "__post_init__"))


@pytest.mark.parametrize("name", pyheadkv.__all__)
def test_the_example_is_right(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(allocators_module, "_ALLOCATORS", dict(allocators_module._ALLOCATORS))
    monkeypatch.setattr(policy_module, "_PRESETS", dict(policy_module._PRESETS))
    scorers = dict(scorers_module.SCORERS)
    for module in (policy_module, scorers_module):
        monkeypatch.setattr(module, "SCORERS", scorers)
    names = {each: getattr(pyheadkv, each) for each in pyheadkv.__all__} | {"shape": SHAPE, "pyheadkv": pyheadkv}
    text = inspect.getdoc(getattr(pyheadkv, name)) or ""
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert test.examples
    if name in NEEDS_A_MODEL:
        for example in test.examples:
            compile(example.source, name, "exec")
        return
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)
