"""Ctrl-C while a prompt is read: the computation stops at once, and the exception comes out behind it.

A Python handler cannot run while llama_decode does, and a batch of a prompt takes seconds. llama.cpp asks a callback
after each operation on the CPU whether to stop (a GPU computes its batch to the end); Python runs the handler there:

    SIGINT | callback: handler raises -> kept | callback: stop | llama_decode fails | raised to the caller

An exception must come neither out of a callback, where it would be lost, nor out of llama_cpp between a decode and the
count of its tokens. A handler that raises nothing stops nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyheadkv.engine.native import Native

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def interruptible(native: Native) -> Iterator[None]:
    """Within the block llama_decode stops when a signal's handler raises; its exception is raised behind the block.

    Outside of the main thread there are no signals, and nothing is done. Not for single tokens: the callback takes
    about 1 us for each operation of the graph.

    Raises
    ------
    KeyboardInterrupt, SystemExit, ...
        raised by the handler; a batch that was stopped may be in the cache in part
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    try:
        for number, handler in reversed(handlers.items()):
            signal.signal(number, _kept(handler, raised))
        with native.abortable(lambda: bool(raised)):
            yield
    except Exception:
        if not raised:  # else it is the failure of what was stopped
            raise
    finally:
        for number, handler in handlers.items():  # SIGINT last: whatever it raises, all are back
            signal.signal(number, handler)
    if raised:
        raise raised[0]


def _kept(handler: Callable[..., Any], raised: list[BaseException]) -> Callable[..., None]:
    def handle(*arguments: Any) -> None:
        try:
            handler(*arguments)
        except BaseException as error:
            raised.append(error)

    return handle
