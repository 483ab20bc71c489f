"""`pyheadkv calibrate --choose`: measure which settings go with a profile, for every range of budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyheadkv.cli.render import note, progress_bar
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.choose import choose_settings
from pyheadkv.evaluate.results import Results
from pyheadkv.evaluate.runner import open_runner
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.profile import Profile

N_TOKENS = 2048  # of the prompts
MIN_ROOM = 512  # of a context beyond the prompts


def choose_for_model(path: Path, profile: Profile, part: Path, **threads: Any) -> Profile:
    """Load a model, measure candidates behind a progress bar, give the profile back with the best ones.

    Parameters
    ----------
    part
        file in which every result is kept as soon as it is there
    threads
        those of `pyheadkv.engine.load.opened`

    Raises
    ------
    HeadKVError
        as of `pyheadkv.evaluate.choose.choose_settings`, and what cannot be loaded
    """
    shape = shape_from_metadata(read_gguf_metadata(path))
    if shape.n_ctx_train < N_TOKENS + MIN_ROOM:
        needed = N_TOKENS + MIN_ROOM
        raise EvaluationError(f"settings are chosen with {needed} positions, the model has {shape.n_ctx_train}")
    with open_runner(path, shape, N_TOKENS, note, **threads) as runner:
        chosen: list[str] = []
        with progress_bar("choosing") as on_progress:
            profile = choose_settings(
                runner,
                profile,
                Results(part),
                fingerprint=profile.fingerprint or "",
                n_tokens=N_TOKENS,
                on_progress=on_progress,
                on_notice=chosen.append,
            )
    for line in chosen:
        note(line)
    return profile
