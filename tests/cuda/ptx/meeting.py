"""Threads that meet: barriers, exchange within a warp, matrix instructions."""

from __future__ import annotations

import re

from ptx.names import MMA_TYPES
from ptx.operands import Operands
from ptx.text import split_commas


class Meeting(Operands):
    """What lanes do together. Methods get the suffixes and the operands of an instruction."""

    def barrier(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        s = [x for x in s if x not in ("cta", "aligned")]
        if s[0] == "warp":
            return f"meet(t, OP_SYNCWARP, {self.value(a[0], 'u32')}, {self.site()});"
        if s[0] == "sync":
            count = self.value(a[1], "u32") if len(a) > 1 else "0"
            return f"barrier(t, {self.value(a[0], 'u32')}, {count}, BAR_PLAIN, 0, {self.site()});"
        if s[0] == "arrive":
            return f"B->rt->arrive(t, {self.value(a[0], 'u32')}, {self.value(a[1], 'u32')}, {self.site()});"
        if s[0] == "red":
            count = self.value(a[2], "u32") if len(a) > 3 else "0"
            kind = {"and": "BAR_AND", "or": "BAR_OR", "popc": "BAR_POPC"}[s[1]]
            return self.store(
                a[0],
                s[2],
                f"barrier(t, {self.value(a[1], 'u32')}, {count}, {kind}, {self.value(a[-1], 'pred')}, {self.site()})",
            )
        raise ValueError

    def op_bar(self, s: list[str], a: list[str]) -> str:
        return self.barrier(s, a)

    def op_barrier(self, s: list[str], a: list[str]) -> str:
        if s[0] == "cluster":
            raise ValueError
        return self.barrier(s, a)

    def op_shfl(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        if s[0] != "sync":
            raise ValueError
        dst = [x.strip() for x in a[0].split("|")]
        x = [self.value(o, "u32") for o in a[1:5]]
        code = f"bool q; const uint32_t r = shfl(t, SHFL_{s[1].upper()}, {', '.join(x)}, {self.site()}, q); "
        return code + self.store(dst[0], "b32", "r") + (" " + self.store(dst[1], "pred", "q") if len(dst) > 1 else "")

    def op_vote(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        if "sync" not in s:
            raise ValueError
        mode = next(x for x in s if x in ("all", "any", "uni", "ballot"))
        return self.store(
            a[0],
            s[-1],
            f"vote(t, VOTE_{mode.upper()}, {self.value(a[1], 'pred')}, {self.value(a[2], 'u32')}, {self.site()})",
        )

    def op_match(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        dst = [x.strip() for x in a[0].split("|")]
        mode = next(x for x in s if x in ("any", "all"))
        x, mask = self.value(a[1], s[-1]), self.value(a[2], "u32")
        code = f"bool q; const uint32_t r = match(t, MATCH_{mode.upper()}, {x}, {mask}, {self.site()}, q); "
        return code + self.store(dst[0], "b32", "r") + (" " + self.store(dst[1], "pred", "q") if len(dst) > 1 else "")

    def op_redux(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        mode = f"REDUX_{s[1].upper()}" + ("_U" if s[1] in ("min", "max") and s[2] == "u32" else "")
        return self.store(
            a[0], "b32", f"redux(t, {mode}, {self.value(a[1], 'u32')}, {self.value(a[2], 'u32')}, {self.site()})"
        )

    def op_ldmatrix(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        n = next(int(x[1]) for x in s if x in ("x1", "x2", "x4"))
        if "m8n8" not in s or s[-1] != "b16":
            raise ValueError
        space = "shared" if any(x.startswith("shared") for x in s) else "generic"
        address, kind, _ = self.address(a[1])
        items = split_commas(a[0][1:-1]) if a[0].startswith("{") else [a[0]]
        code = (
            f"uint64_t m = 0; if (t->lane < {8 * n}) {{ m = (uint64_t) {self.at(space, address, 16, 'READ', kind)}; }} "
            f"__builtin_memcpy(t->in, &m, 8); "
            f"meet(t, op_code(OP_LDMATRIX, {n}, {int('trans' in s)}), 0xffffffff, {self.site()}); "
        )
        return code + " ".join(self.store(d, "b32", f"t->out[{i}]") for i, d in enumerate(items))

    def op_movmatrix(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        return f"t->in[0] = {self.value(a[1], 'b32')}; meet(t, OP_MOVMATRIX, 0xffffffff, {self.site()}); " + self.store(
            a[0], "b32", "t->out[0]"
        )

    def matrix(self, shape: str, types: tuple[str, str], a: list[str]) -> str:
        """D = A B + C; `types`: of the factors, of the sums."""
        self.unit.meets = 1
        m, n, k = map(int, re.split("[mnk]", shape)[1:])
        vectors = [split_commas(x[1:-1]) if x.startswith("{") else [x] for x in a]
        code = " ".join(
            f"t->in[{8 * j + i}] = {self.value(x, 'b32')};" for j, v in enumerate(vectors[1:4]) for i, x in enumerate(v)
        )
        if n != 8:
            raise ValueError
        number = f"mma_code({MMA_TYPES[types[0]]}, {MMA_TYPES[types[1]]}, {m}, {k})"
        code += f" meet(t, {number}, 0xffffffff, {self.site()}); "
        return code + " ".join(self.store(d, "b32", f"t->out[{i}]") for i, d in enumerate(vectors[0]))

    def op_mma(self, s: list[str], a: list[str]) -> str:
        if s[:2] != ["sync", "aligned"] or s[3:5] != ["row", "col"] or (s[5] == "satfinite"):
            raise ValueError
        d, x, y, c = s[5:9]
        if x != y or d != c or len(s) != 9 or (s[2], x) == ("m8n8k4", "f16"):
            raise ValueError
        return self.matrix(s[2], (x, d), a)
