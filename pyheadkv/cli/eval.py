"""`pyheadkv eval`: what policies and budgets are worth on a model, as a table, a report and pictures."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from pyheadkv.cli import eval_report
from pyheadkv.cli.options import EvalOptions
from pyheadkv.cli.parsing import (
    cache_name,
    make_folder,
    make_trials,
    parse_archives,
    parse_budgets,
    parse_lengths,
    parse_questions,
    parse_versus,
    split_policies,
)
from pyheadkv.cli.render import note, progress_bar, resumable
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.benchmarks import fit_cases, load_cases
from pyheadkv.evaluate.cases import KL, Case, write_cases
from pyheadkv.evaluate.kvpress import CACHE, Press, PressRunner, libraries, parse_press, versions
from pyheadkv.evaluate.metrics import LogProbs, check_libraries
from pyheadkv.evaluate.prompted import IN
from pyheadkv.evaluate.report import main_tables
from pyheadkv.evaluate.results import Results, cells
from pyheadkv.evaluate.runner import Runner, open_runner
from pyheadkv.evaluate.sweep import Measurer, Sweep, run_mark, run_sweep
from pyheadkv.evaluate.talk import TalkTrial, open_talk_runner
from pyheadkv.evaluate.talk_report import turn_tables
from pyheadkv.evaluate.tasks import Prose, make_cases, parse_tasks
from pyheadkv.evaluate.tasks.make import length_name
from pyheadkv.evaluate.tasks.talks import make_talks
from pyheadkv.files.jsonl import Record
from pyheadkv.files.measured import Block, measured_head
from pyheadkv.model.file import check_has_vocabulary, read_gguf_metadata
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.shape import ModelShape
from pyheadkv.model.support import supported_shape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.resolve import resolve
from pyheadkv.policy.trial import Trial
from pyheadkv.profile import Profile
from pyheadkv.profile.find import find_profile

RESULTS, CASES = "cells.jsonl", "cases.jsonl"  # in the folder of --output


@dataclass(frozen=True)
class _Request:
    """The options, read."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    questions: tuple[str, ...]
    budgets: list[Budget]
    policies: list[str]
    versus: list[str]
    presses: list[Press]
    prose: Prose
    given: list[Case]
    archives: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Model:
    """Facts about the model before it is loaded."""

    path: Path
    shape: ModelShape
    profile: Profile | None
    fingerprint: str
    facts: dict[str, object]


def run(options: EvalOptions) -> None:
    """Measure, print tables, write the report.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    KeyboardInterrupt
        Ctrl-C (SIGTERM is a SystemExit); what is measured so far is kept
    """
    request = _read_options(options)
    block = Block.parse(options.readme) if options.readme else None
    model = _read_model(options, request)
    trials = make_trials(request.policies, request.budgets, model.profile)
    folder = options.output or Path(f"{model.path.stem}.eval")
    make_folder(folder, (RESULTS, CASES, *eval_report.FILES), EvaluationError)
    results = Results(folder / RESULTS)
    with resumable(folder / RESULTS):
        work = _Run(options, request, model, results, trials)
        cases, records = work.measure_talks() if options.n_turns else work.measure()
    write_cases(folder / CASES, cases)
    eval_report.write_report(f"pyheadkv eval {model.path.stem}", _facts(options, model), records, folder)
    if block:
        tables = turn_tables(records) if options.n_turns else main_tables(cells(records))
        block.write(f"{measured_head(sys.argv)}\n\n{tables}", EvaluationError)


