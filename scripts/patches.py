#!/usr/bin/env python3
"""Carry our patches on the pinned llama.cpp.

    patches/UPSTREAM      name, version and sha256 of the sdist that vendors llama.cpp, and llama.cpp's commit
    patches/series        file names of the patches, in the order in which they are applied
    patches/NNNN-*.patch  what `git format-patch` writes; call sites only

    sdist          print the path of the pinned sdist; fetched by pip once, then cached, its sha256 checked every time
    tree [DIR]     DIR (build/upstream) becomes a git tree: the pin is one commit, each patch is one more
    export [DIR]   write the commits after the pin back as patches and series
    apply DIR      patch an unpacked llama.cpp tree in place, without history (to try another version)
    check          the rules of patches/README.md
    stats          added lines of each patch and in all

CMake runs `tree DIR --force` on a tree of its own at every configure. A tree that is up to date is not touched, not
even the times of its files. What a patch may hold is in patch_rules.py. Only the standard library is needed. Known
errors are one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from patch_rules import HOOK_PREFIX, MAX_ADDED_LINES, check_patches, count_added, read_series
from pin import Pin, PinError, find_sdist, read_pin, unpack

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TREE = ROOT / "build" / "upstream"


class PatchError(Exception):
    """A known failure; its message is one line for the user."""


def fingerprint(patches: Path) -> str:
    """Hash of all that decides what the patched tree holds; raises PatchError when a listed patch is not there."""
    digest = hashlib.sha256()
    for name in ["UPSTREAM", "series", *read_series(patches)]:
        path = patches / name
        if not path.is_file():
            raise PatchError(f"{name} is listed in patches/series, but there is no such file")
        data = path.read_bytes()
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


# ---- git ----


def git_environment(tree: Path) -> dict[str, str]:
    """Environment in which git knows only `tree`: no outer repository, no user's settings, a fixed identity."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return keep | {
        # without this `git apply` inside another repository changes nothing and exits 0
        "GIT_CEILING_DIRECTORIES": str(tree.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "pyheadkv",
        "GIT_AUTHOR_EMAIL": "pyheadkv@localhost",
        "GIT_COMMITTER_NAME": "pyheadkv",
        "GIT_COMMITTER_EMAIL": "pyheadkv@localhost",
    }


def git(tree: Path, *arguments: str, **environment: str) -> str:
    """Run git in `tree` and return its output; raises PatchError with git's words."""
    command = ["git", "-c", "core.autocrlf=false", "-c", "gc.auto=0", "-C", str(tree), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=git_environment(tree) | environment)
    except FileNotFoundError:
        raise PatchError("git is not installed") from None
    if done.returncode != 0:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[:4])
        raise PatchError(f"git {arguments[0]} failed in {tree}: {said}")
    return done.stdout


def stamp_path(tree: Path) -> Path:
    """The stamp's place: git ignores it there, and it dies with the tree."""
    return tree / ".git" / "headkv-stamp"


def read_stamp(tree: Path) -> tuple[str, str]:
    """(fingerprint, HEAD) when the tree was last made or exported; empty strings when it never was."""
    try:
        made, head = stamp_path(tree).read_text().split()
    except (OSError, ValueError):
        return "", ""
    return made, head


def write_stamp(tree: Path, made: str) -> None:
    stamp_path(tree).write_text(f"{made} {git(tree, 'rev-parse', 'HEAD').strip()}\n")


def find_changes(tree: Path) -> str:
    """What was done to the tree by hand since its stamp, in words; "" when nothing was."""
    _, stamped = read_stamp(tree)
    status = git(tree, "status", "--porcelain", "--ignored").splitlines()
    if status:
        return f"{len(status)} uncommitted change(s), {status[0][3:]} among them"
    head = git(tree, "rev-parse", "HEAD").strip()
    if head != stamped:
        return f"commits that are not in patches/ (HEAD is {head[:10]}, not {stamped[:10]})"
    return ""


