"""What a patch file may hold: call sites and a header that says why it exists. Used by patches.py; reads text only.

A patch header, above the `---` line:

    Subject: [PATCH] memory : let headkv create the cache

    Why:       ours by nature - upstream has one row count for all heads
    Hook:      headkv_hook_create_memory(), called first in llama_model::create_memory()
    Drop when: upstream lets an application supply its own memory

An added line is an include, a call to headkv_*, a guard around one, a declaration, a brace, a comment or blank. The
rules keep honest patches small; they cannot prove that a line decides nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

HOOK_PREFIX = "headkv_"
MAX_ADDED_LINES = 150
REQUIRED_FIELDS = ("Why", "Hook", "Drop when")

FILE_NAME = re.compile(r"(\d{4})-[\w.+-]+\.patch")
COMMENT = re.compile(r"//.*$|/\*.*?\*/")
INCLUDE = re.compile(r"#\s*include\b")
PREPROCESSOR_END = re.compile(r"#\s*(else|endif)\b")
BRACES = re.compile(r"[{}]*;?|}\s*else\s*{?|else\s*{?")
ACCESS = re.compile(r"(public|protected|private)\s*:")
GUARD = re.compile(r"(}\s*else\s+)?(if|while)\s*\(.*\)\s*{?|#\s*if.*")
LEAVE = re.compile(r"(return\b.*|break|continue)\s*;")
# two words or more, then perhaps a parameter list, and no value: `friend struct x;`, `virtual bool f(int) const;`
DECLARATION = re.compile(
    r"(?!(return|delete|throw|goto|new|else|case|co_\w+)\b)"
    r"[\w:<>,*&\s]+[\s*&>](\w+)\s*(\([^(){}=]*\)(\s*const)?(\s*noexcept)?(\s*override)?(\s*=\s*0)?)?;"
)


def read_series(patches: Path) -> list[str]:
    """File names of the patches in the order of record."""
    lines = (patches / "series").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def added_blocks(text: str) -> list[list[str]]:
    """Added lines of a patch without their `+`, one list for each run of neighbours."""
    blocks: list[list[str]] = []
    old_left = new_left = 0  # lines of the current hunk that are still to come
    running = False
    for line in text.splitlines():
        hunk = re.match(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", line)
        if hunk and old_left <= 0 and new_left <= 0:
            old_left, new_left = (int(count) if count else 1 for count in hunk.groups())
            running = False
        elif old_left <= 0 and new_left <= 0:
            continue
        elif line.startswith("+"):
            if not running:
                blocks.append([])
            blocks[-1].append(line[1:])
            new_left -= 1
            running = True
        elif not line.startswith("\\"):
            old_left -= 1
            new_left -= 0 if line.startswith("-") else 1
            running = running and line.startswith("-")
    return blocks


def count_added(text: str) -> int:
    """Added lines of a patch, comments and blank ones included."""
    return sum(len(block) for block in added_blocks(text))


def find_logic(block: list[str]) -> list[str]:
    """Lines of one run of added lines that do more than call our code."""
    code = [COMMENT.sub("", line).strip() for line in block]
    code = [line for line in code if line]
    odd = []
    open_parens = 0  # of a call that goes on over several lines
    for i, line in enumerate(code):
        follows = code[i + 1] if i + 1 < len(code) else ""
        leads = code[i - 1] if i > 0 else ""
        names_hook = HOOK_PREFIX in line.lower()
        if open_parens > 0 or names_hook:
            open_parens += line.count("(") - line.count(")")
            continue
        guards_hook = GUARD.fullmatch(line) and HOOK_PREFIX in follows.lower()
        leaves_guard = LEAVE.fullmatch(line) and HOOK_PREFIX in leads.lower()
        plain = any(form.fullmatch(line) for form in (BRACES, ACCESS, DECLARATION))
        if not (plain or guards_hook or leaves_guard or INCLUDE.match(line) or PREPROCESSOR_END.match(line)):
            odd.append(line)
    return odd


def check_text(name: str, text: str) -> list[str]:
    """Problems of one patch, each one line."""
    problems = []
    header = re.split(r"^(?:---|diff --git .*)$", text, maxsplit=1, flags=re.MULTILINE)[0]
    for field in REQUIRED_FIELDS:
        if not re.search(rf"^{field}:[ \t]*\S", header, flags=re.MULTILINE):
            problems.append(f"{name}: the header has no `{field}:`")
    for block in added_blocks(text):
        problems += [f"{name}: more than a call site: {line}" for line in find_logic(block)]
    if not added_blocks(text):
        problems.append(f"{name}: adds nothing")
    return problems


def check_names(series: list[str], files: set[str]) -> list[str]:
    """Problems between the series and the folder, each one line."""
    problems = [f"{name}: not in series" for name in sorted(files - set(series))]
    problems += [f"{name}: in series, but there is no such file" for name in series if name not in files]
    problems += [f"{name}: twice in series" for name in sorted(set(series)) if series.count(name) > 1]
    last = 0
    for name in series:
        match = FILE_NAME.fullmatch(name)
        if not match:
            problems.append(f"{name}: not of the form NNNN-what.patch")
        elif int(match[1]) <= last:
            problems.append(f"{name}: number out of order, it comes after {last:04d}")
        else:
            last = int(match[1])
    return problems


def check_patches(patches: Path) -> list[str]:
    """All problems of a patches folder, each one line; an empty list when it is in order."""
    series = read_series(patches)
    files = {path.name for path in patches.glob("*.patch")}
    problems = check_names(series, files)
    total = 0
    for name in sorted(files):
        text = (patches / name).read_text(encoding="utf-8")
        problems += check_text(name, text)
        total += count_added(text)
    if total > MAX_ADDED_LINES:
        problems.append(f"the patches add {total} lines, more than the limit of {MAX_ADDED_LINES}")
    return problems
