"""A policy decides what is kept: an allocator, a scorer, and the first positions, protected.

As text, for a command line: a preset's name, then what differs from it,

    snapkv
    headkv:beta=1.1,n_obs=32,pool=13,fold=max,n_sink=4

or an allocator and a scorer, whose settings are then those of the preset that has its name:

    headkv+kvzip
    adakv+expected_attention:safeguard=0.5

or a Python file that registers one policy: my_policy.py:n_obs=32.

Keys are n_sink, n_recent, lookahead, mix (the kinds of head scores in use: retrieval+reconstruction), those of the
scorer (n_obs, pool_kernel, pool (max or avg; a number means pool_kernel), fold, reduce, retrieval_share,
retrieval_kernel, vote), and the parameters of the allocator. ``str(policy)`` gives this text back.

`auto` is whatever was measured to be best for the model and the budget: `settle` looks it up in the
profile. Only lookahead can be set with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyheadkv.errors import PolicyError, ProfileError
from pyheadkv.policy.allocators import allocator_names, get_allocator, run_file
from pyheadkv.policy.scorers import MAX_N_OBS, SCORERS, Scorer
from pyheadkv.profile import Profile, parse_mix

MAX_N_SINK = 1024
MAX_LOOKAHEAD = 256
MAX_N_RECENT = 4096
AUTO = "auto"
_JOINTS = str.maketrans("", "", "-_")
_OWN_INTS = ("n_sink", "n_recent", "lookahead")
_OWN_WORDS = ("mix",)
_SCORER_INTS = ("n_obs", "pool_kernel", "retrieval_kernel")
_SCORER_FLOATS = ("retrieval_share", "vote")
_SCORER_WORDS = ("pool", "fold", "reduce")


@dataclass(frozen=True)
class Policy:
    """What is kept, for any model and budget.

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
    mix
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
    mix: str = ""
    lookahead: int = 0
    n_recent: int = 0

    def __post_init__(self) -> None:
        """Validate everything that does not depend on a model."""
        if not 0 <= self.n_sink <= MAX_N_SINK:
            raise PolicyError(f"n_sink is {self.n_sink}, expected 0 to {MAX_N_SINK}")
        if not 0 <= self.lookahead <= MAX_LOOKAHEAD:
            raise PolicyError(f"lookahead is {self.lookahead}, expected 0 to {MAX_LOOKAHEAD}")
        if self.lookahead + self.n_obs > MAX_N_OBS:
            raise PolicyError(f"lookahead + n_obs is {self.lookahead + self.n_obs}, expected at most {MAX_N_OBS}")
        if not 0 <= self.n_recent <= MAX_N_RECENT:
            raise PolicyError(f"n_recent is {self.n_recent}, expected 0 to {MAX_N_RECENT}")
        get_allocator(self.allocator).check_params(self.params)
        if self.mix:
            _parse_mix(self.mix)
        self._check_scores_fit()

    def _check_scores_fit(self) -> None:
        """What an allocator ranks together must mean the same."""
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
        if (kind.is_signed or kind.has_first) and allocator.complete(self.params).get("scale"):
            why = "may be negative" if kind.is_signed else "have no sum"
            raise PolicyError(f"scale is 1, expected 0: {self.scorer.name} scores {why}")
        if allocator.needs_semantics and self.scorer.gathers != "mean":
            raise PolicyError(
                f"allocator {self.allocator} needs the mean attention of the window: not with {self.scorer.name}"
            )

    @classmethod
    def preset(cls, name: str) -> Policy:
        """Look up a policy by name, or put ALLOCATOR+SCORER together; PolicyError lists the known names."""
        policy = _PRESETS.get(name) or _combination(name)
        if policy is None:
            raise PolicyError(f"unknown policy {name!r}, known are {', '.join(_PRESETS)}, and ALLOCATOR+SCORER")
        return policy

    @property
    def needs_profile(self) -> bool:
        """Whether measured head scores are needed."""
        return get_allocator(self.allocator).needs_profile or self.scorer.retrieval_share > 0

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
        preset = _PRESETS.get(self.name) or _combination(self.name)
        base = {**_own_settings(preset), **preset.params} if preset else {}
        own = {**_own_settings(self), **self.params}
        changed = ",".join(f"{key}={value}" for key, value in own.items() if base.get(key) != value)
        return f"{self.name}:{changed}" if changed else self.name


