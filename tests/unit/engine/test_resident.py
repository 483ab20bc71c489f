"""Memory of this process, as Linux says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyheadkv.engine import resident


def test_resident_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(resident, "Path", lambda _: status)
    assert resident.resident() is None
    status.write_text("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   20 kB\nVmRSS:\t   10 kB\n")
    assert (resident.resident(), resident.resident("VmHWM")) == (10240, 20480)
