"""Comparison, selection, moves and conversions."""

from __future__ import annotations

import re

from ptx.names import BITS, COMPARE, CTYPE, ROUND, SIZE, SPACES, TYPES, bits_of
from ptx.operands import Operands
from ptx.text import split_commas


def _is_float(t: str) -> bool:
    return t in ("f16", "bf16", "f32", "f64")


class Moving(Operands):
    """Predicates, registers, types. Methods get the suffixes and the operands of an instruction."""

    def compare(self, cmp: str, t: str, x: str, y: str) -> str:
        if t.startswith(("f16", "bf16")):
            to = "b2f" if t[0] == "b" else "h2f"
            x, y = f"{to}({x})", f"{to}({y})"
        if t[0] in "fb" and not re.match(r"b\d", t):
            if cmp == "num":
                return f"({x} == {x} && {y} == {y})"
            if cmp == "nan":
                return f"({x} != {x} || {y} != {y})"
            if cmp.endswith("u") and cmp != "u":
                c = cmp[:-1]
                inverse = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[c]
                if c == "eq":
                    return f"!({x} < {y} || {x} > {y})"
                if c == "ne":
                    return f"{x} != {y}"
                return f"!({x} {COMPARE[inverse]} {y})"
            if cmp == "ne":
                return f"({x} < {y} || {x} > {y})"
        return f"{x} {COMPARE[cmp]} {y}"

    def comparison(self, s: list[str], a: list[str], first: int) -> tuple[str, str]:
        """(result, second result or "") of setp and set."""
        cmp, t = s[0], s[-1]
        if "ftz" in s:
            self.unit.flush = 1
        boolean = [x for x in s[1:-1] if x in ("and", "or", "xor")]
        if set(s[1:-1]) - {"and", "or", "xor", "ftz", "f32", "u32", "s32", "f16", "f16x2"}:
            raise ValueError
        x, y = self.value(a[first], t), self.value(a[first + 1], t)
        if t.endswith("x2"):
            low = [f"(uint16_t) {v}" for v in (x, y)]
            high = [f"(uint16_t) ({v} >> 16)" for v in (x, y)]
            return self.compare(cmp, t, *low), self.compare(cmp, t, *high)
        r = f"({self.compare(cmp, t, x, y)})"
        if boolean:
            p = self.value(a[first + 2], "pred")
            sign = {"and": "&&", "or": "||", "xor": "!="}[boolean[0]]
            return f"{r} {sign} {p}", f"!{r} {sign} {p}"
        return r, f"!{r}"

    def op_setp(self, s: list[str], a: list[str]) -> str:
        dst = [x.strip() for x in a[0].split("|")]
        first, second = self.comparison(s, a, 1)
        code = f"const bool c0 = {first}, c1 = {second}; "
        return code + " ".join(self.store(d, "pred", f"c{i}") for i, d in enumerate(dst) if d != "_")

    def op_set(self, s: list[str], a: list[str]) -> str:
        dst = next(x for x in s[1:-1] if x in TYPES)
        first, second = self.comparison(s, a, 1)
        if dst.endswith("x2"):
            return self.store(a[0], dst, f"(({first}) ? 0x3c00u : 0) | (({second}) ? 0x3c000000u : 0)")
        return self.store(a[0], dst, f"({first}) ? {'1.0f : 0.0f' if dst == 'f32' else '0xffffffffu : 0u'}")

    def op_selp(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        return self.store(a[0], t, f"{self.value(a[3], 'pred')} ? {self.value(a[1], t)} : {self.value(a[2], t)}")

    def op_slct(self, s: list[str], a: list[str]) -> str:
        t = s[-2]
        return self.store(a[0], t, f"{self.value(a[3], s[-1])} >= 0 ? {self.value(a[1], t)} : {self.value(a[2], t)}")

    # ---- moving and converting

    def op_mov(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        if a[0].startswith("{"):
            items = split_commas(a[0][1:-1])
            size = SIZE[CTYPE[t]] // len(items)
            code = f"const {bits_of(CTYPE[t])} w = {self.value(a[1], 'b' + str(8 * SIZE[CTYPE[t]]))}; "
            return code + " ".join(
                self.store(d, f"b{8 * size}", f"({BITS[str(8 * size)]}) (w >> {8 * size * i})")
                for i, d in enumerate(items)
                if d != "_"
            )
        return self.store(a[0], t, self.value(a[1], t))

    def op_cvta(self, s: list[str], a: list[str]) -> str:
        space = next(x for x in s if x.split("::")[0] in SPACES).split("::")[0]
        x = self.value(a[1], "u64")
        if space == "shared":
            x = f"{x} {'-' if 'to' in s else '+'} SHARED_WIN"
        return self.store(a[0], "u64", x)

    def op_isspacep(self, s: list[str], a: list[str]) -> str:
        x = self.value(a[1], "u64")
        test = {
            "shared": f"is_shared({x})",
            "local": f"({x} >= t->stack_lo && {x} < t->stack_hi)",
            "global": f"({x} - ARENA < ARENA_SIZE)",
        }[s[0].split("::")[0]]
        return self.store(a[0], "pred", test)

    def op_cvt(self, s: list[str], a: list[str]) -> str:
        types = [x for x in s if x in TYPES]
        f = {x for x in s if x not in TYPES}
        if f - {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "rna", "relu", "satfinite"}:
            raise ValueError
        if "ftz" in f:
            self.unit.flush = 1
        if types[0] == "tf32":
            return self.store(a[0], "b32", f"f2u(f2tf32({self.value(a[1], 'f32')}))")
        d, o = types
        if d in ("f16x2", "bf16x2"):
            to = ("f2h" if d[0] == "f" else "f2b") + ("_rz" if "rz" in f else "")
            high, low = self.value(a[1], o), self.value(a[2], o)
            if "relu" in f:
                high, low = f"max_f({high}, 0.0f)", f"max_f({low}, 0.0f)"
            return self.store(a[0], d, f"(uint32_t) {to}({high}) << 16 | {to}({low})")
        if f & {"satfinite"}:
            raise ValueError
        x = self.value(a[1], o)
        mode = next((m for m in f if m in ROUND), None)
        if _is_float(o):
            wide = f"h2f({x})" if o == "f16" else f"b2f({x})" if o == "bf16" else x
            if not _is_float(d):
                return self.store(a[0], d, f"f2i<{CTYPE[d]}>({ROUND[mode]}((double) {wide}))")
            if mode:
                wide = f"({'double' if o == 'f64' else 'float'}) {ROUND[mode]}((double) {wide})"
        else:
            if not _is_float(d):
                return self.store(a[0], d, f"sat_i<{CTYPE[d]}, {CTYPE[o]}>({x})" if "sat" in f else f"({CTYPE[d]}) {x}")
            wide = x
        direction = next((m for m in f if m in ("rz", "rm", "rp")), None)
        if d == "f32" and direction and o != "f32":
            r = f"d2f_{ {'rz': 'rz', 'rm': 'rd', 'rp': 'ru'}[direction] }((double) {wide})"
        elif d in ("f16", "bf16"):
            if direction and (direction != "rz" or not _is_float(o)):
                raise ValueError
            if "relu" in f:
                wide = f"max_f({wide}, 0.0f)"
            if o == "f64":
                wide = f"d2f_odd({wide})"
            r = f"{'f2h' if d == 'f16' else 'f2b'}{'_rz' if direction else ''}((float) {wide})"
            return self.store(a[0], d, r)
        else:
            r = f"({CTYPE[d]}) {wide}"
        if "sat" in f:
            r = f"sat_f({r})"
        return self.store(a[0], d, r)
