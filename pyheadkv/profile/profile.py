"""The dataclasses of a profile, and mixing the kinds of scores that it holds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pyheadkv.errors import ProfileError

KINDS = ("retrieval", "retrieval-reasoning", "reconstruction")  # measured by pyheadkv; others may be there too

Scores = tuple[tuple[float, ...], ...]

_KIND = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class BudgetChoice:
    """The settings chosen for a range of budgets by measuring.

    Parameters
    ----------
    max_keep_ratio
        the range ends with this share of the rows (it starts where the setting before it ends)
    policy
        text for `pyheadkv.policy.text.parse_policy`
    mix
        weight of each kind of scores; empty: the profile's scores as they are
    figures
        measured with it, by name
    """

    max_keep_ratio: float
    policy: str
    mix: Mapping[str, float] = field(default_factory=dict, hash=False)
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Profile:
    """Head scores of one model: how much each KV head matters.

    >>> profile = Profile(((0.6, 0.2), (0.1, 0.1)), "made up", keep_ratio=0.1)
    >>> sum(map(sum, profile.scores))
    1.0

    Parameters
    ----------
    scores
        [layer with a cache][KV head], >= 0, summing to 1: the mix in use
    method
        how they were measured
    beta
        the headkv allocator's parameter that goes with them, if they came with one
    fingerprint
        of the model they were measured on (`pyheadkv.model.fingerprint`), if known
    source
        where they were read from, for messages
    kinds
        kind -> scores of that kind alone, each summing to 1
    mix
        kind -> weight that made ``scores`` out of ``kinds``
    scores_query
        [layer with a cache][query head], summing to 1, if measured by query head
    n_sink, n_obs, pool_kernel
        settings of the policy that go with the scores, if they came with any
    keep_ratio
        default budget, a share of the rows in (0, 1]
    settings
        measured choices by budget, ascending; the last one ends at 1.0
    calibration
        how it was measured: tasks, lengths, counts (anything that JSON can hold)

    Raises
    ------
    ProfileError
        not by itself: where it is written, read, or given to a model that it does not fit
    """

    scores: Scores
    method: str
    beta: float | None = None
    fingerprint: str | None = None
    source: str = ""
    kinds: Mapping[str, Scores] = field(default_factory=dict, hash=False)
    mix: Mapping[str, float] = field(default_factory=dict, hash=False)
    scores_query: Scores | None = None
    n_sink: int | None = None
    n_obs: int | None = None
    pool_kernel: int | None = None
    keep_ratio: float | None = None
    settings: tuple[BudgetChoice, ...] = ()
    calibration: Mapping[str, object] = field(default_factory=dict, hash=False)

    def with_mix(self, mix: Mapping[str, float], key: str = "headkv.mix") -> Profile:
        """The same profile with other scores in use: the weighted sum of its kinds, summing to 1.

        Settings keep their policies and lose their own mixes.

        Parameters
        ----------
        mix
            kind -> weight, >= 0, at least one above 0; only the proportions count
        key
            who asks for it, for the error

        Raises
        ------
        ProfileError
            an unknown kind (lists those there), a weight below 0 or not finite, or no weight above 0
        """
        check_mix(mix, self.kinds, key)
        top = max(mix.values())  # keeps sums finite whatever the weights
        shares = {kind: weight / top for kind, weight in mix.items()}
        whole = sum(shares.values())
        weights = {kind: share / whole / _total(self.kinds[kind]) for kind, share in shares.items()}
        scores = tuple(
            tuple(sum(weight * self.kinds[kind][i][ih] for kind, weight in weights.items()) for ih in range(len(layer)))
            for i, layer in enumerate(self.scores)
        )
        total = _total(scores)
        normalised = tuple(tuple(score / total for score in layer) for layer in scores)
        settings = tuple(replace(setting, mix={}) for setting in self.settings)
        return replace(self, scores=normalised, mix=dict(mix), settings=settings)

    def setting_for(self, keep_ratio: float) -> BudgetChoice | None:
        """The measured choice for keeping this share of the rows; None if nothing was measured."""
        return next((setting for setting in self.settings if keep_ratio <= setting.max_keep_ratio), None)


def _total(scores: Scores) -> float:
    return math.fsum(score for layer in scores for score in layer)


def is_kind(name: str) -> bool:
    """Whether a kind of scores may be called so: it becomes a part of a GGUF key."""
    return _KIND.fullmatch(name) is not None


def check_mix(mix: Mapping[str, float], kinds: Mapping[str, Scores], key: str = "headkv.mix") -> None:
    """Refuse weights that make no scores out of `kinds`.

    Raises
    ------
    ProfileError
        naming the kind and the kinds there
    """
    there = ", ".join(kinds) or "none"
    for kind, weight in mix.items():
        if kind not in kinds:
            raise ProfileError(f"{key} names {kind[:80]!r}, the kinds of scores there are: {there}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ProfileError(f"{key} gives {kind} the weight {weight:g}, expected a finite number of at least 0")
    if not any(weight > 0 for weight in mix.values()):
        raise ProfileError(f"{key} has no weight above 0, the kinds of scores there are: {there}")


def mix_profile(profile: Profile, mix: str | None) -> Profile:
    """A profile with the kinds of scores in use that a user typed, as `parse_mix` reads it; None is as it was."""
    return profile if mix is None else profile.with_mix(parse_mix(mix))


def parse_mix(text: str) -> dict[str, float]:
    """Read weights as typed by a user: ``retrieval-reasoning=1,reconstruction=0.5``; ``=1`` may be left out.

    Raises
    ------
    ProfileError
        a part that cannot be read, or a kind given twice
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        kind, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(value) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not is_kind(kind) or not math.isfinite(weight) or weight < 0:
            raise ProfileError(f"mix {part.strip()[:80]!r} cannot be read, expected kind=weight, as in {KINDS[1]}=1")
        if kind in mix:
            raise ProfileError(f"mix gives {kind} twice, {mix[kind]:g} and {weight:g}")
        mix[kind] = weight
    return mix


def format_mix(mix: Mapping[str, float]) -> str:
    """The text that `parse_mix` reads."""
    return ",".join(f"{kind}={weight!r}" for kind, weight in mix.items())
