"""How many damaged files are tried."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases", type=int, help="damaged files and requests of each kind (scripts/check --fuzz: 20,000)"
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="seed of the first one")
