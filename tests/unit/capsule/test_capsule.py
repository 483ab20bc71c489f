"""The file format: what is written comes back, whatever was cut, broken off, damaged or is another file."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.capsule import format as fmt
from pyheadkv.capsule import reader
from pyheadkv.capsule.identity import check_identity
from pyheadkv.capsule.reader import Contents, open_capsule, read_contents
from pyheadkv.capsule.writer import Saved, append_turn, write_capsule
from pyheadkv.errors import CapsuleError
from tests.unit.capsule.made import CELL_BYTES, HEADER, expected_rows, made, write_turns

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def check_whole(path: Path) -> Contents:
    """The rows are those of the tokens."""
    with open_capsule(path) as capsule:
        capsule.verify()
        contents = capsule.contents
        for i in range(len(CELL_BYTES)):
            for is_k in (True, False):
                at = 0
                for first, rows in capsule.rows(i, is_k):
                    assert first == at
                    tokens = contents.tokens[first : first + len(rows)].tolist()
                    np.testing.assert_array_equal(rows, expected_rows(i, is_k, tokens, first))
                    at += len(rows)
                assert at == contents.n_rows
    return contents


@pytest.mark.parametrize("block", [1, 16, 4 << 20])
def test_what_is_written_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", block)
    monkeypatch.setattr("pyheadkv.capsule.writer.BLOCK_BYTES", block)
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS, 6, messages=2)])
    contents = check_whole(path)
    assert contents.tokens.tolist() == TOKENS and contents.n_rows == 6
    assert [message["content"] for message in contents.messages] == ["message 0", "message 1"]
    assert contents.attachments == ["waiting"] and contents.header == HEADER
    assert (contents.n_turns, contents.end, contents.n_dropped) == (1, path.stat().st_size, 0)


@pytest.mark.parametrize(
    ("turns", "n_rows"),
    [
        ([TOKENS, [*TOKENS, 7, 7]], 10),
        ([TOKENS, TOKENS], 8),
        ([TOKENS, TOKENS[:3]], 3),
        ([TOKENS, [*TOKENS[:3], 8, 8, 8]], 6),
        ([TOKENS, [8, 8]], 2),
        ([TOKENS, [*TOKENS, 7, 7], [*TOKENS[:5], 8], [*TOKENS[:5], 8, 9, 9], [*TOKENS[:2], 0, 0]], 4),
        ([[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 9]], 3),
    ],
)
def test_turns_cut_those_before_and_go_on(tmp_path: Path, turns: list[list[int]], n_rows: int) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(tokens, messages=j % 3) for j, tokens in enumerate(turns)])
    contents = check_whole(path)
    assert contents.tokens.tolist() == turns[-1] and contents.n_rows == n_rows
    assert len(contents.messages) == (len(turns) - 1) % 3 and contents.n_turns == len(turns)


def test_tokens_without_rows_get_them_later(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS, 4), made([*TOKENS, 7], 8), made([*TOKENS, 7, 7])])
    assert check_whole(path).n_rows == 10


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made([1] * 5000, messages=500)])
    size = path.stat().st_size
    append_turn(path, own, HEADER, made([1] * 5000 + [2], messages=501))
    assert path.stat().st_size < size + 1000


# ---- what was broken off ----


def test_a_file_that_was_cut_off_anywhere(tmp_path: Path) -> None:
    """The last turn that is whole is there, and the next one goes behind it."""
    path, cut = tmp_path / "a.hkv", tmp_path / "cut.hkv"
    ends = []
    own = write_turns(path, [made(TOKENS[:2], messages=1)])
    for n in (4, 8):
        ends.append(path.stat().st_size)
        append_turn(path, own, HEADER, made(TOKENS[:n], messages=n))
    data = path.read_bytes()
    ends.append(len(data))
    for n_bytes in range(len(data)):
        cut.unlink(missing_ok=True)
        cut.write_bytes(data[:n_bytes])
        n_turns = sum(end <= n_bytes for end in ends)
        if n_turns == 0:
            with pytest.raises(CapsuleError, match=r"no capsule of pyheadkv|cut\.hkv is damaged"):
                read_contents(cut)
            continue
        contents = check_whole(cut)
        assert (contents.n_turns, contents.n_dropped) == (n_turns, n_bytes - ends[n_turns - 1])
        if n_bytes % 397 == 0:
            status = cut.stat()
            append_turn(cut, (status.st_dev, status.st_ino), HEADER, made([*TOKENS, 7, 7]))
            again = check_whole(cut)
            assert (again.n_turns, again.n_dropped, len(again.tokens)) == (n_turns + 1, 0, 10)


def test_damage_before_a_finished_turn_is_no_broken_off_writing(tmp_path: Path) -> None:
    """Else the next one would be written over it."""
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS[:2]), made(TOKENS[:4]), made(TOKENS)])
    data, first = path.read_bytes(), tmp_path / "first.hkv"
    write_turns(first, [made(TOKENS[:2])])
    for at in (first.stat().st_size, first.stat().st_size + 20, first.stat().st_size + 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        for use in (lambda: read_contents(path), lambda: append_turn(path, own, HEADER, made(TOKENS))):
            with pytest.raises(CapsuleError, match=r"a\.hkv is damaged"):
                use()
        assert len(path.read_bytes()) == len(data)


def test_bytes_everywhere_are_watched(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS, 7, messages=2)])
    data = path.read_bytes()
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(CapsuleError) as refused:
            check_whole(path)
        assert "\n" not in str(refused.value)


# ---- what is no capsule, or none for us ----


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no capsule of pyheadkv"),
        (b"GGUF" + bytes(100), "is no capsule of pyheadkv"),
        (fmt.PREAMBLE.pack(fmt.MAGIC, 2, fmt.BYTE_ORDER), "is a capsule of version 2, this pyheadkv reads version 1"),
        (fmt.PREAMBLE.pack(fmt.MAGIC, 1, b"??\0\0"), "has unknown rows, this machine is"),
        (fmt.PREAMBLE.pack(fmt.MAGIC, 1, fmt.BYTE_ORDER), "is damaged: it ends within a record at 16"),
    ],
)
def test_no_capsule(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.hkv"
    path.write_bytes(data)
    with pytest.raises(CapsuleError, match=f"{path} {words}"):
        read_contents(path)


def test_rows_of_another_byte_order(tmp_path: Path) -> None:
    path, order = tmp_path / "a.hkv", {"little": b"BE\0\0", "big": b"LE\0\0"}[sys.byteorder]
    write_turns(path, [made(TOKENS)])
    path.write_bytes(fmt.PREAMBLE.pack(fmt.MAGIC, 1, order) + path.read_bytes()[16:])
    with pytest.raises(CapsuleError, match=r"has (big|little)-endian rows, this machine is (big|little)-endian"):
        read_contents(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "NUL"])
def test_what_cannot_be_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.hkv"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "NUL":
        path = Path("a\0b")
    with pytest.raises(CapsuleError, match=r"cannot be read|no regular file"):
        read_contents(path)


def crafted(path: Path, header: bytes, *parts: tuple[bytes, bytes]) -> None:
    """A file whose checksums are right."""
    content = fmt.PREAMBLE.pack(fmt.MAGIC, fmt.VERSION, fmt.BYTE_ORDER)
    for kind, data in ((fmt.HEADER, header), *parts):
        body = fmt.RECORD.pack(kind, len(data)) + data
        content += body + fmt.CHECKSUM.pack(fmt.checksum_of(len(content), body))
    path.write_bytes(content)


def fields(**changes: Any) -> bytes:
    return json.dumps(json.loads(HEADER.pack()) | changes).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5000,
        fields(name=1),
        fields(identity={"a": 1}),
        fields(identity=[]),
        fields(cell_bytes=[]),
        fields(cell_bytes=[[1]]),
        fields(cell_bytes=[[0, 1]]),
        fields(cell_bytes=[[1, 1e999]]),
        fields(cell_bytes=[[2**64, 1]]),
        fields(cell_bytes=[[True, 1]]),
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.hkv"
    crafted(path, header)
    with pytest.raises(CapsuleError, match=r"a\.hkv is damaged: ") as refused:
        read_contents(path)
    assert len(str(refused.value)) < 500


TURN = {"date": "", "n_rows": 0, "n_tokens": 1, "n_messages_kept": 0, "messages": [], "attachments": []}


@pytest.mark.parametrize(
    ("span", "tokens", "commit"),
    [
        ((0, 2**63), b"\1\0\0\0", TURN),
        ((2**64 - 1, 0), b"\1\0\0\0", TURN),
        ((1, 0), b"\1\0\0\0", TURN),
        ((0, 0), b"\1\0\0", TURN),
        ((0, 0), b"\1\0\0\0", TURN | {"n_tokens": 2**62}),
        ((0, 0), b"\1\0\0\0", TURN | {"n_rows": 1}),
        ((0, 0), b"\1\0\0\0", TURN | {"n_rows": -1}),
        ((0, 0), b"\1\0\0\0", TURN | {"n_messages_kept": 1}),
        ((0, 0), b"\1\0\0\0", TURN | {"messages": [{"role": "user"}]}),
        ((0, 0), b"\1\0\0\0", TURN | {"messages": [{"role": "user", "content": 1}]}),
        ((0, 0), b"\1\0\0\0", TURN | {"attachments": [None]}),
        ((0, 0), b"\1\0\0\0", TURN | {"date": None}),
        ((0, 0), b"\1\0\0\0", []),
    ],
)
def test_turns_that_do_not_fit(tmp_path: Path, span: tuple[int, int], tokens: bytes, commit: Any) -> None:
    path = tmp_path / "a.hkv"
    turn = [(fmt.SEGMENT, fmt.SPAN.pack(*span)), (fmt.TOKENS, tokens), (fmt.COMMIT, json.dumps(commit).encode())]
    crafted(path, HEADER.pack(), *turn)
    with pytest.raises(CapsuleError, match=r"a\.hkv is damaged: "):
        read_contents(path)


def test_a_length_is_believed_as_far_as_the_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS)])
    data = bytearray(path.read_bytes())
    at = data.index(fmt.ROWS) + 8
    for n_bytes in (2**62, 2**64 - 1, len(data)):
        data[at : at + 8] = struct.pack("<Q", n_bytes)
        path.write_bytes(data)
        with pytest.raises(CapsuleError, match=r"is damaged: a record at .* ends behind the end of the file"):
            read_contents(path)


@pytest.mark.parametrize("is_long", [False, True])
def test_a_file_of_nothing_but_ends_of_turns_is_refused_at_once(tmp_path: Path, is_long: bool) -> None:
    """Each may reach to the end of the file: to compare all of them would take hours."""
    path, n = tmp_path / "a.hkv", 20_000
    write_turns(path, [made(TOKENS)])
    lengths = (16 * (n - j) - fmt.OVERHEAD if is_long else 2**40 for j in range(n))
    path.write_bytes(path.read_bytes() + b"".join(fmt.RECORD.pack(fmt.COMMIT, max(length, 0)) for length in lengths))
    with pytest.raises(CapsuleError, match="is damaged"):
        read_contents(path)


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS)])
    theirs = read_contents(path).header
    check_identity(path, theirs, HEADER)
    for ours, words in (
        ({"model": "llama:2"}, r"model is llama:1 in it, llama:2 here \(a model; here a model\)"),
        ({"rope": "base 5"}, "rope is none in it, base 5 here"),
        ({"new": "x"}, "new is unknown in it, x here"),
    ):
        with pytest.raises(CapsuleError, match=words):
            check_identity(path, theirs, replace(HEADER, identity={**HEADER.identity, **ours}))
    with pytest.raises(CapsuleError, match="its rows have"):
        check_identity(path, theirs, replace(HEADER, cell_bytes=[(8, 6)]))


# ---- writing ----


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS)])
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CapsuleError, match="is being written by another process"):
            append_turn(path, own, HEADER, made(TOKENS))
        check_whole(path)  # who reads does not wait
    append_turn(path, own, HEADER, made(TOKENS))


def test_readers_of_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS)])
    with open_capsule(path) as one, open_capsule(path) as other:
        append_turn(path, own, HEADER, made([9, 9]))
        for capsule in (one, other):
            capsule.verify()
            assert capsule.contents.tokens.tolist() == TOKENS
            _, rows = next(capsule.rows(0, True))
            np.testing.assert_array_equal(rows, expected_rows(0, True, TOKENS))


def test_a_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS)])
    other = tmp_path / "other.hkv"
    write_turns(other, [made(TOKENS)])
    other.rename(path)
    with pytest.raises(CapsuleError, match="is another file than the one that was saved"):
        append_turn(path, own, HEADER, made(TOKENS))
    with pytest.raises(CapsuleError, match=r"a\.hkv exists"):
        write_capsule(path, HEADER, made(TOKENS))
    check_whole(path)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS)])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.terminal_size((0, 0)) and type("U", (), {"free": 99}))
    for write in (
        lambda: append_turn(path, own, HEADER, made([*TOKENS, *TOKENS])),
        lambda: write_capsule(tmp_path / "b.hkv", HEADER, made(TOKENS)),
    ):
        with pytest.raises(CapsuleError, match=r"needs .* has 99 bytes free"):
            write()
    assert [it.name for it in tmp_path.iterdir()] == ["a.hkv"]
    check_whole(path)


def test_a_failure_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    own = write_turns(path, [made(TOKENS)])
    before = path.read_bytes()

    def fails(i: int, is_k: bool, first: int, n: int) -> Any:
        if i == 1:
            raise KeyboardInterrupt
        return expected_rows(i, is_k, [1] * n, first)

    for write in (
        lambda: append_turn(path, own, HEADER, replace(made([1] * 9), rows=fails)),
        lambda: write_capsule(tmp_path / "b.hkv", HEADER, replace(made([1] * 9), rows=fails)),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert path.read_bytes() == before and [it.name for it in tmp_path.iterdir()] == ["a.hkv"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".a.hkv.abcdefgh.part"
    left.write_text("half")
    write_capsule(tmp_path / "a.hkv", HEADER, made(TOKENS))
    assert [it.name for it in tmp_path.iterdir()] == ["a.hkv"]


def test_records_of_equal_length_that_change_places(tmp_path: Path) -> None:
    path = tmp_path / "a.hkv"
    write_turns(path, [made(TOKENS)])
    data, size = path.read_bytes(), 8 * len(TOKENS) + fmt.OVERHEAD
    first = data.index(fmt.ROWS)  # K of layer 0; V of layer 2, the last record of rows, has as many bytes
    last = data.rindex(fmt.ROWS)
    path.write_bytes(
        data[:first]
        + data[last : last + size]
        + data[first + size : last]
        + data[first : first + size]
        + data[last + size :]
    )
    with pytest.raises(CapsuleError, match="the checksum of K of layer 0, from position 0 on differs"):
        check_whole(path)


def test_checksum() -> None:
    """Of the place, and of what stands there: zlib's CRC-32."""
    assert fmt.checksum_of(5, b"ab", b"c") == zlib.crc32(struct.pack("<Q", 5) + b"abc")


def test_memory_while_a_large_file_is_read_and_written(tmp_path: Path) -> None:
    """A block or two of rows, however large the file is."""
    path, row = tmp_path / "a.hkv", 1 << 16
    header = replace(HEADER, cell_bytes=[(row, row)])
    zeros = np.zeros((reader.BLOCK_BYTES // row, row), dtype=np.uint8)
    large = Saved([1] * 160, 160, lambda i, is_k, first, n: zeros[:n])
    tracemalloc.start()
    write_capsule(path, header, large)
    with open_capsule(path) as capsule:
        capsule.verify()
        assert sum(len(rows) for _, rows in capsule.rows(0, True)) == 160
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 20e6 and peak < 3 * reader.BLOCK_BYTES