def policy_settings(policy: Policy) -> dict[str, int | float | str]:
    """Everything that can be set with a policy, with its values: its own, its scorer's, its allocator's."""
    allocator = get_allocator(policy.allocator)
    return {**_own_settings(policy), **allocator.complete(policy.params)}


def _own_settings(policy: Policy) -> dict[str, int | float | str]:
    scorer = policy.scorer
    return {
        "n_sink": policy.n_sink,
        "n_recent": policy.n_recent,
        "lookahead": policy.lookahead,
        "n_obs": scorer.n_obs,
        "pool_kernel": scorer.pool_kernel,
        "pool": scorer.pool,
        "fold": scorer.fold,
        "reduce": scorer.reduce,
        "retrieval_share": scorer.retrieval_share,
        "retrieval_kernel": scorer.retrieval_kernel,
        "vote": scorer.vote,
        **({"mix": policy.mix.replace(",", "+")} if policy.mix else {}),
    }


def _parse_mix(text: str) -> dict[str, float]:
    """A comma ends a setting, so that kinds are joined by a plus."""
    try:
        return parse_mix(text.replace("+", ","))
    except ProfileError as error:
        raise PolicyError(str(error)) from None


_EXPECTED_ATTENTION = Scorer("expected_attention", n_obs=1, pool_kernel=1)
_KVZIP = Scorer("kvzip", n_obs=1, pool_kernel=1, fold="max", reduce="max")

_PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(AUTO, "uniform", Scorer(fold="mean")),
        Policy("snapkv", "uniform", Scorer(fold="mean")),
        # a KV head matters mostly because of one of its query heads, and of one query: those speak for the rest
        Policy("headkv", "headkv", Scorer(fold="max", reduce="max", pool_kernel=1, retrieval_share=0.2, vote=0.5)),
        Policy("headkv-r", "headkv", Scorer(n_obs=8), mix="retrieval"),
        Policy("headkv-r2", "headkv", Scorer(n_obs=8), mix="retrieval-reasoning"),
        Policy("pyramidkv", "pyramid", Scorer(n_obs=8)),
        Policy("ada-snapkv", "adakv"),
        Policy("dynamic-kv", "dynamickv"),
        Policy("global", "global"),
        Policy("h2o", "uniform", Scorer("h2o", pool_kernel=1), n_sink=0),
        Policy("streamingllm", "uniform", Scorer("streaming", n_obs=1, pool_kernel=1)),
        Policy("tova", "uniform", Scorer("tova", n_obs=1, pool_kernel=1), n_sink=0),
        Policy("keydiff", "uniform", Scorer("keydiff", n_obs=1, pool_kernel=1), n_sink=0),
        Policy("knorm", "uniform", Scorer("knorm", n_obs=1, pool_kernel=1), n_sink=0),
        Policy("expected-attention", "uniform", _EXPECTED_ATTENTION),
        Policy("kvzip", "global", _KVZIP),
        # for questions that come later, little is known of what they look at: the heads that retrieve keep nearly all
        Policy("headkv+expected_attention", "headkv", _EXPECTED_ATTENTION, params={"beta": 1.05}),
        Policy("headkv+kvzip", "headkv", _KVZIP, params={"beta": 1.05, "temperature": 1.5}, mix="reconstruction"),
        # the middle as SnapKV rates it; recent rows are protected for every head, so the allocator need not add them
        Policy(
            "task-kv",
            "taskkv",
            Scorer(n_obs=32, pool="avg"),
            n_sink=16,
            params={"recent": 0},
            n_recent=256,
        ),
        # the last positions first: heads that do not retrieve keep sinks + recent rows, as StreamingLLM does
        Policy("duo", "duo", Scorer("streaming", n_obs=1, pool_kernel=1), n_sink=16, mix="retrieval-reasoning"),
        Policy("criticalkv", "adakv", Scorer("criticalkv", n_obs=32)),
        Policy("layer-defensive", "global", Scorer("layer_defensive", n_obs=32, pool_kernel=5, pool="avg")),
    )
}


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
    of_preset = (policy for policy in _PRESETS.values() if policy.scorer.name == scorer and policy.name != AUTO)
    base = next(of_preset, None) or Policy(full_name, "uniform", Scorer(scorer))
    # Ada-KV scales by parts of a sum, which mean nothing where scores may be negative or come first
    has_sums = not (SCORERS[scorer].is_signed or SCORERS[scorer].has_first)
    params = {"scale": 0.0} if "scale" in allocator.params and not has_sums else {}
    return Policy(full_name, allocator.name, base.scorer, base.n_sink, params)


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
    return _PRESETS[_OF_FILES[where]]


