"""`pyheadkv eval`: what policies and budgets are worth on a model, as a table, a report and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from pyheadkv.budget import Budget
from pyheadkv.cli.app import EvalOptions
from pyheadkv.cli.render import note, progress_bar
from pyheadkv.errors import EvaluationError, ProfileError, UsageError
from pyheadkv.evaluate.cases import Case, read_cases, write_cases
from pyheadkv.evaluate.plots import write_curves, write_depths
from pyheadkv.evaluate.report import markdown, tables
from pyheadkv.evaluate.results import FULL, Cell, Results, cells
from pyheadkv.evaluate.runner import QUESTIONS, Contender, Runner
from pyheadkv.evaluate.sweep import Sweep, run_mark, run_sweep
from pyheadkv.evaluate.tasks import Prose, make_cases, parse_tasks
from pyheadkv.evaluate.tasks.make import length_name
from pyheadkv.fingerprint import fingerprint
from pyheadkv.jsonl import Record
from pyheadkv.loading import opened
from pyheadkv.lookup import find_profile
from pyheadkv.models import resolve_model
from pyheadkv.native import read_gguf_metadata
from pyheadkv.policy import parse_policy
from pyheadkv.profile import Profile
from pyheadkv.shape import ModelShape, supported_shape

ROOM = 512  # positions beside a prompt: for its answer, and for cases of a file that are a little longer than they say
MIN_LENGTH = 128


@dataclass(frozen=True)
class _Asked:
    """The options, read."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    budgets: list[Budget]
    policies: list[str]
    prose: Prose
    given: list[Case]


@dataclass(frozen=True)
class _Model:
    """What is known of the model before it is loaded."""

    path: Path
    shape: ModelShape
    profile: Profile | None
    mark: str


def run_eval(options: EvalOptions) -> None:
    """Measure, print tables, write the report.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    KeyboardInterrupt
        Ctrl-C; what is measured so far is kept
    """
    asked = _read_options(options)
    model = _read_model(options, asked)
    fighters = [contender(text, model.profile) for text in asked.policies]
    trials = [(fighter, budget) for fighter in fighters for budget in asked.budgets]
    folder = options.output or Path(f"{model.path.stem}.eval")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be made: {error.strerror}") from None
    results = Results(folder / "cells.jsonl")
    try:
        cases, records = _measure(options, asked, model, trials, results)
    except KeyboardInterrupt:
        note(f"stopped; what is measured is in {results.path}, and the same command goes on from there")
        raise
    write_cases(folder / "cases.jsonl", cases)
    _report(options, model, records, folder)


def _read_options(options: EvalOptions) -> _Asked:
    lengths = parse_lengths(options.lengths)
    if options.question not in QUESTIONS:
        raise UsageError(f"--question is {options.question!r}, expected {' or '.join(QUESTIONS)}")
    given = [case for path in options.data for case in cases_of_file(path, lengths)]
    tasks = parse_tasks(options.tasks) if options.tasks else () if given else parse_tasks("needles,kl")
    budgets = [Budget.parse(text) for text in options.budgets.split(",")]
    return _Asked(tasks, lengths, budgets, split_policies(options.policies), Prose(options.text), given)


def _read_model(options: EvalOptions, asked: _Asked) -> _Model:
    path = resolve_model(options.model, note)
    metadata = read_gguf_metadata(path)
    shape = supported_shape(metadata, path)
    if max(asked.lengths) > shape.n_ctx_train:
        raise UsageError(f"--ctx {max(asked.lengths)} is more than the {shape.n_ctx_train} tokens of this model")
    profile = find_profile(path, metadata, shape, options.profile, options.profile_mix)
    mark = run_mark(
        fingerprint(path),
        file=path.name,
        types=[options.type_k, options.type_v],
        text=asked.prose.mark,
        profile=profile and [profile.scores, profile.kinds, [vars(setting) for setting in profile.settings]],
    )
    return _Model(path, shape, profile, mark)


def contender(policy: str, profile: Profile | None) -> Contender:
    """A policy as typed, with the profile at hand.

    Raises
    ------
    PolicyError, ProfileError
        an unknown policy, or one that needs head scores where there are none
    """
    parsed = parse_policy(policy)
    if parsed.needs_profile and profile is None:
        raise ProfileError(f"policy {policy} needs measured head scores: --profile FILE (pyheadkv calibrate makes one)")
    return Contender(policy, parsed, profile)


