"""The rows to keep of a prompt: budgets, allocators, scorers, policies and plans."""

from pyheadkv.policy import presets as presets  # they are known whichever module is asked first
