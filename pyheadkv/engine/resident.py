"""Resident memory (RSS): the system's count of the whole process, its model, buffers and Python included."""

from __future__ import annotations

from pathlib import Path


def resident(which: str = "VmRSS") -> int | None:
    """Bytes of this process in memory now (VmRSS), or the most there ever were (VmHWM); None without a /proc to ask."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024
