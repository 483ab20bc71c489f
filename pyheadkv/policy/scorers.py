"""Names and parameters of the native scorers; the maths is in native/score.

A scorer rates every position of every KV head: by the attention that the last `n_obs` queries of the prompt pay to it,
or by one of the other ways in `SCORERS`. With a profile, the heads that retrieve are treated in their own way: their
scores are pooled more widely, since what they find is copied as a whole, and they share what they found.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.errors import PolicyError


@dataclass(frozen=True)
class ScorerKind:
    """A way to rate positions.

    >>> ScorerKind("short keys", "Devoto et al., https://arxiv.org/abs/2406.11430: minus the length").source
    '2406.11430'

    Parameters
    ----------
    summary
        positions that are kept, in a few words
    reference
        paper, formula, and where it differs from the paper
    native
        the library's name for it
    observers
        which tokens are observed as they are read: the "window", the whole "prompt", the prompt "behind sinks",
        "none", or a "reconstruction pass" that repeats the prompt (pyheadkv/cache/reconstruct.py)
    gathers
        gathered of their queries, "query_stats" or "queries"; "": their attention, as `Scorer.reduce` says
    fold
        how query heads share their attention where that is not the setting of this name: all heads of a "layer"
    no_sums
        why scores cannot be added up, so that heads cannot vote with them nor be compared by parts of a sum; "" if
        they can
    compares
        how far apart scores mean the same, so that they can be ranked together: in a "head", a "layer", the "model"
    needs
        properties that a model must have; others are refused when a prompt has been read
    """

    summary: str
    reference: str
    native: str = "attention"
    observers: str = "window"
    gathers: str = ""
    fold: str = ""
    no_sums: str = ""
    compares: str = "model"
    needs: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The paper's arXiv id."""
        return self.reference.partition("arxiv.org/abs/")[2].partition(":")[0].rstrip(",.")


_SIGNED = "may be negative"

