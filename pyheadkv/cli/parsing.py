"""Lists as the command line takes them: lengths, budgets, policies, questions, cache types; its folders for results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyheadkv.errors import HeadKVError, ProfileError, UsageError
from pyheadkv.evaluate.prompted import QUESTIONS
from pyheadkv.evaluate.talk import ARCHIVES
from pyheadkv.files.targets import check_target
from pyheadkv.model.shape import CACHE_TYPES
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.text import parse_policy
from pyheadkv.policy.trial import Trial
from pyheadkv.profile import Profile

MIN_LENGTH = 128


def parse_budgets(text: str) -> list[Budget]:
    """50%,512,64MiB; a BudgetError names the one that cannot be read."""
    return [Budget.parse(budget) for budget in text.split(",")]


def make_trials(policies: Sequence[str], budgets: Sequence[Budget], profile: Profile | None) -> list[Trial]:
    """Policies as typed, each at all budgets, with the profile at hand.

    Raises
    ------
    PolicyError, ProfileError
        an unknown policy, or one that needs head scores where there are none
    """
    parsed = {text: parse_policy(text) for text in policies}
    for text, policy in parsed.items():
        if policy.needs_profile and profile is None:
            raise ProfileError(
                f"policy {text} needs measured head scores: --profile FILE (pyheadkv calibrate makes one)"
            )
    return [Trial(text, policy, budget, profile) for text, policy in parsed.items() for budget in budgets]


def parse_lengths(text: str, option: str = "--ctx", least: int = MIN_LENGTH) -> tuple[int, ...]:
    """2k,4k or numbers of tokens, as an option has them.

    Raises
    ------
    UsageError
        naming the part that cannot be read, or is too short
    """
    lengths: dict[int, None] = {}
    for part in text.lower().split(","):
        digits, is_kilo = part.strip().removesuffix("k"), part.strip().endswith("k")
        if not digits.isdecimal():
            raise UsageError(f"{option} {part.strip()[:40]!r} cannot be read, expected lengths as in 2k,4k or 1000")
        length = int(digits) * (1024 if is_kilo else 1)
        if length < least:
            raise UsageError(f"{option} {length} is too short, at least {least} tokens are needed")
        lengths[length] = None
    return tuple(lengths)


def parse_questions(text: str) -> tuple[str, ...]:
    """in,after or one of them.

    Raises
    ------
    UsageError
        naming the part that is neither
    """
    questions = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for question in questions:
        if question not in QUESTIONS:
            raise UsageError(f"--question is {question[:40]!r}, expected {' or '.join(QUESTIONS)}, or both: in,after")
    return questions


def parse_archives(text: str) -> tuple[str, ...]:
    """archive,as-generated,none or some of them.

    Raises
    ------
    UsageError
        naming the part that is none of them
    """
    archives = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for archive in archives:
        if archive not in ARCHIVES:
            raise UsageError(f"--archives {archive[:40]!r} is unknown, expected {', '.join(ARCHIVES)}")
    return archives


def split_policies(text: str) -> list[str]:
    """Policies apart by commas, whose settings have commas as well: auto,headkv:beta=2,n_obs=32,snapkv -> 3."""
    policies: list[str] = []
    for part in text.split(","):
        is_setting = "=" in part and ":" not in part.partition("=")[0]
        if is_setting and policies:
            policies[-1] += f",{part}"
        else:
            policies.append(part.strip())
    return list(dict.fromkeys(policies))


def parse_versus(text: str | None, type_k: str, type_v: str) -> list[str]:
    """q8_0,q4_0: cache types to compare with.

    Raises
    ------
    UsageError
        an unknown type, or the one that is in use already
    """
    types = list(dict.fromkeys(part.strip() for part in text.split(","))) if text else []
    for name in types:
        if name not in CACHE_TYPES:
            raise UsageError(f"--versus {name[:40]!r} is no cache type, known are {', '.join(CACHE_TYPES)}")
        if name == cache_name(type_k, type_v):
            raise UsageError(f"--versus {name} is the cache type that is measured already (-ctk, -ctv)")
    return types


def cache_name(type_k: str, type_v: str) -> str:
    """Types of K and V in a word."""
    return type_k if type_k == type_v else f"{type_k}/{type_v}"


def make_folder(folder: Path, names: Sequence[str], error: type[HeadKVError]) -> None:
    """Make a folder for results, where there is none, before hours of measuring.

    Parameters
    ----------
    names
        of the files that will be written there

    Raises
    ------
    HeadKVError
        `error`, naming the folder and the reason, or what is in the way of a file
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise error(f"{folder} cannot be made: {problem.strerror} (-o names another place)") from None
    for name in names:
        check_target(folder / name, error, "-o")