def _known_name(text: str, known: Iterable[str]) -> str:
    """The name that is meant, however its words are joined: expected-attention is expected_attention."""
    plain = text.strip().translate(_JOINTS)
    return next((name for name in known if name.translate(_JOINTS) == plain), text.strip())


_OF_FILES: dict[Path, str] = {}  # which policy a file registered


def policy_names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(_PRESETS)


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
    if policy.name in _PRESETS:
        raise PolicyError(f"policy {policy.name!r} exists already")
    _PRESETS[policy.name] = policy


def parse_policy(text: str) -> Policy:
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
    name, colon, settings = text.strip().partition(":")
    is_file = name.strip().endswith(".py")
    policy = _policy_of_file(Path(name.strip())) if is_file else Policy.preset(name.strip())
    if not colon:
        return policy
    own: dict[str, int | str] = {}
    scorer: dict[str, int | float | str] = {}
    params: dict[str, float] = {}
    for key, value in _split_settings(settings):
        if policy.name == AUTO and key != "lookahead":
            raise PolicyError(f"policy {AUTO} takes its settings from the profile: name another one to set {key}")
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


def settle(policy: Policy, profile: Profile | None, keep_ratio: float) -> tuple[Policy, Profile | None]:
    """Replace `auto` by what it stands for; any other policy stays as it is.

    With a profile: the choice measured for this share of the rows, with its mix of scores, or `headkv` where nothing
    was chosen. Without one: `snapkv`. A policy with a mix of its own gets the profile with that mix; a profile of one
    kind of scores, which has no name, as those of the HeadKV repository, is taken as it is.

    Parameters
    ----------
    keep_ratio
        share of the rows asked for, in (0, 1]

    Returns
    -------
    (Policy, Profile or None)
        the policy, and the profile with the mix that goes with it

    Raises
    ------
    ProfileError
        the profile's choice cannot be read, naming headkv.settings, or it lacks a kind of scores that the policy names
    """
    if policy.name == AUTO:
        chosen, profile = _settled_auto(profile, keep_ratio)
        policy = replace(chosen, lookahead=policy.lookahead)
    if policy.mix and profile is not None and profile.kinds:
        profile = profile.with_mix(_parse_mix(policy.mix), f"policy {policy.name}")
    return policy, profile


def _settled_auto(profile: Profile | None, keep_ratio: float) -> tuple[Policy, Profile | None]:
    if profile is None:
        return Policy.preset("snapkv"), None
    setting = profile.setting_for(keep_ratio)
    if setting is None:
        return _with_defaults_of(profile), profile
    try:
        chosen = parse_policy(setting.policy)
    except PolicyError as error:
        raise ProfileError(f"headkv.settings for budgets up to {100 * setting.max_keep_ratio:g}%: {error}") from None
    if chosen.name == AUTO:
        raise ProfileError(f"headkv.settings for budgets up to {100 * setting.max_keep_ratio:g}% is {AUTO} again")
    return chosen, profile.with_mix(setting.mix) if setting.mix else profile


def _with_defaults_of(profile: Profile) -> Policy:
    """`headkv` with the single settings that a profile may carry."""
    policy = Policy.preset("headkv")
    scorer = {key: value for key in ("n_obs", "pool_kernel") if (value := getattr(profile, key)) is not None}
    n_sink = policy.n_sink if profile.n_sink is None else profile.n_sink
    return replace(policy, scorer=replace(policy.scorer, **scorer), n_sink=n_sink)


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
