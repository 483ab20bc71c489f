"""One prompt, read and gone on with as everybody does it, in a process of its own: times and memory of either side.

Resident memory is None where the system does not say.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.bench.setup import Setup, finish, no_memory_error
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.resident import resident
from pyheadkv.errors import BenchError, HeadKVError
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp

Memory = dict[str, int | None]

N_WARM_UP = 64  # tokens read before anything is measured: then the weights are in memory


@dataclass(frozen=True)
class Reading:
    """Figures of one process; ours also has what its buffers say.

    Parameters
    ----------
    ms_prefill
        the whole prompt, scoring included
    ms_select
        a reconstruction pass if the policy has one, reading scores, choosing, gathering, freeing the full cache
    rss
        bytes: "loaded", the model; "whole", the last of the prompt read, before or while rows are chosen; "read", after
        the compression; "decoded", some tokens later; "peak", the most there ever were
    bytes_peak
        of K and V buffers, the most there ever was
    """

    ms_prefill: float
    ms_select: float
    rss: Memory
    bytes_peak: int


def read_apart(setup: Setup, n_prompt: int, trial: Trial | None) -> Reading:
    """Measure in a process of its own; trial None is the stock cache.

    Raises
    ------
    BenchError
        with the process's own reason, or because it ended without one
    """
    context = multiprocessing.get_context("spawn")  # nothing of this process's memory is in that one
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, setup, n_prompt, trial), daemon=True)
    process.start()
    sender.close()
    try:
        found: Reading | str = receiver.recv()
    except EOFError:
        process.join()
        what = "the stock cache" if trial is None else f"{trial.name} at {trial.budget.request}"
        raise BenchError(
            f"{what}: the process that measures memory ended with {process.exitcode} before it was done"
        ) from None
    finally:
        process.kill()  # Ctrl-C leaves nothing behind
        process.join()
    if isinstance(found, str):
        raise BenchError(found)
    return found


def _report(sender: Connection, setup: Setup, n_prompt: int, trial: Trial | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        sender.send(measure_stock(setup, n_prompt) if trial is None else measure_ours(setup, n_prompt, trial))
    except HeadKVError as error:
        sender.send(str(error))


def measure_stock(setup: Setup, n_prompt: int) -> Reading:
    """Upstream's cache."""
    with setup.open_stock(n_prompt) as llama:
        prompt = setup.prompt(llama, n_prompt)
        _warm_up(llama, prompt)
        loaded = resident()
        start = time.perf_counter()
        llama.eval(prompt)
        finish(llama)
        ms_prefill = (time.perf_counter() - start) * 1000
        whole = resident()
        _decode(llama, prompt[: setup.n_tokens])
        decoded = resident()
        return Reading(ms_prefill, 0.0, _memory(loaded, whole, whole, decoded), 0)


def measure_ours(setup: Setup, n_prompt: int, trial: Trial) -> Reading:
    """Our cache, through the ordinary session.

    Raises
    ------
    BenchError
        the prompt was not compressed: there was no memory
    """
    with setup.open_ours(n_prompt) as llama:
        prompt = setup.prompt(llama, n_prompt)
        _warm_up(llama, prompt)
        whole: list[int | None] = []
        settings: Any = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile}
        with HeadKV(llama, **settings, min_prompt=0, on_progress=lambda *_: whole.append(resident())) as headkv:
            headkv.clear()
            headkv.native.reset_peak()
            loaded = resident()
            llama.eval(prompt)
            _decode(llama, prompt[: trial.policy.lookahead])
            if headkv.plan is None:
                raise no_memory_error(trial)
            stats, read = headkv.stats(), resident()
            _decode(llama, prompt[: setup.n_tokens])
            decoded = resident()
            return Reading(
                stats.ms_prefill,
                stats.ms_reconstruction + stats.ms_select,
                _memory(loaded, whole[-1], read, decoded),
                headkv.stats().native.bytes_peak,
            )


def _memory(*seen: int | None) -> Memory:
    """The kernel's own figure of the most there ever were lags behind by some pages."""
    known = [n for n in (resident("VmHWM"), *seen) if n is not None]
    return dict(zip(("loaded", "whole", "read", "decoded"), seen, strict=True)) | {"peak": max(known, default=None)}


def _warm_up(llama: llama_cpp.Llama, prompt: list[int]) -> None:
    llama.eval(prompt[:N_WARM_UP])
    finish(llama)
    llama.n_tokens = 0


def _decode(llama: llama_cpp.Llama, tokens: list[int]) -> None:
    for token in tokens:
        llama.eval([token])
        finish(llama)


def read_from_disk() -> int | None:
    """Bytes that this process has caused to be read from a disk so far."""
    try:
        counts = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return None
    return int(counts.partition("read_bytes: ")[2].split()[0])
