"""Types of weights: what a file has, and which of them are read slowly where."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from pyheadkv.model.weights import slow_weights_note, weight_types


def test_shares_of_a_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("norm", np.zeros(1024, dtype=np.float32))
    writer.add_tensor("w", np.zeros((96, 20), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert weight_types(tmp_path / "m.gguf") == {"Q4_1": 0.75, "F32": 0.25}


@pytest.mark.parametrize(
    ("types", "machine", "is_slow"),
    [
        ({"Q4_1": 0.8, "Q8_0": 0.2}, "x86_64", True),
        ({"Q6_K": 0.4, "Q3_K": 0.4, "F32": 0.2}, "AMD64", True),
        ({"type 99": 1.0}, "x86_64", True),
        ({"Q4_1": 0.8, "Q8_0": 0.2}, "arm64", False),
        ({"Q4_K": 0.8, "Q6_K": 0.2}, "x86_64", False),  # Q4_K_M
        ({"Q8_0": 1.0}, "x86_64", False),
        ({}, "x86_64", False),
    ],
)
def test_note_where_most_weights_are_slow(types: dict[str, float], machine: str, is_slow: bool) -> None:
    note = slow_weights_note(types, machine)
    assert (note is not None) == is_slow
    if note:
        assert note.startswith(next(iter(types))) and "about half the speed of Q8_0" in note
