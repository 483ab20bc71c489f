"""The GGUF header reader: every type decoded, every damage named, nothing believed that the file has no bytes for."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyheadkv.errors import ModelError
from pyheadkv.model.gguf_header import open_header

VALUES: dict[str, tuple[Any, gguf.GGUFValueType]] = {
    "x.u8": (200, gguf.GGUFValueType.UINT8),
    "x.i8": (-100, gguf.GGUFValueType.INT8),
    "x.u16": (60_000, gguf.GGUFValueType.UINT16),
    "x.i16": (-30_000, gguf.GGUFValueType.INT16),
    "x.u32": (4_000_000_000, gguf.GGUFValueType.UINT32),
    "x.i32": (-2_000_000_000, gguf.GGUFValueType.INT32),
    "x.u64": (2**63 + 1, gguf.GGUFValueType.UINT64),
    "x.i64": (-(2**62), gguf.GGUFValueType.INT64),
    "x.f32": (0.25, gguf.GGUFValueType.FLOAT32),
    "x.f64": (1e300, gguf.GGUFValueType.FLOAT64),
    "x.bool": (True, gguf.GGUFValueType.BOOL),
    "x.text": ("grüße\n", gguf.GGUFValueType.STRING),
    "x.empty": ("", gguf.GGUFValueType.STRING),
    "x.ints": ([1, -2, 3], gguf.GGUFValueType.ARRAY),
    "x.floats": ([0.5, -1.5], gguf.GGUFValueType.ARRAY),
    "x.bools": ([True, False], gguf.GGUFValueType.ARRAY),
}


def write(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
    writer.add_array("x.words", ["a", "", "ccc"])
    writer.add_tensor("one", np.arange(5, dtype=np.float32))
    writer.add_tensor("two", np.ones((3, 4), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "all.gguf")


def test_every_type(path: Path) -> None:
    with open_header(path) as header:
        for key, (value, _) in VALUES.items():
            assert header.value(key) == value and type(header.value(key)) is type(value), key
        assert header.value("x.words") is None and "x.words" not in header.metadata()
        assert header.value("nothing") is None and header.raw("nothing") == b""
        assert header.raw("x.words") == struct.pack("<Q1sQQ3s", 1, b"a", 0, 3, b"ccc")
        assert header.entries["x.words"].n == 3


def test_tensors_lie_where_they_are_said_to(path: Path) -> None:
    with open_header(path) as header:
        one, two = header.tensors
        assert (one.name, one.dims, one.ggml_type) == ("one", (5,), 0)
        assert (two.name, two.dims, two.ggml_type) == ("two", (4, 3), 1)
        assert header.data[one.start : one.start + 20] == np.arange(5, dtype=np.float32).tobytes()
        assert header.data[two.start : two.start + 24] == np.ones(12, dtype=np.float16).tobytes()


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def array(kind: int, n: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + items


def tensor(name: bytes, *dims: int) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(dims)}QIQ", len(name), name, len(dims), *dims, 0, 0)


ONE = entry(b"a", 4, struct.pack("<I", 1))


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        ([ONE, ONE], [], "key 'a' is there twice"),
        ([entry(b"a", 13, b"")], [], "key 'a' has the unknown type 13"),
        ([entry(b"a", 9, array(9, 1))], [], "key 'a' has the unknown type 9"),
        ([entry(b"a\xff", 4, b"1234")], [], "key 0 is no UTF-8 text"),
        ([entry(b"a", 8, struct.pack("<Q", 2**64 - 1))], [], "key 'a' ends behind the end of the file"),
        ([entry(b"a", 9, array(8, 2**61))], [], "key 'a' has 2305843009213693952 strings, more than the file can hold"),
        ([entry(b"a", 9, array(8, 2, struct.pack("<QQ", 2**63, 0)))], [], "key 'a' ends behind the end of the file"),
        ([entry(b"a", 9, array(10, 2**61))], [], "key 'a' ends behind the end of the file"),
        ([entry(b"a", 4, b"12")], [], "key 'a' ends behind the end of the file"),
        ([entry(b"general.alignment", 4, struct.pack("<I", 0))], [], "general.alignment is no power of 2"),
        ([entry(b"general.alignment", 4, struct.pack("<I", 48))], [], "general.alignment is no power of 2"),
        ([entry(b"general.alignment", 10, struct.pack("<Q", 32))], [], "general.alignment is no power of 2"),
        ([entry(b"general.alignment", 9, array(4, 0))], [], "general.alignment is no power of 2"),
        ([entry(b"general.alignment", 8, struct.pack("<Q", 0))], [], "general.alignment is no power of 2"),
        (
            [entry(b"general.alignment", 4, struct.pack("<I", 2**31))],
            [tensor(b"t", 1)],
            "the data starts behind the end",
        ),
        ([ONE], [tensor(b"t", 1), tensor(b"t", 2) + bytes(64)], "two tensors have the same name"),
        ([ONE], [tensor(b"t", 1, 1, 1, 1, 1)], "tensor 't' has 5 dimensions, expected at most 4"),
        ([ONE], [tensor(b"t", 1)[:-4]], "tensor 't' ends behind the end of the file"),
    ],
)
def test_damage_is_named(tmp_path: Path, entries: list[bytes], tensors: list[bytes], message: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries + tensors))
    with pytest.raises(ModelError, match=message) as error, open_header(path):
        pass
    assert str(error.value).startswith(f"{path} is a damaged or truncated GGUF file (")


@pytest.mark.parametrize("n", range(24, 400, 17))
def test_every_cut_is_seen(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(ModelError, match="is a damaged or truncated GGUF file"), open_header(path):
        pass


def test_long_arrays_are_not_decoded(tmp_path: Path) -> None:
    n = (1 << 20) + 1
    path = tmp_path / "long.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry(b"a", 9, array(0, n, bytes(n))))
    with open_header(path) as header:
        assert header.entries["a"].n == n and header.metadata() == {}
