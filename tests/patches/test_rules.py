"""Each rule of scripts/patch_rules.py: an example in order, and one that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

import patch_rules

HEADER = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: someone <someone@localhost>
Date: Sat, 1 Jan 2000 00:00:00 +0000
Subject: [PATCH] memory : let headkv watch

Why:       ours by nature - upstream has one row count for all heads
Hook:      headkv_hook_clear(), called first in clear()
Drop when: upstream lets an application supply its own cache
---
 src/a.cpp | 1 +
 1 file changed, 1 insertion(+)

diff --git a/src/a.cpp b/src/a.cpp
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/src/a.cpp
+++ b/src/a.cpp
"""


def patch_with(*added: str, header: str = HEADER) -> str:
    """A patch whose only hunk adds these lines between two lines of context."""
    lines = "".join(f"+{line}\n" for line in added)
    return f"{header}@@ -1,2 +1,{2 + len(added)} @@ void f() {{\n     int a;\n{lines}     int b;\n"


def folder_with(path: Path, patches: dict[str, str], series: list[str] | None = None) -> Path:
    """A patches folder; the series lists all patches in order of name, unless given."""
    for name, text in patches.items():
        (path / name).write_text(text)
    listed = sorted(patches) if series is None else series
    (path / "series").write_text("".join(f"{name}\n" for name in listed))
    return path


GOOD = patch_with("    headkv_hook_clear(*this);")


@pytest.mark.parametrize(
    "added",
    [
        ['#include "headkv-hooks.h"', ""],
        ["    headkv_hook_clear(*this);"],
        ["    if (!headkv_hook_seq_rm(*this, p0)) {", "        return false;", "    }"],
        ["    if (dst->src[5]) {", "        headkv_cpu_flash_attn(params, dst);", "        return;", "    }"],
        ["    if (headkv_hook_wants_cells(*this)) {", "        break;", "    }"],
        ["    headkv_hook_attn(*this,", "            cur,", "            il);"],
        ["    ggml_tensor * cur = headkv_hook_attn(*this, il);"],
        ["struct headkv_store;", "    friend struct headkv_access;"],
        ["    std::shared_ptr<headkv_store> headkv; // null: stock cache"],
        ["    virtual bool is_ragged(int il) const = 0;", "    uint64_t epoch;"],
        ["#ifdef GGML_USE_HEADKV", "    headkv_hook();", "#endif"],
        ["    // why this is here", "    /* and this */", "    headkv_hook();"],
        ["#include <memory>", "", "public:"],
    ],
)
def test_call_sites_are_in_order(added: list[str]) -> None:
    assert patch_rules.check_text("0001-a.patch", patch_with(*added)) == []


@pytest.mark.parametrize(
    ("added", "found"),
    [
        (["    n_rows = n_ctx / 4;"], "n_rows = n_ctx / 4;"),
        (["    int n_rows = n_ctx / 4;"], "int n_rows = n_ctx / 4;"),
        (["    return false;"], "return false;"),
        (["    ggml_set_rows(ctx, a, b);"], "ggml_set_rows(ctx, a, b);"),
        (["    if (n_rows > 4) {", "        n_rows = 4;", "    }"], "n_rows = 4;"),
        (["    if (n_rows > 4) {", "        n_rows = 4;", "    }"], "if (n_rows > 4) {"),
        (["    for (int i = 0; i < 4; ++i) {", "    }"], "for (int i = 0; i < 4; ++i) {"),
        (["    headkv_hook(a);", "    b = a + 1;"], "b = a + 1;"),
        (["    headkv_hook(a,", "        1);", "    b = a + 1;"], "b = a + 1;"),
        (["#define N_ROWS 4"], "#define N_ROWS 4"),
        (["++ n_rows;"], "++ n_rows;"),  # reads `+++ n_rows;` in the patch
        (["++ headkv_n_rows;", "n_rows = 4; // headkv_rows"], "n_rows = 4;"),
    ],
)
def test_logic_is_found(added: list[str], found: str) -> None:
    problems = patch_rules.check_text("0001-a.patch", patch_with(*added))
    assert f"0001-a.patch: more than a call site: {found}" in problems


@pytest.mark.parametrize("field", patch_rules.REQUIRED_FIELDS)
@pytest.mark.parametrize("how", ["missing", "empty", "only in the code"])
def test_header_field(field: str, how: str) -> None:
    line = next(line for line in HEADER.splitlines() if line.startswith(f"{field}:"))
    header = HEADER.replace(f"{line}\n", f"{field}:\n" if how == "empty" else "")
    text = patch_with(f"// {line}" if how == "only in the code" else "", "headkv_hook();", header=header)
    assert patch_rules.check_text("0001-a.patch", text) == [f"0001-a.patch: the header has no `{field}:`"]


def test_patch_that_adds_nothing_is_found() -> None:
    assert patch_rules.check_text("0001-a.patch", HEADER) == ["0001-a.patch: adds nothing"]


def test_folder_in_order(tmp_path: Path) -> None:
    assert patch_rules.check_patches(folder_with(tmp_path, {"0001-a.patch": GOOD, "0003-b.patch": GOOD})) == []


@pytest.mark.parametrize(
    ("names", "series", "problem"),
    [
        (["0001-a.patch", "0002-b.patch"], ["0001-a.patch"], "0002-b.patch: not in series"),
        (["0001-a.patch"], ["0001-a.patch", "0002-b.patch"], "0002-b.patch: in series, but there is no such file"),
        (["0001-a.patch"], ["0001-a.patch", "0001-a.patch"], "0001-a.patch: twice in series"),
        (
            ["0001-a.patch", "0002-b.patch"],
            ["0002-b.patch", "0001-a.patch"],
            "0001-a.patch: number out of order, it comes after 0002",
        ),
        (["0001-a.patch", "0001-b.patch"], None, "0001-b.patch: number out of order, it comes after 0001"),
        (["a.patch"], None, "a.patch: not of the form NNNN-what.patch"),
    ],
)
def test_names_and_series(tmp_path: Path, names: list[str], series: list[str] | None, problem: str) -> None:
    problems = patch_rules.check_patches(folder_with(tmp_path, dict.fromkeys(names, GOOD), series))
    assert problem in problems


@pytest.mark.parametrize(("n_lines", "is_fine"), [(patch_rules.MAX_ADDED_LINES, True), (151, False)])
def test_limit_of_added_lines_counts_all_patches(tmp_path: Path, n_lines: int, is_fine: bool) -> None:
    patches = {"0001-a.patch": patch_with(*["    headkv_hook();"] * (n_lines - 1)), "0002-b.patch": GOOD}
    problems = patch_rules.check_patches(folder_with(tmp_path, patches))
    assert problems == ([] if is_fine else ["the patches add 151 lines, more than the limit of 150"])


def test_added_lines_are_counted_hunk_by_hunk() -> None:
    second = "@@ -9 +12,2 @@\n-    int c;\n+    int d;\n+    headkv_hook();\n\\ No newline at end of file\n"
    text = patch_with("    headkv_hook();") + second + "-- \n2.39.5\n+not a line of the patch\n"
    assert patch_rules.added_blocks(text) == [["    headkv_hook();"], ["    int d;", "    headkv_hook();"]]


def test_our_patches_are_in_order(root: Path) -> None:
    assert patch_rules.check_patches(root / "patches") == []
