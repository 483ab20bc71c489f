"""Context, cache types and budget that fit into so much memory.

    reading     weights + process + buffers + hidden states + attention + rows of one layer + rows that are kept
    answering   weights + process + buffers + rows that are kept + whole rows of the answer

for one prompt that fills the context but for the answer. Where a prompt is read batch by batch, the rows of all layers
are there while it is read; where nothing is compressed, always. Figures that llama.cpp decides (buffers) are estimates
from above, held against processes by tests/e2e/test_fit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyheadkv.errors import BudgetError, ModelError, UsageError
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.peak import peak
from pyheadkv.policy.plan import check_budget, make_plan
from pyheadkv.policy.policy import PolicyChoice
from pyheadkv.profile import Profile

MIN_CTX = 512
_ANSWER = 1024  # tokens, at most a quarter of the context
_UBATCH = 512  # llama.cpp's
_PROCESS = 160 * 2**20  # bytes: Python, NumPy, the libraries, a server
_HIDDEN, _FEED_FORWARD = 6, 3  # f32 tensors of a ubatch that exist at a time
_MASK = 4  # bytes of a ubatch's mask for each position: f16, once on the host and once in a buffer

Types = tuple[str, str]
# the better the earlier; q8_0 is next to nothing worse than f16
_CHOICES = [
    (types, budget) for budget in ("full", "50%", "25%", "10%", "5%") for types in (("f16", "f16"), ("q8_0", "q8_0"))
]


@dataclass(frozen=True)
class Needs:
    """What decides the memory of a model.

    Parameters
    ----------
    n_embd, n_ff
        elements of a token's hidden state, and of the widest one in a feed-forward layer
    bytes_weights
        of the files
    by_layers
        prompts are read layer by layer
    has_archive
        in memory, of all rows
    beside
        bytes of sliding windows and recurrent states, of a context of so many tokens and these cache types; models that
        have some are read batch by batch
    """

    shape: ModelShape
    policy: PolicyChoice
    profile: Profile | None
    n_embd: int
    n_ff: int
    bytes_weights: int
    by_layers: bool = True
    has_archive: bool = False
    beside: Callable[[int, str, str], int] = lambda n_ctx, type_k, type_v: 0


@dataclass(frozen=True)
class Wanted:
    """What is given, None where it is to be chosen."""

    n_ctx: int | None = None
    types: Types | None = None
    budget: Budget | None = None


@dataclass(frozen=True)
class Fit:
    """Settings, and the bytes of the whole process with them.

    Parameters
    ----------
    n_prompt
        tokens of the prompt that is meant
    reading, answering
        at the most while it is read, and while it is answered
    """

    n_ctx: int
    type_k: str
    type_v: str
    budget: Budget
    n_prompt: int
    reading: int
    answering: int

    @property
    def bytes_peak(self) -> int:
        """The most there ever are."""
        return max(self.reading, self.answering)

    def __str__(self) -> str:
        """The options of the command line."""
        return f"-c {self.n_ctx} -ctk {self.type_k} -ctv {self.type_v} --budget {self.budget.request}"


def find_fit(needs: Needs, limit: int, wanted: Wanted) -> Fit:
    """The largest context that fits, up to the trained one, and the best cache types and budget at it.

    Parameters
    ----------
    limit
        bytes

    Raises
    ------
    UsageError
        nothing fits; names the nearest settings that do, or the least that is needed
    BudgetError, ModelError
        what is wanted does not fit the model
    """
    found, least = _search(needs, limit, wanted)
    if found:
        return found
    for less in (Wanted(None, wanted.types, wanted.budget), Wanted(wanted.n_ctx), Wanted()):
        nearest, _ = _search(needs, limit, less)
        if nearest:
            raise UsageError(f"{least} takes {_mib(least.bytes_peak)}, more than {_mib(limit)}; {nearest} would fit")
    takes = f"{least} takes {_mib(least.bytes_peak)}, {_mib(needs.bytes_weights)} of it weights"
    raise UsageError(f"nothing fits into {_mib(limit)}: {takes}")


def measure(needs: Needs, n_ctx: int, types: Types, budget: Budget) -> Fit:
    """Memory with these settings.

    Raises
    ------
    BudgetError, ModelError
        they do not fit the model
    """
    shape, (type_k, type_v) = needs.shape, types
    check_budget(shape, needs.policy, budget, n_ctx, type_k=type_k, type_v=type_v, profile=needs.profile)
    n_prompt = n_ctx - min(_ANSWER, n_ctx // 4)
    plan = make_plan(shape, needs.policy, budget, n_prompt, type_k=type_k, type_v=type_v, profile=needs.profile)
    per_token = shape.bytes_per_token(type_k, type_v)
    kept_whole = needs.beside(n_ctx, type_k, type_v)
    beside = _beside(needs, n_ctx) + kept_whole
    if plan is None:
        whole = beside + n_ctx * per_token
        return Fit(n_ctx, type_k, type_v, budget, n_prompt, whole, whole)
    most = peak(shape, plan, type_k, type_v, needs.n_embd)
    beside += n_ctx * per_token if needs.has_archive else 0
    observed = 4 * n_prompt * sum(layer.n_head for layer in shape.layers)
    rows = most.by_layers + most.hidden_states if needs.by_layers and not kept_whole else most.whole
    reading = beside + rows + observed
    answering = beside + plan.bytes_kept + (n_ctx - n_prompt) * per_token
    return Fit(n_ctx, type_k, type_v, budget, n_prompt, reading, answering)


def _beside(needs: Needs, n_ctx: int) -> int:
    """Bytes beside keys and values."""
    buffers = _UBATCH * (4 * (_HIDDEN * needs.n_embd + _FEED_FORWARD * needs.n_ff) + _MASK * n_ctx)
    return needs.bytes_weights + _PROCESS + buffers


def _search(needs: Needs, limit: int, wanted: Wanted) -> tuple[Fit | None, Fit]:
    """The first that fits, and the one that takes least of all."""
    contexts = [wanted.n_ctx] if wanted.n_ctx else list(_contexts(needs.shape.n_ctx_train))
    for n_ctx in contexts:
        if _beside(needs, n_ctx) < limit:
            for found in _measured(needs, n_ctx, wanted):
                if found.bytes_peak <= limit:
                    return found, found
    return None, min(_measured(needs, contexts[-1], wanted), key=lambda it: it.bytes_peak)


def _measured(needs: Needs, n_ctx: int, wanted: Wanted) -> Iterator[Fit]:
    """All choices that fit the model, the best first; the error of the last one where there is none."""
    problem: BudgetError | ModelError | None = None
    has_any = False
    for types, budget in _choices(wanted):
        try:
            yield measure(needs, n_ctx, types, budget)
            has_any = True
        except (BudgetError, ModelError) as error:
            problem = error
    if problem and not has_any:
        raise problem


def _choices(wanted: Wanted) -> Sequence[tuple[Types, Budget]]:
    chosen = ((wanted.types or types, wanted.budget or Budget.parse(budget)) for types, budget in _CHOICES)
    return list(dict.fromkeys(chosen))


def _contexts(n_most: int) -> Iterator[int]:
    """The trained context, and three quarters, a half, three eighths, ... of it."""
    yield n_most
    n = n_most
    while n // 2 >= MIN_CTX:
        yield from (n * 3 // 4 // 256 * 256, n // 2 // 256 * 256)
        n //= 2


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"
