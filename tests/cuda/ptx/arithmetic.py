"""Arithmetic and logic."""

from __future__ import annotations

from ptx.names import CTYPE, UNARY_F32, bits_of
from ptx.operands import Operands


class Arithmetic(Operands):
    """Numbers. Methods get the suffixes and the operands of an instruction."""

    def arithmetic(self, sign: str, name: str, s: list[str], a: list[str]) -> str:
        if s[-2:-1] == ["cc"] or (s and s[0] == "cc"):
            return self.carry(name, s[-1], a, out=True, use=False)
        t, f = self.flags(s, ("rn", "rz", "rm", "rp", "ftz", "sat"))
        x, y = self.value(a[1], t), self.value(a[2], t)
        if t in ("f32", "f64"):
            r = f"{x} {sign} {y}"
            modes = f & {"rz", "rm", "rp"}
            if modes:
                if t == "f64":
                    raise ValueError
                r = f"d2f_{ {'rz': 'rz', 'rm': 'rd', 'rp': 'ru'}[modes.pop()] }((double) {x} {sign} (double) {y})"
            if "sat" in f:
                r = f"sat_f({r})"
            return self.store(a[0], t, r)
        if t.startswith(("f16", "bf16")):
            if "sat" in f:
                raise ValueError
            return self.store(a[0], t, self.half(name, t, x, y))
        if "sat" in f:
            return self.store(a[0], t, f"sat_i<{CTYPE[t]}, long long>((long long) {x} {sign} (long long) {y})")
        u = bits_of(CTYPE[t])
        return self.store(a[0], t, f"({CTYPE[t]}) (({u}) {x} {sign} ({u}) {y})")

    def carry(self, name: str, t: str, a: list[str], out: bool, use: bool) -> str:
        if t not in ("u32", "s32", "b32"):
            raise ValueError
        if "v_cc" not in self.scopes[0]:
            self.scopes[0]["v_cc"] = ("v_cc", "bool")
            self.declarations.append("bool v_cc = 0;")
        sign = "+" if name == "add" else "-"
        carry_in = f" {sign} v_cc" if use else ""
        carry_out = "v_cc = (w >> 32) & 1;" if out else ""
        return (
            f"const uint64_t w = (uint64_t) {self.value(a[1], 'u32')} {sign} "
            f"(uint64_t) {self.value(a[2], 'u32')}{carry_in}; {carry_out} {self.store(a[0], 'u32', '(uint32_t) w')}"
        )

    def op_add(self, s: list[str], a: list[str]) -> str:
        return self.arithmetic("+", "add", s, a)

    def op_sub(self, s: list[str], a: list[str]) -> str:
        return self.arithmetic("-", "sub", s, a)

    def op_addc(self, s: list[str], a: list[str]) -> str:
        return self.carry("add", s[-1], a, "cc" in s, True)

    def op_subc(self, s: list[str], a: list[str]) -> str:
        return self.carry("sub", s[-1], a, "cc" in s, True)

    def wide(self, t: str) -> str:
        return t[0] + str(2 * int(t[1:]))

    def product(self, s: list[str], a: list[str]) -> tuple[str, str]:
        """(type of the result, the integer product) of mul and mad."""
        t = s[-1]
        x, y = self.value(a[1], t), self.value(a[2], t)
        if s[0] == "wide":
            w = self.wide(t)
            return w, f"({CTYPE[w]}) (({CTYPE[w]}) {x} * ({CTYPE[w]}) {y})"
        if s[0] == "lo":
            u = "uint64_t" if t[1:] == "64" else "uint32_t"
            return t, f"({CTYPE[t]}) (({u}) {x} * ({u}) {y})"
        if s[0] == "hi":
            w = ("unsigned " if t[0] == "u" else "") + "__int128" if t[1:] == "64" else CTYPE[self.wide(t)]
            return t, f"({CTYPE[t]}) ((({w}) {x} * ({w}) {y}) >> {t[1:]})"
        raise ValueError

    def op_mul(self, s: list[str], a: list[str]) -> str:
        if s[0] in ("lo", "hi", "wide"):
            t, x = self.product(s, a)
            return self.store(a[0], t, x)
        return self.arithmetic("*", "mul", s, a)

    def op_mul24(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        return self.store(a[0], t, f"({self.value(a[1], t)} << 8 >> 8) * ({self.value(a[2], t)} << 8 >> 8)")

    def op_mad(self, s: list[str], a: list[str]) -> str:
        if s[0] in ("lo", "hi", "wide"):
            if "cc" in s:
                raise ValueError
            t, x = self.product(s, a)
            u = bits_of(CTYPE[t])
            return self.store(a[0], t, f"({CTYPE[t]}) (({u}) ({x}) + ({u}) {self.value(a[3], t)})")
        return self.op_fma(s, a)

    def op_fma(self, s: list[str], a: list[str]) -> str:
        t, f = self.flags(s, ("rn", "ftz", "sat", "relu", "rz"))
        x = [self.value(o, t) for o in a[1:]]
        if t == "f32":
            r = f"__builtin_fmaf({', '.join(x)})"
            if "rz" in f:
                r = f"d2f_rz(__builtin_fma({', '.join('(double) ' + y for y in x)}))"
            return self.store(a[0], t, f"sat_f({r})" if "sat" in f else r)
        if f & {"sat", "rz"}:
            raise ValueError
        if t == "f64":
            return self.store(a[0], t, f"__builtin_fma({', '.join(x)})")
        r = self.half("fma", t, *x)
        return self.store(a[0], t, self.half("relu", t, r) if "relu" in f else r)

    def op_div(self, s: list[str], a: list[str]) -> str:
        t, _ = self.flags(s, ("approx", "full", "rn", "ftz"))
        x, y = self.value(a[1], t), self.value(a[2], t)
        return self.store(a[0], t, f"{x} / {y}" if t[0] == "f" else f"div_i<{CTYPE[t]}>({x}, {y})")

    def op_rem(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        return self.store(a[0], t, f"rem_i<{CTYPE[t]}>({self.value(a[1], t)}, {self.value(a[2], t)})")

    def op_abs(self, s: list[str], a: list[str]) -> str:
        t, _ = self.flags(s, ("ftz",))
        x = self.value(a[1], t)
        if t in ("f32", "f64"):
            return self.store(a[0], t, f"__builtin_fabs{'f' if t == 'f32' else ''}({x})")
        if t[0] == "s":
            return self.store(a[0], t, f"{x} < 0 ? ({CTYPE[t]}) (0 - ({bits_of(CTYPE[t])}) {x}) : {x}")
        return self.store(a[0], t, self.half("abs", t, x))

    def op_neg(self, s: list[str], a: list[str]) -> str:
        t, _ = self.flags(s, ("ftz",))
        x = self.value(a[1], t)
        if t in ("f32", "f64"):
            return self.store(a[0], t, f"-{x}")
        if t[0] == "s":
            return self.store(a[0], t, f"({CTYPE[t]}) (0 - ({bits_of(CTYPE[t])}) {x})")
        return self.store(a[0], t, self.half("neg", t, x))

    def extreme(self, name: str, s: list[str], a: list[str]) -> str:
        t, f = self.flags(s, ("ftz", "NaN", "relu"))
        x = [self.value(o, t) for o in a[1:]]
        if t in ("f32", "f64"):
            if len(x) != 2 or (t == "f64" and "NaN" in f) or "relu" in f:
                raise ValueError
            return self.store(a[0], t, f"{name}_{'nan' if 'NaN' in f else t[0] if t == 'f32' else 'd'}({x[0]}, {x[1]})")
        if t[0] in "us":
            r = f"({x[0]} {'<' if name == 'min' else '>'} {x[1]} ? {x[0]} : {x[1]})"
            return self.store(a[0], t, f"({r} > 0 ? {r} : 0)" if "relu" in f else r)
        if f & {"NaN", "relu"}:
            raise ValueError
        return self.store(a[0], t, self.half(name, t, *x))

    def op_min(self, s: list[str], a: list[str]) -> str:
        return self.extreme("min", s, a)

    def op_max(self, s: list[str], a: list[str]) -> str:
        return self.extreme("max", s, a)

    def function(self, name: str, s: list[str], a: list[str]) -> str:
        t, _ = self.flags(s, ("approx", "ftz", "rn", "full"))
        x = self.value(a[1], t)
        if t == "f32":
            return self.store(a[0], t, f"{UNARY_F32[name]}({x})")
        if t == "f64":
            return self.store(
                a[0],
                t,
                {"rcp": f"1.0/({x})", "sqrt": f"__builtin_sqrt({x})", "rsqrt": f"1.0/__builtin_sqrt({x})"}[name],
            )
        return self.store(a[0], t, self.half({"ex2": "ex2", "tanh": "tanh"}[name], t, x))

    def op_rcp(self, s: list[str], a: list[str]) -> str:
        return self.function("rcp", s, a)

    def op_sqrt(self, s: list[str], a: list[str]) -> str:
        return self.function("sqrt", s, a)

    def op_rsqrt(self, s: list[str], a: list[str]) -> str:
        return self.function("rsqrt", s, a)

    def op_ex2(self, s: list[str], a: list[str]) -> str:
        return self.function("ex2", s, a)

    def op_lg2(self, s: list[str], a: list[str]) -> str:
        return self.function("lg2", s, a)

    def op_sin(self, s: list[str], a: list[str]) -> str:
        return self.function("sin", s, a)

    def op_cos(self, s: list[str], a: list[str]) -> str:
        return self.function("cos", s, a)

    def op_tanh(self, s: list[str], a: list[str]) -> str:
        return self.function("tanh", s, a)

    def op_copysign(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        f = "f" if t == "f32" else ""
        return self.store(a[0], t, f"__builtin_copysign{f}({self.value(a[2], t)}, {self.value(a[1], t)})")

    def op_testp(self, s: list[str], a: list[str]) -> str:
        x = self.value(a[1], s[-1])
        test = {
            "finite": f"__builtin_isfinite({x})",
            "infinite": f"__builtin_isinf({x})",
            "number": f"!__builtin_isnan({x})",
            "notanumber": f"__builtin_isnan({x})",
            "normal": f"__builtin_isnormal({x})",
        }[s[0]]
        return self.store(a[0], "pred", test)

    def logic(self, sign: str, s: list[str], a: list[str]) -> str:
        t = s[-1]
        if t == "pred":
            return self.store(a[0], t, f"{self.value(a[1], t)} {sign} {self.value(a[2], t)}")
        return self.store(a[0], t, f"{self.value(a[1], t)} {sign} {self.value(a[2], t)}")

    def op_and(self, s: list[str], a: list[str]) -> str:
        return self.logic("&", s, a)

    def op_or(self, s: list[str], a: list[str]) -> str:
        return self.logic("|", s, a)

    def op_xor(self, s: list[str], a: list[str]) -> str:
        return self.logic("^", s, a)

    def op_not(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        return self.store(a[0], t, f"!{self.value(a[1], t)}" if t == "pred" else f"({CTYPE[t]}) ~{self.value(a[1], t)}")

    def op_cnot(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], s[-1], f"{self.value(a[1], s[-1])} == 0")

    def op_shl(self, s: list[str], a: list[str]) -> str:
        return self.store(
            a[0], s[-1], f"shl_i<{bits_of(CTYPE[s[-1]])}>({self.value(a[1], s[-1])}, {self.value(a[2], 'u32')})"
        )

    def op_shr(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], s[-1], f"shr_i<{CTYPE[s[-1]]}>({self.value(a[1], s[-1])}, {self.value(a[2], 'u32')})")

    def op_shf(self, s: list[str], a: list[str]) -> str:
        x = [self.value(o, "u32") for o in a[1:]]
        return self.store(a[0], "b32", f"shf_{s[0]}({', '.join(x)}, {int(s[1] == 'wrap')})")

    def op_popc(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], "u32", f"__builtin_popcountll({self.value(a[1], s[-1])})")

    def op_clz(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], "u32", f"clz{s[-1][1:]}({self.value(a[1], s[-1])})")

    def op_brev(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], s[-1], f"brev{s[-1][1:]}({self.value(a[1], s[-1])})")

    def op_bfind(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        x = self.value(a[1], t)
        x = f"(uint64_t) (({bits_of(CTYPE[t])}) ({x} < 0 ? ~{x} : {x}))" if t[0] == "s" else f"(uint64_t) {x}"
        width = int(t[1:]) - 1
        return self.store(
            a[0],
            "u32",
            f"bfind_u({x})"
            if "shiftamt" not in s
            else f"(bfind_u({x}) == 0xffffffffu ? 0xffffffffu : {width} - bfind_u({x}))",
        )

    def op_bfe(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        return self.store(
            a[0], t, f"bfe_i<{CTYPE[t]}>({self.value(a[1], t)}, {self.value(a[2], 'u32')}, {self.value(a[3], 'u32')})"
        )

    def op_bfi(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        x = [self.value(o, kind) for o, kind in zip(a[1:], (t, t, "u32", "u32"), strict=True)]
        return self.store(a[0], t, f"bfi_u<{CTYPE[t]}>({', '.join(x)})")

    def op_bmsk(self, s: list[str], a: list[str]) -> str:
        return self.store(
            a[0], "b32", f"bmsk({self.value(a[1], 'u32')}, {self.value(a[2], 'u32')}, {int(s[0] == 'wrap')})"
        )

    def op_prmt(self, s: list[str], a: list[str]) -> str:
        if len(s) != 1:
            raise ValueError
        return self.store(a[0], "b32", f"prmt({', '.join(self.value(o, 'u32') for o in a[1:])})")

    def op_lop3(self, s: list[str], a: list[str]) -> str:
        return self.store(a[0], "b32", f"lop3({', '.join(self.value(o, 'u32') for o in a[1:])})")

    def op_sad(self, s: list[str], a: list[str]) -> str:
        t = s[-1]
        x, y = self.value(a[1], t), self.value(a[2], t)
        return self.store(a[0], t, f"{self.value(a[3], t)} + ({x} < {y} ? {y} - {x} : {x} - {y})")

    def dot(self, name: str, wide: str, s: list[str], a: list[str]) -> str:
        first, second = s[-2], s[-1]
        types = [("int" if t[0] == "s" else "uint") + n + "_t" for t, n in ((first, wide), (second, "8"))]
        x = [self.value(o, "u32") for o in a[1:]]
        extra = f", {int(s[0] == 'hi')}" if name == "dp2a" else ""
        return self.store(a[0], "u32", f"{name}<{', '.join(types)}>({', '.join(x)}{extra})")

    def op_dp4a(self, s: list[str], a: list[str]) -> str:
        return self.dot("dp4a", "8", s, a)

    def op_dp2a(self, s: list[str], a: list[str]) -> str:
        return self.dot("dp2a", "16", s, a)
