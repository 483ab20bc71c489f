"""Reads damaged files one after the other, in a process of its own: python -m tests.fuzz.child FIRST COUNT FOLDER.

Each file may end in a HeadKVError of one line or in a valid profile (or in none where the file says nothing of one).
Anything else ends the process: an exception, a crash in native code, more than MEMORY_BYTES, more than CASE_SECONDS.
The last line of its output is then the seed. When all went well it is the counts of the outcomes, as JSON.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from pyheadkv.errors import HeadKVError
from pyheadkv.export.header import new_header
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.shape import ModelShape, shape_from_metadata
from pyheadkv.model.support import unsupported_reason
from pyheadkv.profile import Profile, read_profile
from pyheadkv.profile.gguf_keys import profile_from_metadata, profile_to_metadata
from tests.fuzz.cases import Base, make_base, make_case

MEMORY_BYTES = 256 << 20  # above what the process has when the first file is read; the files are of some 10 kB
CASE_SECONDS = 20


def main() -> None:
    """Entry point."""
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    base = make_base(folder)
    undamaged = folder / "base.gguf"
    assert read_model(undamaged, base) == "profile", "the undamaged file is not accepted"
    limit_memory()
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        os.write(1, f"{seed}\n".encode())  # not held in a buffer that a crash would lose
        signal.alarm(CASE_SECONDS)  # its default action also ends native code that does not return
        case = make_case(base, seed)
        path = folder / f"case.{case.kind}"
        path.write_bytes(case.content)
        read = read_model if case.kind == "gguf" else read_json
        outcomes[f"{case.kind}: {read(path, base)}"] += 1
        signal.alarm(0)
    print(json.dumps(outcomes))


def limit_memory() -> None:
    """From now on, allocate at most MEMORY_BYTES more; only Linux says how much there is."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    import resource

    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))


def read_json(path: Path, base: Base) -> str:
    """Read a profile file; returns the outcome."""
    try:
        check(read_profile(path, base.shape), base.shape)
    except HeadKVError as error:
        return refused(error)
    return "profile"


def read_model(path: Path, base: Base) -> str:
    """Read a model file in every way there is; returns the outcome of reading its profile."""
    for look in (look_at_header, look_at_keys, fingerprint):
        try:
            look(path)
        except HeadKVError as error:
            refused(error)
    try:
        metadata = read_gguf_metadata(path)
        shape = shape_from_metadata(metadata)
        profile = profile_from_metadata(metadata, shape, str(path))
    except HeadKVError as error:
        return refused(error)
    if profile is None:
        return "no profile"
    check(profile, shape)
    return "profile"


def look_at_header(path: Path) -> None:
    """What export does before it writes."""
    with open_header(path) as header:
        new_header(header, {})
        shape_from_metadata(header.metadata())


def look_at_keys(path: Path) -> None:
    """What inspect does first."""
    unsupported_reason(read_gguf_metadata(path))


def refused(error: HeadKVError) -> str:
    """The outcome of a refusal, which must be one line that can be shown."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 1000, f"{len(text)} characters: {text[:200]!r}"
    return type(error).__name__


def check(profile: Profile, shape: ModelShape) -> None:
    """An accepted profile fits its model, and could be written again."""
    assert [len(layer) for layer in profile.scores] == list(shape.n_head_kv)
    for scores in filter(None, (profile.scores, profile.scores_query, *profile.kinds.values())):
        flat = [score for layer in scores for score in layer]
        assert min(flat) >= 0 and math.isclose(math.fsum(flat), 1, abs_tol=1e-9)
    ratios = [setting.max_keep_ratio for setting in profile.settings]
    assert ratios == sorted(set(ratios)) and (not ratios or ratios[-1] == 1)
    json.dumps(profile_to_metadata(profile), allow_nan=False)


if __name__ == "__main__":
    main()
