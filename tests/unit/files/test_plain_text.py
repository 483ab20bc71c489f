"""What text is: encodings, what is refused and in which words, that each source is read once and not without end."""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from pyheadkv.errors import EvaluationError, HeadKVError, UsageError
from pyheadkv.files import plain_text
from pyheadkv.files.plain_text import (
    Limit,
    TextSource,
    decode_text,
    is_terminal,
    open_stdin,
    open_text,
    read_text,
    typed_text,
)

TEXT = "naïve\ncafé 🙂\n"
BLOCK = plain_text._BLOCK


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    ],
)
def test_encodings_and_line_ends(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(data)
    assert read_text(tmp_path / "t.txt") == TEXT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xe9 au lait", "is not UTF-8 text: byte 0xe9 at offset 3"),
        (codecs.BOM_UTF8 + b"caf\xe9", "is not UTF-8 text: byte 0xe9 at offset 6"),
        ("é".encode()[:1], "is not UTF-8 text: byte 0xc3 at offset 0"),
        (codecs.BOM_UTF16_LE + b"a\0b\0\x00\xdc", "is not UTF-16 text: byte 0x00 at offset 6"),
        (codecs.BOM_UTF16_BE + b"\0ab", "is not UTF-16 text: byte 0x62 at offset 4"),
        (b"a\0b", "is not text: it has a NUL byte at offset 1"),
        ("é\0".encode(), "is not text: it has a NUL byte at offset 2"),
        (codecs.BOM_UTF16_LE + "🙂\0".encode("utf-16-le"), "is not text: it has a NUL byte at offset 6"),
        (b"", "is empty"),
        (codecs.BOM_UTF8, "is empty"),
        (b" \r\n\t\n", "has nothing but blanks"),
    ],
)
def test_what_is_no_text(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError) as problem:
        read_text(path)
    assert str(problem.value) == f"{path} {words}"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (Path("~no-such-user/x"), "cannot be read: "),
        (Path("a\0b"), "cannot be read: "),
    ):
        with pytest.raises(EvaluationError) as problem:
            read_text(path, EvaluationError)
        assert str(problem.value).startswith(f"{path} {words}")


def test_a_fifo_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    text = TEXT * (BLOCK // 8)  # more than one block, cut within a character
    writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=(text,))
    writer.start()
    assert read_text(tmp_path / "fifo") == text
    writer.join()


class Endless(io.RawIOBase):
    """Gives one byte for ever, and counts."""

    def __init__(self, byte: bytes) -> None:
        self.byte, self.n_read = byte, 0

    def read(self, n: int = -1) -> bytes:
        assert n >= 0
        self.n_read += n
        return self.byte * n


@pytest.mark.parametrize(("byte", "words"), [(b"\0", "NUL byte at offset 0"), (b"a", "has more than 1.0 MB")])
def test_what_has_no_end_is_not_read_to_it(byte: bytes, words: str) -> None:
    stream = Endless(byte)
    with pytest.raises(HeadKVError, match=words):
        TextSource(stream, "x").read(Limit(10**6))
    assert stream.n_read == (BLOCK if byte == b"\0" else 10**6 + 1)


def test_a_file_with_more_than_fits_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.write(b"a" * BLOCK)
        file.truncate(50 * 10**9)  # sparse
    source = plain_text.open_text(tmp_path / "huge.txt")
    monkeypatch.setattr(source, "_take", None)
    words = r"huge.txt has 50.0 GB, the limit is 2.1 MB \(256 for each of the 8192 tokens of the context\)"
    with pytest.raises(UsageError, match=words):
        source.read(Limit.of_context(8192))


def test_no_more_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a" * 1000)
    assert len(read_text(tmp_path / "t.txt", limit=Limit(1000))) == 1000
    with pytest.raises(UsageError, match=r"t.txt has 1\.0 kB, the limit is 999 bytes$"):
        read_text(tmp_path / "t.txt", limit=Limit(999))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello \xff")))
    with pytest.raises(UsageError, match=r"^standard input is not UTF-8 text: byte 0xff at offset 6$"):
        open_stdin()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-8-sig"))))
    assert open_stdin().read() == TEXT
    assert not sys.stdin.closed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    source = open_text("-")
    assert source.takes_stdin() and source.read() == "hello"
    monkeypatch.setattr("pyheadkv.files.plain_text.is_terminal", lambda: True)
    with pytest.raises(UsageError, match="standard input is a terminal: pipe the text in"):
        open_text("-")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", None)
    assert not is_terminal()
    with pytest.raises(UsageError, match="there is no standard input"):
        open_stdin()


def test_what_was_typed() -> None:
    assert typed_text("naïve\r\n", "-p") == "naïve\n"
    assert typed_text("é".encode().decode("ascii", "surrogateescape"), "-p") == "é"  # a locale without UTF-8
    with pytest.raises(UsageError, match=r"^-p is not UTF-8 text: byte 0xff at offset 6$"):
        typed_text("hello \udcff", "-p")
    with pytest.raises(UsageError, match=r"^-p is not text: it has half a character at position 1$"):
        typed_text("a\ud800", "-p")


def test_a_block_may_end_within_a_character() -> None:
    assert decode_text("aé".encode()[:2], "x", is_whole=False) == "a"
    with pytest.raises(UsageError):
        decode_text("aé".encode()[:2], "x")
