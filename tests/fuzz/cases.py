"""Damaged model and profile files, made from a seed: the same seed is the same file everywhere.

Three families: bytes of a GGUF header (cut, flipped, spliced, lengths and counts set to awkward numbers), values of its
headkv.* keys (of other types, lengths and ranges), and profile files (bytes and values of the JSON text).
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyheadkv.export.header import new_header
from pyheadkv.model.gguf_header import Entry, open_header
from pyheadkv.model.shape import ModelShape, shape_from_metadata
from pyheadkv.profile import BudgetChoice, Profile
from pyheadkv.profile.checks import body_of
from pyheadkv.profile.gguf_keys import profile_to_metadata
from tests.tiny import Tiny
from tests.unit.small_gguf import write_model

TINY = Tiny(n_head=(4, 4), n_head_kv=(2, 2), head_size=8, n_embd=16, n_ff=8, n_vocab=8)
PROFILE = Profile(
    ((0.3, 0.2), (0.1, 0.4)),
    "made",
    beta=1.1,
    fingerprint="llama:1:2:3",
    kinds={"retrieval": ((0.4, 0.4), (0.1, 0.1)), "reconstruction": ((0.25, 0.25), (0.25, 0.25))},
    mix={"retrieval": 1.0, "reconstruction": 0.5},
    scores_query=((0.1, 0.2, 0.1, 0.1), (0.05, 0.05, 0.2, 0.2)),
    n_sink=4,
    n_obs=16,
    pool_kernel=7,
    keep_ratio=0.1,
    settings=(
        BudgetChoice(0.05, "headkv:beta=1.01", {"retrieval": 1.0}, {"needles": 0.9}),
        BudgetChoice(1.0, "headkv"),
    ),
    calibration={"seed": 1, "lengths": [512, 1024]},
)
PUBLISHED = {f"{il}-{h}": [0.1 * h, 0.2] for il in range(2) for h in range(4)}

_COUNTS = (0, 1, 2, 3, 7, 255, 2**16, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, -1.0, 0.5, 1.0, 1e-45, 3.4e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "",
    "x",
    "a=1",
    "a=1,a=1",
    "retrieval=-1",
    "retrieval=1e999",
    "[" * 5000,
    '{"a":' * 2000,
    "{}",
    "[{}]",
    "null",
)
_TEXTS += ('[{"max_keep_ratio":1,"policy":"headkv"}]', "\x1b[31m", "\n", "9" * 5000, "\udcff", "NaN", '{"a":NaN}', "-0")
_MODEL_KEYS = ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length", "context_length")


@dataclass(frozen=True)
class Base:
    """The undamaged files, and where things lie in the model."""

    shape: ModelShape
    gguf: bytes
    entries: tuple[Entry, ...]
    kv_end: int
    data_start: int
    plain: Path  # without profile


@dataclass(frozen=True)
class Case:
    """A file to read: "gguf" or "json"."""

    kind: str
    content: bytes


def make_base(folder: Path) -> Base:
    """Write and read what all cases start from."""
    plain, path = write_model(folder / "plain.gguf", TINY), folder / "base.gguf"
    with open_header(plain) as header:
        path.write_bytes(new_header(header, profile_to_metadata(PROFILE)) + header.data[header.data_start :])
    with open_header(path) as header:
        shape = shape_from_metadata(header.metadata())
        entries = tuple(header.entries.values())
        return Base(shape, path.read_bytes(), entries, header.kv_end, header.data_start, plain)


def make_case(base: Base, seed: int) -> Case:
    """The file of a seed."""
    rng = random.Random(seed)
    makers: list[Callable[[Base, random.Random], Case]] = [_gguf_bytes, _gguf_values, _json_bytes, _json_values]
    return rng.choices(makers, weights=[4, 3, 1, 2])[0](base, rng)


# ---- bytes of a GGUF file ----


def _gguf_bytes(base: Base, rng: random.Random) -> Case:
    content = bytearray(base.gguf)
    changes = [_flip, _overwrite, _set_count, _set_type, _splice_entry, _set_preamble, _truncate, _insert]
    for change in rng.choices(changes, k=rng.choice((1, 1, 1, 2, 4))):
        change(content, base, rng)
    return Case("gguf", bytes(content))


def _place(content: bytearray, base: Base, rng: random.Random) -> int:
    """Mostly in the keys, sometimes in the descriptions of tensors, rarely in the data."""
    end = rng.choices((base.kv_end, base.data_start, len(content)), weights=[6, 3, 1])[0]
    return rng.randrange(max(1, min(end, len(content))))


def _flip(content: bytearray, base: Base, rng: random.Random) -> None:
    at = _place(content, base, rng)
    if content:
        content[at] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, base: Base, rng: random.Random) -> None:
    at = _place(content, base, rng)
    content[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(1, 9))


def _set_count(content: bytearray, base: Base, rng: random.Random) -> None:
    """The length of a key, or the count or length that comes before a value."""
    entry = rng.choice(base.entries)
    at = rng.choice((entry.start, entry.value_start - 8, entry.value_start))
    content[at : at + 8] = struct.pack("<Q", rng.choice(_COUNTS))


def _set_type(content: bytearray, base: Base, rng: random.Random) -> None:
    entry = rng.choice(base.entries)
    at = entry.start + 8 + len(entry.key)
    content[at : at + 4] = struct.pack("<I", rng.choice((*range(14), 255, 2**31, 2**32 - 1)))


def _splice_entry(content: bytearray, base: Base, rng: random.Random) -> None:
    """A key twice, or not at all; the number of keys follows or not."""
    entry = rng.choice(base.entries)
    is_twice = rng.random() < 0.5
    piece = base.gguf[entry.start : entry.end]
    content[entry.start : entry.end] = piece * 2 if is_twice else b""
    if rng.random() < 0.8 and len(content) >= 24:
        n_kv = len(base.entries) + (1 if is_twice else -1)
        content[16:24] = struct.pack("<Q", n_kv)


def _set_preamble(content: bytearray, base: Base, rng: random.Random) -> None:
    at, n = rng.choice(((4, 4), (8, 8), (16, 8)))
    content[at : at + n] = struct.pack("<Q", rng.choice(_COUNTS))[:n]


def _truncate(content: bytearray, base: Base, rng: random.Random) -> None:
    del content[_place(content, base, rng) :]


def _insert(content: bytearray, base: Base, rng: random.Random) -> None:
    at = _place(content, base, rng)
    content[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32)))


# ---- values of its keys ----


def _gguf_values(base: Base, rng: random.Random) -> Case:
    values: dict[str, Any] = dict(profile_to_metadata(PROFILE))
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice((*values, "headkv.scores.x", "headkv.", "headkv.scores.", "headkv.scores.A B"))
        values[key] = _gguf_value(rng, values.get(key))
    with open_header(base.plain) as header:
        head = bytearray(new_header(header, values))
        if rng.random() < 0.2:  # the model's own keys, too: then the profile is one of another model
            entry = header.entries[f"llama.{rng.choice(_MODEL_KEYS)}"]
            head[entry.value_start : entry.end] = struct.pack("<I", rng.choice(_COUNTS) % 2**32)
        return Case("gguf", bytes(head) + header.data[header.data_start :])


def _gguf_value(rng: random.Random, old: Any) -> Any:
    """A value of any type that a GGUF file may hold, often one near the right one."""
    choice = rng.randrange(6)
    if choice == 0:
        return rng.choice(_COUNTS) % 2**32
    if choice == 1:
        return rng.choice(_FLOATS)
    if choice == 2:
        return rng.choice(_TEXTS).encode("utf-8", "replace").decode()
    if choice == 3:
        return [rng.choice(_FLOATS) for _ in range(rng.choice((0, 1, 3, 4, 5, 8, 1000)))]
    if isinstance(old, list) and old:
        new = [*old]
        new[rng.randrange(len(new))] = rng.choice(_FLOATS)
        return new if choice == 4 else [*map(float, rng.sample(old, len(old)))]
    if isinstance(old, str) and old:
        at = rng.randrange(len(old))
        return old[:at] + rng.choice(('"', "[", "0", "=", ",", "e9", "\0", "")) + old[at + 1 :]
    return old if old is not None else [0.25] * 4


# ---- profile files ----


def _document(rng: random.Random) -> Any:
    return {"headkv": body_of(PROFILE)} if rng.random() < 0.7 else PUBLISHED


def _json_bytes(base: Base, rng: random.Random) -> Case:
    content = bytearray(json.dumps(_document(rng)).encode())
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content) or 1)
        change = rng.randrange(5)
        if change == 0:
            del content[at:]
        elif change == 1:
            content[at : at + 1] = rng.choice((b"NaN", b"-", b"1e999", b"[" * 3000, b'"', b"\xff", b"9" * 5000))
        elif change == 2:
            content[at:at] = content[rng.randrange(len(content) or 1) :][: rng.randrange(64)]
        elif change == 3:
            del content[at : at + rng.randrange(1, 16)]
        elif content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
    return Case("json", bytes(content))


def _json_values(base: Base, rng: random.Random) -> Case:
    document = json.loads(json.dumps(_document(rng)))
    for _ in range(rng.choice((1, 1, 2))):
        _replace_somewhere(document, rng)
    return Case("json", json.dumps(document).encode())


def _replace_somewhere(node: Any, rng: random.Random) -> None:
    """Walk down at random, and put something else where the walk ends."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    change = rng.randrange(4)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[rng.choice(("", "scores.x", "scores.", "9" * 40, "0-00", "version", key + "x"))] = node[key]
    else:
        node[key] = rng.choice((*_FLOATS, *_COUNTS, *_TEXTS[:6], None, True, [], {}, [[]], [0.25], {"a": 1}, 10**300))
