"""Pictures as files, by matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyheadkv.errors import HeadKVError, UsageError
from pyheadkv.files.targets import writing


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure, in inches.

    Raises
    ------
    UsageError
        matplotlib is missing
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs matplotlib, which is missing: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path, error: type[HeadKVError]) -> None:
    """Write a figure; the ending of the path says as what.

    Raises
    ------
    HeadKVError
        `error`, where the file cannot be written; UsageError for an unknown ending
    """
    with writing(Path(path), error):
        try:
            figure.savefig(path, dpi=150)
        except ValueError as problem:
            raise UsageError(f"{path} cannot be drawn: {str(problem).splitlines()[0]}") from None
