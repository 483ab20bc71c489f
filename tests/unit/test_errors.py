"""The words of an error, as a user sees them."""

from __future__ import annotations

import pytest

from pyheadkv.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\tc "), "a b c"),
        (ValueError(), "ValueError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (KeyError("k"), "'k'"),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
