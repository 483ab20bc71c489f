"""The policies that have a name."""

from __future__ import annotations

from pyheadkv.policy.policy import Policy, register_policy
from pyheadkv.policy.scorers import Scorer

_EXPECTED_ATTENTION = Scorer("expected_attention", n_obs=1, pool_kernel=1)
_KVZIP = Scorer("kvzip", n_obs=1, pool_kernel=1, fold="max", reduce="max")

for _policy in (
    Policy("snapkv", "uniform", Scorer(fold="mean")),
    # a KV head matters mostly because of one of its query heads, and of one query: those speak for the rest
    Policy("headkv", "headkv", Scorer(fold="max", reduce="max", pool_kernel=1, retrieval_share=0.2, vote_share=0.5)),
    Policy("headkv-r", "headkv", Scorer(n_obs=8), score_mix="retrieval"),
    Policy("headkv-r2", "headkv", Scorer(n_obs=8), score_mix="retrieval-reasoning"),
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
    Policy("headkv+kvzip", "headkv", _KVZIP, params={"beta": 1.05, "temperature": 1.5}, score_mix="reconstruction"),
    # the middle as SnapKV rates it; recent rows are protected for every head, so the allocator need not add them
    Policy("task-kv", "taskkv", Scorer(n_obs=32, pool="avg"), n_sink=16, params={"recent": 0}, n_recent=256),
    # the last positions first: heads that do not retrieve keep sinks + recent rows, as StreamingLLM does
    Policy("duo", "duo", Scorer("streaming", n_obs=1, pool_kernel=1), n_sink=16, score_mix="retrieval-reasoning"),
    Policy("criticalkv", "adakv", Scorer("criticalkv", n_obs=32)),
    Policy("layer-defensive", "global", Scorer("layer_defensive", n_obs=32, pool_kernel=5, pool="avg")),
):
    register_policy(_policy)
