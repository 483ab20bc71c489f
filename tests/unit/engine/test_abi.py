"""The hand-written declarations in pyheadkv/engine/abi.py say what native/headkv.h says."""

from __future__ import annotations

import re
from pathlib import Path

import cffi
import pytest

from pyheadkv.engine import abi as _abi

HEADER = (Path(__file__).parents[3] / "native" / "headkv.h").read_text(encoding="utf-8")
BODY = re.sub(r"(?m)^#.*$|//.*$", "", HEADER).replace('extern "C" {', "")


def declarations(text: str) -> list[str]:
    """Structs and functions in order, each as one line without comments and needless blanks."""
    text = re.sub(r"\benum\s+\w+\s*\{[^}]*\}\s*;", "", text)
    found = re.findall(r"struct\s+\w+\s*(?:\{[^}]*\})?\s*;|[\w ]+\*?\s*headkv_\w+\s*\([^)]*\)\s*;", text)
    lines = (re.sub(r"\s+", " ", line.replace("HEADKV_API", " ")).strip() for line in found)
    return [re.sub(r" ?([*(),;{}]) ?", r"\1", line) for line in lines]


def test_structs_and_functions_are_the_headers() -> None:
    header = declarations(BODY)
    assert len(header) > 15
    assert declarations(_abi.HEADKV_CDEF) == header


def test_every_exported_function_is_declared() -> None:
    exported = re.findall(r"HEADKV_API[^;(]*?\b(headkv_\w+)\s*\(", BODY)
    assert exported == re.findall(r"\b(headkv_\w+)\s*\(", _abi.HEADKV_CDEF)


def test_version_and_enums() -> None:
    values = {name: int(value) for name, value in re.findall(r"\b(HEADKV_[A-Z_]+)\s*=\s*(-?\d+)", HEADER)}
    assert re.search(rf"#define HEADKV_ABI_VERSION {_abi.ABI_VERSION}\b", HEADER)
    ours = {f"HEADKV_{name}": value for name, value in vars(_abi).items() if name.startswith("STATUS_")}
    ours["HEADKV_STATUS_INVALID_ARGUMENT"] = -1  # nothing in Python needs a name for it
    for prefix, words in (
        ("OBSERVE", _abi.OBSERVES),
        ("SCORE", _abi.SCORES),
        ("FOLD", _abi.FOLDS),
        ("POOL", _abi.POOLS),
        ("ATTENTION", _abi.ATTENTIONS),
    ):
        ours |= {f"HEADKV_{prefix}_{word.upper()}": value for word, value in words.items()}
    assert ours == values


@pytest.mark.parametrize(
    ("ours", "theirs"), [("uint32_t         n_sink", "uint64_t n_sink"), ("n_cells_used;", "n_used_cells;")]
)
def test_a_difference_would_be_seen(ours: str, theirs: str) -> None:
    assert ours in _abi.HEADKV_CDEF
    assert declarations(_abi.HEADKV_CDEF.replace(ours, theirs)) != declarations(_abi.HEADKV_CDEF)


def test_declarations_parse() -> None:
    ffi = cffi.FFI()
    ffi.cdef(_abi.HEADKV_CDEF)
    ffi.cdef(_abi.UPSTREAM_CDEF)
    assert ffi.sizeof("struct headkv_compress_params") == 112
