"""Choose the settings of a profile by measuring: a few candidates for every range of budgets.

Cases are needles of several kinds, facts in two places, and prose, with seeds of their own (a validation split: not
those of `pyheadkv eval`, and other sentences than those that the head scores come from). The rule, for each range:

1. Needles count where the whole cache gives all answers. Best is who gives the largest share of them.
2. Among those within one standard error of the best, those within one standard error of the lowest KL of prose stay.
3. Of these, the one that finds most needles is taken; equals: the one with the lowest KL, then the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import KL
from pyheadkv.evaluate.metrics import mean_and_error
from pyheadkv.evaluate.prompted import IN
from pyheadkv.evaluate.results import FULL, Results
from pyheadkv.evaluate.runner import Runner
from pyheadkv.evaluate.sweep import Progress, Sweep, run_mark, run_sweep
from pyheadkv.evaluate.tasks import Prose, make_cases
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.text import parse_policy
from pyheadkv.policy.trial import Trial
from pyheadkv.profile import BudgetChoice, Profile, format_mix

# cases of each task, in times of n_cases: a small model finds single needles, and few of the others, with any cache
TASKS = {"single": 2, "open": 1, "multikey": 1, "reasoning": 1, KL: 1}
MIN_NEEDLES = 8  # that the whole cache finds
_RECONSTRUCTION = {"reconstruction": 1.0}
_BOTH = {"retrieval-reasoning": 1.0, "reconstruction": 1.0}


@dataclass(frozen=True)
class Candidate:
    """Settings to try: text for `parse_policy`, and the kinds of scores that budgets follow."""

    policy: str
    mix: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """For records: policy and mix."""
        return f"{self.policy} ({format_mix(self.mix)})" if self.mix else self.policy


@dataclass(frozen=True)
class Range:
    """Budgets up to a share of the rows, measured at one of them."""

    max_keep_ratio: float
    budget: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Measured:
    """A candidate's figures, each a mean with its standard error."""

    candidate: Candidate
    needles: tuple[float, float]
    kl: tuple[float, float]


def _headkv(mix: Mapping[str, float], beta: float, vote_share: float = 0.5, n_sink: int = 4) -> Candidate:
    # every number is written out: what a profile says must not change when a preset does
    window = f"n_sink={n_sink},n_obs=16,fold=max,reduce=max,pool_kernel=1"
    return Candidate(
        f"headkv:beta={beta},{window},retrieval_share=0.2,retrieval_kernel=17,vote_share={vote_share}", mix
    )


_SNAPKV = Candidate("snapkv")  # needs no scores: taken where they are of no use
# settings near the best on the demo model, where each of these numbers was tried by itself
RANGES = (
    Range(
        0.02,
        "1.5%",
        (_SNAPKV, _headkv(_BOTH, 1.2), _headkv(_BOTH, 1.2, n_sink=2), _headkv(_BOTH, 1.2, vote_share=0.8)),
    ),
    Range(0.07, "5%", (_SNAPKV, _headkv(_BOTH, 1.2), _headkv(_BOTH, 1.5), _headkv(_RECONSTRUCTION, 2.0))),
    Range(0.15, "10%", (_SNAPKV, _headkv(_BOTH, 1.2), _headkv(_BOTH, 1.5), _headkv(_RECONSTRUCTION, 2.0))),
    Range(1.0, "25%", (_SNAPKV, _headkv(_BOTH, 1.2), _headkv(_BOTH, 2.0), _headkv(_RECONSTRUCTION, 2.0))),
)


