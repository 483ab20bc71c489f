"""A picture of head scores and planned rows, layers x KV heads: for a terminal, as plain text, and as a PNG file.

    layer  score by KV head      rows by KV head
        0  . 1 .                    20    31    20
       18  2 . 9                    44    20   812

Plain text has digits, 9 for the largest score and . for less than an eighteenth of it; a terminal has shades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.style import Style
from rich.text import Text

from pyheadkv.errors import ExportError
from pyheadkv.plots.figure import new_figure, save_figure
from pyheadkv.profile import Scores

_MAX_ROW_COLUMNS = 8  # KV heads whose rows stand side by side on a line
_SHADES = ("#20233a", "#2f3c6e", "#36609c", "#3287ab", "#35ab9f", "#6cc881", "#b3db6b", "#efe05f", "#fbb04b", "#f9703e")


@dataclass(frozen=True)
class HeatMap:
    """Contents of the picture.

    Parameters
    ----------
    layers
        index in the model of each layer with a cache
    scores
        [layer][KV head], at least 0
    rows
        [layer][KV head] rows of a plan, if there is one
    title
        what the rows belong to: policy, budget and prompt
    """

    layers: Sequence[int]
    scores: Scores
    rows: Sequence[Sequence[int]] | None = None
    title: str = ""

    def lines(self) -> list[str]:
        """Plain text, one line for each layer and one above them."""
        return [text.plain.rstrip() for text in self._texts(_digit)]

    def shaded(self) -> Text:
        """The same for a terminal."""
        return Text("\n").join(self._texts(_shade))

    def write_png(self, path: str | Path) -> None:
        """Draw scores, and rows if there are any, side by side.

        Raises
        ------
        UsageError
            matplotlib is missing, or does not know this kind of file
        ExportError
            the file cannot be written
        """
        percent = [[100 * score for score in layer] for layer in self.scores]
        panels: list[tuple[str, Sequence[Sequence[float]]]] = [("score, % of all", percent)]
        if self.rows is not None:
            panels.append(("rows kept", self.rows))
        n_heads = max(len(layer) for layer in self.scores)
        figure, places = new_figure(len(panels), 2.2 + 0.28 * n_heads, 1.6 + 0.17 * len(self.layers))
        for axes, (title, values) in zip(places, panels, strict=True):
            self._draw(figure, axes, title, values)
        figure.suptitle(self.title, fontsize=9)
        save_figure(figure, path, ExportError)

    def _draw(self, figure: Any, axes: Any, title: str, values: Sequence[Sequence[float]]) -> None:
        n_heads = max(map(len, values))
        cells = [[*layer, *([float("nan")] * (n_heads - len(layer)))] for layer in values]  # no head there: left white
        image = axes.imshow(cells, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
        figure.colorbar(image, ax=axes)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("KV head")
        axes.set_ylabel("layer")
        step = max(1, len(self.layers) // 16)
        axes.set_yticks(range(0, len(self.layers), step), [str(il) for il in self.layers[::step]])
        axes.set_xticks(range(0, n_heads, max(1, n_heads // 8)))

    def _texts(self, cell: Any) -> list[Text]:
        top = max(score for layer in self.scores for score in layer)
        n_heads = max(len(layer) for layer in self.scores)
        width = max(2 * n_heads, len("score by KV head")) + 2
        texts = [Text(f"layer  {'score by KV head':{width}}{'rows by KV head' if self.rows else ''}")]
        for i, (il, layer) in enumerate(zip(self.layers, self.scores, strict=True)):
            text = Text(f"{il:5}  ")
            for score in layer:
                text.append_text(cell(score / top if top else 0.0))
            text.append(" " * (width - 2 * len(layer)))
            texts.append(text.append(_rows_text(self.rows[i]) if self.rows else ""))
        return texts


def _rows_text(rows: Sequence[int]) -> str:
    if len(rows) <= _MAX_ROW_COLUMNS:
        return " ".join(f"{n:5}" for n in rows)
    return f"{min(rows):5} to {max(rows)}, {sum(rows)} in all"


def _level(share: float) -> int:
    return min(9, round(9 * share))


def _digit(share: float) -> Text:
    level = _level(share)
    return Text(f"{level or '.'} ")


def _shade(share: float) -> Text:
    return Text("  ", Style(bgcolor=_SHADES[_level(share)]))
