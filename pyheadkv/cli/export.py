"""`pyheadkv export`: which profile goes into which file."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pyheadkv.cli import inspect
from pyheadkv.cli.options import ExportOptions, InspectOptions
from pyheadkv.cli.render import console, note, resumable
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import UsageError
from pyheadkv.export import check_output, export_model, remove_profile
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.policy.budget import Budget
from pyheadkv.profile import Profile, mix_profile, read_profile

PROFILE_SUFFIX = ".headkv.json"


def run(options: ExportOptions) -> None:
    """Write the file and print its path.

    Raises
    ------
    HeadKVError
        options that do not go together, no profile, or as of `export_model`
    """
    if options.is_inspecting:
        inspect.run(InspectOptions(model=options.model, budget=options.budget, profile=options.profile))
        return
    keep_ratio = _keep_ratio(options.budget)
    _check(options)
    path = resolve_model(options.model, note)
    check_output(path, options.output, force=options.force)  # before minutes of measuring
    profile = None if options.is_removing else _find_profile(options, path)
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        how = {"in_place": options.in_place, "force": options.force}
        if profile is None:
            written = remove_profile(path, options.output, **how, on_progress=show)
        else:
            written = export_model(path, options.output, profile, keep_ratio=keep_ratio, **how, on_progress=show)
    if options.is_calibrating:
        _part_of(path).unlink(missing_ok=True)
    for file in written:
        print(file)


def _check(options: ExportOptions) -> None:
    if (options.output is None) != options.in_place:
        raise UsageError("expected either -o OUT.gguf or --in-place")
    if options.profile and options.is_calibrating:
        raise UsageError("expected either --profile or --calibrate, not both")
    if options.is_removing and (
        options.profile or options.is_calibrating or options.score_mix is not None or options.budget is not None
    ):
        raise UsageError("--remove goes with no --profile, --calibrate, --score-mix or --budget")


def _keep_ratio(budget: str | None) -> float | None:
    if budget is None:
        return None
    parsed = Budget.parse(budget)
    if parsed.kind not in ("ratio", "full"):
        raise UsageError(f"budget {budget} cannot be stored as a default, expected a share such as 10%")
    return float(parsed.value)


def _find_profile(options: ExportOptions, path: Path) -> Profile:
    if options.is_calibrating:
        profile = _calibrate(path)
    else:
        with open_header(path) as header:
            shape = shape_from_metadata(header.metadata())
        profile = read_profile(options.profile or _beside(path), shape)
    if profile.fingerprint is None:
        note(f"{profile.source} does not say which model it was measured on")
    return mix_profile(profile, options.score_mix)


def _calibrate(path: Path) -> Profile:
    from pyheadkv.calibrate import CalibrationSettings
    from pyheadkv.cli.calibrate import calibrate_model

    part = _part_of(path)
    with resumable(part):
        return calibrate_model(path, CalibrationSettings(), part=part)


def _part_of(path: Path) -> Path:
    """Where `pyheadkv calibrate` keeps what is measured, so that either command goes on with the other's."""
    return Path(f"{path.stem}{PROFILE_SUFFIX}.part")


def _beside(path: Path) -> Path:
    beside = path.with_suffix(PROFILE_SUFFIX)
    if not beside.is_file():
        raise UsageError(f"there is no {beside}: name the head scores with --profile FILE, or measure with --calibrate")
    note(f"head scores of {beside}")
    return beside