def _read_options(options: EvalOptions) -> _Request:
    lengths, questions = parse_lengths(options.lengths), parse_questions(options.questions)
    versus = parse_versus(options.versus, options.type_k, options.type_v)
    budgets = parse_budgets(options.budgets)
    methods = split_policies(options.kvpress) if options.kvpress else []
    presses = [parse_press(text, budget) for text in methods for budget in budgets]
    if presses:
        libraries()
    given = [case for text in options.data or () for case in cases_of_file(text, lengths, options.n_cases)]
    tasks = parse_tasks(options.tasks) if options.tasks else () if given else parse_tasks("needles,kl")
    if presses and any(budget.kind != "ratio" for budget in budgets):
        raise UsageError(f"--kvpress needs budgets that are shares of the rows (10%), --budgets has {options.budgets}")
    policies = split_policies(options.policies)
    archives = parse_archives(options.archives) if options.n_turns else ()
    return _Request(tasks, lengths, questions, budgets, policies, versus, presses, Prose(options.text), given, archives)


def _read_model(options: EvalOptions, request: _Request) -> _Model:
    path = resolve_model(options.model, note)
    metadata = read_gguf_metadata(path)
    shape = supported_shape(metadata, path)
    check_has_vocabulary(metadata, path)
    if max(request.lengths) > shape.n_ctx_train:
        raise UsageError(f"--ctx {max(request.lengths)} is more than the {shape.n_ctx_train} tokens of this model")
    profile = find_profile(path, metadata, shape, options.profile, options.score_mix)
    facts: dict[str, object] = {
        "file": path.name,
        "text": request.prose.mark,
        "profile": profile and [profile.scores, profile.kinds, [vars(setting) for setting in profile.settings]],
    }
    return _Model(path, shape, profile, fingerprint(path), facts)


def _facts(options: EvalOptions, model: _Model) -> list[tuple[str, str]]:
    """For the report."""
    profile = model.profile
    return [
        ("model", f"{model.path.name}, {model.fingerprint}"),
        ("head scores", f"{profile.source} ({profile.method})" if profile else "none"),
        ("cache types", f"{options.type_k}, {options.type_v}"),
        ("text", str(options.text) if options.text else "pyheadkv's own prose"),
        *(("cases of", text) for text in options.data or ()),
        ("seed", str(options.seed)),
    ]


def cases_of_file(text: str, lengths: Sequence[int], n_cases: int) -> list[Case]:
    """The first cases of each task and length of a file; of those whose length is known, those that are asked for.

    Ids get the file's name.

    Raises
    ------
    EvaluationError
        the file cannot be read, or has none of these lengths
    UsageError
        a library that scores them is missing
    """
    cases = load_cases(text, note)
    check_libraries(case.metric for case in cases)
    names = {name for length in lengths for name in (length_name(length), str(length))}
    fit = [case for case in cases if not case.bucket or case.bucket in names]
    if not fit:
        there = ", ".join(dict.fromkeys(case.bucket for case in cases))
        raise EvaluationError(f"{text} has no cases of the lengths asked for, it has {there} (--ctx)")
    seen: Counter[tuple[str, str]] = Counter()
    first = []
    for case in fit:
        seen[case.task, case.bucket] += 1
        if seen[case.task, case.bucket] <= n_cases:
            first.append(replace(case, id=f"{Path(text).stem}: {case.id}"))
    return first


