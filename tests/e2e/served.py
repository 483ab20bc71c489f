"""`pyheadkv serve` in a process of its own, on a port that is free."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
TIMEOUT_S = 150  # of one step, on a machine that does other things too


class ServerProcess:
    """A running server: its address, and what it wrote to its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.url = ""
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._is_up.wait(TIMEOUT_S) and self.url, "".join(self.log)

    def client(self, **options: object) -> openai.OpenAI:
        """OpenAI's own client, which asks once."""
        defaults: dict[str, object] = {"api_key": "none", "timeout": TIMEOUT_S, "max_retries": 0}
        return openai.OpenAI(base_url=f"{self.url}/v1", **(defaults | options))  # type: ignore[arg-type]

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it; gives its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"answers at (http://\S+)/v1", line):
                self.url = found[1]
                self._is_up.set()
        self._is_up.set()


@contextmanager
def serving(*arguments: str | Path) -> Iterator[ServerProcess]:
    """The command with these arguments, stopped behind the block."""
    command = [sys.executable, "-m", "pyheadkv.cli.app", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV)
    try:
        server = ServerProcess(process)
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        process.kill()
        process.wait()
