"""Files that are written beside their place and then renamed: a crash leaves the old one or none, never a half."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_PART = ".part"


def make_part(target: Path) -> tuple[int, Path]:
    """A new file beside the target, for its owner alone, open for writing: its number and path."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_PART, dir=target.parent)
    return handle, Path(name)


def remove_old_parts(target: Path) -> None:
    """Remove what a process left of this target that was killed."""
    part = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}{_PART}")  # as tempfile names it
    for path in target.parent.iterdir():
        if part.fullmatch(path.name):
            path.unlink(missing_ok=True)


def rename_as_new(part: Path, target: Path) -> None:
    """Give a part its name where nothing has it; else FileExistsError, also for a link that leads nowhere."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists") from None
        part.rename(target)
        return
    part.unlink()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if os.name != "posix":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
