"""The patched tree: made, left alone, made anew, exported. Most tests use a toy sdist; the last ones the pin itself."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import patches as tool
import pin

NAME = "0001-a-call-headkv.patch"
PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: someone <someone@localhost>
Date: Sat, 1 Jan 2000 00:00:00 +0000
Subject: [PATCH] a : call headkv

Why:       ours by nature
Hook:      headkv_hook()
Drop when: never
---
 src/a.cpp | 1 +
 1 file changed, 1 insertion(+)

diff --git a/src/a.cpp b/src/a.cpp
index 0fe6cd3bbac2ab1b6a5cfdfa93ae4f9ecb0a24fc..0000000000000000000000000000000000000000 100644
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1,3 +1,4 @@
 void f() {
+    headkv_hook();
     g();
 }
"""
FILES = {
    "CMakeLists.txt": "project(toy)\n",
    "src/a.cpp": "void f() {\n    g();\n}\n",
    "src/b.cpp": "void g() {}\n",
    ".gitignore": "*.log\nkept.txt\n",
    "kept.txt": "ignored by git, but part of the pin\n",
    ".git": "gitdir: ../../.git/modules/llama.cpp\n",  # as in the real sdist
    "run.sh": "#!/bin/sh\n",
}


def write_sdist(path: Path, files: dict[str, str], folder: str = "toy-1/vendor/llama.cpp/") -> str:
    """Write a .tar.gz with old times in it; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(text)
            member.mtime = 1_000_000_000
            member.mode = 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Toy:
    """A pin, a patches folder and the tree made of them."""

    def __init__(self, folder: Path) -> None:
        self.sdist = folder / "toy-1.tar.gz"
        self.patches = folder / "patches"
        self.tree = folder / "tree"
        self.patches.mkdir()
        self.pin(FILES)
        self.series({NAME: PATCH})

    def pin(self, files: dict[str, str]) -> None:
        sha256 = write_sdist(self.sdist, files)
        (self.patches / "UPSTREAM").write_text(f"name = toy\nversion = 1\nsha256 = {sha256}\ncommit = abc\n")

    def series(self, patches: dict[str, str]) -> None:
        for old in self.patches.glob("*.patch"):
            old.unlink()
        for name, text in patches.items():
            (self.patches / name).write_text(text)
        (self.patches / "series").write_text("".join(f"{name}\n" for name in patches))

    def make(self, force: bool = False) -> bool:
        return tool.make_tree(self.tree, self.patches, force)

    def read(self, name: str) -> str:
        return (self.tree / name).read_text()

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=dev", "-c", "user.email=dev@localhost"]
        done = subprocess.run(
            ["git", *identity, "-C", self.tree, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout

    def state(self) -> dict[str, tuple[int, str]]:
        """Time and content of every file outside .git."""
        files = [path for path in self.tree.rglob("*") if path.is_file() and ".git" not in path.parts]
        return {str(path.relative_to(self.tree)): (path.stat().st_mtime_ns, path.read_text()) for path in files}

    def age(self) -> None:
        """Set all times an hour back, as if the tree had been made then."""
        for name, (time_ns, _) in self.state().items():
            os.utime(self.tree / name, ns=(time_ns - 3_600_000_000_000,) * 2)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy = Toy(tmp_path)
    monkeypatch.setenv("HEADKV_SDIST", str(toy.sdist))
    return toy


def test_tree_is_the_pin_and_one_commit_a_patch(toy: Toy) -> None:
    assert toy.make()
    assert "headkv_hook();" in toy.read("src/a.cpp")
    subjects = toy.git("log", "--format=%s").splitlines()
    assert subjects[0] == "a : call headkv"
    assert "toy 1" in subjects[1]
    assert toy.git("rev-parse", "HEAD~1") == toy.git("rev-parse", "pin")
    assert toy.read("kept.txt") == FILES["kept.txt"]
    assert os.access(toy.tree / "run.sh", os.X_OK)
    assert toy.git("status", "--porcelain") == ""


def test_second_run_changes_nothing(toy: Toy) -> None:
    toy.make()
    toy.age()
    before, head = toy.state(), toy.git("rev-parse", "HEAD")
    assert not toy.make()
    assert not toy.make(force=True)
    assert toy.state() == before
    assert toy.git("rev-parse", "HEAD") == head


def edit(toy: Toy) -> None:
    (toy.tree / "src/b.cpp").write_text("void g() { h(); }\n")


def edit_patched_file(toy: Toy) -> None:
    (toy.tree / "src/a.cpp").write_text(FILES["src/a.cpp"])


def add_file(toy: Toy) -> None:
    (toy.tree / "src/c.cpp").write_text("")


def add_ignored_file(toy: Toy) -> None:
    (toy.tree / "src/c.log").write_text("")


def delete_file(toy: Toy) -> None:
    (toy.tree / "src/b.cpp").unlink()


def commit(toy: Toy) -> None:
    edit(toy)
    toy.git("commit", "-qam", "mine")


def drop_commit(toy: Toy) -> None:
    toy.git("reset", "-q", "--hard", "pin")


TOUCHES = [edit, edit_patched_file, add_file, add_ignored_file, delete_file, commit, drop_commit]


@pytest.mark.parametrize("touch", TOUCHES, ids=lambda touch: touch.__name__)
def test_build_makes_a_touched_tree_anew(toy: Toy, touch) -> None:  # type: ignore[no-untyped-def]
    toy.make()
    toy.age()
    before, head = toy.state(), toy.git("rev-parse", "HEAD")
    touch(toy)
    touched = {name for name in before if toy.state().get(name) != before[name]}
    assert toy.make(force=True)
    after = toy.state()
    assert {name: text for name, (_, text) in after.items()} == {name: text for name, (_, text) in before.items()}
    assert toy.git("rev-parse", "HEAD") == head
    # what was never touched keeps its time, and what was does not seem as old as the last build
    for name in before:
        assert (after[name][0] > before[name][0]) == (name in touched), name


@pytest.mark.parametrize("touch", TOUCHES, ids=lambda touch: touch.__name__)
def test_developer_does_not_lose_work(toy: Toy, touch) -> None:  # type: ignore[no-untyped-def]
    toy.make()
    touch(toy)
    touched, head = toy.state(), toy.git("rev-parse", "HEAD")
    with pytest.raises(tool.PatchError, match="--force"):
        toy.make()
    assert toy.state() == touched
    assert toy.git("rev-parse", "HEAD") == head


def test_folder_of_somebody_else_is_left_alone(toy: Toy) -> None:
    toy.tree.mkdir()
    (toy.tree / "thesis.txt").write_text("mine")
    with pytest.raises(tool.PatchError, match="not a tree"):
        toy.make()
    assert toy.read("thesis.txt") == "mine"


def test_changed_patch_is_new_for_the_build_and_the_rest_is_not(toy: Toy) -> None:
    toy.make()
    toy.age()
    before = toy.state()
    toy.series({NAME: PATCH.replace("headkv_hook();", "headkv_other();")})
    assert toy.make()
    after = toy.state()
    assert "headkv_other();" in toy.read("src/a.cpp")
    assert {name for name in after if after[name][0] != before[name][0]} == {"src/a.cpp"}


def test_file_that_two_series_leave_alike_keeps_its_time(toy: Toy) -> None:
    toy.make()
    toy.age()
    before = toy.state()
    toy.series({"0001-renamed.patch": PATCH.replace("a : call headkv", "a : another title")})
    assert toy.make()
    assert toy.state() == before


def test_dropped_patch_gives_the_file_a_new_time(toy: Toy) -> None:
    toy.make()
    toy.age()
    before = toy.state()
    toy.series({})
    assert toy.make()
    assert toy.read("src/a.cpp") == FILES["src/a.cpp"]
    assert toy.state()["src/a.cpp"][0] > before["src/a.cpp"][0]


def test_another_pin_is_unpacked_with_new_times(toy: Toy) -> None:
    toy.make()
    toy.age()
    before = toy.state()
    toy.pin(FILES | {"src/d.cpp": "int d;\n"})
    assert toy.make()
    assert toy.read("src/d.cpp") == "int d;\n"
    assert all(toy.state()[name][0] > before[name][0] for name in before)


def test_patch_that_does_not_apply_is_named_and_mended(toy: Toy) -> None:
    toy.series({NAME: PATCH.replace("     g();", "     k();")})
    with pytest.raises(tool.PatchError, match=NAME):
        toy.make()
    toy.series({NAME: PATCH})
    assert toy.make(force=True)
    assert "headkv_hook();" in toy.read("src/a.cpp")


def test_broken_patch_after_a_good_tree_leaves_no_stamp(toy: Toy) -> None:
    toy.make()
    toy.series({NAME: PATCH.replace("     g();", "     k();")})
    with pytest.raises(tool.PatchError, match="does not apply"):
        toy.make(force=True)
    with pytest.raises(tool.PatchError, match="does not apply"):
        toy.make(force=True)


def test_series_without_our_hooks_is_refused(toy: Toy) -> None:
    toy.series({NAME: PATCH.replace("headkv_hook", "other_hook")})
    with pytest.raises(tool.PatchError, match=r"no file in .* names headkv_"):
        toy.make()


def test_tree_inside_another_repository(toy: Toy) -> None:
    # git apply in a folder of another repository says yes and does nothing, unless it is told where to stop
    subprocess.run(["git", "init", "-q", toy.tree.parent], check=True)
    toy.tree.mkdir()
    pin.unpack(toy.sdist, toy.tree)
    tool.apply_to(toy.tree, toy.patches)
    assert "headkv_hook();" in toy.read("src/a.cpp")


def test_export_writes_back_what_was_applied(toy: Toy) -> None:
    toy.make()
    names = tool.export(toy.tree, toy.patches, force=False)
    first = {name: (toy.patches / name).read_text() for name in names}
    tool.export(toy.tree, toy.patches, force=False)
    assert names == [NAME]
    assert {name: (toy.patches / name).read_text() for name in names} == first
    assert "Why:       ours by nature" in first[NAME]
    assert not toy.make()


def test_export_adds_a_commit_and_drops_a_file(toy: Toy) -> None:
    toy.make()
    commit(toy)
    assert tool.export(toy.tree, toy.patches, force=False) == [NAME, "0002-mine.patch"]
    assert tool.read_series(toy.patches) == [NAME, "0002-mine.patch"]
    assert not toy.make()
    drop_commit(toy)
    assert tool.export(toy.tree, toy.patches, force=False) == []
    assert list(toy.patches.glob("*.patch")) == []


def test_export_wants_commits(toy: Toy) -> None:
    toy.make()
    edit(toy)
    with pytest.raises(tool.PatchError, match="uncommitted"):
        tool.export(toy.tree, toy.patches, force=False)


def test_export_does_not_lose_patches_of_others(toy: Toy) -> None:
    toy.make()
    toy.series({NAME: PATCH.replace("headkv_hook();", "headkv_other();")})
    with pytest.raises(tool.PatchError, match="changed since"):
        tool.export(toy.tree, toy.patches, force=False)
    assert "headkv_other();" in (toy.patches / NAME).read_text()


# ---- the sdist ----


def test_wrong_sha256_is_refused_before_anything_is_written(toy: Toy) -> None:
    toy.sdist.write_bytes(toy.sdist.read_bytes() + b"\0")
    with pytest.raises(pin.PinError, match="sha256"):
        toy.make()
    assert not toy.tree.exists()


def test_sdist_that_leaves_its_folder_is_refused(toy: Toy) -> None:
    toy.pin(FILES | {"../../../../evil.txt": "evil"})
    with pytest.raises(pin.PinError, match="outside"):
        toy.make()
    assert not list(toy.tree.parent.glob("**/evil.txt"))


def test_sdist_without_llama_cpp_is_refused(toy: Toy) -> None:
    sha256 = write_sdist(toy.sdist, FILES, folder="toy-1/vendor/other/")
    (toy.patches / "UPSTREAM").write_text(f"name = toy\nversion = 1\nsha256 = {sha256}\ncommit = abc\n")
    with pytest.raises(pin.PinError, match="holds no vendor"):
        toy.make()


def test_missing_key_of_the_pin_is_named(toy: Toy) -> None:
    (toy.patches / "UPSTREAM").write_text("name = toy\nversion = 1\n")
    with pytest.raises(pin.PinError, match="sha256, commit"):
        toy.make()


def test_cached_sdist_is_checked_and_fetched_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(_: pin.Pin, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(toy.sdist.read_bytes())
        fetched.append(target)

    monkeypatch.delenv("HEADKV_SDIST")
    monkeypatch.setattr(pin, "cache_dir", lambda: toy.tree.parent / "cache")
    monkeypatch.setattr(pin, "download_sdist", fetch)
    wanted = pin.read_pin(toy.patches)
    assert pin.find_sdist(wanted) == pin.find_sdist(wanted) == fetched[0]
    assert len(fetched) == 1
    fetched[0].write_bytes(b"half a file")
    assert pin.find_sdist(wanted).read_bytes() == toy.sdist.read_bytes()
    assert len(fetched) == 2


# ---- the command line and the real pin ----


def test_known_error_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["export", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path} is not a tree that `tree` made\n"
    assert said.out == ""


def patched_files_alone(patches: Path, sdist: Path) -> str:
    """Write an sdist with those files of the pin that patches change, and no others; returns its sha256.

    The whole pin takes 300 MB of files, and every build unpacks it.
    """
    touched = re.findall(r"^diff --git a/(\S+) ", "".join(map(Path.read_text, patches.glob("*.patch"))), re.MULTILINE)
    wanted = {*touched, "CMakeLists.txt"}
    with tarfile.open(pin.find_sdist(pin.read_pin(patches))) as whole, tarfile.open(sdist, "w:gz") as few:
        for member in whole:
            if member.name.partition(f"/{pin.VENDORED}")[2] in wanted:
                few.addfile(member, whole.extractfile(member))
    return pin.file_sha256(sdist)


def test_series_applies_to_the_pin(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, tree, sdist = tmp_path / "patches", tmp_path / "upstream", tmp_path / "few.tar.gz"
    shutil.copytree(root / "patches", patches)
    wanted = pin.read_pin(patches)
    upstream = (patches / "UPSTREAM").read_text()
    (patches / "UPSTREAM").write_text(upstream.replace(wanted.sha256, patched_files_alone(patches, sdist)))
    monkeypatch.setenv("HEADKV_SDIST", str(sdist))
    assert tool.make_tree(tree, patches, force=False)
    times = {path: path.stat().st_mtime_ns for path in tree.rglob("*.*") if ".git" not in path.parts}
    assert not tool.make_tree(tree, patches, force=False)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "headkv_" in (tree / "src" / "llama-graph.cpp").read_text()
    # what is in patches/ is what export writes: nobody edited a patch by hand
    tool.export(tree, patches, force=False)
    for path in (root / "patches").glob("*.patch"):
        assert (patches / path.name).read_bytes() == path.read_bytes()


def test_pin_is_the_same_everywhere(root: Path) -> None:
    from pyheadkv.engine import library as _library

    wanted = pin.read_pin(root / "patches")
    assert (wanted.version, wanted.commit) == (_library.LLAMA_CPP_PYTHON_VERSION, _library.LLAMA_CPP_COMMIT)
    assert f'"llama-cpp-python=={wanted.version}"' in (root / "pyproject.toml").read_text()
