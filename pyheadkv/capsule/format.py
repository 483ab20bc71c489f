"""Bytes of a capsule file: the preamble, and records that are written one behind the other (README.md has the table).

A record is a kind, the length of what it holds, this, and a checksum over all of it; numbers are little-endian, rows
are the cache's own bytes. Lengths are believed only as far as the file has bytes for them, and JSON only after its
fields were looked at.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyheadkv.errors import CapsuleError

PREAMBLE = struct.Struct("<8sI4s")  # magic, version, byte order of the rows
MAGIC, VERSION = b"\x89HEADKV\n", 1
BYTE_ORDER = {"little": b"LE\0\0", "big": b"BE\0\0"}[sys.byteorder]

RECORD = struct.Struct("<8sQ")  # kind, bytes of what it holds
PLACE = struct.Struct("<Q")  # of a record in the file
CHECKSUM = struct.Struct("<I")  # CRC-32 of the record's place and of all before it in the record
HEADER, SEGMENT, TOKENS, ROWS, COMMIT = b"HKV.HEAD", b"HKV.SEGM", b"HKV.TOKS", b"HKV.ROWS", b"HKV.TURN"
OVERHEAD = RECORD.size + CHECKSUM.size

SPAN = struct.Struct("<QQ")  # of a segment: its first position, and of how many positions it has rows

_MAX_LAYERS, _MAX_CELL_BYTES = 1 << 16, 1 << 32

Message = dict[str, str]


class DamagedError(Exception):
    """What is wrong with a file; becomes a `CapsuleError` with its name."""


@dataclass(frozen=True)
class Header:
    """What is the same for all turns of a capsule.

    Parameters
    ----------
    name
        that it was given
    model
        the model's name, for people
    created
        ISO date and time
    llama_cpp
        commit of llama.cpp
    identity
        all that rows depend on, words by words, as `identity.identity_of` makes it
    cell_bytes
        bytes of K and of V of one position, all heads, in each layer with a cache
    """

    name: str
    model: str
    created: str
    llama_cpp: str
    identity: Mapping[str, str]
    cell_bytes: Sequence[tuple[int, int]]

    def pack(self) -> bytes:
        """As JSON."""
        return pack_json(asdict(self))

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Of JSON; DamagedError for anything else."""
        fields = _object(data)
        cells, identity = fields.get("cell_bytes"), fields.get("identity")
        if not isinstance(identity, dict) or not all(isinstance(words, str) for words in identity.values()):
            raise DamagedError("identity is not what it should be")
        if not isinstance(cells, list) or not 0 < len(cells) <= _MAX_LAYERS or not all(map(_is_pair, cells)):
            raise DamagedError("cell_bytes is not what it should be")
        texts = {key: _text(fields, key) for key in ("name", "model", "created", "llama_cpp")}
        return cls(**texts, identity=identity, cell_bytes=[(k, v) for k, v in cells])


@dataclass(frozen=True)
class Commit:
    """The end of a turn.

    Parameters
    ----------
    date
        ISO date and time
    n_rows, n_tokens
        positions from 0 on that have rows, and tokens, when this turn is read
    n_messages_kept
        of the turn before; `messages` follow them
    attachments
        texts that go into the next message
    """

    date: str
    n_rows: int
    n_tokens: int
    n_messages_kept: int
    messages: Sequence[Message]
    attachments: Sequence[str]

    def pack(self) -> bytes:
        """As JSON."""
        return pack_json(asdict(self))

    @classmethod
    def unpack(cls, data: bytes) -> Commit:
        """Of JSON; DamagedError for anything else."""
        fields = _object(data)
        messages, attachments = fields.get("messages"), fields.get("attachments")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise DamagedError("messages are not what they should be")
        if not isinstance(attachments, list) or not all(isinstance(text, str) for text in attachments):
            raise DamagedError("attachments are not what they should be")
        counts = {key: _count(fields, key) for key in ("n_rows", "n_tokens", "n_messages_kept")}
        return cls(date=_text(fields, "date"), **counts, messages=messages, attachments=attachments)


def check_preamble(data: bytes) -> None:
    """Refuse what is no capsule, of another version, or of a machine with another byte order, with a CapsuleError."""
    if len(data) < PREAMBLE.size or not data.startswith(MAGIC):
        raise CapsuleError("is no capsule of pyheadkv")
    _, version, order = PREAMBLE.unpack(data)
    if version != VERSION:
        raise CapsuleError(f"is a capsule of version {version}, this pyheadkv reads version {VERSION}")
    if order != BYTE_ORDER:
        words = {b"LE\0\0": "little-endian", b"BE\0\0": "big-endian"}
        raise CapsuleError(f"has {words.get(order, 'unknown')} rows, this machine is {words[BYTE_ORDER]}")


def checksum_of(place: int, *parts: bytes) -> int:
    """Of a record that stands there, up to the end of these parts of it; a record that was moved has a wrong one."""
    checksum = zlib.crc32(PLACE.pack(place))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def pack_json(fields: Mapping[str, Any]) -> bytes:
    """JSON in ASCII; half characters, which UTF-8 cannot write, stay what they are."""
    return json.dumps(fields).encode("ascii")


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError("no JSON where there should be") from None
    if not isinstance(fields, dict):
        raise DamagedError("a JSON value that is no object")
    return fields


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise DamagedError(f"{key} is no text")
    return value


def _count(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DamagedError(f"{key} is no number of at least 0")
    return value


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= _MAX_CELL_BYTES for n in value)
    )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )
