"""Measured tables in Markdown files: they stand between marks, and the command that measures writes them there.

    <!-- measured: needles -->
    `pyheadkv eval demo --tasks single --cases 40` (2026-11-29, AMD EPYC, Linux, 2 CPUs)
    ... tables ...
    <!-- /measured -->

`--readme FILE#needles` replaces what is between these two marks, and nothing else.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pyheadkv.errors import HeadKVError, UsageError
from pyheadkv.files.plain_text import read_text
from pyheadkv.files.targets import check_target, writing

_END = "<!-- /measured -->"
_NOT_OF_THE_FIGURES = ("--readme", "-o", "--output")  # options, each with a value, that say where figures go


@dataclass(frozen=True)
class Block:
    """The place of a table: a file, and the name in its marks."""

    path: Path
    name: str

    @classmethod
    def parse(cls, text: str) -> Block:
        """FILE#NAME, which has to be there, so that hours of measuring have somewhere to go.

        Raises
        ------
        UsageError
            another form, a file that cannot be read or written, or one without these marks
        """
        path, _, name = text.rpartition("#")
        if not path or not re.fullmatch(r"[\w-]+", name):
            raise UsageError(f"--readme {text} has no name of a table, expected FILE#NAME")
        block = cls(Path(path), name)
        block._split()
        return block

    def write(self, tables: str, error: type[HeadKVError]) -> None:
        """Replace what is between the marks by Markdown.

        Raises
        ------
        HeadKVError
            `error`, where the file cannot be written; UsageError, where it has no such marks any more
        """
        before, after = self._split()
        with writing(self.path, error):
            self.path.write_text(f"{before}\n{tables.strip()}\n{after}", encoding="utf-8")

    def _split(self) -> tuple[str, str]:
        """The file up to the end of the first mark, and from the second one on."""
        check_target(self.path, UsageError)
        text, begin = read_text(self.path), f"<!-- measured: {self.name} -->"
        before, mark, rest = text.partition(begin)
        within, end, after = rest.partition(_END)
        if not end or "<!-- measured:" in within:
            raise UsageError(f"{self.path} has no {begin} with {_END} behind it")
        return before + mark, end + after


def measured_head(arguments: Sequence[str], today: date | None = None) -> str:
    """The line above a table: the command that redoes it, the day and the machine.

    Parameters
    ----------
    arguments
        of the process, `sys.argv`
    """
    day = (today or date.today()).isoformat()
    return f"`{redo_command(arguments)}` ({day}, {processor()}, {platform.system()}, {os.cpu_count()} CPUs)"


def redo_command(arguments: Sequence[str]) -> str:
    """The command as typed, without the options that say where its figures go."""
    words: list[str] = []
    rest = iter(arguments[1:])
    for word in rest:
        if word in _NOT_OF_THE_FIGURES:
            next(rest, None)
        elif not word.startswith(tuple(f"{name}=" for name in _NOT_OF_THE_FIGURES)):
            words.append(word)
    return shlex.join(["pyheadkv", *words])


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
