"""An NVIDIA card as its driver's library NVML shows it: what it is, and how much of its memory is taken."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from types import TracebackType

LIBRARY = "libnvidia-ml.so.1"
MEMORY_CLOCK = 2  # enum nvmlClockType_t
INTERVAL_S = 0.02


class NoCardError(Exception):
    """There is no card that can be used; its message is one line."""


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


@dataclass(frozen=True)
class Facts:
    """What a report says of a card. `gb_s`: of its memory, by width and clock."""

    name: str
    driver: str
    compute_capability: str
    mib: int
    gb_s: float


class Card:
    """The first card; raises NoCardError. `folder`: of another library than the system's."""

    def __init__(self, folder: str | None = None) -> None:
        try:
            self._nvml = ctypes.CDLL(f"{folder}/{LIBRARY}" if folder else LIBRARY)
        except OSError:
            raise NoCardError(f"no NVIDIA driver: {LIBRARY} cannot be loaded") from None
        self._call("nvmlInit_v2")
        self._device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(self._device))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._nvml, name)(*arguments)
        if status != 0:
            raise NoCardError(f"the NVIDIA driver says no: {name} returned {status}")

    def _number(self, name: str, *arguments: object) -> int:
        found = ctypes.c_uint()
        self._call(name, self._device, *arguments, ctypes.byref(found))
        return found.value

    def _memory(self) -> _Memory:
        found = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(found))
        return found

    def used(self) -> int:
        """Bytes that are taken, by all processes."""
        return int(self._memory().used)

    def facts(self) -> Facts:
        """What it is."""
        name, driver = (ctypes.create_string_buffer(96) for _ in range(2))
        self._call("nvmlDeviceGetName", self._device, name, ctypes.c_uint(96))
        self._call("nvmlSystemGetDriverVersion", driver, ctypes.c_uint(96))
        major, minor = ctypes.c_int(), ctypes.c_int()
        found = (ctypes.byref(major), ctypes.byref(minor))
        self._call("nvmlDeviceGetCudaComputeCapability", self._device, *found)
        width = self._number("nvmlDeviceGetMemoryBusWidth")
        mhz = self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(MEMORY_CLOCK))
        gb_s = 2 * mhz * width / 8 / 1000  # two transfers a clock
        mib = int(self._memory().total) // 2**20
        return Facts(name.value.decode(), driver.value.decode(), f"{major.value}.{minor.value}", mib, gb_s)


class Peak:
    """The most memory of a card that was taken while the block ran; looked at every 20 ms."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes_before = self.bytes_peak = card.used()

    def _watch(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            self.bytes_peak = max(self.bytes_peak, self._card.used())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
