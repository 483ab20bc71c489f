"""Where everything lies in a GGUF file, byte by byte, so that parts of it can be replaced and the rest copied.

Little-endian, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    "GGUF" | u32 version | u64 n_tensors | u64 n_kv                                        24 bytes
    n_kv times:      string key | u32 type | value            (array: u32 item type | u64 count | items)
    n_tensors times: string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset from the data
    padding to general.alignment | data                                                    up to the end of the file

A string is u64 length | bytes. Counts and lengths are believed only as far as the file has bytes for them, so a damaged
file costs no memory and no time. Values are decoded on demand; tensors are not read.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyheadkv.errors import ModelError

MAGIC = b"GGUF"
PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, n_tensors, n_kv
U32, F32, STRING, ARRAY = 4, 6, 8, 9  # enum gguf_type
TENSOR_F32 = 0  # enum ggml_type
_DTYPES = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# items that are walked one by one, far above any real file
_MAX_STRINGS, _MAX_KEYS, _MAX_TENSORS = 1 << 24, 1 << 16, 1 << 20
_MAX_DIMS = 4
_MAX_DECODED = 1 << 20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One key and its value.

    Parameters
    ----------
    key
        its name
    kv_type
        ``enum gguf_type``; of an array, that of its items
    is_array
        whether it is an array
    n
        number of items, 1 if it is no array
    start, value_start, end
        offsets in the file: of the key, of the value or the first item, and behind it
    """

    key: str
    kv_type: int
    is_array: bool
    n: int
    start: int
    value_start: int
    end: int


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape, ``enum ggml_type`` and offset in the file of one tensor."""

    name: str
    dims: tuple[int, ...]
    ggml_type: int
    start: int


@dataclass(frozen=True)
class Header:
    """Everything before the tensors.

    Parameters
    ----------
    path
        the file
    version
        of the format
    entries
        by key, in the file's order
    tensors
        in the file's order
    kv_end, infos_end, data_start, size
        offsets behind the last value, behind the last tensor's description, of the data, and of the end of the file
    alignment
        of the data and every tensor
    """

    path: Path
    version: int
    entries: Mapping[str, Entry]
    tensors: tuple[TensorInfo, ...]
    kv_end: int
    infos_end: int
    data_start: int
    size: int
    alignment: int
    data: mmap.mmap

    def value(self, key: str) -> Any:
        """Decode a number, a boolean, a string, or an array of numbers as a list; None if the key is not there.

        None, too, for arrays of strings and of more than a million numbers: nothing that is asked for here.
        """
        entry = self.entries.get(key)
        return None if entry is None else _value(self.data, entry)

    def raw(self, key: str) -> bytes:
        """The bytes of a value, of an array its items only; empty if the key is not there."""
        entry = self.entries.get(key)
        return self.data[entry.value_start : entry.end] if entry else b""

    def metadata(self) -> dict[str, object]:
        """All keys that `value` decodes."""
        decoded = {key: self.value(key) for key in self.entries}
        return {key: value for key, value in decoded.items() if value is not None}


@contextmanager
def open_header(path: str | Path) -> Iterator[Header]:
    """Read the header of a GGUF file; the file stays mapped inside the with block.

    Raises
    ------
    ModelError
        the file cannot be read, is no GGUF, is big-endian, or is damaged; names the file and the place
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != MAGIC:
                raise ModelError(f"{path} is not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    with data:
        try:
            header = _read(path, data)
        except _DamagedError as error:
            raise ModelError(f"{path} is a damaged or truncated GGUF file ({error})") from None
        yield header


def split_paths(header: Header) -> list[Path]:
    """All files of a model, in order: the file itself, or all parts if it is the first of several.

    Raises
    ------
    ModelError
        it is a later part, a part is missing, or the file is not named as llama.cpp names parts
    """
    path, count, no = header.path, header.value("split.count"), header.value("split.no")
    if not isinstance(count, int) or count <= 1:
        return [path]
    if no != 0:
        raise ModelError(f"{path} is part {no!r} of a split model, name the first part")
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match["no"]) != 1 or int(match["count"]) != count:
        raise ModelError(f"{path} is the first of {count} parts, but is not named ...-00001-of-{count:05d}.gguf")
    parts = [path.with_name(part_name(match["stem"], no, count)) for no in range(count)]
    for part in parts[1:]:
        if not part.is_file():
            raise ModelError(f"{part} is missing, a part of {path}")
    return [path, *parts[1:]]


def part_name(stem: str, no: int, count: int) -> str:
    """Name of part `no` (from 0) of a split model, as llama.cpp builds and expects it."""
    return f"{stem}-{no + 1:05d}-of-{count:05d}.gguf"


def split_stem(name: str) -> str:
    """A file's name without .gguf and without the number of its part."""
    match = _SPLIT.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".gguf")


class _DamagedError(Exception):
    """Where the file ends early, or does not make sense."""