def choose_settings(
    runner: Runner,
    profile: Profile,
    results: Results,
    *,
    fingerprint: str = "",
    n_cases: int = 5,
    n_tokens: int = 2048,
    seed: int = 0,
    ranges: Sequence[Range] = RANGES,
    on_progress: Progress | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Profile:
    """Measure the candidates and write the best ones into the profile, with their figures.

    Parameters
    ----------
    results
        what is there already is not measured again
    n_cases
        of each task, in the proportions of `TASKS`
    n_tokens
        length of the prompts
    on_notice
        called with one line for each range: what was chosen

    Raises
    ------
    EvaluationError
        the whole cache finds too few needles to choose by
    """
    trials = [
        _trial(candidate, Budget.parse(part.budget), profile)
        for part in ranges
        for candidate in part.candidates
        if set(candidate.mix) <= set(profile.kinds)
    ]
    prose, split = Prose(), -1 - seed  # eval's seeds are not negative
    cases = [
        case
        for task, n_times in TASKS.items()
        for case in make_cases(task, n_times * n_cases, n_tokens, split, prose, runner.sizes)
    ]
    run = run_mark(fingerprint, kinds=profile.kinds, purpose="choose")
    records = run_sweep(runner, Sweep(run, cases, trials, IN), results, on_progress)
    settings = []
    for part in ranges:
        chosen = pick(measured(records, part))
        settings.append(_setting(part, chosen, len(_found(records))))
        if on_notice:
            on_notice(f"up to {100 * part.max_keep_ratio:g}%: {chosen.candidate.name}, {figures_text(chosen)}")
    return replace(profile, settings=tuple(settings))


def measured(records: Sequence[Record], part: Range) -> list[Measured]:
    """Figures of the candidates of a range that were measured.

    Raises
    ------
    EvaluationError
        the whole cache finds too few needles
    """
    found = _found(records)
    if len(found) < MIN_NEEDLES:
        n_needles = len({record["case"] for record in records if record["task"] != KL})
        raise EvaluationError(
            f"the whole cache finds {len(found)} of {n_needles} needles, at least {MIN_NEEDLES} are needed to choose by"
        )
    result = []
    for candidate in part.candidates:
        own = [r for r in records if (r["policy"], r["budget"]) == (candidate.name, part.budget)]
        needles = [r["figures"]["score"] for r in own if r["case"] in found]
        kls = [r["figures"]["kl"] for r in own if r["task"] == KL]
        if needles and kls:
            result.append(Measured(candidate, mean_and_error(needles), mean_and_error(kls)))
    return result


def pick(candidates: Sequence[Measured]) -> Measured:
    """The rule at the top of this file."""
    best = max(candidates, key=lambda one: one.needles[0])
    good = [one for one in candidates if one.needles[0] >= best.needles[0] - _error(best.needles)]
    lowest = min(good, key=lambda one: one.kl[0])
    near = [one for one in good if one.kl[0] <= lowest.kl[0] + _error(lowest.kl)]
    return min(near, key=lambda one: (-one.needles[0], one.kl[0]))


def _error(figure: tuple[float, float]) -> float:
    return 0.0 if math.isnan(figure[1]) else figure[1]  # nan: of a single case


def figures_text(one: Measured) -> str:
    """Needles and KL in words."""
    return f"needles {100 * one.needles[0]:.0f} % ±{100 * one.needles[1]:.0f}, KL {one.kl[0]:.3f} ±{one.kl[1]:.3f}"


def _found(records: Sequence[Record]) -> set[str]:
    """Cases with needles that the whole cache answers."""
    full = (record for record in records if record["policy"] == FULL)
    return {record["case"] for record in full if record["figures"].get("score") == 1.0}


def _trial(candidate: Candidate, budget: Budget, profile: Profile) -> Trial:
    mixed = profile.with_mix(candidate.mix) if candidate.mix else profile
    return Trial(candidate.name, parse_policy(candidate.policy), budget, mixed)


def _setting(part: Range, chosen: Measured, n_needles: int) -> BudgetChoice:
    figures = {
        "keep_ratio": float(Budget.parse(part.budget).value),
        "needles": round(chosen.needles[0], 4),
        "needles_error": round(chosen.needles[1], 4),
        "n_needles": float(n_needles),
        "prose_kl": round(chosen.kl[0], 5),
        "prose_kl_error": round(chosen.kl[1], 5),
    }
    return BudgetChoice(part.max_keep_ratio, chosen.candidate.policy, dict(chosen.candidate.mix), figures)
