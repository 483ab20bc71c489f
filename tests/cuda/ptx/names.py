"""Types of PTX and what they are in C++, and names of operations."""

from __future__ import annotations

BITS = {"8": "uint8_t", "16": "uint16_t", "32": "uint32_t", "64": "uint64_t"}
CTYPE = {
    "pred": "bool",
    "f32": "float",
    "f64": "double",
    "f16": "uint16_t",
    "bf16": "uint16_t",
    "f16x2": "uint32_t",
    "bf16x2": "uint32_t",
    "tf32": "uint32_t",
}
for _n, _t in BITS.items():
    CTYPE["b" + _n] = CTYPE["u" + _n] = _t
    CTYPE["s" + _n] = _t[1:]
SIZE = {
    "bool": 1,
    "float": 4,
    "double": 8,
    **{t: int(n) // 8 for n, t in BITS.items()},
    **{t[1:]: int(n) // 8 for n, t in BITS.items()},
}
SPACES = ("global", "shared", "local", "const", "param")
TYPES = set(CTYPE)
COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
UNARY_F32 = {
    "sqrt": "__builtin_sqrtf",
    "rsqrt": "1.0f/__builtin_sqrtf",
    "ex2": "__builtin_exp2f",
    "lg2": "__builtin_log2f",
    "sin": "__builtin_sinf",
    "cos": "__builtin_cosf",
    "tanh": "__builtin_tanhf",
    "rcp": "1.0f/",
}
ROUND = {"rni": "round_even", "rzi": "round_zero", "rmi": "round_down", "rpi": "round_up"}
MMA_TYPES = {
    "f16": "TYPE_F16",
    "f32": "TYPE_F32",
    "bf16": "TYPE_BF16",
    "tf32": "TYPE_TF32",
    "s32": "TYPE_S32",
    "s8": "TYPE_S8",
    "u8": "TYPE_U8",
}


def bits_of(ctype: str) -> str:
    """The unsigned type of the same size."""
    return {"bool": "bool", "float": "uint32_t", "double": "uint64_t"}.get(
        ctype, ctype if ctype[0] == "u" else "u" + ctype
    )
