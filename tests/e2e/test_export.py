"""Exported models in llama.cpp: they open, answer as the originals, and say which weights they have."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import prepare
from pyheadkv.engine.sources import DEMO_GGUF_SHA256
from pyheadkv.export import export_model, remove_profile
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.shape import ModelShape, shape_from_metadata
from pyheadkv.profile import Profile, write_profile
from pyheadkv.profile.gguf_keys import profile_from_metadata
from tests.tiny import Tiny, make_weights, write_tiny

ROOT = Path(__file__).parents[2]
TINY = Tiny(n_vocab=256)
PROMPT = "The capital of France is Paris. The capital of Italy is"


def make_profile(shape: ModelShape, fingerprint_of: Path | None = None) -> Profile:
    """Some scores for a model, larger for later heads."""
    total = shape.n_kv_heads * (shape.n_kv_heads + 1) / 2
    numbers = iter(range(1, shape.n_kv_heads + 1))
    scores = tuple(tuple(next(numbers) / total for _ in range(n)) for n in shape.n_head_kv)
    mark = fingerprint(fingerprint_of) if fingerprint_of else None
    return Profile(scores, "made", beta=1.1, kinds={"retrieval": scores}, fingerprint=mark, calibration={"seed": 1})


def shape_of(path: Path) -> ModelShape:
    return shape_from_metadata(read_gguf_metadata(path))


def greedy(path: Path, prompt: str | list[int], n: int = 16) -> list[int]:
    """Tokens that the library gives with its own defaults, without anything of ours."""
    import llama_cpp

    llama: Any = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, verbose=False)
    try:
        tokens = llama.tokenize(prompt.encode()) if isinstance(prompt, str) else prompt
        stream = llama.generate(tokens, temp=0.0)
        return [next(stream) for _ in range(n)]
    finally:
        llama.close()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny(library: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("export") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def exported(library: None, demo_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a profile."""
    out = tmp_path_factory.mktemp("export") / "out.gguf"
    export_model(demo_path, out, make_profile(shape_of(demo_path), demo_path), keep_ratio=0.1)
    return out


def test_the_same_answer(demo_path: Path, exported: Path) -> None:
    assert greedy(exported, PROMPT) == greedy(demo_path, PROMPT)


def test_the_same_tensors_and_other_keys(demo_path: Path, exported: Path) -> None:
    before, after = gguf.GGUFReader(demo_path), gguf.GGUFReader(exported)
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.tensor_type == new.tensor_type and np.array_equal(old.data, new.data), old.name
    keys = [name for name in after.fields if not name.startswith(("headkv.", "GGUF."))]
    assert keys == [name for name in before.fields if not name.startswith("GGUF.")]
    for name in keys:
        assert before.fields[name].types == after.fields[name].types
        parts = zip(before.fields[name].parts, after.fields[name].parts, strict=True)
        assert all(np.array_equal(old, new) for old, new in parts), name


def profile_of(path: Path, shape: ModelShape) -> Profile | None:
    return profile_from_metadata(read_gguf_metadata(path), shape, str(path))


def test_the_original_comes_back(exported: Path, tmp_path: Path) -> None:
    remove_profile(exported, tmp_path / "back.gguf")
    assert sha256(tmp_path / "back.gguf") == DEMO_GGUF_SHA256


def test_the_library_reads_the_profile(demo_path: Path, exported: Path) -> None:
    shape = shape_of(exported)
    profile, made = profile_of(exported, shape), make_profile(shape, demo_path)
    assert profile is not None
    assert (profile.method, profile.beta, profile.keep_ratio) == ("made", 1.1, 0.1)
    assert (profile.fingerprint, profile.calibration) == (made.fingerprint, {"seed": 1})
    assert [*profile.scores[29]] == pytest.approx([*made.scores[29]], rel=1e-6)
    assert profile_of(demo_path, shape) is None


def test_both_readers_read_the_same(exported: Path, tiny: Path) -> None:
    for path in (exported, tiny):
        with open_header(path) as header:
            assert header.metadata() == read_gguf_metadata(path)


# ---- fingerprints of what llama.cpp writes ----


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_quantizing_with_llama_cpp_keeps_the_fingerprint(tiny: Path, tmp_path: Path, kind: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 1
    out = tmp_path / "quantized.gguf"
    assert llama_cpp.llama_model_quantize(str(tiny).encode(), str(out).encode(), ctypes.byref(params)) == 0
    assert out.stat().st_size < 0.6 * tiny.stat().st_size
    assert fingerprint(out) == fingerprint(tiny)
    assert fingerprint(out) != fingerprint(write_tiny(tmp_path / "other.gguf", Tiny(n_vocab=256, seed=1)))


# ---- models in several files ----


def write_split(source: Path, target: Path) -> Path:
    """The same model in parts of 8 tensors, as gguf-py splits it; returns the first part."""
    writer = gguf.GGUFWriter(target, TINY.arch, split_max_tensors=8)
    for name, field in gguf.GGUFReader(source).fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for name, values in make_weights(TINY).items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(target.parent.glob(f"{target.stem}-00001-of-*.gguf"))


def test_a_split_model(tiny: Path, tmp_path: Path) -> None:
    first = write_split(tiny, tmp_path / "parts.gguf")
    profile = make_profile(shape_of(tiny), fingerprint_of=tiny)
    written = export_model(first, tmp_path / "out.gguf", profile)
    assert len(written) == 3
    assert profile_of(written[0], shape_of(written[0])) is not None
    prompt = [5, 9, 200, 17, 3]
    assert greedy(written[0], prompt) == greedy(first, prompt) == greedy(tiny, prompt)


# ---- the command ----


def test_command_from_a_checkout(tiny: Path, tmp_path: Path) -> None:
    if not (prepare.is_python_ready(dev=False) and prepare.is_native_ready()):
        pytest.skip("the library is not the one of this checkout: scripts/check builds it")
    write_profile(tmp_path / "made.json", make_profile(shape_of(tiny)))
    command = [
        sys.executable,
        "scripts/export.py",
        tiny,
        "-o",
        tmp_path / "out.gguf",
        "--profile",
        tmp_path / "made.json",
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.gguf'}\n"
    assert profile_of(tmp_path / "out.gguf", shape_of(tiny)) is not None
