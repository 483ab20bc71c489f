"""Operands of instructions: registers, immediates, addresses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ptx.names import CTYPE, SIZE, TYPES, bits_of
from ptx.text import UnknownError, split_commas

if TYPE_CHECKING:
    from ptx.unit import Unit


SPECIAL = {"%tid": "t->tid", "%ntid": "B->ntid", "%ctaid": "B->ctaid", "%nctaid": "B->nctaid"}
SPECIAL_1 = {
    "%laneid": "t->lane",
    "%warpid": "t->warp",
    "%smid": "B->sm",
    "%nsmid": "B->n_sm",
    "%WARP_SZ": "32u",
    "WARP_SZ": "32u",
    "%dynamic_smem_size": "B->dynamic_size",
    "%total_smem_size": "B->shared_size",
    "%nwarpid": "32u",
    "%lanemask_eq": "(1u << t->lane)",
    "%lanemask_lt": "((1u << t->lane) - 1)",
    "%lanemask_le": "((2u << t->lane) - 1)",
    "%lanemask_gt": "~((2u << t->lane) - 1)",
    "%lanemask_ge": "~((1u << t->lane) - 1)",
    "%clock": "(uint32_t) __builtin_ia32_rdtsc()",
    "%clock64": "(uint64_t) __builtin_ia32_rdtsc()",
    "%globaltimer": "(uint64_t) __builtin_ia32_rdtsc()",
    "%clock_hi": "(uint32_t) (__builtin_ia32_rdtsc() >> 32)",
    "%gridid": "0u",
    "%envreg1": "0u",
    "%envreg2": "0u",
}


class Operands:
    """What instructions read and write, as C++.

    A value has a PTX type; a register keeps its bits in a C++ variable of its own width.
    """

    unit: Unit
    name: str
    scopes: list[dict[str, tuple[str, str]]]  # register -> (C++ name, C++ type), innermost last
    ranges: list[tuple[str, str]]  # prefix of registers that are numbered, C++ type
    symbols: dict[str, tuple[str, str]]  # variables of the function -> (space, C++ expression)
    targets: dict[str, list[str]]  # of indirect branches
    declarations: list[str]
    n_scope: int
    line: int  # of the module
    first_line: int
    loc: tuple[int, int]  # file and line of the source
    depot: str
    depot_size: int

    def declare(self, name: str, ctype: str) -> tuple[str, str]:
        scope = self.scopes[-1] if len(self.scopes) > 1 else self.scopes[0]
        cname = "v_" + re.sub(r"\W", "_", name) + (f"_{self.n_scope}" if len(self.scopes) > 1 else "")
        self.declarations.append(f"{ctype} {cname} = 0;")
        scope[name] = (cname, ctype)
        return scope[name]

    def register(self, name: str) -> tuple[str, str]:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        for prefix, ctype in self.ranges:
            if name.startswith(prefix) and name[len(prefix) :].isdigit():
                cname = "v_" + re.sub(r"\W", "_", name)
                self.declarations.append(f"{ctype} {cname} = 0;")
                self.scopes[0][name] = (cname, ctype)
                return self.scopes[0][name]
        raise UnknownError(f"{self.unit.module.path}:{self.line}: {self.name}: no register {name}")

    def is_register(self, name: str) -> bool:
        try:
            return self.register(name)[1] != "param"
        except UnknownError:
            return False

    @staticmethod
    def label(name: str) -> str:
        return "L_" + re.sub(r"\W", "_", name)

    def special(self, name: str) -> str | None:
        if name in SPECIAL_1:
            return SPECIAL_1[name]
        m = re.match(r"(%\w+)\.([xyz])$", name)
        return f"{SPECIAL[m[1]]}[{'xyz'.index(m[2])}]" if m and m[1] in SPECIAL else None

    def symbol(self, name: str) -> tuple[str, str] | None:
        """(kind, value) of a variable: its address in its own space."""
        for scope in reversed(self.scopes):
            if name in scope and scope[name][1] == "param":
                return "param", scope[name][0]
        return self.symbols.get(name) or self.unit.symbol(name)

    def raw(self, op: str) -> tuple[str, str]:
        """(expression, C++ type) of an operand that is no immediate."""
        if self.is_register(op):
            return self.register(op)
        special = self.special(op)
        if special:
            return special, "uint64_t" if "uint64_t" in special else "uint32_t"
        name, plus, offset = op.partition("+")
        found = self.symbol(name.strip())
        if found:
            kind, value = found
            value = f"(uint64_t) {value}" if kind == "param" else value
            return f"({value} + {int(offset, 0)})" if plus else f"({value})", "uint64_t"
        m = re.match(r"generic\(([\w$]+)\)$", op)
        if m:
            kind, value = self.symbol(m[1])
            return (f"({value} + SHARED_WIN)" if kind == "shared" else f"({value})"), "uint64_t"
        raise self.unknown(f"operand {op}")

    def value(self, op: str, ptx: str) -> str:
        """An operand as a value of a PTX type: floats as float, f16 and pairs as bits."""
        ctype = CTYPE[ptx]
        if ptx == "pred":
            negate = op.startswith("!")
            name = op.lstrip("!").strip()
            if re.match(r"\d+$", name):
                return f"({'!' if negate else ''}{int(name) != 0:d})"
            return ("!" if negate else "") + self.register(name)[0]
        m = re.match(r"0[fF]([0-9a-fA-F]{8})$", op)
        if m:
            return self.cast(f"u2f(0x{m[1]}u)", "float", ctype)
        m = re.match(r"0[dD]([0-9a-fA-F]{16})$", op)
        if m:
            return self.cast(f"u2d(0x{m[1]}ull)", "double", ctype)
        m = re.match(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$", op)
        if m:
            number = int(m[1] + m[2], 8) if re.match(r"0[0-7]+$", m[2]) else int(m[1] + m[2], 0)
            if ctype in ("float", "double"):
                raise self.unknown(f"operand {op}")
            mask = (1 << 8 * SIZE[ctype]) - 1
            return f"(({ctype}) 0x{number & mask:x}ull)"
        m = re.match(r"-?\d+\.\d+(e[+-]?\d+)?$", op)
        if m:
            return f"(({ctype}) {op})"
        if op.startswith("{"):
            return self.pack(split_commas(op[1:-1]), ptx)
        expression, own = self.raw(op)
        return self.cast(expression, own, ctype)

    @staticmethod
    def cast(x: str, own: str, ctype: str) -> str:
        """The same bits (the low ones) as another type."""
        if own == ctype:
            return x
        if own == "float":
            x = f"f2u({x})"
        elif own == "double":
            x = f"d2u({x})"
        elif own == "bool":
            raise ValueError
        if ctype == "float":
            return f"u2f({x})"
        if ctype == "double":
            return f"u2d({x})"
        return f"(({ctype}) {x})"

    def pack(self, items: list[str], ptx: str) -> str:
        size = SIZE[CTYPE[ptx]] // len(items)
        part, whole = f"b{8 * size}", bits_of(CTYPE[ptx])
        return "(" + " | ".join(f"({whole}) {self.value(x, part)} << {8 * size * i}" for i, x in enumerate(items)) + ")"

    def store(self, op: str, ptx: str, x: str) -> str:
        """dst = x, a value of a PTX type; a wider register is extended by its sign."""
        if op == "_":
            return f"(void) ({x});"
        name, own = self.register(op)
        ctype = CTYPE[ptx]
        if own == "bool" or ptx == "pred":
            return f"{name} = {x};"
        if own == ctype:
            return f"{name} = {x};"
        if ctype == "float":
            x = f"f2u({x})"
        elif ctype == "double":
            x = f"d2u({x})"
        else:
            x = f"({ctype}) ({x})"
        if own == "float":
            return f"{name} = u2f({x});"
        if own == "double":
            return f"{name} = u2d({x});"
        return f"{name} = ({own}) {x};"

    def address(self, op: str) -> tuple[str, str | None, str]:
        """(address, kind of the symbol or None, base register's name)"""
        inner = op.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            raise self.unknown(f"address {op}")
        inner = inner[1:-1].strip()
        m = re.match(r"(.+?)\s*\+\s*(-?(?:0x)?[0-9a-fA-F]+)$", inner)
        base, offset = (m[1], int(m[2], 0)) if m else (inner, 0)
        if re.match(r"-?(0x)?[0-9a-fA-F]+$", base):
            return f"{int(base, 0) + offset}ull", None, ""
        if self.is_register(base):
            name, own = self.register(base)
            plus = f" + {offset}" if offset >= 0 else f" - {-offset}"
            return (f"(uint64_t) ({own}) ({name}{plus})" if offset else f"(uint64_t) {name}"), None, base
        found = self.symbol(base)
        if not found:
            raise self.unknown(f"address {op}")
        kind, value = found
        return (f"({value} + {offset})" if offset else f"{value}"), kind, ""

    def site(self) -> int:
        return self.unit.add_site(self.line - self.first_line, *self.loc)

    def at(self, space: str, address: str, size: int, access: str, kind: str | None = None) -> str:
        if space == "local" and kind is None and self.depot:
            return f"at_depot<{size}>(t, {address}, {self.depot}, {self.depot_size}, {self.site()})"
        return f"at_{space}<{size}>(t, {address}, {self.site()}, {access})"

    def flags(self, s: list[str], known: tuple[str, ...]) -> tuple[str, set[str]]:
        """(type, the other suffixes); those that are not known are refused."""
        rest = set(s[:-1])
        unknown = rest - set(known)
        if unknown or s[-1] not in TYPES:
            raise ValueError
        if "ftz" in rest:
            self.unit.flush = 1
        return s[-1], rest

    @staticmethod
    def half(name: str, t: str, *args: str) -> str:
        operations = "bf16_ops" if t.startswith("bf16") else "f16_ops"
        return f"x_{name}{'2' if t.endswith('x2') else ''}<{operations}>({', '.join(args)})"
