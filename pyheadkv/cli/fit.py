"""`--fit SIZE`: options that were not given, chosen for a model so that all of it fits into so much memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyheadkv.cli.options import InspectOptions, ModelOptions
from pyheadkv.errors import BudgetError, UsageError
from pyheadkv.model.beside import bytes_beside
from pyheadkv.model.keys import Metadata
from pyheadkv.model.shape import ModelShape
from pyheadkv.model.weights import file_bytes
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.fit import Fit, Needs, Wanted, find_fit
from pyheadkv.policy.policy import PolicyChoice
from pyheadkv.profile import Profile

_FREE = "f16"  # the default of -ctk and -ctv, which nobody need have asked for


def parse_size(text: str, option: str = "--fit") -> int:
    """Bytes of 8GiB, 500MB.

    Raises
    ------
    UsageError
        it is no size
    """
    try:
        budget = Budget.parse(text)
    except BudgetError:
        budget = None
    if budget is None or budget.kind != "bytes":
        raise UsageError(f"{option} is {text[:40]!r}, expected a size: 8GiB or 500MB")
    return int(budget.value)


def choose_fit(
    options: ModelOptions | InspectOptions,
    limit: int,
    path: Path,
    metadata: Metadata,
    shape: ModelShape,
    policy: PolicyChoice,
    profile: Profile | None,
) -> Fit:
    """The settings; errors are those of `find_fit`."""
    types = (options.type_k, options.type_v)
    wanted = Wanted(
        n_ctx=options.n_ctx or None,
        types=None if types == (_FREE, _FREE) else types,
        budget=Budget.parse(options.budget) if options.budget else None,
    )
    n_embd, n_ff = (_width(metadata, f"{shape.architecture}.{key}_length") for key in ("embedding", "feed_forward"))
    needs = Needs(
        shape,
        policy,
        profile,
        n_embd,
        n_ff or 4 * n_embd,
        file_bytes(path),
        beside=lambda n_ctx, type_k, type_v: bytes_beside(metadata, n_ctx, type_k, type_v).n_bytes,
    )
    if isinstance(options, ModelOptions):
        # beside a GPU auto takes main memory where there is room
        in_memory = options.archive == "ram" or (options.archive == "auto" and options.n_gpu_layers != 0)
        needs = replace(needs, by_layers=not options.no_sweep, has_archive=in_memory)
    return find_fit(needs, limit, wanted)


def fit_words(fit: Fit, request: str) -> str:
    """One line."""
    reading, answering = (f"{n_bytes / 2**20:.0f} MiB" for n_bytes in (fit.reading, fit.answering))
    if fit.budget.kind == "full":
        return f"{fit} fits into {request}: about {answering} with the whole cache"
    while_reading = f"about {reading} while a prompt of {fit.n_prompt} tokens is read"
    return f"{fit} fits into {request}: {while_reading}, {answering} while it is answered"


def _width(metadata: Metadata, key: str) -> int:
    """A number, or the largest of one for each layer; 0 where there is none."""
    value = metadata.get(key, 0)
    numbers = value if isinstance(value, list) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)