class _Cursor:
    """Reads forward through a mapped file and never behind its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.pos, self.size = data, 0, len(data)

    def skip(self, n: int, what: str) -> None:
        if n > self.size - self.pos:
            raise _DamagedError(f"{what} ends behind the end of the file")
        self.pos += n

    def u32(self, what: str) -> int:
        self.skip(4, what)
        return int(_U32.unpack_from(self.data, self.pos - 4)[0])

    def u64(self, what: str) -> int:
        self.skip(8, what)
        return int(_U64.unpack_from(self.data, self.pos - 8)[0])

    def text(self, what: str) -> str:
        n = self.u64(what)
        self.skip(n, what)
        try:
            return self.data[self.pos - n : self.pos].decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError(f"{what} is no UTF-8 text") from None

    def skip_strings(self, n: int, what: str) -> None:
        # vocabularies have some 100,000 strings: no calls in this loop but one
        if n > min((self.size - self.pos) // 8, _MAX_STRINGS):
            raise _DamagedError(f"{what} has {n} strings, more than the file can hold or anybody needs")
        data, pos, last, length = self.data, self.pos, self.size - 8, _U64.unpack_from
        for _ in range(n):
            if pos > last:
                raise _DamagedError(f"{what} ends behind the end of the file")
            pos += 8 + length(data, pos)[0]
        self.pos = pos
        self.skip(0, what)


def _read(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(data)
    cursor.skip(PREAMBLE.size, "the preamble")
    _, version, n_tensors, n_kv = PREAMBLE.unpack_from(data)
    if version & 0xFFFF == 0:
        raise ModelError(f"{path} is a big-endian GGUF file, expected a little-endian one")
    if version not in _VERSIONS:
        raise ModelError(f"{path} is a GGUF file of version {version}, expected {' or '.join(map(str, _VERSIONS))}")
    if n_kv > _MAX_KEYS or n_tensors > _MAX_TENSORS:
        raise _DamagedError(f"{n_kv} keys and {n_tensors} tensors, expected at most {_MAX_KEYS} and {_MAX_TENSORS}")
    entries: dict[str, Entry] = {}
    for i in range(n_kv):
        entry = _read_entry(cursor, i)
        if entry.key in entries:
            raise _DamagedError(f"key {entry.key[:80]!r} is there twice")
        entries[entry.key] = entry
    kv_end = cursor.pos
    alignment = _alignment(data, entries.get("general.alignment"))
    raw_infos = [_read_info(cursor, i) for i in range(n_tensors)]
    infos_end = cursor.pos
    # a file without tensors has no data to align (the first part of some split models)
    data_start = -(-infos_end // alignment) * alignment if raw_infos else infos_end
    if data_start > cursor.size:
        raise _DamagedError("the data starts behind the end of the file")
    tensors = tuple(TensorInfo(name, dims, kind, data_start + offset) for name, dims, kind, offset in raw_infos)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise _DamagedError("two tensors have the same name")
    return Header(path, version, entries, tensors, kv_end, infos_end, data_start, cursor.size, alignment, data)


def _read_entry(cursor: _Cursor, i: int) -> Entry:
    start = cursor.pos
    key = cursor.text(f"key {i}")
    what = f"key {key[:80]!r}"
    kv_type, n = cursor.u32(what), 1
    is_array = kv_type == ARRAY
    if is_array:
        kv_type, n = cursor.u32(what), cursor.u64(what)
    value_start = cursor.pos
    if kv_type == STRING:
        cursor.skip_strings(n, what)
    elif kv_type in _DTYPES:
        cursor.skip(n * np.dtype(_DTYPES[kv_type]).itemsize, what)
    else:
        raise _DamagedError(f"{what} has the unknown type {kv_type}")
    return Entry(key, kv_type, is_array, n, start, value_start, cursor.pos)


def _read_info(cursor: _Cursor, i: int) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(f"the name of tensor {i}")
    what = f"tensor {name[:80]!r}"
    n_dims = cursor.u32(what)
    if n_dims > _MAX_DIMS:
        raise _DamagedError(f"{what} has {n_dims} dimensions, expected at most {_MAX_DIMS}")
    dims = tuple(cursor.u64(what) for _ in range(n_dims))
    return name, dims, cursor.u32(what), cursor.u64(what)


def _alignment(data: mmap.mmap, entry: Entry | None) -> int:
    if entry is None:
        return _DEFAULT_ALIGNMENT
    value = _value(data, entry)
    if entry.kv_type != U32 or entry.is_array or value <= 0 or value & (value - 1):
        raise _DamagedError("general.alignment is no power of 2")
    return int(value)


def _value(data: mmap.mmap, entry: Entry) -> Any:
    if entry.n > _MAX_DECODED:
        return None
    if entry.kv_type == STRING:
        return None if entry.is_array else data[entry.value_start + 8 : entry.end].decode("utf-8", "replace")
    dtype = np.dtype(_DTYPES[entry.kv_type])
    values = np.frombuffer(data[entry.value_start : entry.end], dtype=dtype).tolist()
    return values if entry.is_array else values[0]