SCORERS: dict[str, ScorerKind] = {
    "snapkv": ScorerKind(
        "attention of the last queries",
        """SnapKV, Li et al., https://arxiv.org/abs/2404.14469: mean attention of the observation window, folded over
        the query heads of a KV head, then pooled. Differs from the paper: one score a KV head, as in kvpress.""",
    ),
    "h2o": ScorerKind(
        "attention of all queries of the prompt",
        """H2O, Zhang et al., https://arxiv.org/abs/2306.14048: attention received from all queries of the prompt,
        mean over the group. Differs from the paper: the recent rows are the window and not half of the budget, and
        nothing is evicted while generating. Reading costs the prompt's attention once more, two thirds of the time at
        8,000 tokens on the demo model.""",
        observers="prompt",
    ),
    "tova": ScorerKind(
        "attention of the last query, the same for all heads of a layer",
        """TOVA, Oren et al., https://arxiv.org/abs/2401.06104: attention of the last query (n_obs=1; with more, their
        mean), mean over all heads of the layer, the same for each KV head. Differs from the paper: nothing is evicted
        while generating.""",
        fold="layer",
    ),
    "criticalkv": ScorerKind(
        "attention of the last queries, and what the value does behind the output projection",
        """CriticalKV, Feng et al., https://arxiv.org/abs/2502.03805: of the rows that are chosen, half go to the
        positions with the highest attention, as SnapKV rates them; the others to those with the highest (attention +
        0.0001) * |W_o v|, W_o being the output projection's block of a query head, mean over the group. Allocators
        that look at scores see attention. Differs from the paper: |W_o v| is the length and not the sum of absolute
        elements, which takes several times as long and chooses nearly the same rows (of 204 in each head of the demo
        model 99 % were the same); half of a KV head's rows is rounded down and does not count those that are always
        kept; adapters (LoRA) and gates of the output are not followed.""",
        native="critical",
        compares="layer",  # the output projection has a scale of its own in every layer
    ),
    "layer_defensive": ScorerKind(
        "largest attention of the last queries, times the value behind the output projection",
        """LayerDefensiveKV, Feng et al., https://arxiv.org/abs/2510.13334: attention of each query of the window,
        pooled and scaled back to its mass; the largest over the window and the group, at least the KV head's mean;
        times |W_o v| (a length, as in criticalkv) over its sum. The fewest positions that hold nine tenths of the KV
        head's mean attention come first, at most as many as a KV head chooses on average. Differs from the paper: the
        released code's correction of the nine tenths for the window is left out; pooling divides by the positions that
        exist, at the ends too; fold and reduce have no meaning; adapters (LoRA) and gates of the output are not
        followed.""",
        native="defensive",
        gathers="queries",
        no_sums="have no sum",  # those that come first have the highest score that there is
    ),
    "streaming": ScorerKind(
        "the last positions",
        """StreamingLLM, Xiao et al., https://arxiv.org/abs/2309.17453: the later the better; the policy protects the
        sinks. Differs from the paper: positions stay those of the prompt, and nothing is evicted while generating.""",
        native="position",
        observers="none",
    ),
    "knorm": ScorerKind(
        "short keys",
        """Devoto et al., https://arxiv.org/abs/2406.11430: minus the length of the key. Differs from the paper: all
        layers are compressed.""",
        native="knorm",
        observers="none",
        no_sums=_SIGNED,
        compares="head",  # every head's keys have a length of their own
    ),
    "keydiff": ScorerKind(
        "keys unlike the others",
        """KeyDiff, Park et al., https://arxiv.org/abs/2504.15364: minus the cosine between the key and the mean of the
        head's keys of length 1. Differs from the paper: all keys at once, not block by block.""",
        native="keydiff",
        observers="none",
        no_sums=_SIGNED,
    ),
    "expected_attention": ScorerKind(
        "attention that later queries are expected to pay",
        """Expected Attention, Devoto et al., https://arxiv.org/abs/2510.00636: queries to come are normal, with mean m
        and covariance S of the prompt's before rotation, turned by the mean rotation of the next 512 positions;
        softmax(k m / sqrt(d) + k S k / 2d), mean over the group, plus 0.01, times the length of the value. Sinks are
        left out of all sums. Differs from the paper: soft caps of logits are not followed. Models with learned
        positions, layers without rotation, a temperature or a norm behind it are refused.""",
        native="expected",
        gathers="query_stats",
        observers="behind sinks",
        compares="layer",  # values are longer in some layers
        needs=("layers that rotate their queries last (not GPT-2, SmolLM3, Ministral 3, Hunyuan)",),
    ),
    "kvzip": ScorerKind(
        "attention while the model repeats the prompt",
        """KVzip, Kim et al., https://arxiv.org/abs/2505.23416: largest attention while the model repeats the prompt,
        over the repeating tokens and the group (reduce=max, fold=max). Takes 2 to 3 times as long as reading.
        Differs from the paper: the window is kept and not repeated; the rest is in cache/reconstruct.py.""",
        observers="reconstruction pass",
    ),
}

REDUCES = ("mean", "max")
POOLS = ("max", "avg")
FOLDS = ("mean", "max")
MAX_N_OBS = 512
MAX_POOL_KERNEL = 255


