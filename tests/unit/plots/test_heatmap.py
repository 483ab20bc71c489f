"""The picture of head scores: every head at its place, in every form."""

from __future__ import annotations

import struct
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pyheadkv.errors import ExportError, UsageError
from pyheadkv.plots.heatmap import HeatMap

MAP = HeatMap((0, 2, 17), ((0.0, 0.5), (0.1,), (0.02, 0.38)), ((20, 400), (60,), (20, 300)), "headkv, 10%")


def test_plain_text() -> None:
    assert MAP.lines() == [
        "layer  score by KV head  rows by KV head",
        "    0  . 9                  20   400",
        "    2  2                    60",
        "   17  . 7                  20   300",
    ]


def test_without_rows() -> None:
    assert HeatMap(MAP.layers, MAP.scores).lines() == [
        "layer  score by KV head",
        "    0  . 9",
        "    2  2",
        "   17  . 7",
    ]


def test_many_heads() -> None:
    wide = HeatMap((0,), (tuple(i / 16 for i in range(16)),), (tuple(range(16)),))
    assert wide.lines()[1] == "    0  . 1 1 2 2 3 4 4 5 5 6 7 7 8 8 9       0 to 15, 120 in all"


def test_a_terminal_gets_shades() -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=100)
    console.print(MAP.shaded())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("\x1b[48;2;249;112;62m") == 1  # the largest score only
    assert "  400" in text and "layer" in text


@pytest.mark.parametrize("rows", [None, MAP.rows])
def test_png(tmp_path: Path, rows: tuple[tuple[int, ...], ...] | None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    HeatMap(MAP.layers, MAP.scores, rows, "headkv, 10%").write_png(path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > (500 if rows else 200) and height > 200


def test_png_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ExportError, match=r"map\.png cannot be written: nothing can be made in the folder"):
        MAP.write_png(tmp_path / "none" / "map.png")
    with pytest.raises(UsageError, match=r"map\.xyz cannot be drawn: Format 'xyz' is not supported"):
        MAP.write_png(tmp_path / "map.xyz")


def test_matplotlib_is_not_needed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert MAP.lines()
    with pytest.raises(UsageError, match="drawing needs matplotlib, which is missing: pip install matplotlib"):
        MAP.write_png(tmp_path / "map.png")