def is_repository(tree: Path) -> bool:
    """True if `tree` is a git tree of ours with a pin commit."""
    if not (tree / ".git").is_dir():
        return False
    try:
        git(tree, "rev-parse", "--verify", "--quiet", "pin^{commit}")
    except PatchError:
        return False
    return True


def make_tree(tree: Path, patches: Path, force: bool) -> bool:
    """Bring `tree` to the pin plus the series; returns False when it was there already.

    Work that was not exported stops it, unless `force`. Raises PatchError also when a patch does not apply; the tree
    then waits in the middle of `git am`, for a person to go on.
    """
    tree = tree.resolve()
    pin, made = read_pin(patches), fingerprint(patches)
    usable = is_repository(tree) and git(tree, "log", "-1", "--format=%s", "pin").strip() == pin_subject(pin)
    if usable:
        changes = find_changes(tree)
        if not changes and read_stamp(tree)[0] == made:
            return False
        if changes and not force:
            raise PatchError(f"{tree} has {changes}: `export` it, or give it up with `tree --force`")
    elif tree.exists() and any(tree.iterdir()):
        if not force and not is_repository(tree):
            raise PatchError(f"{tree} is not a tree that `tree` made: name another folder, or use --force")
        if not force and (changes := find_changes(tree)):
            raise PatchError(f"{tree} is of another pin and has {changes}: give it up with `tree --force`")
    if usable:
        reset_tree(tree, patches)
    else:
        import_pin(tree, pin)
        apply_series(tree, patches)
    write_stamp(tree, made)
    return True


def pin_subject(pin: Pin) -> str:
    return f"llama.cpp {pin.commit} from {pin.name} {pin.version} ({pin.sha256[:16]})"


def import_pin(tree: Path, pin: Pin) -> None:
    """Unpack the pin and commit it, tagged `pin`. The dates are fixed, so that every machine gets the same commit."""
    sdist = find_sdist(pin)
    if tree.exists():
        shutil.rmtree(tree)
    tree.mkdir(parents=True)
    unpack(sdist, tree)
    git(tree, "init", "--quiet", "--initial-branch=headkv")
    git(tree, "add", "--all", "--force")
    dates = {"GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z"}
    git(tree, "commit", "--quiet", "--no-verify", "-m", pin_subject(pin), **dates)
    git(tree, "tag", "pin")


def reset_tree(tree: Path, patches: Path) -> None:
    """Go back to the pin and apply the series, without new times for files that end up as they were.

    The other files of the pin are not written at all, so a build folder recompiles what a patch really changed.
    """
    touched = git(tree, "diff", "--name-only", "--no-renames", "-z", "pin").split("\0")
    before = {tree / name: file_state(tree / name) for name in touched if name and (tree / name).is_file()}
    if (tree / ".git" / "rebase-apply").exists():
        git(tree, "am", "--quit")
    git(tree, "checkout", "--quiet", "--force", "-B", "headkv", "pin")
    git(tree, "clean", "-ffdxq")
    apply_series(tree, patches)
    for path, (data, modified_ns) in before.items():
        if path.is_file() and path.read_bytes() == data:
            os.utime(path, ns=(modified_ns, modified_ns))