@dataclass(frozen=True)
class Scorer:
    """A way to rate positions, with its parameters. `SCORERS` names the papers.

    >>> Scorer("snapkv", n_obs=32, pool_kernel=7).pool
    'max'

    Parameters
    ----------
    name
        one of `SCORERS`
    n_obs
        observation window: the last queries of the prompt, whose rows are kept, and which score where the
        scorer looks at the window
    pool_kernel
        odd positions pooled into each score, stride 1, same length; 1 is no pooling
    pool
        "max" or "avg"
    fold
        how the query heads of a KV head share their attention, before pooling: "mean" or "max"
    reduce
        how the observing queries share their attention: "mean" or "max"
    retrieval_share
        so many of the KV heads, 0 to 1, are treated as retrieval heads: those with the highest
        retrieval scores of the profile
    retrieval_kernel
        positions pooled into the scores of a retrieval head
    vote_share
        0 to 1: how much of a retrieval head's scores is the vote of all heads, in which each has the
        weight of its retrieval score (native/core/vote.h)

    Raises
    ------
    PolicyError
        naming the value and the limit
    """

    name: str = "snapkv"
    n_obs: int = 16
    pool_kernel: int = 7
    pool: str = "max"
    fold: str = "mean"
    reduce: str = "mean"
    retrieval_share: float = 0.0
    retrieval_kernel: int = 17
    vote_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what the native side would refuse, before a prompt is read."""
        if self.name not in SCORERS:
            raise PolicyError(f"unknown scorer {self.name!r}, known are {', '.join(SCORERS)}")
        if not 1 <= self.n_obs <= MAX_N_OBS:
            raise PolicyError(f"n_obs is {self.n_obs}, expected 1 to {MAX_N_OBS}")
        for key, kernel in (("pool_kernel", self.pool_kernel), ("retrieval_kernel", self.retrieval_kernel)):
            if not 1 <= kernel <= MAX_POOL_KERNEL or kernel % 2 == 0:
                raise PolicyError(f"{key} is {kernel}, expected an odd number from 1 to {MAX_POOL_KERNEL}")
        for key, share in (("retrieval_share", self.retrieval_share), ("vote_share", self.vote_share)):
            if not 0 <= share <= 1:
                raise PolicyError(f"{key} is {share:g}, expected 0 to 1")
        if self.retrieval_share > 0 and SCORERS[self.name].no_sums:
            raise PolicyError(
                f"retrieval_share is {self.retrieval_share:g}, expected 0: heads cannot vote by {self.name}"
            )
        words = (("pool", self.pool, POOLS), ("fold", self.fold, FOLDS), ("reduce", self.reduce, REDUCES))
        for key, word, known in words:
            if word not in known:
                raise PolicyError(f"{key} is {word!r}, expected {' or '.join(known)}")

    @property
    def kind(self) -> str:
        """The library's name for what positions are rated by."""
        return SCORERS[self.name].native

    @property
    def native_fold(self) -> str:
        """The library's name for how query heads share their attention."""
        return SCORERS[self.name].fold or self.fold

    @property
    def needs_reconstruction(self) -> bool:
        """Whether the model repeats the prompt, so that scores are made before the window is read."""
        return SCORERS[self.name].observers == "reconstruction pass"

    @property
    def gathers(self) -> str | None:
        """Gathered of the observing tokens: "attn_mean", "attn_max", "query_stats", "queries", or None."""
        kind = SCORERS[self.name]
        return None if kind.observers in ("none", "reconstruction pass") else kind.gathers or f"attn_{self.reduce}"

    def n_last(self, n_prompt: int, n_sink: int) -> int:
        """So many of the prompt's last tokens are read by themselves, those that observe: at least the window.

        Parameters
        ----------
        n_prompt
            tokens of the prompt, more than n_sink + n_obs
        n_sink
            first positions that the policy keeps
        """
        observers = {"prompt": n_prompt, "behind sinks": n_prompt - n_sink}
        return observers.get(SCORERS[self.name].observers, self.n_obs)


def register_scorer(name: str, kind: ScorerKind) -> None:
    """Add a scorer under its name, for `parse_policy` and policies of one's own.

    It rates positions by one of the library's ways (``native``), seen by other tokens, or folded or compared otherwise.

    >>> register_scorer("h2o-late", ScorerKind("attention behind the sinks", "H2O, made up", observers="behind sinks"))
    >>> parse_policy("uniform+h2o-late:n_obs=8").scorer.n_last(n_prompt=1000, n_sink=4)
    996

    Parameters
    ----------
    name
        letters, digits, - and _
    kind
        its words are those of the scorers that there are

    Raises
    ------
    PolicyError
        the name is taken, or no scorer has this word
    """
    if name in SCORERS:
        raise PolicyError(f"scorer {name!r} exists already")
    for key in ("native", "observers", "gathers", "fold", "compares"):
        word, known = getattr(kind, key), dict.fromkeys(getattr(other, key) for other in SCORERS.values())
        if word not in known:
            raise PolicyError(f"scorer {name}: {key} is {word!r}, expected one of {', '.join(map(repr, known))}")
    SCORERS[name] = kind
