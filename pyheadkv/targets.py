"""Where a file may be written.

To write over a device, a FIFO or a link to one is never meant: a rename puts a regular file in its place for the whole
machine, and an open FIFO waits forever for somebody who reads. All that write files ask here.
"""

from __future__ import annotations

import stat
from pathlib import Path

from pyheadkv.errors import HeadKVError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path, error: type[HeadKVError]) -> None:
    """Refuse a place where something lies that is no regular file, or a link to such a thing.

    Raises
    ------
    HeadKVError
        `error`, naming the path and what lies there
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as problem:
        raise error(f"{path} cannot be written: {problem.strerror}") from None
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise error(f"{path} is {'a link to ' if path.is_symlink() else ''}{what}, expected a file to write")
