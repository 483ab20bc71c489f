"""`pyheadkv bench`: speed and memory against the stock cache, as tables, JSON and a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyheadkv.bench import Setup, run_bench
from pyheadkv.bench.capsule import run_capsules
from pyheadkv.bench.follow_up import run_follow_ups
from pyheadkv.bench.plots import write_plot
from pyheadkv.bench.prefill import run_prefill
from pyheadkv.bench.report import NOTE, RANDOM_NOTE, capsule_table, follow_up_table, prefill_table, tables
from pyheadkv.bench.shapes import ShapeModel, shape_file
from pyheadkv.cli.options import BenchOptions
from pyheadkv.cli.parsing import make_folder, make_trials, parse_budgets, parse_lengths, split_policies
from pyheadkv.cli.render import note, progress_bar
from pyheadkv.engine.load import usable_threads
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import BenchError, UsageError
from pyheadkv.files.jsonl import JsonLines, Record
from pyheadkv.files.measured import Block, measured_head
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.support import supported_shape
from pyheadkv.profile import Profile
from pyheadkv.profile.find import find_profile

RESULTS, PICTURE = "bench.jsonl", "bench.png"  # in the folder of --output
WIDTH = 240  # tables are Markdown and keep their lines; a narrow terminal folds them


def run(options: BenchOptions) -> None:
    """Measure, print tables or JSON, draw.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    """
    lengths = parse_lengths(options.lengths)
    n_questions = _question_lengths(options)
    policies = split_policies(options.policies)
    budgets = parse_budgets("100%" if options.equal_rows else options.budgets)
    block = Block.parse(options.readme) if options.readme else None
    file = _result_file(options.output)
    setup, profile = _setup(options)
    trials = make_trials(policies, budgets, profile)
    with progress_bar("measuring") as on_progress:
        if options.follow_ups:
            records = run_follow_ups(setup, lengths, n_questions, trials, on_progress)
            shown: Iterable[Table] = [follow_up_table(records)]
        elif options.capsules:
            records = run_capsules(setup, lengths, n_questions, trials, on_progress)
            shown = [capsule_table(records)]
        elif options.is_prefill:
            records = run_prefill(setup, lengths, trials, on_progress, options.with_memory)
            shown = [prefill_table(records)]
        else:
            records = run_bench(
                setup, lengths, trials, with_memory=options.with_memory, on_progress=on_progress, on_record=file.add
            )
            shown = tables(records, options.shape is not None)
    text = _text(setup, shown, options.shape is not None)
    if options.as_json:
        print(json.dumps({"random_weights": options.shape is not None, "results": records}))
    else:
        print(text)
    if block:
        block.write(f"{measured_head(sys.argv)}\n\n{text}", BenchError)
    if options.output and not (options.is_prefill or n_questions):
        _draw(setup, records, options.output / PICTURE)


def _question_lengths(options: BenchOptions) -> tuple[int, ...]:
    given = {
        "--prefill": options.is_prefill or None,
        "--follow-ups": options.follow_ups,
        "--capsules": options.capsules,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} measure different things: give one of them")
    lengths = options.follow_ups or options.capsules
    return parse_lengths(lengths, names[0], least=1) if lengths else ()


def _result_file(folder: Path | None) -> JsonLines:
    if folder is None:
        return JsonLines(None, BenchError)
    make_folder(folder, (RESULTS, PICTURE), BenchError)
    return JsonLines(folder / RESULTS, BenchError)


def _setup(options: BenchOptions) -> tuple[Setup, Profile | None]:
    path = _model_path(options)
    metadata = read_gguf_metadata(path)
    shape = supported_shape(metadata, path)
    shape.bytes_per_token(options.type_k, options.type_v)  # refuses unknown types and those that do not fit
    profile = find_profile(path, metadata, shape, options.profile, options.score_mix)
    setup = Setup(
        path,
        shape,
        type_k=options.type_k,
        type_v=options.type_v,
        n_threads=options.n_threads and usable_threads("n_threads", options.n_threads, note),
        n_gpu_layers=options.n_gpu_layers,
        n_tokens=options.n_tokens,
        n_rounds=options.n_rounds,
        seed=options.seed,
    )
    return setup, profile


def _model_path(options: BenchOptions) -> Path:
    if (options.model is None) == (options.shape is None):
        raise UsageError("bench needs a MODEL or a --shape, one of them")
    if options.model is not None:
        if options.n_layer is not None:
            raise UsageError("--layers goes with --shape")
        return resolve_model(options.model, note)
    return shape_file(ShapeModel(options.shape or "", options.n_layer, options.weights), note)


def _text(setup: Setup, shown: Iterable[Table], is_random: bool) -> str:
    """Tables in Markdown, and what they mean."""
    printer = Console(highlight=False, markup=False, width=WIDTH, soft_wrap=True, color_system=None)
    with printer.capture() as capture:
        for table in shown:
            printer.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, f"{_title(setup)}. {NOTE}{' ' + RANDOM_NOTE if is_random else ''}"])


def _title(setup: Setup) -> str:
    threads = "all CPUs" if setup.n_threads is None else f"{setup.n_threads} threads"
    cache = f"{setup.type_k}/{setup.type_v}"
    return f"{setup.path.name}, cache {cache}, {threads}, {setup.n_rounds} rounds of {setup.n_tokens} tokens"


def _draw(setup: Setup, records: Sequence[Record], path: Path) -> None:
    try:
        write_plot(records, _title(setup), path)
    except UsageError as error:
        note(f"no picture: {error}")
        return
    note(f"drawn: {path}")
