"""Profiles: the measured importance of every KV head of one model, and the files they come in.

`profile` holds the dataclasses, `checks` what is accepted, `file` the JSON form (*.headkv.json). The form inside a GGUF
file is pyheadkv.profile.gguf_keys.
"""

from __future__ import annotations

from pyheadkv.profile.checks import SUM_TOLERANCE, VERSION, check_scores, profile_from_body
from pyheadkv.profile.file import read_profile, write_profile
from pyheadkv.profile.profile import KINDS, BudgetChoice, Profile, Scores, format_mix, mix_profile, parse_mix

__all__ = [
    "KINDS",
    "SUM_TOLERANCE",
    "VERSION",
    "BudgetChoice",
    "Profile",
    "Scores",
    "check_scores",
    "format_mix",
    "mix_profile",
    "parse_mix",
    "profile_from_body",
    "read_profile",
    "write_profile",
]
