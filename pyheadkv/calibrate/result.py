"""From the records of a calibration to a profile: means over what counted, and whether they can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pyheadkv.calibrate.needles import COPY_KINDS, KINDS, REASONING
from pyheadkv.calibrate.scores import Floats, by_layer, fold_groups, normalised, split_half
from pyheadkv.calibrate.settings import CalibrationSettings
from pyheadkv.errors import CalibrationError
from pyheadkv.files.jsonl import Record
from pyheadkv.profile import Profile, format_mix

RETRIEVAL, RETRIEVAL_REASONING, RECONSTRUCTION = "retrieval", "retrieval-reasoning", "reconstruction"
# scores -> the records that they are made of, and the key in these
_SOURCES = {
    RETRIEVAL: (COPY_KINDS, "copy"),
    RETRIEVAL_REASONING: (KINDS, "reasoning"),
    RECONSTRUCTION: ((RECONSTRUCTION,), RECONSTRUCTION),
}
MIN_COUNTED = 8  # questions answered right
MIN_CORRELATION = 0.9  # below it the order of the heads is partly chance


@dataclass(frozen=True)
class Heads:
    """Query and KV heads of each layer with a cache."""

    n_head: Sequence[int]
    n_head_kv: Sequence[int]


@dataclass(frozen=True)
class _Kind:
    """One kind of scores: [n_example, sum of n_head_kv], and of query heads where they were measured so."""

    values: Floats
    groups: list[int]
    query: Floats | None


def make_profile(
    records: Sequence[Record],
    heads: Heads,
    settings: CalibrationSettings,
    *,
    fingerprint: str | None = None,
    seconds: float = 0.0,
    on_notice: Callable[[str], None] | None = None,
) -> Profile:
    """Average, normalise, mix.

    Kinds of scores that too few examples counted for are left out, with a notice.

    Raises
    ------
    CalibrationError
        a kind that the mix needs is left out; says how many counted and what can be done
    """
    notify = on_notice or (lambda _: None)
    counts = count_examples(records)
    kinds = {name: _kind(name, records, heads, settings.fold) for name in _SOURCES}
    counted = {name: kind for name, kind in kinds.items() if _is_enough(name, kind)}
    for name in kinds:
        if name not in counted:
            words = _too_few(name, records, kinds[name])
            if settings.mix.get(name):
                advice = (
                    f"take more than {settings.n_examples} examples, shorter lengths, or the mix {RECONSTRUCTION}=1"
                )
                raise CalibrationError(f"{words}: {advice}")
            notify(f"{words}: these scores are left out")
    correlations = {name: split_half(kind.values, kind.groups, settings.seed) for name, kind in counted.items()}
    for name, correlation in correlations.items():
        if correlation is None or correlation < MIN_CORRELATION:
            found = "cannot be had" if correlation is None else f"is {correlation:.3f}"
            notify(f"the split-half correlation of {name} {found}, expected {MIN_CORRELATION}: take more examples")
    if not counts[REASONING]["right"]:
        notify("no question that needs reasoning was answered right: retrieval-reasoning rests on copied answers")
    scores = {name: by_layer(normalised(kind.values.mean(axis=0)), heads.n_head_kv) for name, kind in counted.items()}
    query = counted[RETRIEVAL_REASONING].query if RETRIEVAL_REASONING in counted else None
    profile = Profile(
        next(iter(scores.values())),
        f"pyheadkv calibrate, {format_mix(settings.mix)}",
        fingerprint=fingerprint,
        kinds=scores,
        scores_query=None if query is None else by_layer(normalised(query.mean(axis=0)), heads.n_head),
        calibration={
            "examples": counts,
            "counted": {name: len(kind.values) for name, kind in counted.items()},
            "split_half": {name: None if r is None else round(r, 4) for name, r in correlations.items()},
            "lengths": list(settings.lengths),
            "excerpt_tokens": settings.excerpt_tokens,
            "fold": settings.fold,
            "seed": settings.seed,
            "seconds": round(seconds, 1),
        },
    )
    return profile.with_mix(settings.mix)


def count_examples(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """For each kind of question: how many were tried, and how many were right."""
    questions = [record for record in records if record["kind"] in KINDS]
    tried = Counter(record["kind"] for record in questions)
    right = Counter(record["kind"] for record in questions if record["is_right"])
    return {kind: {"tried": tried[kind], "right": right[kind]} for kind in KINDS}


def _kind(name: str, records: Sequence[Record], heads: Heads, fold: str) -> _Kind:
    wanted, key = _SOURCES[name]
    found = [record for record in records if record["kind"] in wanted and record.get("is_right", True)]
    values = np.array([record[key] for record in found], dtype=np.float64)
    groups = [record["group"] for record in found]
    if name == RECONSTRUCTION:
        return _Kind(values, groups, None)
    folded = [fold_groups(row, heads.n_head, heads.n_head_kv, fold) for row in values]
    return _Kind(np.array(folded), groups, values)


def _is_enough(name: str, kind: _Kind) -> bool:
    at_least = 1 if name == RECONSTRUCTION else MIN_COUNTED
    return len(kind.values) >= at_least and bool(kind.values.sum() > 0)


def _too_few(name: str, records: Sequence[Record], kind: _Kind) -> str:
    n_tried = sum(record["kind"] in _SOURCES[name][0] for record in records)
    return f"{len(kind.values)} of {n_tried} examples counted for {name}, at least {MIN_COUNTED} must be answered right"
