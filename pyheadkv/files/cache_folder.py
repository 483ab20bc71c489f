"""The user's cache folder, in which models lie that were fetched or made: where it is, and what has it elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from pyheadkv.errors import HeadKVError

_MOVED_BY = "XDG_CACHE_HOME" if sys.platform == "linux" else "HOME"


@contextmanager
def cache_folder(error: type[HeadKVError]) -> Iterator[Path]:
    """The folder, made where there is none; what the system refuses within the context is one line.

    Raises
    ------
    HeadKVError
        `error`, naming the folder, the system's reason, and the variable that moves the folder
    """
    folder = platformdirs.user_cache_path("pyheadkv")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(f"the cache folder {folder} cannot be used: {reason} ({_MOVED_BY} moves it)") from problem
