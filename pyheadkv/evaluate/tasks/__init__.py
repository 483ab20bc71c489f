"""Tasks: seeded cases in plain prose, made at run time.

`riddles` draws what is hidden and asked, `phrases` is its stock, `prose` the text around it, `make` cases of both.
"""

from __future__ import annotations

from pyheadkv.evaluate.tasks.make import GROUPS, TASKS, Sizes, make_cases, parse_tasks
from pyheadkv.evaluate.tasks.prose import Prose

__all__ = ["GROUPS", "TASKS", "Prose", "Sizes", "make_cases", "parse_tasks"]
