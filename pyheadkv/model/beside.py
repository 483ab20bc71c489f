"""What a model keeps beside the rows that can be compressed: cells of sliding windows, and recurrent states.

    Gemma 3    window | window | window | window | window | full | ...      cells of 1,536 tokens for each window layer
    Qwen 3.5   state  | state  | state  | full   | ...                      so many numbers for each state layer

Both are as large after the first token as after the last one. As llama.cpp's ``llama_kv_cache_iswa`` and
``llama_hparams::n_embd_r`` and ``n_embd_s`` have it; tests/e2e/test_architectures.py compares with its buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.model.keys import Metadata, count, layer_count, per_layer, positive, text
from pyheadkv.model.layers import has_rows, has_state, has_window, n_window
from pyheadkv.model.shape import default_head_size, vector_bytes

N_UBATCH = 512  # tokens that are evaluated together, as llama.cpp's contexts have it unless told otherwise
_CELLS_STEP = 256
_STATE_BYTES = 4  # of an element, f32


@dataclass(frozen=True)
class Beside:
    """Bytes beside the rows that can be compressed, whatever is read.

    Parameters
    ----------
    windows, states
        cells of layers with a sliding window; recurrent states of one sequence
    n_window_layers, n_state_layers
        layers that have them
    n_window
        tokens of a window; 0 without
    """

    windows: int
    states: int
    n_window_layers: int
    n_state_layers: int
    n_window: int

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return self.windows + self.states


def bytes_beside(metadata: Metadata, n_ctx: int, type_k: str, type_v: str, n_ubatch: int = N_UBATCH) -> Beside:
    """Sizes in a context of n_ctx tokens, of a model that `unsupported_reason` has nothing to say of.

    Raises
    ------
    ModelError
        naming the key, its value and what was expected
    """
    arch = text(metadata, "general.architecture")
    n_block = layer_count(metadata, arch)[0]
    n_head = per_layer(metadata, f"{arch}.attention.head_count", n_block)
    n_head_kv = per_layer(metadata, f"{arch}.attention.head_count_kv", n_block, default=n_head)
    rows, states = has_rows(metadata, arch, n_head_kv), has_state(metadata, arch, n_head_kv)
    windows = [il for il, is_one in enumerate(has_window(metadata, arch, n_block)) if is_one and rows[il]]
    row = 0
    for which, type_text in (("key", type_k), ("value", type_v)):
        size = positive(metadata, f"{arch}.attention.{which}_length", default_head_size(metadata, arch, max(n_head)))
        size = positive(metadata, f"{arch}.attention.{which}_length_swa", size)
        row += vector_bytes(which[0].upper(), size, type_text) if windows else 0
    n_cells = _padded(min(n_ctx, n_window(metadata, arch) + n_ubatch))
    return Beside(
        windows=n_cells * row * sum(n_head_kv[il] for il in windows),
        states=sum(states) * _STATE_BYTES * _state_elements(metadata, arch, n_head) if any(states) else 0,
        n_window_layers=len(windows),
        n_state_layers=sum(states),
        n_window=n_window(metadata, arch),
    )


def _padded(n_cells: int) -> int:
    return -(-n_cells // _CELLS_STEP) * _CELLS_STEP


def _state_elements(metadata: Metadata, arch: str, n_head: list[int]) -> int:
    """Numbers that one layer keeps."""
    if arch.startswith("lfm2"):
        return positive(metadata, f"{arch}.embedding_length") * (positive(metadata, f"{arch}.shortconv.l_cache") - 1)
    if arch == "minimax-01":
        head_size = default_head_size(metadata, arch, n_head[0])
        return n_head[0] * positive(metadata, f"{arch}.attention.key_length", head_size) ** 2
    inner, state = (positive(metadata, f"{arch}.ssm.{key}") for key in ("inner_size", "state_size"))
    n_group = 0 if arch == "jamba" else count(metadata, f"{arch}.ssm.group_count", 0)  # which does not read the key
    n_conv = positive(metadata, f"{arch}.ssm.conv_kernel") - 1
    return n_conv * (inner + 2 * n_group * state) + state * inner
