"""scripts/nvml.py where there is no card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nvml import Card, NoCardError, Peak


def test_a_missing_driver_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NoCardError, match=r"^no NVIDIA driver: libnvidia-ml\.so\.1 cannot be loaded$"):
        Card(str(tmp_path))


def test_the_most_that_was_taken_meanwhile_is_kept() -> None:
    class Rising:
        def __init__(self) -> None:
            self.seen = [3, 5, 9, 4]

        def used(self) -> int:
            return self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]

    card: Any = Rising()
    with Peak(card) as peak:
        while len(card.seen) > 1:
            time.sleep(0.001)
    assert (peak.bytes_before, peak.bytes_peak) == (3, 9)