def file_state(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


def apply_series(tree: Path, patches: Path) -> None:
    """One commit for each patch; afterwards the tree must really hold our hooks."""
    series = read_series(patches)
    for name in series:
        try:
            git(tree, "am", "--quiet", "--keep-cr", "--committer-date-is-author-date", str(patches.resolve() / name))
        except PatchError as error:
            raise PatchError(f"{name} does not apply: {error}") from None
    assert_hooks(tree, series)


def assert_hooks(tree: Path, series: list[str]) -> None:
    """Guard against a patch tool that says yes and does nothing."""
    if not series:
        return
    for path in tree.rglob("*"):
        is_source = path.suffix in {".c", ".cpp", ".h", ".cu", ".cuh", ".m", ".metal"} and path.is_file()
        if is_source and HOOK_PREFIX.encode() in path.read_bytes():
            return
    raise PatchError(f"the series was applied, but no file in {tree} names {HOOK_PREFIX}")


def apply_to(tree: Path, patches: Path) -> None:
    """Apply the series to the files of any llama.cpp tree."""
    tree = tree.resolve()
    if not (tree / "CMakeLists.txt").is_file():
        raise PatchError(f"{tree} is not a llama.cpp tree")
    series = read_series(patches)
    for name in series:
        git(tree, "apply", str(patches.resolve() / name))
    assert_hooks(tree, series)


def export(tree: Path, patches: Path, force: bool) -> list[str]:
    """Write the commits after the pin as patches and series; returns the names.

    Raises PatchError for uncommitted changes, and when patches/ changed since the tree was made (unless `force`): the
    files there would be lost.
    """
    tree = tree.resolve()
    if not is_repository(tree):
        raise PatchError(f"{tree} is not a tree that `tree` made")
    if git(tree, "status", "--porcelain"):
        raise PatchError(f"{tree} has uncommitted changes: commit them first")
    if not force and read_stamp(tree)[0] != fingerprint(patches):
        raise PatchError(
            "patches/ changed since this tree was made: save your commits, make the tree again, or use --force"
        )
    with tempfile.TemporaryDirectory() as folder:
        options = ("--zero-commit", "--no-signature", "--no-numbered", "--full-index", "--no-renames")
        git(tree, "format-patch", "--quiet", *options, "--output-directory", folder, "pin..HEAD")
        names = sorted(path.name for path in Path(folder).iterdir())
        for old in patches.glob("*.patch"):
            old.unlink()
        for name in names:
            shutil.copyfile(Path(folder) / name, patches / name)
    (patches / "series").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    write_stamp(tree, fingerprint(patches))
    return names


# ---- commands ----


def print_stats(patches: Path) -> None:
    """One line for each patch and one for all."""
    total = 0
    for name in read_series(patches):
        added = count_added((patches / name).read_text(encoding="utf-8"))
        total += added
        print(f"{added:5d}  {name}")
    print(f"{total:5d}  in all, of at most {MAX_ADDED_LINES}")


def report_problems(patches: Path) -> int:
    """Print what is wrong with the patches; returns the exit code."""
    problems = check_patches(patches)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(read_series(patches))} patches in order")
    return 1 if problems else 0


def run_command(arguments: argparse.Namespace) -> int:
    """Carry out one command; returns the exit code."""
    patches: Path = arguments.patches
    if arguments.command == "sdist":
        print(find_sdist(read_pin(patches)))
    elif arguments.command == "tree":
        made = make_tree(arguments.dir, patches, arguments.force)
        print(f"{arguments.dir}: {'made' if made else 'up to date'}")
    elif arguments.command == "export":
        print("\n".join(export(arguments.dir, patches, arguments.force)))
        return report_problems(patches)
    elif arguments.command == "apply":
        apply_to(arguments.dir, patches)
    elif arguments.command == "check":
        read_pin(patches)
        return report_problems(patches)
    elif arguments.command == "stats":
        print_stats(patches)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--patches", type=Path, default=ROOT / "patches", help="folder with UPSTREAM, series and patches"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("sdist", "check", "stats"):
        commands.add_parser(name)
    commands.add_parser("apply").add_argument("dir", type=Path, metavar="DIR")
    for name, lost in (("tree", "work in the tree that was not exported"), ("export", "patches that the tree lacks")):
        command = commands.add_parser(name)
        command.add_argument("dir", type=Path, nargs="?", default=DEFAULT_TREE, metavar="DIR")
        command.add_argument("--force", action="store_true", help=f"even if that loses {lost}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        return run_command(parse_arguments(argv))
    except (PatchError, PinError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
