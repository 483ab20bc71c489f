"""Translate one kernel of a PTX module to C++ (runtime/kernel.h is what it includes).

    python -m ptx MODULE.ptx KERNEL [OUT.cpp]     C++ of the kernel, its functions and variables
    python -m ptx --check MODULE.ptx...           every kernel of these modules: is every instruction known?

An instruction that is not known stops the translation, with its line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ptx.text import Module, UnknownError
from ptx.unit import Unit


def check(paths: list[str]) -> int:
    """Translate every kernel of the modules; returns the exit code."""
    failed = n = 0
    for module in map(Module, paths):
        for name in module.kernels():
            n += 1
            try:
                Unit(module, name).text()
            except UnknownError as error:
                failed += 1
                print(error)
    print(f"ptx: {n} kernels, {failed} not known")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    try:
        if arguments[:1] == ["--check"]:
            return check(arguments[1:])
        if len(arguments) not in (2, 3):
            print(__doc__)
            return 2
        text = Unit(Module(arguments[0]), arguments[1]).text()
        if len(arguments) == 3:
            Path(arguments[2]).write_text(text)
        else:
            print(text, end="")
    except (UnknownError, OSError) as error:
        print(f"ptx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
