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

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from pyheadkv.errors import PolicyError
from pyheadkv.policy.allocators import get_allocator, run_file
from pyheadkv.policy.policy import AUTO, Auto, Policy, PolicyChoice, policy_names
from pyheadkv.policy.scorers import Scorer

_OWN = {"n_sink": int, "n_recent": int, "lookahead": int, "score_mix": str}
_SCORER = {key: kind for key, kind in get_type_hints(Scorer).items() if key != "name"}
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
    of_allocator = dict.fromkeys(get_allocator(policy.allocator).params, float)
    own: dict[str, Any] = {}
    scorer: dict[str, Any] = {}
    params: dict[str, float] = {}
    for key, value in pairs.items():
        for kinds, found in ((_OWN, own), (_SCORER, scorer), (of_allocator, params)):
            if key in kinds:
                found[key] = _read(key, value, kinds[key])
                break
        else:
            known = ", ".join((*_OWN, *_SCORER, *of_allocator))
            raise PolicyError(f"policy {policy.name} has no setting {key!r}, it has {known}")
    return replace(policy, scorer=replace(policy.scorer, **scorer), params={**policy.params, **params}, **own)


def _auto(pairs: dict[str, str]) -> Auto:
    for key in pairs:
        if key != "lookahead":
            raise PolicyError(f"policy {AUTO} takes its settings from the profile: name another one to set {key}")
    return Auto(**{key: _read(key, value, int) for key, value in pairs.items()})


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


def _read(key: str, value: str, kind: Callable[[str], Any]) -> Any:
    """The text itself where words are expected, else a number."""
    try:
        return kind(value)
    except ValueError:
        raise PolicyError(f"{key} is {value!r}, expected a {'whole ' if kind is int else ''}number") from None
