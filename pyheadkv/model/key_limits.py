"""Limits of a model's keys that llama.cpp asserts: a file that breaks it would end the process, and is refused before.

Follows llama_model_base::load_hparams() and ggml's norms at the pinned commit. What llama.cpp refuses itself is left
to it.
"""

from __future__ import annotations

from pyheadkv.errors import ModelError
from pyheadkv.model.keys import Metadata, layer_count

_MAX_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS
_ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")
_NORMS = ("layer_norm", "layer_norm_rms", "group_norm")


def check_limits(metadata: Metadata, arch: str) -> None:
    """Refuse keys that llama.cpp ends the process on.

    Raises
    ------
    ModelError
        naming the key, its value and what was expected
    """
    n_block, _ = layer_count(metadata, arch)
    n_nextn = _largest(metadata, f"{arch}.nextn_predict_layers")
    if n_nextn > n_block:
        raise ModelError(f"{arch}.nextn_predict_layers is {n_nextn}, expected at most the {n_block} layers")
    _check_experts(metadata, arch)
    for norm in _NORMS:
        key = f"{arch}.attention.{norm}_epsilon"
        epsilon = metadata.get(key, 0.0)
        if isinstance(epsilon, float) and not epsilon >= 0:  # nan is no number to compare with
            raise ModelError(f"{key} is {epsilon}, expected at least 0")


def _check_experts(metadata: Metadata, arch: str) -> None:
    names = ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count")
    n_expert, n_used, n_groups, n_groups_used = (_largest(metadata, f"{arch}.{name}") for name in names)
    if arch in _ONE_EXPERT_IS_NONE and n_expert <= 1:
        return
    if n_expert > _MAX_EXPERTS:
        raise ModelError(f"{arch}.expert_count is {n_expert}, expected at most {_MAX_EXPERTS}")
    if n_used > n_expert or (n_used == 0) != (n_expert == 0):
        expected = f"1 to {n_expert}" if n_expert else "0"
        raise ModelError(f"{arch}.expert_used_count is {n_used}, expected {expected} of {n_expert} experts")
    if n_groups and (n_groups >= n_expert or n_expert % n_groups):
        raise ModelError(f"{arch}.expert_group_count is {n_groups}, expected a divisor of the {n_expert} experts")
    if n_groups > 1 and not 0 < n_groups_used < n_groups:
        raise ModelError(f"{arch}.expert_group_used_count is {n_groups_used}, expected 1 to {n_groups - 1}")


def _largest(metadata: Metadata, key: str) -> int:
    """The number of a key, the largest one of a list; 0 where there is none."""
    value = metadata.get(key, 0)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)
