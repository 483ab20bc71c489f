"""The thread on which the model answers, and the way of a question there and back.

    handler (asyncio): Job --put--> Line --take--> Worker (thread): Answer --events--> handler

The model is never waited for by anybody else, and never waits: what it says goes into the job's own queue, however
slowly the client takes it. A job that nobody waits for any more ends between two operations.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pyheadkv.cache.stats import SessionStats
from pyheadkv.errors import HeadKVError
from pyheadkv.server.answer import Piece, Question
from pyheadkv.server.line import Line
from pyheadkv.server.model import Model
from pyheadkv.server.rows import RowMap, row_map

_MEAN_OF = 8  # answers

log = logging.getLogger("pyheadkv.server")


@dataclass(frozen=True)
class Reading:
    """So many tokens of the prompt are read, of those that have to be."""

    n_done: int
    n_total: int


@dataclass(frozen=True)
class Finished:
    """The end of an answer: its number, "stop", "length" or None where it was broken off, its tokens, its cache."""

    number: int
    reason: str | None
    n_generated: int
    stats: SessionStats


Event = Reading | Piece | Finished


class Job:
    """One question on its way; made by the handler that waits for its answer.

    Parameters
    ----------
    question
        for the model
    client
        who asks; clients take turns
    """

    def __init__(self, question: Question, client: str) -> None:
        self.question, self.client = question, client
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled.is_set()

    def send(self, event: Event | Exception) -> None:
        """Hand an event over, from any thread; after an exception or `Finished` nothing comes."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        """The next event.

        Raises
        ------
        Exception
            the answer failed with it
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


class Worker:
    """Answers one job after the other.

    Parameters
    ----------
    model
        only this thread lets it answer
    n_waiting_max
        jobs that may wait
    on_finished
        called on the thread behind each answer that began
    """

    def __init__(self, model: Model, n_waiting_max: int, on_finished: Callable[[Finished], None]) -> None:
        self.line: Line[Job] = Line(n_waiting_max)
        self._model, self._on_finished = model, on_finished
        self._now: Job | None = None
        self.seconds_each = 0.0  # of an answer, a moving mean
        self.row_map: RowMap | None = None  # behind the last answer
        self._n_answers = 0
        self._thread = threading.Thread(target=self._run, name="model")

    @property
    def is_answering(self) -> bool:
        """Whether the model is at work."""
        return self._now is not None

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Break off the answer that is being given, refuse those that wait, and come back when the thread has ended."""
        for job in self.line.close():
            job.send(HeadKVError("the server stops"))
        if now := self._now:
            now.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def leave(self, job: Job) -> None:
        """The client is gone, or has its answer."""
        job.cancel()
        self.line.remove(job.client, job)

    def _run(self) -> None:
        while job := self.line.take():
            self._now = job
            if self.line.is_closed:  # since it was taken: `stop` did not see it
                job.cancel()
            start = time.monotonic()
            try:
                if job.is_cancelled():
                    raise HeadKVError("the server stops")  # or its client is gone, and hears nothing
                self._answer(job)
            except HeadKVError as error:
                job.send(error)
            except Exception as error:
                log.exception("an answer failed")
                job.send(error)
            finally:
                self._now = None
                self.seconds_each += (time.monotonic() - start - self.seconds_each) / _MEAN_OF

    def _answer(self, job: Job) -> None:
        answer = self._model.answer(job.question, job.is_cancelled, lambda done, total: job.send(Reading(done, total)))
        try:
            for piece in answer.pieces():
                job.send(piece)
            self._model.check_memory()
            self._n_answers += 1
            self.row_map = row_map(self._model.headkv, self._n_answers)
            finished = Finished(self._n_answers, answer.finish, answer.n_generated, self._model.headkv.stats())
            self._on_finished(finished)
            job.send(finished)
        finally:
            self._model.keep(job.question)
