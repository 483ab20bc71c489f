"""Output beside the answer, all on stderr: notes, errors, the progress bar and the footer.

Plain text where stderr is no terminal, and without colours where NO_COLOR is set; rich sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pyheadkv.cache.stats import SessionStats, mib

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """One line that the user should know."""
    console.print(f"note: {text}", style="dim")


def error(problem: Exception) -> None:
    """One line about what went wrong in a chat that goes on."""
    console.print(f"error: {problem}", style="red")


def footer(stats: SessionStats) -> None:
    """Speed and memory of the turn that ended."""
    console.print(footer_text(stats), style="dim")


def footer_text(stats: SessionStats) -> str:
    """The line of `footer`: speeds of the turn, the KV cache beside a whole one of as many positions, the archive."""
    read = f"{_speed(stats.tok_s_prefill)} t/s" if stats.n_read else "cached"
    reused = f", {stats.n_reused} tokens reused" if stats.n_read and stats.n_reused else ""
    kept, full = stats.bytes_measured, stats.bytes_full
    # a short chat does not fill the cells that exist
    memory = f"{mib(kept)} of {mib(full)} MiB ({100 * kept / full:.0f} %)" if kept < full else f"{mib(kept)} MiB"
    native = stats.native
    archive = f" | archive {mib(native.bytes_archive)} MiB {stats.archive}" if native.bytes_archive else ""
    beside = f" + {mib(native.bytes_beside)} MiB windows and states" if native.bytes_beside else ""
    return f"[ prompt {read}{reused} | generation {_speed(stats.tok_s_decode)} t/s | KV {memory}{beside}{archive} ]"


def _speed(tok_s: float) -> str:
    return f"{tok_s:.0f}" if tok_s >= 10 else f"{tok_s:.1f}"


def stats_text(stats: SessionStats, plan_words: str, bytes_checkpoints: int = 0) -> str:
    """The answer to /stats; windows, states and their checkpoints where the model has some."""
    native = stats.native
    repeated = f", repeated in {stats.ms_reconstruction:.0f} ms" if stats.ms_reconstruction else ""
    beside = f"beside       {mib(native.bytes_beside)} MiB windows and states, {mib(bytes_checkpoints)} MiB checkpoints"
    return "\n".join(
        (
            f"positions    {native.n_pos}, of which {native.n_pos_hot} compressed",
            f"plan         {plan_words}",
            f"rows         {native.n_rows_hot} compressed + {native.n_rows_tail} whole of {native.n_rows_full}",
            f"KV memory    {mib(native.bytes_hot)} compressed + {mib(native.bytes_tail)} whole "
            f"of {mib(stats.bytes_full)} MiB, peak {mib(native.bytes_peak)} MiB",
            *([beside] if native.bytes_beside else []),
            f"archive      {native.n_pos_archive} positions, {mib(native.bytes_archive)} MiB {stats.archive}",
            f"cells        {native.n_cells_used} used of {native.n_cells}, grown {native.n_grow} times",
            f"last turn    prompt {stats.n_prompt} ({stats.n_read} read in {stats.ms_prefill:.0f} ms{repeated}, "
            f"selected in {stats.ms_select:.0f} ms), generated {stats.n_generated} ({stats.ms_decode:.0f} ms)",
        )
    )


@contextmanager
def resumable(part: Path) -> Iterator[None]:
    """Say where measured results are kept, if there are any, when Ctrl-C or SIGTERM stops what measures them."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if part.is_file():
            note(f"stopped; what is measured is in {part}, and the same command goes on from there")
        raise


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left; invisible where stderr is no terminal.

    Gives a function of (done, total, what comes next).
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, what="")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)


class ReadingBar:
    """A progress bar while a prompt is read; invisible where stderr is no terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def update(self, done: int, total: int) -> None:
        """Show that done of total tokens are read; a prompt that is read at one go needs no bar."""
        if not console.is_terminal or (self._progress is None and done >= total):
            return
        if self._progress is None:
            columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._progress.add_task("reading", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done)
        if done >= total:
            self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
