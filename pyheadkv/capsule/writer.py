"""Writing capsules: a new file beside its place, renamed when it is whole; one more turn at the end of an own one."""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pyheadkv.capsule.format import (
    BYTE_ORDER,
    CHECKSUM,
    COMMIT,
    HEADER,
    MAGIC,
    OVERHEAD,
    PREAMBLE,
    RECORD,
    ROWS,
    SEGMENT,
    SPAN,
    TOKENS,
    VERSION,
    Commit,
    Header,
    Message,
    checksum_of,
)
from pyheadkv.capsule.identity import check_identity
from pyheadkv.capsule.reader import BLOCK_BYTES, CapsuleFile, FileId
from pyheadkv.engine.beginning import n_same
from pyheadkv.errors import CapsuleError
from pyheadkv.files.beside import make_part, remove_old_parts, rename_as_new, sync_folder
from pyheadkv.files.plain_text import size_text
from pyheadkv.files.targets import check_target

GetRows = Callable[[int, bool, int, int], npt.NDArray[np.uint8]]  # as `Native.rows_get`


@dataclass(frozen=True)
class Saved:
    """What is to be saved.

    Parameters
    ----------
    tokens
        all that were read
    n_rows
        of the first so many the rows are saved
    rows
        gives them
    messages, attachments
        of the chat
    """

    tokens: Sequence[int]
    n_rows: int
    rows: GetRows
    messages: Sequence[Message] = ()
    attachments: Sequence[str] = ()


def write_capsule(path: Path, header: Header, talk: Saved, *, overwrite: bool = False) -> FileId:
    """Write a new file, for its owner alone. What was there before is there until all is written.

    Returns
    -------
    which file it is: device and number

    Raises
    ------
    CapsuleError
        there is a file, or a link, and `overwrite` is false; it cannot be written
    """
    check_place(path, overwrite=overwrite)
    part: Path | None = None
    try:
        remove_old_parts(path)
        _ask_for_room(path, header, talk, 0)
        handle, part = make_part(path)
        with os.fdopen(handle, "wb", buffering=0) as file:
            _write(file, PREAMBLE.pack(MAGIC, VERSION, BYTE_ORDER))
            _write_record(file, HEADER, header.pack())
            _write_turn(file, header, talk, 0, 0)
        if overwrite:
            part.replace(path)
        else:
            rename_as_new(part, path)
        sync_folder(path.absolute().parent)
        return _file_id(path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse with a CapsuleError where `write_capsule` would, before there is something to write."""
    check_target(path, CapsuleError)
    if not overwrite and os.path.lexists(path):
        raise _exists(path)


def append_turn(path: Path, own: FileId, header: Header, talk: Saved) -> None:
    """Write what is new of a conversation behind the last finished turn; what was broken off there is dropped.

    Raises
    ------
    CapsuleError
        it is another file now, of another model, damaged, somebody else writes it, or it cannot be written; the turns
        before are in it
    """
    check_target(path, CapsuleError)
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    with os.fdopen(handle, "r+b", buffering=0) as file, _locked(file, path):
        capsule = CapsuleFile(file, path)
        if capsule.file_id != own:
            raise CapsuleError(f"{path} is another file than the one that was saved: it is not written over")
        check_identity(path, capsule.header, header)
        contents = capsule.contents
        first = min(contents.n_rows, talk.n_rows, n_same(contents.tokens.tolist(), talk.tokens))
        n_messages = n_same(contents.messages, talk.messages)
        try:
            _ask_for_room(path, header, talk, first)
            file.truncate(contents.end)
            file.seek(contents.end)
            _write_turn(file, header, talk, first, n_messages)
        except BaseException as error:
            with suppress(OSError):
                file.truncate(contents.end)
            if isinstance(error, OSError):
                raise _cannot_be_written(path, error) from error
            raise


def is_own(path: Path, own: FileId) -> bool:
    """Whether a file is there, and the one that is meant, not a link to it."""
    try:
        return _file_id(path) == own
    except OSError:
        return False


def now() -> str:
    """Date and time, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _file_id(path: Path) -> FileId:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _write_turn(file: BinaryIO, header: Header, talk: Saved, first: int, n_messages: int) -> None:
    n = talk.n_rows - first
    _write_record(file, SEGMENT, SPAN.pack(first, n))
    _write_record(file, TOKENS, np.asarray(talk.tokens[first:], dtype="<i4").tobytes())
    for i, sizes in enumerate(header.cell_bytes) if n else ():
        for is_k, size in zip((True, False), sizes, strict=True):
            _write_rows(file, talk, i, is_k, size, first)
    os.fsync(file.fileno())
    commit = Commit(
        date=now(),
        n_rows=talk.n_rows,
        n_tokens=len(talk.tokens),
        n_messages_kept=n_messages,
        messages=talk.messages[n_messages:],
        attachments=talk.attachments,
    )
    _write_record(file, COMMIT, commit.pack())
    os.fsync(file.fileno())


def _write_rows(file: BinaryIO, talk: Saved, i: int, is_k: bool, size: int, first: int) -> None:
    end, n_block = talk.n_rows, max(1, BLOCK_BYTES // size)
    parts: Iterator[bytes] = (
        talk.rows(i, is_k, at, min(n_block, end - at)).tobytes() for at in range(first, end, n_block)
    )
    head = RECORD.pack(ROWS, (end - first) * size)
    checksum = checksum_of(file.tell(), head)
    _write(file, head)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
        _write(file, part)
    _write(file, CHECKSUM.pack(checksum))


def _write_record(file: BinaryIO, kind: bytes, data: bytes) -> None:
    head = RECORD.pack(kind, len(data))
    _write(file, head, data, CHECKSUM.pack(checksum_of(file.tell(), head, data)))


def _write(file: BinaryIO, *parts: bytes) -> None:
    """Write all of it: a file without a buffer may take less at once."""
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[file.write(rest) :]


def _ask_for_room(path: Path, header: Header, talk: Saved, first: int) -> None:
    n_bytes = (talk.n_rows - first) * sum(k + v for k, v in header.cell_bytes)
    n_bytes += 4 * len(talk.tokens) + OVERHEAD * (4 + 2 * len(header.cell_bytes))
    free = shutil.disk_usage(path.absolute().parent).free
    if n_bytes > free:
        raise CapsuleError(f"{path} needs {size_text(n_bytes)}, {path.absolute().parent} has {size_text(free)} free")


@contextmanager
def _locked(file: BinaryIO, path: Path) -> Iterator[None]:
    """Nobody else writes this file within the block; who reads does not ask."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapsuleError(f"{path} is being written by another process") from None
        except OSError as error:
            raise _cannot_be_written(path, error) from error
    yield


def _exists(path: Path) -> CapsuleError:
    return CapsuleError(f"{path} exists, it is written over only where that is asked for (overwrite=True, --force)")


def _cannot_be_written(path: Path, error: OSError) -> CapsuleError:
    return CapsuleError(f"{path} cannot be written: {error.strerror or error}")
