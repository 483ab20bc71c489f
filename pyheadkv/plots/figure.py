"""Pictures as files, by matplotlib, which is optional."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pyheadkv.errors import HeadKVError, UsageError
from pyheadkv.files.targets import writing


def new_figure(n: int, width: float, height: float, n_columns: int = 4, margin: float = 0) -> tuple[Any, list[Any]]:
    """A matplotlib Figure of n panels, row by row, and their axes.

    Parameters
    ----------
    width, height
        of a panel, in inches
    margin
        inches beside all of them

    Raises
    ------
    UsageError
        matplotlib is missing
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs matplotlib, which is missing: pip install matplotlib") from None
    n_columns = min(n, n_columns)
    n_rows = math.ceil(n / n_columns)
    figure = Figure(figsize=(width * n_columns + margin, height * n_rows), layout="constrained")
    return figure, [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]


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