@dataclass(frozen=True)
class _Run:
    """Trials on a model, and the place of their results."""

    options: EvalOptions
    request: _Request
    model: _Model
    results: Results
    trials: Sequence[Trial]

    def measure(self) -> tuple[list[Case], list[Record]]:
        """One cache type after the other, since a context has one; all are compared with the first."""
        base, *others = [(self.options.type_k, self.options.type_v), *((name, name) for name in self.request.versus)]
        with self._open(base) as runner:
            cases = self._cases(runner)
            references: dict[str, LogProbs] = {}
            sweeps = {}
            for types in (base, *others):
                mark = self._mark(types=types, against=base)
                sweeps[types] = self._sweeps(mark, cases, self.trials, cache_name(*types), references)
            records: list[Record] = []
            for sweep, *later in zip(*sweeps.values(), strict=True):
                records += self._sweep(runner, sweep.lending_to(later, self.results))
            if self.request.presses:
                records += self._presses(runner, cases)
        for types in others:
            with self._open(types) as runner:
                for sweep in sweeps[types]:
                    records += self._sweep(runner, sweep)
        return cases, records

    def measure_talks(self) -> tuple[list[Case], list[Record]]:
        """Chats, with each trial and each kind of archive."""
        options, request = self.options, self.request
        trials = [TalkTrial(trial, archive) for trial in self.trials for archive in request.archives]
        cases: list[Case] = []
        records: list[Record] = []
        for length in request.lengths:
            with open_talk_runner(
                self.model.path,
                self.model.shape,
                length * (2 if self._repeats((options.type_k, options.type_v)) else 1),
                options.n_turns,
                note,
                type_k=options.type_k,
                type_v=options.type_v,
                n_threads=options.n_threads,
                n_gpu_layers=options.n_gpu_layers,
            ) as runner:
                talks = make_talks(options.n_cases, options.n_turns, length, options.seed, request.prose, runner.sizes)
                mark = self._mark(types=(options.type_k, options.type_v), turns=options.n_turns)
                records += self._sweep(
                    runner, Sweep(mark, talks, trials, IN, cache_name(options.type_k, options.type_v))
                )
                cases += talks
        return cases, records

    def _mark(self, **how: object) -> str:
        return run_mark(self.model.fingerprint, **self.model.facts, **how)

    def _sweeps(
        self,
        mark: str,
        cases: Sequence[Case],
        trials: Sequence[Trial | Press],
        cache: str,
        references: dict[str, LogProbs],
    ) -> list[Sweep]:
        """One for each question; cases that have none, prose, belong to the first."""
        questions = self.request.questions
        by_question = {q: [case for case in cases if case.metric != KL or q == questions[0]] for q in questions}
        return [Sweep(mark, own, trials, question, cache, references) for question, own in by_question.items()]

    def _cases(self, runner: Runner) -> list[Case]:
        request, options = self.request, self.options
        made = [
            case
            for length in request.lengths
            for task in request.tasks
            for case in make_cases(task, options.n_cases, length, options.seed, request.prose, runner.sizes)
        ]
        given, n_cut = fit_cases(request.given, request.lengths, runner.sizes)
        if n_cut:
            limit = length_name(max(request.lengths))
            note(f"{n_cut} of {len(given)} cases of files are longer than {limit} tokens: cut in the middle (--ctx)")
        return [*made, *given]

    def _sweep(self, runner: Measurer, sweep: Sweep) -> list[Record]:
        with progress_bar(f"evaluating, {sweep.cache}, question {sweep.question}") as on_progress:
            return run_sweep(runner, sweep, self.results, on_progress)

    def _presses(self, runner: Runner, cases: Sequence[Case]) -> list[Record]:
        peer = PressRunner(self.model.path, runner.case_prompter, self.options.n_threads)
        mark = self._mark(types="kvpress", versions=versions())
        sweeps = self._sweeps(mark, cases, self.request.presses, CACHE, {})
        return [record for sweep in sweeps for record in self._sweep(peer, sweep)]

    def _open(self, types: tuple[str, str]) -> AbstractContextManager[Runner]:
        threads = {"n_threads": self.options.n_threads, "n_gpu_layers": self.options.n_gpu_layers}
        n_tokens = max(self.request.lengths) * (2 if self._repeats(types) else 1)
        return open_runner(
            self.model.path, self.model.shape, n_tokens, note, type_k=types[0], type_v=types[1], **threads
        )

    def _repeats(self, types: tuple[str, str]) -> bool:
        """Whether a policy, or what `auto` comes to, has prompts repeated beside themselves."""
        shape = self.model.shape
        return any(
            resolve(it.policy, it.profile, it.budget.keep_ratio(shape, n, *types)).policy.scorer.needs_reconstruction
            for it in self.trials
            for n in self.request.lengths
        )
