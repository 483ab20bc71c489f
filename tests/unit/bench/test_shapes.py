"""Random models of well-known shapes: their files, and that the shapes are the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import platformdirs
import pytest

from pyheadkv.bench import shapes
from pyheadkv.bench.random_model import RandomModel, make_weights, write_model
from pyheadkv.bench.shapes import SHAPES, WEIGHT_TYPES, ShapeModel, shape_file
from pyheadkv.errors import BenchError, UsageError

SMALL = RandomModel((4, 4), (2, 2), 32, 64, 96, 48, 512, has_bias=True)


def n_parameters(model: RandomModel, n_vocab: int, is_tied: bool) -> int:
    shapes = {name: values.shape for name, values in make_weights(replace(model, n_vocab=n_vocab))}
    if is_tied:
        del shapes["output.weight"]
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize(
    ("name", "n_vocab", "is_tied", "published"),
    [
        ("smollm2-1.7b", 49152, True, 1_711_376_384),
        ("llama-1b", 128256, True, 1_235_814_400),
        ("llama-3b", 128256, True, 3_212_749_824),
        ("llama-8b", 128256, False, 8_030_261_248),
        ("llama-70b", 128256, False, 70_553_706_496),
        ("qwen2-1.5b", 151936, True, 1_543_714_304),
        ("qwen2-7b", 152064, False, 7_615_616_512),
    ],
)
def test_shapes_have_as_many_parameters_as_published(name: str, n_vocab: int, is_tied: bool, published: int) -> None:
    assert set(SHAPES) >= {name}
    model = SHAPES[name]
    n_embd, n_ff, d = model.n_embd, model.n_ff, model.head_size
    n_q, n_kv = model.n_head[0] * d, model.n_head_kv[0] * d
    layer = 2 * n_q * n_embd + 2 * n_kv * n_embd + 3 * n_ff * n_embd + 2 * n_embd
    if model.has_bias:
        layer += n_q + 2 * n_kv
    assert model.n_layer * layer + n_vocab * n_embd * (1 if is_tied else 2) + n_embd == published


def test_parameters_are_those_of_the_formula() -> None:
    layer = 2 * 128 * 64 + 2 * 64 * 64 + 3 * 96 * 64 + 2 * 64 + 128 + 2 * 64
    assert n_parameters(SMALL, 48, is_tied=False) == 2 * layer + 2 * 48 * 64 + 64


@pytest.mark.parametrize("kind", [*WEIGHT_TYPES, "f32"])
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    wanted = dict(make_weights(SMALL))
    reader = gguf.GGUFReader(write_model(tmp_path / "m.gguf", SMALL, gguf.GGMLQuantizationType[kind.upper()]))
    assert reader.get_field("general.architecture").contents() == "qwen2"
    assert [tensor.name for tensor in reader.tensors] == list(wanted)
    for tensor in reader.tensors:
        values = wanted[tensor.name]
        is_matrix = values.ndim > 1
        assert tensor.tensor_type.name == (kind.upper() if is_matrix else "F32")
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert found.shape == values.shape
        limit = {"q4_0": 0.2, "q8_0": 0.01, "f16": 1e-3}.get(kind, 0) if is_matrix else 0
        assert np.abs(found - values).max() <= limit * np.abs(values).max()


def test_weights_depend_on_the_description_alone() -> None:
    first, again, other = (dict(make_weights(replace(SMALL, seed=seed))) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_a_shape_with_some_of_its_layers() -> None:
    model = ShapeModel("llama-8b", 4).model()
    assert (model.n_layer, model.n_head, model.n_head_kv) == (4, (32,) * 4, (8,) * 4)
    assert ShapeModel("llama-8b").model() == SHAPES["llama-8b"]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ShapeModel("llama-9b"), "unknown shape 'llama-9b', known are smollm2-1.7b, "),
        (ShapeModel("llama-1b", 17), "--layers is 17, llama-1b has 1 to 16"),
        (ShapeModel("llama-1b", 0), "--layers is 0"),
        (ShapeModel("llama-1b", 1, "q5_k"), "unknown type of weights 'q5_k', known are q4_0, q8_0, f16"),
    ],
)
def test_shapes_that_there_are_not(shape: ShapeModel, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shape_file(shape)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setitem(SHAPES, "small", SMALL)
    return tmp_path / "cache"


def test_a_file_is_written_once(cache: Path) -> None:
    notes: list[str] = []
    path = shape_file(ShapeModel("small", 1, "q8_0"), notes.append)
    assert path == cache / "random-small-1-q8_0.gguf" and list(cache.iterdir()) == [path] and len(notes) == 1
    before = path.stat().st_mtime_ns
    assert shape_file(ShapeModel("small", 1, "q8_0"), notes.append).stat().st_mtime_ns == before and len(notes) == 1


def test_a_file_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "write_model", fail)
    with pytest.raises(BenchError, match=r"cache cannot be used: No space left"):
        shape_file(ShapeModel("small"))
    assert list(cache.iterdir()) == []
