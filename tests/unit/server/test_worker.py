"""The thread on which the model answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyheadkv.errors import HeadKVError
from pyheadkv.server.worker import Job, Worker


@pytest.mark.parametrize("when", ["taken", "seen"])
def test_a_job_that_is_taken_while_the_server_stops(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    nothing: Any = None
    worker = Worker(nothing, 1, lambda finished: None)
    take, is_cancelled = worker.line.take, Job.is_cancelled

    def take_and_close() -> Job | None:
        job = take()
        if when == "taken":
            worker.line.close()
        return job

    def stop_first(job: Job) -> bool:
        if when == "seen":
            worker.line.close()
            job.cancel()
        return is_cancelled(job)

    monkeypatch.setattr(worker.line, "take", take_and_close)
    monkeypatch.setattr(Job, "is_cancelled", stop_first)

    async def ask() -> None:
        job = Job(nothing, "client")
        worker.line.put("client", job)
        worker.start()
        with pytest.raises(HeadKVError, match="the server stops"):
            await asyncio.wait_for(job.next(), 10)

    asyncio.run(ask())
    worker.stop()
