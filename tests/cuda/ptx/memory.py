"""Access to memory."""

from __future__ import annotations

from ptx.names import CTYPE, SIZE, SPACES, TYPES, bits_of
from ptx.operands import Operands
from ptx.text import split_commas

# of an access: they change when it is done or where it is kept, not what it reads or writes
HINTS = {"weak", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "gpu", "cta", "sys", "cluster", "entry", "func"}
CACHES = {"L1", "L2", "level"}
ATOMIC = {  # x: what is there, b and c: operands
    "add": "x + b",
    "and": "x & b",
    "or": "x | b",
    "xor": "x ^ b",
    "exch": "b",
    "min": "x < b ? x : b",
    "max": "x > b ? x : b",
    "inc": "x >= b ? 0 : x + 1",
    "dec": "x == 0 || x > b ? b : x - 1",
    "cas": "x == b ? c : x",
}


class Memory(Operands):
    """Loads, stores, atomic operations, asynchronous copies. Methods get the suffixes and the operands."""

    def access(self, s: list[str]) -> tuple[str, int, str, bool]:
        """(space, elements, type, is it read anew each time)"""
        space, n, fresh = "generic", 1, False
        t = s[-1]
        for x in s[:-1]:
            head = x.split("::")[0]
            if head in SPACES:
                space = head
            elif x in ("v2", "v4", "v8"):
                n = int(x[1])
            elif x in ("volatile", "relaxed", "acquire", "release", "mmio"):
                fresh = x in ("volatile", "relaxed", "acquire", "mmio")
            elif x not in HINTS and head not in CACHES:
                raise ValueError
        if t not in TYPES:
            raise ValueError
        return space, n, t, fresh

    def op_ld(self, s: list[str], a: list[str]) -> str:
        space, n, t, fresh = self.access(s)
        address, kind, _ = self.address(a[1])
        items = split_commas(a[0][1:-1]) if a[0].startswith("{") else [a[0]]
        size, ctype = SIZE[CTYPE[t]], CTYPE[t]
        if len(items) != n:
            raise ValueError
        if space == "param":
            where = f"(const uint8_t *) ({address})"
        else:
            where = self.at(space, address, n * size, "READ", kind)
        read = "peek_now" if fresh and space != "param" else "peek"
        spin = "B->rt->spin(t); " if fresh else ""
        if fresh:
            self.unit.meets = 1
        return f"{spin}const uint8_t * m = {where}; " + " ".join(
            self.store(d, t, f"{read}<{ctype}>(m + {i * size})") for i, d in enumerate(items) if d != "_"
        )

    def op_ldu(self, s: list[str], a: list[str]) -> str:
        return self.op_ld(s, a)

    def op_st(self, s: list[str], a: list[str]) -> str:
        space, n, t, _ = self.access(s)
        address, kind, _ = self.address(a[0])
        items = split_commas(a[1][1:-1]) if a[1].startswith("{") else [a[1]]
        size, ctype = SIZE[CTYPE[t]], CTYPE[t]
        if len(items) != n:
            raise ValueError
        where = f"(uint8_t *) ({address})" if space == "param" else self.at(space, address, n * size, "WRITE", kind)
        return f"uint8_t * m = {where}; " + " ".join(
            f"poke<{ctype}>(m + {i * size}, {self.value(x, t)});" for i, x in enumerate(items)
        )

    def op_prefetch(self, s: list[str], a: list[str]) -> str:
        return ""

    def op_prefetchu(self, s: list[str], a: list[str]) -> str:
        return ""

    def op_applypriority(self, s: list[str], a: list[str]) -> str:
        return ""

    def atomic(self, s: list[str], dst: str | None, a: list[str]) -> str:
        t = s[-1]
        space = next((x.split("::")[0] for x in s if x.split("::")[0] in ("global", "shared")), "generic")
        op = next(x for x in s if x in ATOMIC)
        address, kind, _ = self.address(a[0])
        ctype, u = CTYPE[t], bits_of(CTYPE[t])
        b = self.value(a[1], t)
        old = self.cast("o", u, ctype)
        if t.startswith(("f16", "bf16")):
            r = {"add": lambda: self.half("add", t, "o", "b")}[op]()
        else:
            r = ATOMIC[op]
            if ctype in ("float", "double"):
                r = f"{'f2u' if ctype == 'float' else 'd2u'}({r})"
        third = f"const {ctype} c = {self.value(a[2], t)}; " if op == "cas" else ""
        code = (
            f"uint8_t * m = {self.at(space, address, SIZE[ctype], 'ATOMIC', kind)}; const {ctype} b = {b}; {third}"
            f"const {u} old = atomic_apply<{u}>(m, [&]({u} o) -> {u} "
            f"{{ const {ctype} x = {old}; (void) x; return ({u}) ({r}); }}); (void) old; "
        )
        return code + (self.store(dst, t, self.cast("old", u, ctype)) if dst else "")

    def op_atom(self, s: list[str], a: list[str]) -> str:
        return self.atomic(s, a[0], a[1:])

    def op_red(self, s: list[str], a: list[str]) -> str:
        return self.atomic(s, None, a)

    def op_membar(self, s: list[str], a: list[str]) -> str:
        return "__atomic_thread_fence(__ATOMIC_SEQ_CST);"

    def op_fence(self, s: list[str], a: list[str]) -> str:
        return "__atomic_thread_fence(__ATOMIC_SEQ_CST);"

    def op_griddepcontrol(self, s: list[str], a: list[str]) -> str:
        return ""

    def op_discard(self, s: list[str], a: list[str]) -> str:
        return ""

    def op_nanosleep(self, s: list[str], a: list[str]) -> str:
        self.unit.meets = 1
        return "B->rt->spin(t);"

    def op_cp(self, s: list[str], a: list[str]) -> str:
        if s[0] != "async" or s[1] == "bulk":
            raise ValueError
        if s[1] == "commit_group":
            return "B->rt->copy_commit(t);"
        if s[1] in ("wait_group", "wait_all"):
            return f"B->rt->copy_wait(t, {a[0] if s[1] == 'wait_group' else 0});"
        n = int(a[2], 0)
        dst, _, _ = self.address(a[0])
        src, _, _ = self.address(a[1])
        size = self.value(a[3], "u32") if len(a) > 3 else n
        return f"B->rt->copy_async(t, {dst}, {src}, {n}, {size}, {self.site()});"
