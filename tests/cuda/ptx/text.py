"""The text of a PTX module: where its kernels, functions and variables are."""

from __future__ import annotations

import re
from pathlib import Path

from ptx.names import CTYPE, SIZE


class UnknownError(Exception):
    """An instruction that the translator does not know."""


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S))


def split_commas(text: str) -> list[str]:
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*out, last] if last else out


def matching_brace(text: str, start: int) -> int:
    depth = 0
    for m in re.compile(r'[{}]|"[^"\n]*"|//[^\n]*').finditer(text, start):
        if m[0] == "{":
            depth += 1
        elif m[0] == "}":
            depth -= 1
            if depth == 0:
                return m.end()
    raise UnknownError("a body without end")


class Module:
    """A PTX text: where its kernels, functions and variables are."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = Path(path).read_text(errors="replace")
        self.files = {int(m[1]): m[2] for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', self.text, re.M)}
        self.variables: dict[str, tuple[str, int, int, str, str]] = {}
        pattern = r"^(?:\.visible |\.extern |\.weak |\.common )*\.(global|const|shared)\s+([^;]*?);"
        for m in re.finditer(pattern, self.text, re.M):
            self.add_variable(m[1], m[2], m[0].startswith(".extern"))

    def add_variable(self, space: str, rest: str, is_extern: bool = False) -> None:
        head, _, init = rest.partition("=")
        m = re.match(
            r"(?:\.align\s+(\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?\.(\w+)\s+([\w$%.]+)\s*((?:\[\d*\])*)\s*$",
            head.strip(),
        )
        if not m:
            raise UnknownError(f"variable: {head.strip()[:120]}")
        item = SIZE[CTYPE[m[2]]]
        count = 1
        for n in re.findall(r"\[(\d*)\]", m[4]):
            count *= int(n or 0)
        kind = "extern" if is_extern and count == 0 else space
        self.variables[m[3]] = (kind, int(m[1] or item), item * count, m[2], init.strip())

    def kernels(self) -> list[str]:
        return re.findall(r"^(?:\.visible |\.weak )*\.entry\s+([\w$]+)", self.text, re.M)

    def find(self, kind: str, name: str) -> tuple[str, str, str, int]:
        """(return parameters, parameters, body, line of the body) of a .entry or .func."""
        pattern = (
            r"^(?:\.visible |\.weak )*\."
            + kind
            + r"\b[^;{]*?(?<![\w$])"
            + re.escape(name)
            + r"\s*(?:\(([^)]*)\))?([^;{]*)\{"
        )
        for m in re.finditer(pattern, self.text, re.M):
            end = matching_brace(self.text, m.end() - 1)
            head = self.text[m.start() : m.end()]
            returns = re.match(r"[^(]*\." + kind + r"\s*\(([^)]*)\)\s*" + re.escape(name), head)
            return (
                returns[1] if returns else "",
                m[1] or "",
                m[2] + "{" + self.text[m.end() : end],
                self.text.count("\n", 0, m.end()) + 1,
            )
        raise UnknownError(f"no .{kind} {name}")


def parse_params(text: str) -> list[tuple[str, str, int, int]]:
    """(name, type, size, alignment)"""
    out = []
    for one in split_commas(strip_comments(text)):
        m = re.match(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+\d+\s+)?"
            r"([\w$]+)(?:\[(\d+)\])?$",
            one,
        )
        if not m:
            raise UnknownError(f"parameter: {one}")
        size = SIZE[CTYPE[m[2]]]
        out.append((m[3], m[2], size * int(m[4] or 1), int(m[1] or size)))
    return out
