"""Where all rows of a conversation lie while its cache is compressed, so that every question can choose anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import UsageError
from pyheadkv.files.cache_folder import cache_folder

KINDS = ("auto", "disk", "ram", "none")


@dataclass(frozen=True)
class Archive:
    """A place for all rows.

    Parameters
    ----------
    is_kept
        when the cache is compressed; otherwise the rows lie there while a prompt is read
    is_on_disk
        in a file without a name, which is gone with the process; otherwise in host memory
    directory
        of the file; by default the user's cache folder
    """

    is_kept: bool = True
    is_on_disk: bool = True
    directory: Path | None = None

    def __str__(self) -> str:
        """Where the rows lie, in words."""
        return f"in {self.directory}" if self.directory else "on disk" if self.is_on_disk else "in main memory"

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """Of the file, made where there is none; None is host memory.

        Raises
        ------
        UsageError
            it cannot be made
        """
        if not self.is_on_disk:
            yield None
        elif self.directory:
            yield self.directory
        else:
            with cache_folder(UsageError) as folder:
                yield folder


def parse_archive(text: str, is_on_gpu: bool, n_bytes: int) -> Archive:
    """Read "auto", "disk", "ram", "none", or a folder.

    >>> parse_archive("none", is_on_gpu=False, n_bytes=0).is_kept
    False

    Parameters
    ----------
    is_on_gpu, n_bytes
        where the cache lies, and the size of a whole one: "auto" takes host memory beside a GPU where it has room

    Raises
    ------
    UsageError
        it is no folder
    """
    if text == "auto":
        return Archive(is_on_disk=not is_on_gpu or n_bytes > _free_memory() // 2)
    if text in KINDS:
        return Archive(is_kept=text != "none", is_on_disk=text != "ram")
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UsageError(f"archive {text} is no folder, and none of {', '.join(KINDS)}")
    return Archive(directory=folder)


def _free_memory() -> int:
    """Bytes of main memory that nobody uses; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
