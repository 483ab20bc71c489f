"""Writing big files so that a crash leaves the old file or none, never half of one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import ExportError
from pyheadkv.files.beside import make_part, remove_old_parts, sync_folder
from pyheadkv.files.targets import check_target

_CHUNK_BYTES = 8 << 20

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Copy:
    """One file to write: `head`, then the source's bytes from `start` on."""

    source: Path
    target: Path
    head: bytes = b""
    start: int = 0

    @property
    def n_bytes(self) -> int:
        """Size of the file to write."""
        return len(self.head) + self.source.stat().st_size - self.start


def check_targets(targets: Sequence[Path], sources: Sequence[Path], force: bool) -> None:
    """Refuse to write over a source or what is no file, or over anything else without `force`.

    Raises
    ------
    ExportError
        naming the file
    """
    if not targets[0].parent.is_dir():
        raise ExportError(f"{targets[0].parent} is no folder, {targets[0].name} cannot be written there")
    for target in targets:
        check_target(target, ExportError)
        if target.exists() and any(target.samefile(source) for source in sources):
            raise ExportError(f"{target} is the model itself, which is only written over with --in-place")
        if not force and os.path.lexists(target):
            raise ExportError(f"{target} exists, it is only written over with --force")


def copy_all(copies: Sequence[Copy], on_progress: OnProgress | None = None) -> None:
    """Write all files, each beside its place; then rename them, the first one last.

    Where that is stopped, what was written is removed; what a process left that was killed, at the next call.

    Parameters
    ----------
    copies
        all into one folder
    on_progress
        called with bytes written and bytes in all

    Raises
    ------
    ExportError
        no room, or the operating system's reason
    """
    first = copies[0].target
    try:
        for copy in copies:
            remove_old_parts(copy.target)
        progress = _Progress(sum(copy.n_bytes for copy in copies), on_progress)
        free = shutil.disk_usage(first.parent).free
        if progress.total > free:
            raise ExportError(f"{first.name} needs {_size(progress.total)}, {first.parent} has {_size(free)} free")
        with ExitStack() as stack:
            parts = [_copy(copy, stack, progress) for copy in copies]
            # llama.cpp finds the other files of a model through the first
            for part, copy in reversed([*zip(parts, copies, strict=True)]):
                part.replace(copy.target)
        sync_folder(first.parent)
    except OSError as error:
        raise ExportError(f"{first} cannot be written: {error.strerror or error}") from error


class _Progress:
    """Counts bytes over several files."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total = total
        self._done, self._on_progress = 0, on_progress

    def add(self, n: int) -> None:
        self._done += n
        if self._on_progress:
            self._on_progress(self._done, self.total)


def _copy(copy: Copy, stack: ExitStack, progress: _Progress) -> Path:
    """Write the file under another name, which is gone when the stack is left without a rename."""
    expected = copy.n_bytes
    handle, part = make_part(copy.target)
    stack.callback(part.unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file, copy.source.open("rb") as source:
        source.seek(copy.start)
        file.write(copy.head)
        progress.add(len(copy.head))
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            progress.add(len(chunk))
        if file.tell() != expected:
            raise ExportError(f"{copy.source} changed while it was copied")
        file.flush()
        os.fsync(file.fileno())
    part.chmod(stat.S_IMODE(copy.source.stat().st_mode))
    return part


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
