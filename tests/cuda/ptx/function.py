"""One kernel or function of a module, statement by statement."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ptx.arithmetic import Arithmetic
from ptx.meeting import Meeting
from ptx.memory import Memory
from ptx.moving import Moving
from ptx.names import CTYPE, SIZE, bits_of
from ptx.text import UnknownError, parse_params, split_commas

if TYPE_CHECKING:
    from ptx.unit import Unit


class Function(Arithmetic, Moving, Memory, Meeting):
    """One .entry or .func, translated."""

    def __init__(self, unit: Unit, name: str, is_entry: bool) -> None:
        self.unit, self.name, self.is_entry = unit, name, is_entry
        returns, params, body, line = unit.module.find("entry" if is_entry else "func", name)
        self.params = parse_params(params)
        self.returns = parse_params(returns)
        self.limits = body[: body.index("{")]
        self.declarations: list[str] = []
        self.code: list[str] = []
        self.scopes: list[dict[str, tuple[str, str]]] = [{}]  # register -> (C++ name, C++ type)
        self.ranges: list[tuple[str, str]] = []
        self.symbols: dict[str, tuple[str, str]] = {}  # local names -> (kind, C++ expression)
        self.targets: dict[str, list[str]] = {}
        self.n_scope = 0
        self.loc = (0, 0)
        self.line = self.first_line = line
        self.depot = ""
        self.depot_size = 0
        self.local_size = 0
        if is_entry:
            offset = 0
            self.layout = []
            for pname, _, size, align in self.params:
                offset = -(-offset // align) * align
                self.layout.append((offset, size))
                self.symbols[pname] = ("param", f"(B->params + {offset})")
                offset += size
            self.params_size = offset
        else:
            for i, (pname, *_) in enumerate(self.params):
                self.symbols[pname] = ("param", f"a{i}")
            for i, (pname, *_) in enumerate(self.returns):
                self.symbols[pname] = ("param", f"o{i}")
        self.body(body[body.index("{") + 1 : -1], line)

    # ---- statements

    def body(self, text: str, line: int) -> None:
        token = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|[;{}\n]|[^;{}\n"/]+|/', re.S)
        current, start, depth = "", line, 0
        for m in token.finditer(text):
            s = m[0]
            if s == "\n":
                line += 1
                if depth == 0 and re.match(r"\s*\.loc\b", current):
                    self.directive(current.strip())
                    current = ""
                elif depth == 0 and re.match(r"\s*[\w$.]+:\s*$", current):
                    self.statement(current.strip())
                    current = ""
                else:
                    current += " "
            elif s.startswith(("//", "/*")):
                line += s.count("\n")
            elif s == ";":
                self.line = start
                self.statement(current.strip())
                current = ""
            elif s == "{":
                if current.strip() == "":
                    self.n_scope += 1
                    self.scopes.append({})
                    current = ""
                elif re.match(r"\s*[\w$.]+:\s*$", current):
                    self.statement(current.strip())
                    self.n_scope += 1
                    self.scopes.append({})
                    current = ""
                else:
                    depth += 1
                    current += s
            elif s == "}":
                if depth:
                    depth -= 1
                    current += s
                else:
                    if current.strip():
                        raise self.unknown(current)
                    self.scopes.pop()
            else:
                if current.strip() == "":
                    start = line
                current += s
        if current.strip():
            raise self.unknown(current)

    def unknown(self, text: str) -> UnknownError:
        return UnknownError(f"{self.unit.module.path}:{self.line}: {self.name}: not known: {' '.join(text.split())}")

    def statement(self, text: str) -> None:
        while True:
            m = re.match(r"([\w$.]+):(?!:)\s*", text)
            if not m or text.startswith("."):
                break
            rest = text[m.end() :]
            if rest.startswith((".branchtargets", ".calltargets", ".callprototype")):
                self.targets[m[1]] = split_commas(rest.split(None, 1)[1])
                return
            self.code.append(f"{self.label(m[1])}:;")
            text = rest
        if not text:
            return
        if text.startswith("."):
            self.directive(text)
            return
        guard = ""
        m = re.match(r"@(!?)([\w$%.]+)\s+", text)
        if m:
            guard = f"if ({m[1]}{self.register(m[2])[0]}) "
            text = text[m.end() :]
        m = re.match(r"([a-z_0-9]+)((?:[.:]+[\w]+)*)\s*(.*)$", text, re.S)
        if not m:
            raise self.unknown(text)
        suffixes = re.findall(r"\.((?:\w|::)+)", m[2])
        try:
            code = self.instruction(m[1], suffixes, m[3].strip())
        except (KeyError, IndexError, ValueError):
            raise self.unknown(text) from None
        self.code.append(f"{guard}{{ {code} }}" if guard or not code.startswith("goto") else code)

    def directive(self, text: str) -> None:
        if re.match(r"\.loc\s", text):
            m = re.match(r"\.loc\s+(\d+)\s+(\d+)", text)
            if m:
                self.loc = (int(m[1]), int(m[2]))
        elif text.startswith(".reg"):
            m = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text, re.S)
            if not m:
                raise self.unknown(text)
            ctype = CTYPE[m[1]]
            ctype = ctype if ctype in ("bool", "float", "double") else bits_of(ctype)
            for name in split_commas(m[2]):
                ranged = re.match(r"([\w$%]+)<(\d+)>$", name)
                if ranged:
                    self.ranges.append((ranged[1], ctype))
                else:
                    self.declare(name, ctype)
        elif text.startswith((".shared", ".local", ".param")):
            space, rest = text[1:].split(None, 1)
            m = re.match(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)(?:\[(\d+)\])?$", rest.strip())
            if not m:
                raise self.unknown(text)
            size = SIZE[CTYPE[m[2]]]
            align = int(m[1] or size)
            size *= int(m[4] or 1)
            if space == "shared":
                self.symbols[m[3]] = ("shared", str(self.unit.add_shared(self.name + ":" + m[3], size, align)))
            else:
                cname = f"m{len(self.declarations)}"
                self.declarations.append(f"alignas({max(align, 16)}) uint8_t {cname}[{max(size, 1)}];")
                if space == "local":
                    self.declarations.append(f"__builtin_memset({cname}, 0xff, {size});")
                    self.symbols[m[3]] = ("local", f"(uint64_t) {cname}")
                    self.depot, self.depot_size = cname, size
                    self.local_size += size
                    self.unit.local_size += size
                else:
                    self.scopes[-1][m[3]] = (cname, "param")
        elif text.startswith((".pragma", ".file", ".section", ".branchtargets", ".noreturn")):
            pass
        else:
            raise self.unknown(text)

    def instruction(self, op: str, s: list[str], rest: str) -> str:
        a = split_commas(rest)
        method = getattr(self, "op_" + op, None)
        if method is None:
            raise self.unknown(f"{op}.{'.'.join(s)} {rest}")
        return method(s, a)

    # ---- control

    def op_bra(self, s: list[str], a: list[str]) -> str:
        return f"goto {self.label(a[0])};"

    def op_brx(self, s: list[str], a: list[str]) -> str:
        cases = " ".join(f"case {i}: goto {self.label(x)};" for i, x in enumerate(self.targets[a[1]]))
        return f"switch ({self.value(a[0], 'u32')}) {{ {cases} }}"

    def op_ret(self, s: list[str], a: list[str]) -> str:
        return "return;"

    def op_exit(self, s: list[str], a: list[str]) -> str:
        if not self.is_entry:
            raise ValueError
        return "return;"

    def op_trap(self, s: list[str], a: list[str]) -> str:
        return f"B->rt->fault(t, FAULT_TRAP, 0, 0, {self.site()});"

    def op_brkpt(self, s: list[str], a: list[str]) -> str:
        return ""

    def op_call(self, s: list[str], a: list[str]) -> str:
        names = list(a)
        out = split_commas(names.pop(0)[1:-1]) if names[0].startswith("(") else []
        name = names.pop(0)
        args = split_commas(names.pop(0)[1:-1]) if names else []
        arrays = [self.symbol(x)[1] for x in (*out, *args)]
        if name == "vprintf":
            read = ", ".join(f"peek<uint64_t>({x})" for x in arrays[1:3])
            return f"poke<int32_t>({arrays[0]}, B->rt->vprintf(t, {read}));"
        if name in ("__assertfail", "__assert_fail"):
            return f"B->rt->fault(t, FAULT_TRAP, 0, 0, {self.site()});"
        return f"{self.unit.function(name)}({', '.join(['t', *arrays])});"

    # ---- result

    def signature(self) -> str:
        if self.is_entry:
            return "static void emu_run(Thread * t)"
        outs = [f"uint8_t * o{i}" for i in range(len(self.returns))]
        args = [f"uint8_t * a{i}" for i in range(len(self.params))]
        parameters = ", ".join(["Thread * t", *outs, *args])
        return f"static __attribute__((noinline)) void {self.unit.cname(self.name)}({parameters})"

    def text(self) -> str:
        lines = [
            self.signature() + " {",
            "Block * const B = t->block; (void) B;",
            *self.declarations,
            *self.code,
            "return;",
            "}",
        ]
        return "\n".join(lines) + "\n"
