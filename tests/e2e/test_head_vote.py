"""policy="headkv" through HeadKV: the rows are those of equation 4, the positions those that the vote chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV
from pyheadkv.policy.policy import Policy
from pyheadkv.profile import Profile
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens
from tests.e2e.test_projection import assert_best
from tests.reference.select import mix_vote, select_positions
from tests.tiny import Tiny

TINY = Tiny(n_head=(8, 4, 6), n_head_kv=(4, 4, 2))
N_PROMPT = 400
NEAR_TIE = 1e-5  # the library adds in f32, the reference in f64

# the heads that retrieve are not those that keep most: scores in use are of another kind
IN_USE = ((0.30, 0.05, 0.05, 0.05), (0.05, 0.20, 0.05, 0.05), (0.10, 0.10))
RETRIEVAL = ((0.01, 0.02, 0.30, 0.02), (0.05, 0.03, 0.02, 0.25), (0.20, 0.10))
RETRIEVING = {2, 7}  # of ten heads, layer after layer: a fifth
PROFILE = Profile(IN_USE, "made", kinds={"reconstruction": IN_USE, "retrieval": RETRIEVAL}, mix={"reconstruction": 1.0})


def expected_scores(raw: list[np.ndarray], policy: Policy) -> list[np.ndarray]:
    """Scores of each layer as the reference pools and mixes them, f64 [n_head_kv, n]."""
    scorer = policy.scorer
    vote_weights = np.array([score for layer in RETRIEVAL for score in layer])
    vote_shares = np.array([0.5 if h in RETRIEVING else 0.0 for h in range(10)])
    kernels = [17 if h in RETRIEVING else 1 for h in range(10)]
    return mix_vote(
        [layer.astype(float) for layer in raw], vote_weights, vote_shares, kernels, 17, policy.n_sink, scorer.pool
    )


@pytest.mark.parametrize("budget", ["8%", "15%", "40%"])
def test_positions_are_those_of_roles_and_vote(open_context: MakeContext, budget: str) -> None:
    tokens, policy = make_tokens(N_PROMPT, 64), Policy.preset("headkv")
    context = open_context(TINY)
    context.native.observe(policy.n_obs, "attn_max", len(tokens) - policy.n_obs)
    context.decode(tokens)
    plain = replace(policy.scorer, pool_kernel=1)
    raw = [context.native.score_read(i, plain) for i in range(TINY.n_layer)]
    scores = expected_scores(raw, policy)

    llama = open_context(TINY, attach=False).llama
    with HeadKV(llama, policy="headkv", budget=budget, profile=PROFILE) as headkv:
        llama.eval(tokens)
        assert headkv.plan is not None
        n_unlike_plain = 0
        for il, layer in enumerate(headkv.plan.rows):
            for ih, n_rows in enumerate(layer):
                kept = headkv.native.positions(il, ih)
                assert len(kept) == n_rows - policy.n_obs
                assert_best(kept, scores[il][ih], policy.n_sink, NEAR_TIE)
                is_plain = np.array_equal(kept, select_positions(raw[il][ih], policy.n_sink, len(kept)))
                is_retrieving = sum(TINY.n_head_kv[:il]) + ih in RETRIEVING
                assert is_plain or is_retrieving
                n_unlike_plain += not is_plain
    assert n_unlike_plain == len(RETRIEVING)  # so that a lost role is seen
