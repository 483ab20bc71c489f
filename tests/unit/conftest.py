"""Fixtures of all unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest
import typer.testing


@pytest.fixture(scope="session", autouse=True)
def no_waiting() -> Iterator[None]:
    """Files need not be on the disk, and the commands' options are read once: hundreds of times some milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield
