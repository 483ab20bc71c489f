"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# how long an example takes says more about the machine than about the code; half of the usual number of examples, since
# the tests run many times a day and with others each time
settings.register_profile("often", deadline=None, max_examples=50)
settings.load_profile("often")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files and tables anew instead of comparing"
    )
    parser.addoption("--load-chats", type=int, default=64, help="chats of the load test, which is slow")
    parser.addoption("--load-turns", type=int, default=16, help="turns of each of them")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files, and tables that tests make, are written anew."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with long texts and question sets that are not part of this repository: HEADKV_SHARED, or beside it."""
    folder = Path(os.environ.get("HEADKV_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} (HEADKV_SHARED)")
    return folder
