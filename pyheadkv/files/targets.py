"""Where a file may be written.

To write over a device, a FIFO or a link to one is never meant: a rename puts a regular file in its place for the whole
machine, and an open FIFO waits forever for somebody who reads. All that write files ask here.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyheadkv.errors import HeadKVError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path, error: type[HeadKVError], option: str = "") -> None:
    """Refuse a place where something lies that is no regular file, or a link to such a thing, and where none can be.

    Parameters
    ----------
    option
        with which the user names another place

    Raises
    ------
    HeadKVError
        `error`, naming the path and what lies there, or why nothing can be written there
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _check_folder(path, error, option)
        return
    except OSError as problem:
        raise _refusal(error, path, problem.strerror or str(problem), option) from None
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise error(f"{path} is {'a link to ' if path.is_symlink() else ''}{what}, expected a file to write")


@contextmanager
def writing(path: Path, error: type[HeadKVError]) -> Iterator[None]:
    """Around the writing of a file: a place that `check_target` refuses, and what the system refuses, is one line.

    Raises
    ------
    HeadKVError
        `error`, naming the path and the reason
    """
    check_target(path, error)
    try:
        yield
    except OSError as problem:
        raise _refusal(error, path, problem.strerror or str(problem), "") from None


def _check_folder(path: Path, error: type[HeadKVError], option: str) -> None:
    folder = path.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        reason = f"nothing can be made in the folder {folder}, {problem.strerror or problem}"
        raise _refusal(error, path, reason, option) from None


def _refusal(error: type[HeadKVError], path: Path, reason: str, option: str) -> HeadKVError:
    return error(f"{path} cannot be written: {reason}{f' ({option} names another place)' if option else ''}")
