"""Export: other bytes stay, taking the keys out gives the original back, nothing is half written."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyheadkv.errors import ExportError, HeadKVError, ModelError, ProfileError
from pyheadkv.export import export_model, files, remove_profile
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.gguf_header import Header, open_header
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.profile import BudgetChoice, Profile
from pyheadkv.profile.gguf_keys import profile_from_metadata
from tests.tiny import Tiny
from tests.unit.small_gguf import write_model

PROFILE = Profile(
    ((0.3, 0.2), (0.1, 0.4)),
    "made",
    beta=1.1,
    kinds={"reconstruction": ((0.25, 0.25), (0.25, 0.25))},
    mix={"reconstruction": 1.0},
    settings=(BudgetChoice(1.0, "headkv"),),
    calibration={"seed": 1},
)
USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf", general__name="small")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_back(path: Path) -> Profile | None:
    with open_header(path) as header:
        metadata = header.metadata()
    return profile_from_metadata(metadata, shape_from_metadata(metadata), "")


def others(header: Header) -> list[bytes]:
    """All keys that are not ours, as they lie in the file."""
    return [header.data[e.start : e.end] for key, e in header.entries.items() if not key.startswith("headkv.")]


def test_the_profile_is_in_the_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert export_model(model, out, PROFILE, keep_ratio=0.1) == [out]
    read = read_back(out)
    assert read is not None and read.keep_ratio == 0.1
    assert np.allclose(np.array(read.scores), PROFILE.scores, atol=1e-7)
    kinds = {"reconstruction": PROFILE.kinds["reconstruction"]}
    assert replace(read, scores=PROFILE.scores, kinds=kinds, keep_ratio=None) == PROFILE


def test_another_reader_finds_typed_keys_and_the_same_tensors(model: Path, tmp_path: Path) -> None:
    export_model(model, tmp_path / "out.gguf", PROFILE)
    before, after = gguf.GGUFReader(model), gguf.GGUFReader(tmp_path / "out.gguf")
    types = {name: field.types for name, field in after.fields.items() if name.startswith("headkv.")}
    assert types["headkv.version"] == [gguf.GGUFValueType.UINT32]
    assert types["headkv.method"] == [gguf.GGUFValueType.STRING]
    assert types["headkv.beta"] == [gguf.GGUFValueType.FLOAT32]
    assert types["headkv.scores"] == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32]
    assert np.allclose(after.fields["headkv.scores"].contents(), [0.3, 0.2, 0.1, 0.4])
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.shape == new.shape).all() and old.tensor_type == new.tensor_type
        assert old.data.tobytes() == new.data.tobytes()


def test_other_keys_keep_their_bytes_and_their_order(model: Path, tmp_path: Path) -> None:
    export_model(model, tmp_path / "out.gguf", PROFILE)
    with open_header(model) as before, open_header(tmp_path / "out.gguf") as after:
        assert others(before) == others(after)
        assert before.data[before.data_start :] == after.data[after.data_start :]
        assert after.data_start % after.alignment == 0
        assert list(after.entries)[len(before.entries)] == "headkv.version"


@pytest.mark.parametrize("alignment", [0, 8, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_taking_it_out_gives_the_original_back(tmp_path: Path, alignment: int, version: int) -> None:
    model, out, back = (tmp_path / name for name in ("model.gguf", "out.gguf", "back.gguf"))
    content = bytearray(write_model(model, alignment=alignment).read_bytes())
    content[4:8] = struct.pack("<I", version)
    model.write_bytes(content)
    export_model(model, out, PROFILE)
    assert sha256(out) != sha256(model)
    remove_profile(out, back)
    assert sha256(back) == sha256(model)


def test_a_profile_is_replaced(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    export_model(model, once, replace(PROFILE, beta=2.0, n_obs=32))
    export_model(once, twice, PROFILE)
    export_model(model, once, PROFILE, force=True)
    assert sha256(once) == sha256(twice)


@settings(max_examples=25)  # four files each
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
        st.text(max_size=20),
        max_size=6,
    ),
    st.integers(0, 3),
)
def test_round_trip_of_any_keys(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str], n_tail: int) -> None:
    folder = tmp_path_factory.mktemp("keys")
    model = write_model(folder / "model.gguf", **{f"x__{key}": value for key, value in keys.items()})
    model.write_bytes(model.read_bytes() + b"\1" * n_tail)  # bytes behind the last tensor are copied, too
    export_model(model, folder / "out.gguf", PROFILE)
    remove_profile(folder / "out.gguf", folder / "back.gguf")
    assert sha256(folder / "back.gguf") == sha256(model)


def test_in_place(model: Path, tmp_path: Path) -> None:
    original = sha256(model)
    model.chmod(0o640)
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    assert export_model(link, None, PROFILE, in_place=True) == [model]
    assert link.is_symlink() and read_back(model) is not None
    assert model.stat().st_mode & 0o777 == 0o640
    remove_profile(model, None, in_place=True)
    assert sha256(model) == original
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.gguf", "model.gguf"]


def test_mode_is_kept(model: Path, tmp_path: Path) -> None:
    model.chmod(0o604)
    export_model(model, tmp_path / "out.gguf", PROFILE)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o604


def test_the_model_is_not_written_over_by_accident(model: Path, tmp_path: Path) -> None:
    original = sha256(model)
    link = tmp_path / "hard.gguf"
    os.link(model, link)
    for out in (model, link):
        with pytest.raises(ExportError, match="is the model itself, which is only written over with --in-place"):
            export_model(model, out, PROFILE, force=True)
    with pytest.raises(ExportError, match="expected either a file to write or in_place"):
        export_model(model, tmp_path / "out.gguf", PROFILE, in_place=True)
    assert sha256(model) == original


def test_another_file_is_written_over_with_force_only(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    with pytest.raises(ExportError, match=r"out\.gguf exists, it is only written over with --force"):
        export_model(model, out, PROFILE)
    assert out.read_text() == "precious"
    export_model(model, out, PROFILE, force=True)
    assert read_back(out) is not None


@pytest.mark.parametrize(
    ("out", "message"), [("none/out.gguf", "none is no folder"), (".", "is a folder, expected a file to write")]
)
def test_places_that_do_not_fit(model: Path, tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / out, PROFILE, force=True)


def test_what_a_killed_process_left_is_removed(model: Path, tmp_path: Path) -> None:
    old, others = ".out.gguf.ab_d1234.part", (".out.gguf.x.abcd1234.part", ".out.gguf.long_name.part", "out.gguf.part")
    for name in (old, *others):
        (tmp_path / name).write_bytes(b"half")
    export_model(model, tmp_path / "out.gguf", PROFILE)
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "out.gguf", *others}


def test_room_is_looked_for_first(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = model.stat().st_size
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: USAGE(0, 0, need))  # the keys do not fit any more
    with pytest.raises(ExportError, match=r"out\.gguf needs 0\.\d MB, .* has 0\.\d MB free"):
        export_model(model, tmp_path / "out.gguf", PROFILE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "failure", "error"),
    [("fsync", fail, ExportError), ("fsync", interrupt, KeyboardInterrupt), ("replace", fail, ExportError)],
)
def test_a_failure_leaves_the_old_file(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    monkeypatch.setattr(*((files.os, "fsync") if place == "fsync" else (Path, "replace")), failure)
    with pytest.raises(error):
        export_model(model, out, PROFILE, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "out.gguf"]
    assert out.read_text() == "old"


def test_progress_counts_every_byte(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", 1000)
    seen: list[tuple[int, int]] = []
    export_model(model, tmp_path / "out.gguf", PROFILE, on_progress=lambda done, total: seen.append((done, total)))
    size = (tmp_path / "out.gguf").stat().st_size
    assert seen[-1] == (size, size) and len(seen) > 10 and seen == sorted(seen)


def test_a_profile_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ProfileError, match=r"headkv\.scores has 1 values, this model has 4 heads"):
        export_model(model, out, Profile(((1.0,),), "made"))
    other = fingerprint(write_model(tmp_path / "other.gguf", Tiny(seed=1)))
    with pytest.raises(ProfileError, match=r"headkv\.fingerprint is .*: measured on another model, the norm weights"):
        export_model(model, out, replace(PROFILE, fingerprint=other))
    assert not out.exists()
    export_model(model, out, replace(PROFILE, fingerprint=fingerprint(model)))
    assert fingerprint(out) == fingerprint(model)


def test_nothing_to_take_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.gguf carries no profile: it has no key headkv\.\*"):
        remove_profile(model, tmp_path / "out.gguf")


# ---- models in several files ----


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"m-{no + 1:05d}-of-00002.gguf" for no in range(2)]
    for no, path in enumerate(paths):
        only: Callable[[int], bool] = lambda i, no=no: i % 2 == no  # type: ignore[misc]  # noqa: E731
        write_model(path, only=only, split__no=no, split__count=2)
    return paths


@pytest.mark.parametrize("name", ["out.gguf", "out-00001-of-00002.gguf"])
def test_all_parts_are_written(parts: list[Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    written = export_model(parts[0], folder / name, PROFILE)
    assert [path.name for path in written] == ["out-00001-of-00002.gguf", "out-00002-of-00002.gguf"]
    assert sorted(folder.iterdir()) == written
    assert read_back(written[0]) is not None
    assert sha256(written[1]) == sha256(parts[1])
    assert fingerprint(written[0]) == fingerprint(parts[0])
    remove_profile(written[0], folder / "back.gguf")
    assert sha256(folder / "back-00001-of-00002.gguf") == sha256(parts[0])


def test_in_place_touches_the_first_part_only(parts: list[Path]) -> None:
    second = parts[1].stat()
    assert export_model(parts[0], None, PROFILE, in_place=True) == [parts[0]]
    assert read_back(parts[0]) is not None
    assert parts[1].stat().st_mtime_ns == second.st_mtime_ns


def test_parts_are_not_written_over_each_other(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"m-00001-of-00002\.gguf is the model itself"):
        export_model(parts[0], tmp_path / "m.gguf", PROFILE, force=True)
    with pytest.raises(ModelError, match="is part 1 of a split model, name the first part"):
        export_model(parts[1], tmp_path / "out.gguf", PROFILE)
    moved = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"is the first of 2 parts, but is not named \.\.\.-00001-of-00002\.gguf"):
        export_model(moved, tmp_path / "out.gguf", PROFILE)


def test_a_first_part_without_tensors(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-{no + 1:05d}-of-00002.gguf" for no in range(2)]
    write_model(parts[0], only=lambda i: False, split__no=0, split__count=2, pad="ab")
    write_model(parts[1], split__no=1, split__count=2)
    with open_header(parts[0]) as header:
        end = header.infos_end
    parts[0].write_bytes(parts[0].read_bytes()[:end])
    assert end % 32  # nothing follows that would have to be aligned
    written = export_model(parts[0], tmp_path / "out.gguf", PROFILE)
    remove_profile(written[0], tmp_path / "back.gguf")
    assert sha256(tmp_path / "back-00001-of-00002.gguf") == sha256(parts[0])


# ---- what is no model ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"GGML" + b[4:], "is not a GGUF file: it starts with b'GGML'"),
        (lambda b: b"", "is not a GGUF file: it starts with b''"),
        (lambda b: b[:4] + b[4:8][::-1] + b[8:], "is a big-endian GGUF file, expected a little-endian one"),
        (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "is a GGUF file of version 1, expected 2 or 3"),
        (lambda b: b[:20], r"is a damaged or truncated GGUF file \(the preamble ends behind the end of the file\)"),
        (lambda b: b[:400], "is a damaged or truncated GGUF file"),
        (lambda b: b[:16] + struct.pack("<Q", 2**63) + b[24:], "keys and .* tensors, expected at most"),
        (lambda b: b[:24] + struct.pack("<Q", 2**63) + b[32:], "key 0 ends behind the end of the file"),
    ],
)
def test_damaged_files_are_refused(model: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    model.write_bytes(change(model.read_bytes()))
    with pytest.raises(ModelError, match=message) as error:
        export_model(model, tmp_path / "out.gguf", PROFILE)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.gguf").exists()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HeadKVError, match=r"none\.gguf cannot be read: No such file"):
        export_model(tmp_path / "none.gguf", tmp_path / "out.gguf", PROFILE)