def parse_lengths(text: str) -> tuple[int, ...]:
    """2k,4k or numbers of tokens.

    Raises
    ------
    UsageError
        naming the part that cannot be read, or is too short
    """
    lengths: dict[int, None] = {}
    for part in text.lower().split(","):
        digits, is_kilo = part.strip().removesuffix("k"), part.strip().endswith("k")
        if not digits.isdecimal():
            raise UsageError(f"--ctx {part.strip()[:40]!r} cannot be read, expected lengths as in 2k,4k or 1000")
        length = int(digits) * (1024 if is_kilo else 1)
        if length < MIN_LENGTH:
            raise UsageError(f"--ctx {length} is too short, at least {MIN_LENGTH} tokens are needed")
        lengths[length] = None
    return tuple(lengths)


def split_policies(text: str) -> list[str]:
    """Policies apart by commas, whose settings have commas as well: auto,headkv:beta=2,n_obs=32,snapkv -> 3."""
    policies: list[str] = []
    for part in text.split(","):
        is_setting = "=" in part and ":" not in part.partition("=")[0]
        if is_setting and policies:
            policies[-1] += f",{part}"
        else:
            policies.append(part.strip())
    return list(dict.fromkeys(policies))


def cases_of_file(path: Path, lengths: Sequence[int]) -> list[Case]:
    """Cases of a file whose length is asked for (all, where the file names no lengths); ids get the file's name.

    Raises
    ------
    EvaluationError
        the file cannot be read, or has none of these lengths
    """
    cases = read_cases(path)
    names = {name for length in lengths for name in (length_name(length), str(length))}
    fit = [case for case in cases if not case.bucket or case.bucket in names]
    if not fit:
        there = ", ".join(dict.fromkeys(case.bucket for case in cases))
        raise EvaluationError(f"{path} has no cases of the lengths asked for, it has {there} (--ctx)")
    return [replace(case, id=f"{path.stem}: {case.id}") for case in fit]


def _measure(
    options: EvalOptions,
    asked: _Asked,
    model: _Model,
    trials: Sequence[tuple[Contender, Budget]],
    results: Results,
) -> tuple[list[Case], list[Record]]:
    opened = open_runner(
        model.path,
        model.shape,
        max(asked.lengths),
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        type_k=options.type_k,
        type_v=options.type_v,
    )
    with opened as runner:
        made = [
            case
            for length in asked.lengths
            for task in asked.tasks
            for case in make_cases(task, options.n_cases, length, options.seed, asked.prose, runner.sizes)
        ]
        cases = [*made, *asked.given]
        with progress_bar("evaluating") as on_progress:
            return cases, run_sweep(runner, Sweep(model.mark, cases, trials, options.question), results, on_progress)


@contextmanager
def open_runner(
    path: Path,
    shape: ModelShape,
    n_tokens: int,
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    type_k: str = "f16",
    type_v: str = "f16",
) -> Iterator[Runner]:
    """Load a model for prompts of a length; it is freed afterwards."""
    n_ctx = min(shape.n_ctx_train, n_tokens + ROOM)
    threads = {"n_threads": n_threads, "n_gpu_layers": n_gpu_layers}
    with opened(path, n_ctx=n_ctx, type_k=type_k, type_v=type_v, **threads) as llama:
        yield Runner(llama, shape, type_k, type_v)


def _report(options: EvalOptions, model: _Model, records: list[Record], folder: Path) -> None:
    found = cells(records)
    printer = Console(highlight=False)
    for table in tables(found):
        printer.print(table)
    pictures = _draw(found, records, folder)
    profile = model.profile
    facts = [
        ("model", f"{model.path.name}, {fingerprint(model.path)}"),
        ("head scores", f"{profile.source} ({profile.method})" if profile else "none"),
        ("cache types", f"{options.type_k}, {options.type_v}"),
        ("text", str(options.text) if options.text else "pyheadkv's own prose"),
        ("seed", str(options.seed)),
        *_settled(records),
    ]
    text = markdown(found, f"pyheadkv eval {model.path.stem}", facts, pictures)
    try:
        (folder / "report.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{folder / 'report.md'} cannot be written: {error.strerror}") from None
    print(folder / "report.md")


def _draw(found: Sequence[Cell], records: Sequence[Record], folder: Path) -> list[str]:
    try:
        write_curves(found, folder / "quality.png")
        has_depths = write_depths(records, folder / "depths.png")
    except UsageError as error:
        note(f"no pictures: {error}")
        return []
    return ["quality.png", *(["depths.png"] if has_depths else [])]


def _settled(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What each policy came to at each budget, with all its settings."""
    found = {(record["policy"], record["budget"]): record["settled"] for record in records}
    return [
        (f"{policy} at {budget}", settled)
        for (policy, budget), settled in found.items()
        if settled not in (policy, FULL)
    ]
