"""Rows of a capsule back into a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyheadkv.capsule.reader import CapsuleFile
from pyheadkv.engine.native import Native


def restore_rows(
    capsule: CapsuleFile,
    native: Native,
    folder: Path | None,
    on_progress: Callable[[int, int], None] = lambda n_done, n_total: None,
) -> None:
    """Make an empty cache a whole one of the capsule's tokens that have rows.

    Parameters
    ----------
    folder
        of the archive that the rows go to; None is host memory
    on_progress
        called with (positions times layers done, in all)

    Raises
    ------
    NativeError
        there is no room
    CapsuleError
        the file was cut off meanwhile
    """
    contents = capsule.contents
    n_layer = len(capsule.header.cell_bytes)
    native.rows_begin(contents.tokens[: contents.n_rows].tolist(), folder)
    for i in range(n_layer):
        for is_k in (True, False):
            for first, rows in capsule.rows(i, is_k):
                native.rows_set(i, is_k, first, rows)
        on_progress((i + 1) * contents.n_rows, n_layer * contents.n_rows)
