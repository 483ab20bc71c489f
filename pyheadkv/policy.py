"""A policy decides what is kept: an allocator, a scorer, and the first positions, protected.

As text, for a command line: a preset's name, then what differs from it,

    snapkv
    headkv:beta=1.1,n_obs=32,pool=13,fold=max,n_sink=4

Keys are n_sink, n_obs, pool_kernel, pool (max or avg; a number means pool_kernel), fold, and the
parameters of the allocator. ``str(policy)`` gives this text back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pyheadkv.allocators import get_allocator
from pyheadkv.errors import PolicyError
from pyheadkv.scorers import Scorer

MAX_N_SINK = 1024
_SCORER_INTS = ("n_obs", "pool_kernel")
_SCORER_WORDS = ("pool", "fold")


@dataclass(frozen=True)
class Policy:
    """What is kept, for any model and budget.

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

    Raises
    ------
    PolicyError
        an unknown allocator or parameter, or a value out of range
    """

    name: str
    allocator: str
    scorer: Scorer = field(default_factory=Scorer)
    n_sink: int = 4
    params: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Validate everything that does not depend on a model."""
        if not 0 <= self.n_sink <= MAX_N_SINK:
            raise PolicyError(f"n_sink is {self.n_sink}, expected 0 to {MAX_N_SINK}")
        get_allocator(self.allocator).check_params(self.params)

    @classmethod
    def preset(cls, name: str) -> Policy:
        """Look up a policy by name; PolicyError lists the known ones."""
        policy = _PRESETS.get(name)
        if policy is None:
            raise PolicyError(f"unknown policy {name!r}, known are {', '.join(_PRESETS)}")
        return policy

    @property
    def needs_profile(self) -> bool:
        """Whether measured head scores are needed."""
        return get_allocator(self.allocator).needs_profile

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
        """What the floor is made of, for messages."""
        return f"{self.n_sink} sinks + {self.n_obs} observed"

    def __str__(self) -> str:
        """The text that `parse_policy` reads: the name, then what differs from that preset."""
        preset = _PRESETS.get(self.name)
        base, own = _settings(preset) if preset else {}, _settings(self)
        changed = ",".join(f"{key}={value}" for key, value in own.items() if base.get(key) != value)
        return f"{self.name}:{changed}" if changed else self.name


def _settings(policy: Policy) -> dict[str, object]:
    scorer = policy.scorer
    return {
        "n_sink": policy.n_sink,
        "n_obs": scorer.n_obs,
        "pool_kernel": scorer.pool_kernel,
        "pool": scorer.pool,
        "fold": scorer.fold,
        **policy.params,
    }


_PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("snapkv", "uniform", Scorer(fold="mean")),
        # a KV head matters mostly because of one of its query heads: that one speaks for the group
        Policy("headkv", "headkv", Scorer(fold="max")),
    )
}


def policy_names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(_PRESETS)


def register_policy(policy: Policy) -> None:
    """Add a preset, for `parse_policy` and the command line; PolicyError if its name is taken."""
    if policy.name in _PRESETS:
        raise PolicyError(f"policy {policy.name!r} exists already")
    _PRESETS[policy.name] = policy


def parse_policy(text: str) -> Policy:
    """Read a policy as typed by a user, in the form given at the top of this file.

    Raises
    ------
    PolicyError
        an unknown name or key, a key given twice, or a value out of range
    """
    name, colon, settings = text.strip().partition(":")
    policy = Policy.preset(name.strip())
    if not colon:
        return policy
    scorer: dict[str, int | str] = {}
    params: dict[str, float] = {}
    n_sink: int | None = None
    for key, value in _split_settings(settings):
        if key == "n_sink":
            n_sink = _int(key, value)
        elif key in _SCORER_INTS:
            scorer[key] = _int(key, value)
        elif key in _SCORER_WORDS:
            scorer[key] = value
        else:
            _check_key(policy, key)
            params[key] = _float(key, value)
    return replace(
        policy,
        scorer=replace(policy.scorer, **scorer),  # type: ignore[arg-type]
        n_sink=policy.n_sink if n_sink is None else n_sink,
        params={**policy.params, **params},
    )


def _split_settings(text: str) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise PolicyError(f"policy setting {item.strip()!r} cannot be read, expected key=value")
        if key == "pool" and value not in ("max", "avg"):
            key = "pool_kernel"
        if key in pairs:
            raise PolicyError(f"policy setting {key} is given twice, {pairs[key]} and {value}")
        pairs[key] = value
    return list(pairs.items())


def _check_key(policy: Policy, key: str) -> None:
    known = ("n_sink", *_SCORER_INTS, *_SCORER_WORDS, *get_allocator(policy.allocator).params)
    if key not in known:
        raise PolicyError(f"policy {policy.name} has no setting {key!r}, it has {', '.join(known)}")


def _int(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise PolicyError(f"{key} is {value!r}, expected a whole number") from None


def _float(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise PolicyError(f"{key} is {value!r}, expected a number") from None
