"""Every path, flag and command that a README names exists; tables say which command measured them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from pyheadkv.cli.app import app
from pyheadkv.cli.parsing import split_policies
from pyheadkv.policy.text import parse_policy

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "native/README.md", "patches/README.md", "pyheadkv/*/README.md")
    for path in ROOT.glob(pattern)
)
MAX_LINES = 130  # of the first README
MADE_BY_THE_BUILD = ("pyheadkv/lib",)
# upstream has folders and files of its own that begin alike
PATH = re.compile(r"(?<![\w/.<-])(?:native|pyheadkv|patches|scripts|tests|\.ci|\.github)/[\w./*-]*\w")
SOURCE = re.compile(r"(?<![\w/.*-])headkv[\w-]*\.(?:h|cpp|cu|cuh|metal|m|patch)\b")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
POLICIES = re.compile(r"--polic(?:y|ies) ([a-z][\w.:+=,-]*)")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"<!-- measured: ([\w-]+) -->\n(.*?)<!-- /measured -->", re.DOTALL)
ERROR = re.compile(r"\| [^|\n]*\d ?±")  # a cell with a standard error
UsageError = typer.BadParameter.__mro__[1]  # click's, of which typer has a copy
# scripts and pytest have options of their own
OTHER_OPTIONS = ("scripts/check", "scripts/patches.py", "tests/conftest.py")


def missing_paths(text: str, root: Path) -> list[str]:
    """Paths that a text names and that are not there; `*` stands for any part of a name."""
    named = {name for name in PATH.findall(text) if not name.startswith(MADE_BY_THE_BUILD)}
    missing = [name for name in named if not any(root.glob(name))]
    missing += [name for name in set(SOURCE.findall(text)) if not any((root / "native").rglob(name))]
    return sorted(missing)


def policies(text: str) -> list[str]:
    """Policies as options of a text name them, files of the reader's own apart."""
    found = [name.rstrip(".,") for words in POLICIES.findall(text) for name in split_policies(words)]
    return [name for name in found if ".py" not in name]


def commands() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def known_flags() -> set[str]:
    """Long options of all our commands, and of the scripts."""
    group = commands()
    options = [option for it in (group, *group.commands.values()) for option in it.params]
    flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    scripts = {flag for name in OTHER_OPTIONS for flag in re.findall(r'"(--[a-z][\w-]*)"', (ROOT / name).read_text())}
    return flags | scripts | {"--help"}


def fenced_commands(text: str) -> Iterator[str]:
    """Lines of fenced blocks that run pyheadkv, those that a backslash breaks as one."""
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", "").splitlines():
            if re.match(r"(scripts/)?pyheadkv\s", line):
                yield line


def parse_command(line: str) -> None:
    """Let the command line's own parser read a line, without running anything.

    Raises
    ------
    UsageError, KeyError
        an option or a value that does not fit, or an unknown command
    """
    _, name, *words = shlex.split(line, comments=True)
    commands().commands[name].make_context(name, words).close()


def test_all_readmes_are_found() -> None:
    assert {"README.md", "native/README.md", "patches/README.md", "pyheadkv/evaluate/README.md"} <= set(READMES)


def test_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", READMES)
def test_paths_in_readme_exist(root: Path, name: str) -> None:
    assert missing_paths((root / name).read_text(), root) == []


@pytest.mark.parametrize("name", READMES)
def test_flags_in_readme_exist(name: str) -> None:
    assert set(FLAG.findall((ROOT / name).read_text())) - known_flags() == set()


@pytest.mark.parametrize("name", READMES)
def test_policies_in_readme_are_known(name: str) -> None:
    for policy in policies((ROOT / name).read_text()):
        parse_policy(policy)


def test_policies_are_found() -> None:
    text = "`--policy headkv:beta=1.1,vote=0.5`, --policies auto,own.py:x=2,snapkv. --policy MINE"
    assert policies(text) == ["headkv:beta=1.1,vote=0.5", "auto", "snapkv"]


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name in READMES for line in fenced_commands((ROOT / name).read_text())]
)
def test_commands_in_readme_parse(name: str, line: str) -> None:
    parse_command(line)


@pytest.mark.parametrize("name", READMES)
def test_measured_tables_name_their_command(name: str) -> None:
    text = (ROOT / name).read_text()
    blocks = MEASURED.findall(text)
    assert len(blocks) == text.count("<!-- measured:") == len({block for block, _ in blocks})
    for _, body in blocks:
        line = re.match(r"`(pyheadkv (?:eval|bench) [^`]*|pytest ([^ `]+)[^`]*)` \(", body)
        assert line, f"no command above the table: {body[:80]}"
        if line[2]:
            assert (ROOT / line[2]).is_file()
        else:
            parse_command(line[1])
    assert not ERROR.search(MEASURED.sub("", text)), "a table of figures without marks"


@pytest.mark.parametrize("line", ["pyheadkv chat", "pyheadkv talk demo", "pyheadkv chat demo --budgets 10%"])
def test_what_does_not_parse_is_found(line: str) -> None:
    with pytest.raises((UsageError, KeyError)):
        parse_command(line)


def test_commands_are_found_in_fences_only() -> None:
    text = "pyheadkv a\n```sh\npyheadkv b \\\n  c  # d\nscripts/pyheadkv e\nother\n```\npyheadkv f\n"
    assert [shlex.split(line, comments=True) for line in fenced_commands(text)] == [
        ["pyheadkv", "b", "c"],
        ["scripts/pyheadkv", "e"],
    ]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see `native/headkv-gone.cpp`.", ["native/headkv-gone.cpp"]),
        ("run scripts/gone --all", ["scripts/gone"]),
        ("[allocators](pyheadkv/policy/allocators/gone.py)", ["pyheadkv/policy/allocators/gone.py"]),
        ("rows are in headkv-gone.h, not elsewhere", ["headkv-gone.h"]),
        ("`tests/gone-*.cpp`", ["tests/gone-*.cpp"]),
        (
            "`native/headkv.h`, scripts/check, `headkv.h`, patches/*.patch, ../x/native/y, pyheadkv/lib/z.so",
            [],
        ),
        ("see <https://example.org/native/gone>", []),
    ],
)
def test_missing_path_is_found(root: Path, text: str, missing: list[str]) -> None:
    assert missing_paths(text, root) == missing
