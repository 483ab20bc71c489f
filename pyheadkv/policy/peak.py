"""Fast memory at its peak, while a prompt is read and compressed by a plan."""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.plan import Plan

BYTES_HIDDEN_MAX = 256 * 2**20  # as native/cache/sweep.h has it


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak.

    Parameters
    ----------
    by_layers
        keys and values where the prompt is read layer by layer: all rows of the largest layer, and those that are kept
    whole
        where it is read batch by batch: all rows, and those that are kept
    hidden_states
        of all tokens, f32, beside by_layers; longer prompts are read in blocks
    """

    by_layers: int
    whole: int
    hidden_states: int


def peak(shape: ModelShape, plan: Plan, type_k: str, type_v: str, n_embd: int) -> Peak:
    """Bytes that a plan needs while its prompt is read.

    Parameters
    ----------
    n_embd
        elements of a token's hidden state
    """
    layers = [layer.n_head_kv * shape.row_bytes(i, type_k, type_v) for i, layer in enumerate(shape.layers)]
    return Peak(
        plan.n_prompt * max(layers) + plan.bytes_kept,
        plan.bytes_full + plan.bytes_kept,
        min(BYTES_HIDDEN_MAX, plan.n_prompt * n_embd * 4),
    )
