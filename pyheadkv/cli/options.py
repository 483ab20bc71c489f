"""What the commands ask, as they hand it to the modules that do the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheOptions:
    """What both commands ask about the cache."""

    model: str
    budget: str | None
    policy: str
    profile: Path | None
    mix: str | None
    n_ctx: int
    type_k: str
    type_v: str


@dataclass(frozen=True)
class ChatOptions:
    """What only `chat` asks; sampling has the settings that were given, by the names in `pyheadkv.chat.sampling`."""

    n_threads: int | None
    n_gpu_layers: int
    system: str | None
    files: tuple[Path, ...]
    prompt: str | None
    is_single_turn: bool
    sampling: Mapping[str, float]
    as_json: bool
    verbose: bool
    lookahead: int
    protect: tuple[str, ...] = ()
    stop_loops: bool = True
    template: str | None = None


@dataclass(frozen=True)
class CalibrateOptions:
    """What `calibrate` asks."""

    model: str
    output: Path | None
    n_examples: int
    lengths: str
    seed: int
    fold: str
    profile_mix: str | None
    n_threads: int | None
    n_gpu_layers: int
    force: bool
    is_choosing: bool = False


@dataclass(frozen=True)
class EvalOptions:
    """What `eval` asks."""

    model: str
    tasks: str | None
    policies: str
    budgets: str
    lengths: str
    questions: str
    n_cases: int
    output: Path | None
    data: tuple[str, ...]
    text: Path | None
    seed: int
    profile: Path | None
    profile_mix: str | None
    type_k: str
    type_v: str
    n_threads: int | None
    n_gpu_layers: int
    versus: str | None
    kvpress: str | None
    readme: str | None


@dataclass(frozen=True)
class BenchOptions:
    """What `bench` asks."""

    model: str | None
    shape: str | None
    n_layer: int | None
    weights: str
    lengths: str
    policies: str
    budgets: str
    profile: Path | None
    profile_mix: str | None
    type_k: str
    type_v: str
    n_threads: int | None
    n_gpu_layers: int
    n_rounds: int
    n_tokens: int
    with_memory: bool
    seed: int
    output: Path | None
    as_json: bool
    readme: str | None


@dataclass(frozen=True)
class ExportOptions:
    """What `export` asks."""

    model: str
    output: Path | None
    profile: Path | None
    is_calibrating: bool
    profile_mix: str | None
    budget: str | None
    is_removing: bool
    in_place: bool
    force: bool
