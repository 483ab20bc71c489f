"""Files that are no models, models without a vocabulary and keys out of range: one line each, and no crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tiny import Tiny, write_tiny

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", "GGML_NO_BACKTRACE": "1"}
LIMIT_S = 60
# loads a model in a process of its own, and asks it for text and for tokens
LOAD = """
import sys, pyheadkv
options = dict(text.split("=") for text in sys.argv[2:])
options = {key: int(value) if value.lstrip("-").isdigit() else value for key, value in options.items()}
try:
    llama = pyheadkv.load(sys.argv[1], on_notice=lambda line: print("note:", line), **options)
    llama.eval([1, 2, 3])
    print("evaluated", llama.n_tokens)
    llama("hello", max_tokens=1)
except pyheadkv.HeadKVError as error:
    print(f"{type(error).__name__}: {error}")
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), input="hello", capture_output=True, text=True, env=ENV, timeout=LIMIT_S, check=False
    )


def write_keys(path: Path, keys: Mapping[str, str | int], *, with_tensor: bool = True) -> Path:
    """A file of keys and, maybe, one tensor."""
    writer = gguf.GGUFWriter(path, str(keys.get("general.architecture", "llama")))
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    if with_tensor:
        writer.add_tensor("a", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LLAMA: dict[str, str | int] = {"llama.context_length": 64, "llama.embedding_length": 8, "llama.attention.head_count": 1}
NO_MODELS: dict[str, tuple[dict[str, str | int], bool, str]] = {
    "adapter": ({"general.type": "adapter"}, True, "is an adapter (LoRA) for a model, expected a model"),
    "projector": ({"general.architecture": "clip"}, True, "is a projector"),
    "vocabulary": ({"tokenizer.ggml.model": "gpt2", **LLAMA}, False, "is a vocabulary without weights"),
}


@pytest.mark.parametrize("what", NO_MODELS)
@pytest.mark.parametrize("command", ["inspect", "chat", "calibrate", "bench"])
def test_what_is_no_model_is_said_by_every_command(library: None, tmp_path: Path, command: str, what: str) -> None:
    keys, with_tensor, words = NO_MODELS[what]
    path = write_keys(tmp_path / "m.gguf", keys, with_tensor=with_tensor)
    done = run(sys.executable, "-m", "pyheadkv.cli.app", command, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path} {words}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"block_count": 0}, "block_count is 0, expected at least 1"),
        ({"block_count": 600}, "block_count is 600, expected at most 512 layers"),
        ({"expert_count": 2, "expert_used_count": 3}, "expert_used_count is 3, expected 1 to 2 of 2 experts"),
    ],
)
def test_keys_out_of_range(library: None, tmp_path: Path, keys: dict[str, int], words: str) -> None:
    named = {f"llama.{key}": value for key, value in keys.items()}
    path = write_keys(tmp_path / "m.gguf", {**LLAMA, "llama.block_count": 1, **named})
    done = run(sys.executable, "-c", LOAD, path)
    assert (done.returncode, done.stdout) == (0, f"ModelError: llama.{words}\n"), done.stderr


def test_a_model_without_vocabulary(library: None, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", Tiny())
    words = f"{path} has no vocabulary: it takes tokens, and no text"
    done = run(sys.executable, "-c", LOAD, path)
    assert (done.returncode, done.stdout) == (0, f"evaluated 3\nModelError: {words}\n"), done.stderr
    done = run(sys.executable, "-m", "pyheadkv.cli.app", "chat", path, "-p", "hello")
    assert (done.returncode, done.stderr) == (1, f"error: {words}\n")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("n_threads=100000", f"note: n_threads 100000 is more than this machine has CPUs: {os.cpu_count()} are used"),
        ("n_threads_batch=100000", "note: n_threads_batch 100000 is more than"),
        ("n_ctx=268435456", "evaluated 3"),
        ("n_batch=16384", "evaluated 3"),
        ("n_gpu_layers=2147483647", "evaluated 3"),
        # the reason is the last that llama.cpp says, and not the first
        (
            "type_k=q8_0",
            "cannot be loaded: llama_init_from_model: K cache type q8_0 with block size 32 does not divide",
        ),
    ],
)
def test_numbers_at_the_edge_end_no_process(library: None, tmp_path: Path, option: str, words: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", Tiny(head_size=48))
    done = run(sys.executable, "-c", LOAD, path, option)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert "Traceback" not in done.stderr
