"""How the next token of an answer is chosen, and who says so.

A setting is taken from the command line, else from the model file (`general.sampling.*`, as llama-cli does), else from
what pyheadkv knows of the model, else it is llama-cli's default.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyheadkv.errors import UsageError

_KEYS = "general.sampling."
_I32_MAX, _U32_MAX = 2**31 - 1, 2**32 - 1


@dataclass(frozen=True)
class Setting:
    """One setting: the field of `Sampling`, the key of a GGUF file ("" is none), what is allowed, and what it does."""

    field: str
    key: str
    low: float
    high: float
    words: str
    is_whole: bool = False

    def read(self, name: str, value: object) -> float:
        """A number, or the text of one; UsageError where it is none or out of range."""
        try:
            number = float(str(value))
        except ValueError:
            number = float("nan")
        if not self.low <= number <= self.high or (self.is_whole and number != int(number)):
            kind = "a whole number" if self.is_whole else "a number"
            raise UsageError(f"{name} is {value}, expected {kind} from {self.low:.10g} to {self.high:.10g}")
        return int(number) if self.is_whole else number


SETTINGS = {
    "temp": Setting("temp", "temp", 0, 100, "0 always takes the likeliest token"),
    "top-k": Setting("top_k", "top_k", 0, _I32_MAX, "so many of the likeliest tokens; 0 is all", is_whole=True),
    "top-p": Setting("top_p", "top_p", 0, 1, "the likeliest tokens of this much probability together; 1 is all"),
    "min-p": Setting("min_p", "min_p", 0, 1, "tokens at least so likely beside the likeliest; 0 is all"),
    "repeat-penalty": Setting(
        "repeat_penalty", "penalty_repeat", 0.01, 100, "makes the last 64 tokens less likely; 1 is off"
    ),
    "seed": Setting("seed", "", -1, _U32_MAX, "-1 is random", is_whole=True),
    "n-predict": Setting(
        "max_tokens", "", -1, _I32_MAX, "tokens of an answer; 0 reads the prompt alone, -1: no limit", is_whole=True
    ),
}


@dataclass(frozen=True)
class Sampling:
    """The settings of an answer, llama-cli's by default.

    Parameters
    ----------
    temp
        divides the logits; 0 is greedy
    seed
        None or -1 is random in each turn
    max_tokens
        tokens of an answer; 0 reads the prompt alone, -1 is no limit but the context
    top_k, top_p, min_p
        which tokens may be drawn, as `SETTINGS` says
    repeat_penalty
        divides the logits of the last 64 tokens
    """

    temp: float = 0.8
    seed: int | None = None
    max_tokens: int = -1
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0

    def having(self, settings: Mapping[str, object]) -> Sampling:
        """The same with some settings changed, by the names of `SETTINGS`.

        Raises
        ------
        UsageError
            no such setting, or a value out of range
        """
        fields: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in SETTINGS:
                raise UsageError(f"no setting {name}, known are {', '.join(SETTINGS)}")
            fields[SETTINGS[name].field] = SETTINGS[name].read(name, value)
        return replace(self, **fields)

    def value(self, name: str) -> float:
        """Of the setting with this name in `SETTINGS`."""
        value = getattr(self, SETTINGS[name].field)
        return -1 if value is None else value

    def options(self) -> dict[str, Any]:
        """Arguments of llama-cpp-python, whose own defaults differ between its functions."""
        return {
            "temperature": self.temp,
            "seed": secrets.randbits(32) if self.seed in (None, -1) else self.seed,
            "max_tokens": {-1: None, 0: 1}.get(self.max_tokens, self.max_tokens),  # its 0 is no limit
            "stopping_criteria": None if self.max_tokens else _is_enough,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "stream": True,
        }


def _is_enough(*_: object) -> bool:
    """Asked when a token is chosen: it is not taken."""
    return True


def sampling_of_file(
    sampling: Sampling, metadata: Mapping[str, object], on_notice: Callable[[str], None] | None = None
) -> Sampling:
    """Settings of a model file over `sampling`; a key that cannot be followed is named in one line.

    Parameters
    ----------
    metadata
        keys of the file, numbers or their text
    """
    names = {_KEYS + setting.key: name for name, setting in SETTINGS.items() if setting.key}
    for key, value in metadata.items():
        if not key.startswith(_KEYS):
            continue
        try:
            if key not in names:
                raise UsageError("there is no such setting here")
            sampling = sampling.having({names[key]: value})
        except UsageError as problem:
            if on_notice:
                on_notice(f"the model's {key} is not followed: {problem}")
    return sampling
