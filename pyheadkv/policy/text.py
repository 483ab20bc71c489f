"""A policy as text, for a command line: a preset's name, then what differs from it,

    snapkv
    headkv:beta=1.1,n_obs=32,pool=13,fold=max,n_sink=4

or an allocator and a scorer, whose settings are then those of the preset that has its name:

    headkv+kvzip
    adakv+expected_attention:safeguard=0.5

or a Python file that registers one policy: my_policy.py:n_obs=32.

Keys are n_sink, n_recent, lookahead, score_mix (the kinds of head scores in use: retrieval+reconstruction), those of
the scorer (n_obs, pool_kernel, pool (max or avg; a number means pool_kernel), fold, reduce, retrieval_share,
retrieval_kernel, vote_share), and the parameters of the allocator. ``str(policy)`` gives this text back.

`auto` is whatever was measured to be best for the model and the budget. Only lookahead can be set with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyheadkv.errors import PolicyError
from pyheadkv.policy.allocators import get_allocator, run_file
from pyheadkv.policy.policy import AUTO, Auto, Policy, PolicyChoice, policy_names

_OWN_INTS = ("n_sink", "n_recent", "lookahead")
_OWN_WORDS = ("score_mix",)
_SCORER_INTS = ("n_obs", "pool_kernel", "retrieval_kernel")
_SCORER_FLOATS = ("retrieval_share", "vote_share")
_SCORER_WORDS = ("pool", "fold", "reduce")
_OF_FILES: dict[Path, str] = {}  # which policy a file registered


def parse_policy(text: str) -> PolicyChoice:
    """Read a policy as typed by a user: NAME, ALLOCATOR+SCORER or FILE.py, then :KEY=VALUE,...

    `pyheadkv policies` lists the names and their settings.

    >>> policy = parse_policy("headkv:beta=1.1,n_obs=32,pool=max")
    >>> policy.params, policy.scorer.n_obs
    ({'beta': 1.1}, 32)

    Parameters
    ----------
    text
        the words; ``str(policy)`` gives them back

    Raises
    ------
    PolicyError
        an unknown name or key, a key given twice, or a value out of range
    """
    name, colon, settings = (part.strip() for part in text.partition(":"))
    pairs = _split_settings(settings) if colon else {}
    if name == AUTO:
        return _auto(pairs)
    policy = _policy_of_file(Path(name)) if name.endswith(".py") else Policy.preset(name)
    if not pairs:
        return policy
    own: dict[str, int | str] = {}
    scorer: dict[str, int | float | str] = {}
    params: dict[str, float] = {}
    for key, value in pairs.items():
        if key in _OWN_INTS:
            own[key] = _int(key, value)
        elif key in _OWN_WORDS:
            own[key] = value
        elif key in _SCORER_INTS:
            scorer[key] = _int(key, value)
        elif key in _SCORER_FLOATS:
            scorer[key] = _float(key, value)
        elif key in _SCORER_WORDS:
            scorer[key] = value
        else:
            _check_key(policy, key)
            params[key] = _float(key, value)
    return replace(
        policy,
        scorer=replace(policy.scorer, **scorer),  # type: ignore[arg-type]
        params={**policy.params, **params},
        **own,  # type: ignore[arg-type]
    )


def _auto(pairs: dict[str, str]) -> Auto:
    for key in pairs:
        if key != "lookahead":
            raise PolicyError(f"policy {AUTO} takes its settings from the profile: name another one to set {key}")
    return Auto(**{key: _int(key, value) for key, value in pairs.items()})


def _policy_of_file(path: Path) -> Policy:
    """The one policy that a Python file registers; the file is run once."""
    where = path.resolve()
    if where not in _OF_FILES:
        known = policy_names()
        run_file(path)
        new = [name for name in policy_names() if name not in known]
        if len(new) != 1:
            names = f" ({', '.join(new)})" if new else ""
            raise PolicyError(f"{path} registers {len(new)} policies{names}, expected one: pyheadkv.register_policy")
        _OF_FILES[where] = new[0]
    return Policy.preset(_OF_FILES[where])


def _split_settings(text: str) -> dict[str, str]:
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
    return pairs


def _check_key(policy: Policy, key: str) -> None:
    of_scorer = (*_SCORER_INTS, *_SCORER_FLOATS, *_SCORER_WORDS)
    known = (*_OWN_INTS, *_OWN_WORDS, *of_scorer, *get_allocator(policy.allocator).params)
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
