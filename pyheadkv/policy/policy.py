"""A policy decides what is kept: an allocator, a scorer, and the first positions, protected.

Policies are known by name: the presets, those that a program registers, and ALLOCATOR+SCORER. `Auto` stands for the
policy that was measured to be best for a model and a budget, and becomes one by `pyheadkv.policy.resolve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from pyheadkv.errors import PolicyError, ProfileError
from pyheadkv.policy.allocators import allocator_names, get_allocator
from pyheadkv.policy.scorers import MAX_N_OBS, SCORERS, Scorer
from pyheadkv.profile import parse_mix

MAX_N_SINK = 1024
MAX_LOOKAHEAD = 256
MAX_N_RECENT = 4096
AUTO = "auto"
_JOINTS = str.maketrans("", "", "-_")


@dataclass(frozen=True)
class Policy:
    """A choice of rows to keep, for any model and budget.

    >>> from dataclasses import replace
    >>> replace(parse_policy("snapkv"), n_sink=8) == parse_policy("snapkv:n_sink=8")
    True
    >>> Policy("mine", "pyramid", Scorer(n_obs=32), n_sink=8, params={"beta": 10}).floor_rows
    40

    Parameters
    ----------
    name
        the preset it came from
    allocator
        name of a registered allocator
    scorer
        how positions are rated
    n_sink
        first positions, kept by every KV head
    params
        the allocator's parameters that were set; the rest come from the profile or are defaults
    lookahead
        so many generated tokens observe on the whole cache, after the window, before it is compressed; they
        stay. The query that is about to copy finds the rows (Wang et al., Lookahead Q-Cache,
        https://arxiv.org/abs/2505.20334), at the cost of as many slow steps
    n_recent
        so many last positions, the observation window among them, are kept by every KV head, as far as they fit into
        half of the rows that it has on average beside sinks and window
    score_mix
        kinds of head scores that belong to the policy, as `parse_mix` reads them, with + for a comma; "": those in use

    Raises
    ------
    PolicyError
        an unknown allocator or parameter, a value out of range, or an allocator that ranks scores which cannot be
        compared
    """

    name: str
    allocator: str
    scorer: Scorer = field(default_factory=Scorer)
    n_sink: int = 4
    params: Mapping[str, float] = field(default_factory=dict, hash=False)
    score_mix: str = ""
    lookahead: int = 0
    n_recent: int = 0

    def __post_init__(self) -> None:
        """Validate everything that does not depend on a model."""
        if not 0 <= self.n_sink <= MAX_N_SINK:
            raise PolicyError(f"n_sink is {self.n_sink}, expected 0 to {MAX_N_SINK}")
        _check_lookahead(self.lookahead)
        if self.lookahead + self.n_obs > MAX_N_OBS:
            raise PolicyError(f"lookahead + n_obs is {self.lookahead + self.n_obs}, expected at most {MAX_N_OBS}")
        if not 0 <= self.n_recent <= MAX_N_RECENT:
            raise PolicyError(f"n_recent is {self.n_recent}, expected 0 to {MAX_N_RECENT}")
        get_allocator(self.allocator).check_params(self.params)
        self.mix_weights()  # refuses what cannot be read
        self._check_scores_fit()

    def _check_scores_fit(self) -> None:
        """Scores that an allocator ranks together must mean the same."""
        allocator, kind = get_allocator(self.allocator), SCORERS[self.scorer.name]
        if allocator.ranks == "layer" and kind.compares == "head":
            raise PolicyError(
                f"allocator {self.allocator} ranks the heads of a layer together: {self.scorer.name} "
                "scores cannot be compared between heads"
            )
        if allocator.ranks == "model" and kind.compares != "model":
            raise PolicyError(
                f"allocator {self.allocator} ranks all layers together: {self.scorer.name} scores cannot "
                "be compared between layers"
            )
        for key, value in allocator.complete(self.params).items():
            if kind.no_sums and allocator.params[key].needs_sums and value:
                raise PolicyError(f"{key} is {value:g}, expected 0: {self.scorer.name} scores {kind.no_sums}")
        if allocator.needs_semantics and self.scorer.gathers != "attn_mean":
            raise PolicyError(
                f"allocator {self.allocator} needs the mean attention of the window: not with {self.scorer.name}"
            )

    @classmethod
    def preset(cls, name: str) -> Policy:
        """Look up a policy by name, or put ALLOCATOR+SCORER together; PolicyError lists the known names."""
        if name == AUTO:
            raise PolicyError(f"{AUTO} is no preset: it stands for what a profile says (parse_policy, resolve)")
        policy = _PRESETS.get(name) or _combination(name)
        if policy is None:
            raise PolicyError(f"unknown policy {name!r}, known are {', '.join(policy_names())}, and ALLOCATOR+SCORER")
        return policy

    @property
    def needs_profile(self) -> bool:
        """Whether measured head scores are needed."""
        return get_allocator(self.allocator).needs_profile or self.scorer.retrieval_share > 0

    def mix_weights(self) -> dict[str, float]:
        """Weight of each kind of head scores that belongs to the policy; empty: those in use."""
        try:
            return parse_mix(self.score_mix.replace("+", ",")) if self.score_mix else {}  # a comma ends a setting
        except ProfileError as error:
            raise PolicyError(str(error)) from None

    @property
    def n_obs(self) -> int:
        """Observation window, in tokens."""
        return self.scorer.n_obs

    @property
    def floor_rows(self) -> int:
        """Rows that every KV head keeps of a long prompt."""
        return self.n_sink + self.n_obs

    @property
    def floor_words(self) -> str:
        """Parts of the floor, for messages."""
        return f"{self.n_sink} sinks + {self.n_obs} observed"

    def __str__(self) -> str:
        """The text that `parse_policy` reads: the name, then what differs from that preset."""
        preset = _PRESETS.get(self.name) or _combination(self.name)
        base = {**_own_settings(preset), **preset.params} if preset else {}
        own = {**_own_settings(self), **self.params}
        changed = ",".join(f"{key}={value}" for key, value in own.items() if base.get(key) != value)
        return f"{self.name}:{changed}" if changed else self.name


@dataclass(frozen=True)
class Auto:
    """Whatever is best by the model's profile for the budget, with this lookahead; snapkv without a profile.

    >>> str(Auto(lookahead=4))
    'auto:lookahead=4'

    Raises
    ------
    PolicyError
        the lookahead is out of range
    """

    lookahead: int = 0
    name: ClassVar[str] = AUTO
    needs_profile: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the only setting."""
        _check_lookahead(self.lookahead)

    def __str__(self) -> str:
        """The text that `parse_policy` reads."""
        return f"{AUTO}:lookahead={self.lookahead}" if self.lookahead else AUTO


PolicyChoice: TypeAlias = Policy | Auto


def _check_lookahead(lookahead: int) -> None:
    if not 0 <= lookahead <= MAX_LOOKAHEAD:
        raise PolicyError(f"lookahead is {lookahead}, expected 0 to {MAX_LOOKAHEAD}")


def policy_settings(policy: Policy) -> dict[str, int | float | str]:
    """Everything that can be set with a policy, with its values: its own, its scorer's, its allocator's."""
    allocator = get_allocator(policy.allocator)
    return {**_own_settings(policy), **allocator.complete(policy.params)}


def _own_settings(policy: Policy) -> dict[str, int | float | str]:
    return {
        "n_sink": policy.n_sink,
        "n_recent": policy.n_recent,
        "lookahead": policy.lookahead,
        **{key: value for key, value in vars(policy.scorer).items() if key != "name"},
        **({"score_mix": policy.score_mix.replace(",", "+")} if policy.score_mix else {}),
    }


_PRESETS: dict[str, Policy] = {}  # pyheadkv.policy.presets, and what a program registers


def policy_names() -> tuple[str, ...]:
    """Names of all presets, after `auto`."""
    return (AUTO, *_PRESETS)


def register_policy(policy: Policy) -> None:
    """Add a preset, for `parse_policy` and the command line.

    >>> register_policy(Policy("mine-32", "uniform", Scorer(n_obs=32)))
    >>> parse_policy("mine-32:n_sink=8").n_sink
    8

    Parameters
    ----------
    policy
        under its name

    Raises
    ------
    PolicyError
        the name is taken
    """
    if policy.name in policy_names():
        raise PolicyError(f"policy {policy.name!r} exists already")
    _PRESETS[policy.name] = policy


def _combination(name: str) -> Policy | None:
    """ALLOCATOR+SCORER, the scorer as the first preset with it has it; None for a name without a plus."""
    left, plus, right = name.partition("+")
    if not plus:
        return None
    allocator = get_allocator(_known_name(left, allocator_names()))
    scorer = _known_name(right, SCORERS)
    full_name = f"{allocator.name}+{scorer}"
    if full_name in _PRESETS:
        return _PRESETS[full_name]
    of_preset = (policy for policy in _PRESETS.values() if policy.scorer.name == scorer)
    base = next(of_preset, None) or Policy(full_name, "uniform", Scorer(scorer))
    needs_sums = [key for key, param in allocator.params.items() if param.needs_sums]
    params = dict.fromkeys(needs_sums, 0.0) if SCORERS[scorer].no_sums else {}
    return Policy(full_name, allocator.name, base.scorer, base.n_sink, params)


def _known_name(text: str, known: Iterable[str]) -> str:
    """The name that is meant, however its words are joined: expected-attention is expected_attention."""
    plain = text.strip().translate(_JOINTS)
    return next((name for name in known if name.translate(_JOINTS) == plain), text.strip())
