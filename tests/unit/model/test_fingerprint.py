"""Fingerprints: the same for what head scores fit, another for everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.errors import ModelError, ProfileError
from pyheadkv.model.fingerprint import check_fingerprint, fingerprint
from tests.tiny import Weights, make_weights
from tests.unit.small_gguf import TINY
from tests.unit.small_gguf import write_model as write


@pytest.fixture
def original(tmp_path: Path) -> str:
    return fingerprint(write(tmp_path / "original.gguf"))


def test_form(original: str) -> None:
    architecture, *hashes = original.split(":")
    assert architecture == "llama"
    assert [len(part) for part in hashes] == [16, 16, 16]


def test_quantizing_keeps_it(tmp_path: Path, original: str) -> None:
    path = write(tmp_path / "q8_0.gguf", quantize=True)
    assert path.stat().st_size < (tmp_path / "original.gguf").stat().st_size / 2
    assert fingerprint(path) == original


def test_other_keys_keep_it(tmp_path: Path, original: str) -> None:
    assert fingerprint(write(tmp_path / "a.gguf", general__name="b", headkv__method="made")) == original


def test_parts_of_a_split_model_have_the_whole_ones(tmp_path: Path, original: str) -> None:
    for no in range(3):
        path = tmp_path / f"m-{no + 1:05d}-of-00003.gguf"
        write(path, only=lambda i, no=no: i % 3 == no, split__no=no, split__count=3)  # type: ignore[misc]
    assert fingerprint(tmp_path / "m-00001-of-00003.gguf") == original
    with pytest.raises(ModelError, match="is part 1 of a split model, name the first part"):
        fingerprint(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelError, match=r"m-00003-of-00003\.gguf is missing"):
        fingerprint(tmp_path / "m-00001-of-00003.gguf")


def nudge(weights: Weights) -> None:
    name = next(name for name in weights if name.endswith("norm"))
    weights[name][-1] = np.nextafter(weights[name][-1], np.float32(9))


def test_one_bit_of_one_norm_changes_the_last_part(tmp_path: Path, original: str) -> None:
    other = fingerprint(write(tmp_path / "a.gguf", change=nudge))
    assert other.split(":")[:3] == original.split(":")[:3]
    with pytest.raises(ProfileError, match="measured on another model, the norm weights differs"):
        check_fingerprint(other, original)


def test_tokens_change_their_part(tmp_path: Path, original: str) -> None:
    other = fingerprint(write(tmp_path / "a.gguf", tokens=["<s>", "b", "a"]))
    with pytest.raises(ProfileError, match=r"headkv.fingerprint is llama:.*the tokenizer differs"):
        check_fingerprint(other, original)


def test_heads_change_their_part(tmp_path: Path, original: str) -> None:
    other = fingerprint(write(tmp_path / "a.gguf", replace(TINY, n_head_kv=(4, 4)), weights=make_weights(TINY)))
    assert [a == b for a, b in zip(other.split(":"), original.split(":"), strict=True)] == [True, False, True, True]


def test_a_change_that_leaves_norms_alone_is_not_seen(tmp_path: Path, original: str) -> None:
    def merge(weights: Weights) -> None:
        weights["blk.0.attn_q"][:] += 1

    assert fingerprint(write(tmp_path / "a.gguf", change=merge)) == original  # as the docstring says


def test_check(original: str) -> None:
    check_fingerprint(original, original)
    with pytest.raises(ProfileError, match=r"headkv.fingerprint is 'abc', which is no fingerprint"):
        check_fingerprint("abc", original)


def test_truncated_norms(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"is truncated: tensor '.*norm.weight' ends behind the end of the file"):
        fingerprint(cut)
