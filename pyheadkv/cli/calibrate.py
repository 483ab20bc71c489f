"""`pyheadkv calibrate`: measure the head scores of a model and write them to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyheadkv.calibrate import CalibrationSettings, calibrate
from pyheadkv.cli.choose import choose_for_model
from pyheadkv.cli.options import CalibrateOptions
from pyheadkv.cli.render import note, progress_bar, resumable
from pyheadkv.engine.load import opened
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import ProfileError, UsageError
from pyheadkv.files.targets import check_target
from pyheadkv.model.file import check_has_vocabulary, read_gguf_metadata
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.support import supported_shape
from pyheadkv.profile import Profile, Scores, parse_mix, write_profile

N_LEADING = 10


def run(options: CalibrateOptions) -> None:
    """Measure, write the profile, print how far it can be trusted.

    What is measured is kept in a file beside the output until the profile is written.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    KeyboardInterrupt
        Ctrl-C (SIGTERM is a SystemExit); what is measured so far is kept
    """
    settings = read_settings(options)
    path = resolve_model(options.model, note)
    output = options.output or Path(f"{path.stem}.headkv.json")
    part, choices = (output.with_name(f"{output.name}{end}") for end in (".part", ".choose.part"))
    check_target(output, ProfileError, "-o")  # before minutes of measuring
    threads: dict[str, Any] = {"n_threads": options.n_threads, "n_gpu_layers": options.n_gpu_layers}
    with resumable(part):
        profile = calibrate_model(path, settings, part=part, force=options.force, **threads)
        if options.is_choosing:
            profile = choose_for_model(path, profile, choices, **threads)
    write_profile(output, profile)
    for measured in (part, choices):
        measured.unlink(missing_ok=True)
    print("\n".join(report_lines(profile)))
    print(output)


def calibrate_model(
    path: Path,
    settings: CalibrationSettings,
    *,
    part: Path | None = None,
    force: bool = False,
    **threads: Any,
) -> Profile:
    """Load a model, measure it behind a progress bar, free it again. `threads` are those of `opened`.

    Raises
    ------
    HeadKVError
        as of `pyheadkv.calibrate.calibrate`, and what cannot be loaded or compressed
    """
    metadata = read_gguf_metadata(path)
    n_ctx = settings.n_ctx(supported_shape(metadata, path).n_ctx_train)
    check_has_vocabulary(metadata, path)
    mark = fingerprint(path)
    with opened(path, n_ctx=n_ctx, on_notice=note, **threads) as llama, progress_bar("calibrating") as on_progress:
        return calibrate(
            llama, settings, fingerprint=mark, part=part, force=force, on_progress=on_progress, on_notice=note
        )


def read_settings(options: CalibrateOptions) -> CalibrationSettings:
    """Settings that the options ask for.

    Raises
    ------
    UsageError, CalibrationError, ProfileError
        naming the value and what was expected
    """
    try:
        lengths = tuple(int(length) for length in options.lengths.split(","))
    except ValueError:
        raise UsageError(f"--lengths {options.lengths!r} cannot be read, expected numbers as in 512,1024") from None
    mix = CalibrationSettings().mix if options.score_mix is None else parse_mix(options.score_mix)
    return CalibrationSettings(options.n_examples, lengths, options.seed, fold=options.fold, mix=mix)


def report_lines(profile: Profile) -> list[str]:
    """How many questions were answered, how stable the scores are, which heads lead: one line each."""
    calibration = profile.calibration
    examples, counted, stable = (_table(calibration, key) for key in ("examples", "counted", "split_half"))
    answered = ", ".join(f"{kind} {n['right']} of {n['tried']}" for kind, n in examples.items())
    lines = [f"answered right: {answered} ({calibration['seconds']:.0f} s)"]
    for kind, scores in profile.kinds.items():
        correlation = "unknown" if stable[kind] is None else f"{stable[kind]:.3f}"
        lines.append(f"{kind}: {counted[kind]} counted, split-half correlation {correlation}")
        lines.append(f"  leading heads (layer-head, share): {_leading(scores)}")
    return lines


def _table(calibration: Mapping[str, object], key: str) -> dict[str, Any]:
    table = calibration[key]
    assert isinstance(table, dict)
    return table


def _leading(scores: Scores) -> str:
    heads = [(score, f"{i}-{ih}") for i, layer in enumerate(scores) for ih, score in enumerate(layer)]
    return ", ".join(f"{name} {100 * score:.1f} %" for score, name in sorted(heads, reverse=True)[:N_LEADING])
