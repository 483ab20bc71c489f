"""A kernel with all that it needs, as one C++ file."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from ptx.function import Function
from ptx.names import CTYPE, SIZE
from ptx.text import Module, UnknownError, strip_comments


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Unit:
    """A kernel with all that it needs."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.meets = self.flush = 0
        self.local_size = 0
        self.shared_size = 0
        self.shared: dict[str, int] = {}
        self.variables: list[str] = []
        self.sites: list[tuple[int, int, int]] = [(0, 0, 0)]
        self.functions: dict[str, Function | None] = {}
        self.entry = Function(self, name, True)

    def cname(self, name: str) -> str:
        return "f_" + re.sub(r"\W", "_", name)

    def function(self, name: str) -> str:
        if name not in self.functions:
            self.functions[name] = None
            self.functions[name] = Function(self, name, False)
        return self.cname(name)

    def add_shared(self, name: str, size: int, align: int) -> int:
        if name not in self.shared:
            self.shared_size = -(-self.shared_size // align) * align
            self.shared[name] = self.shared_size
            self.shared_size += size
        return self.shared[name]

    def symbol(self, name: str) -> tuple[str, str] | None:
        if name not in self.module.variables:
            return None
        kind, align, size, _, _ = self.module.variables[name]
        if kind == "extern":
            return "shared", "EMU_DYNAMIC"
        if kind == "shared":
            return "shared", str(self.add_shared(name, size, align))
        if name not in self.variables:
            self.variables.append(name)
        return kind, f"B->vars[{self.variables.index(name)}]"

    def add_site(self, *site: int) -> int:
        if self.sites[-1] != site:
            self.sites.append(site)
        return len(self.sites) - 1

    def initial(self, name: str) -> bytes:
        _, _, size, ptx, init = self.module.variables[name]
        if not init:
            return b""
        item = SIZE[CTYPE[ptx]]
        data = bytearray()
        for x in re.findall(r"[^{},\s]+", init):
            if re.match(r"0[fFdD]", x):
                number = int(x[2:], 16)
            elif re.match(r"-?(0[xX])?[0-9a-fA-F]+U?$", x):
                number = int(x.rstrip("U"), 0)
            else:
                raise UnknownError(f"initial value of {name}: {x}")
            data += (number & ((1 << 8 * item) - 1)).to_bytes(item, "little")
        return bytes(data[:size])

    def limits(self) -> dict[str, list[int]]:
        """Of a launch, as the kernel states them: {"maxntid": [128], ...}."""
        found = re.findall(r"\.(\w+)\s+([\d, ]+)", strip_comments(self.entry.limits))
        return {name: [int(x) for x in values.replace(",", " ").split()] for name, values in found}

    def tables(self) -> list[str]:
        """What the runtime reads of the kernel beside its code."""
        module = self.module
        data = [self.initial(name) for name in self.variables]
        variables = [
            f"{{{_quote(name)}, {module.variables[name][2]}, init{i}, {len(data[i])}}}"
            for i, name in enumerate(self.variables)
        ]
        used = sorted({site[1] for site in self.sites})
        sites = [f"{{{line},{used.index(file)},{source_line}}}" for line, file, source_line in self.sites]
        files = [_quote(Path(module.files[file]).name if file in module.files else "") for file in used]
        params = [f"{{{offset}, {size}}}" for offset, size in self.entry.layout]
        return [
            *(f"static const uint8_t init{i}[] = {{{','.join(map(str, x)) or '0'}}};" for i, x in enumerate(data)),
            f"static const Var vars[] = {{{', '.join(variables) or '{}'}}};",
            f"static const Site sites[] = {{{','.join(sites)}}};",
            f"static const char * const files[] = {{{', '.join(files) or 'nullptr'}}};",
            f"static const Param params[] = {{{', '.join(params) or '{}'}}};",
        ]

    def text(self) -> str:
        """The C++ file."""
        entry = self.entry.text()
        functions = [function for function in self.functions.values() if function]
        limits = self.limits()
        max_threads = prod(limits.get("maxntid", limits.get("reqntid", [0])))
        dynamic = -(-self.shared_size // 16) * 16
        info = [
            "emu_run",
            _quote(self.name),
            *(self.meets, self.flush, dynamic, self.local_size, max_threads, limits.get("minnctapersm", [0])[0]),
            *(len(self.entry.layout), self.entry.params_size, "params"),
            *(len(self.variables), "vars", "sites", "files"),
        ]
        out = [
            '#include "kernel.h"',
            f"static constexpr uint64_t EMU_DYNAMIC = {dynamic};",
            *(f"{function.signature()};" for function in functions),
            *(function.text() for function in functions),
            entry,
            *self.tables(),
            'extern "C" __attribute__((visibility("default"))) const KernelInfo emu_kernel = {',
            ", ".join(map(str, info)) + "};",
        ]
        return "\n".join(out) + "\n"
