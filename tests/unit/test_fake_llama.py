"""FakeLlama is a copy of parts of llama-cpp-python by hand: it must be read again when those parts change."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path

import pytest

# of the source of each method that FakeLlama follows. When one differs: compare upstream's new text with FakeLlama's,
# bring that up to date, then write the new hash here
COPIED = {
    "eval": "db023c9debf6b9c0",
    "generate": "029b7c6e846e342c",
    "reset": "75f5695204335266",
    "set_cache": "bd047b6e178c72a9",
}


def upstream_source(method: str) -> str:
    """Text of a method of llama_cpp.Llama, without importing it: that would load a library."""
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    text = Path(found.origin).with_name("llama.py").read_text(encoding="utf-8")
    (llama,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Llama")
    (node,) = (node for node in llama.body if isinstance(node, ast.FunctionDef) and node.name == method)
    source = ast.get_source_segment(text, node)
    assert source is not None
    return source


@pytest.mark.parametrize("method", COPIED)
def test_upstream_is_what_was_copied(method: str) -> None:
    assert hashlib.sha256(upstream_source(method).encode()).hexdigest()[:16] == COPIED[method]
