"""Which layers of a model attend to all positions, which to a sliding window, and which keep a state instead.

    Gemma 3    window | window | window | window | window | full | window | ...
    Qwen 3.5   state  | state  | state  | full   | state  | ...

Only those that attend to all positions have rows that can be compressed. As llama.cpp's ``load_arch_hparams`` of each
architecture has it, at the pinned commit; tests/e2e/test_architectures.py compares with what the native side says.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.model.keys import Metadata, count, flags, per_layer, positive, trunk_count


@dataclass(frozen=True)
class Pattern:
    """Where the layers with a window are, if the file does not list them.

    Parameters
    ----------
    period
        one of so many layers attends to all positions; 0: the file lists them
    is_first
        that is the first of them, otherwise the last
    default
        tokens of the window, where the file does not tell; 0: none
    fixed
        tokens of the window, whatever the file tells; 0: what it tells
    """

    period: int
    is_first: bool = False
    default: int = 0
    fixed: int = 0


# only these obey attention.sliding_window; others carry the key and llama.cpp ignores it (llama, qwen2, phi3, ...)
_WINDOWS = {
    "afmoe": Pattern(4),
    "cohere2": Pattern(4),
    "cohere2moe": Pattern(4, is_first=True),
    "exaone-moe": Pattern(4),
    "exaone4": Pattern(4, default=4096),
    "gemma2": Pattern(2, default=4096),
    "gemma3": Pattern(6),
    "gemma3n": Pattern(5),
    "gemma4": Pattern(0),
    "gpt-oss": Pattern(2),
    "granite_swa": Pattern(0),
    "laguna": Pattern(4, is_first=True),
    "llama4": Pattern(4, default=8192, fixed=8192),
    "maple": Pattern(0),
    "mellum": Pattern(4),
    "mimo2": Pattern(0),
    "muse-glimmer": Pattern(4),
    "olmo2": Pattern(4),
    "plamo3": Pattern(8),
    "smallthinker": Pattern(4, is_first=True, fixed=4096),
    "spark2_5": Pattern(0),
    "step35": Pattern(0),
}
_N_LAYER_EXAONE4 = 64  # of the model that has windows

# layers without KV heads have a state, ...
_STATE_WITHOUT_HEADS_NAMES = """
    jamba plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe kimi-linear bailingmoe3 kimi-k3 glm5-next"""
_STATE_WITHOUT_HEADS = _STATE_WITHOUT_HEADS_NAMES.split()
_FULL_ONE_OF = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}  # ... all but one of so many, ...
_BOTH = "falcon-h1"  # ... or each has both
_WITHOUT_FFN = ("nemotron_h", "nemotron_h_moe")  # a layer is attention, or a state, or feeds forward


def n_window(metadata: Metadata, arch: str) -> int:
    """Tokens that the layers with a sliding window attend to; 0 if the model has none."""
    pattern = _WINDOWS.get(arch)
    if pattern is None or (arch == "exaone4" and positive(metadata, f"{arch}.block_count") != _N_LAYER_EXAONE4):
        return 0
    n = count(metadata, f"{arch}.attention.sliding_window", pattern.default)
    return pattern.fixed if n and pattern.fixed else n


def has_window(metadata: Metadata, arch: str, n_block: int) -> list[bool]:
    """For each layer whether it attends to a sliding window."""
    if n_window(metadata, arch) == 0:
        return [False] * n_block
    key = f"{arch}.attention.sliding_window_pattern"
    listed = flags(metadata, key, n_block)
    if listed is not None:
        return listed
    pattern = _WINDOWS[arch]
    period = count(metadata, key, pattern.period)
    full = 0 if pattern.is_first else period - 1
    n_trunk = trunk_count(metadata, arch)
    return [il < n_trunk and (period == 0 or il % period != full) for il in range(n_block)]


def has_state(metadata: Metadata, arch: str, n_head_kv: list[int]) -> list[bool]:
    """For each layer whether it keeps a recurrent state."""
    n_block, n_trunk = len(n_head_kv), trunk_count(metadata, arch)
    if arch == _BOTH:
        return [True] * n_block
    if arch in _FULL_ONE_OF:
        listed = flags(metadata, f"{arch}.attention.recurrent_layers", n_block)
        if listed is not None:
            return listed
        period = positive(metadata, f"{arch}.full_attention_interval", _FULL_ONE_OF[arch])
        return [il < n_trunk and (il + 1) % period != 0 for il in range(n_block)]
    if arch in _STATE_WITHOUT_HEADS:
        has_ffn = _has_ffn(metadata, arch, n_block)
        return [il < n_trunk and n_head_kv[il] == 0 and not has_ffn[il] for il in range(n_block)]
    return [False] * n_block


def has_rows(metadata: Metadata, arch: str, n_head_kv: list[int]) -> list[bool]:
    """For each layer whether it has a cache of its own, of all positions or of a window."""
    n_block, n_trunk = len(n_head_kv), trunk_count(metadata, arch)
    n_own, has_ffn = _n_own(metadata, arch, n_block), _has_ffn(metadata, arch, n_block)
    states = has_state(metadata, arch, n_head_kv)
    return [
        il < min(n_trunk, n_own) and n_head_kv[il] > 0 and not has_ffn[il] and (arch == _BOTH or not states[il])
        for il in range(n_block)
    ]


def _n_own(metadata: Metadata, arch: str, n_block: int) -> int:
    """Layers before those that read the rows of others."""
    if arch == "gemma3n":
        return 20
    shared = count(metadata, f"{arch}.attention.shared_kv_layers", 0) if arch == "gemma4" else 0
    return n_block - shared


def _has_ffn(metadata: Metadata, arch: str, n_block: int) -> list[bool]:
    """Of architectures whose layers that feed forward do nothing else, those."""
    if arch not in _WITHOUT_FFN:
        return [False] * n_block
    return [n > 0 for n in per_layer(metadata, f"{arch}.feed_forward_length", n_block, default=[0] * n_block)]
