"""Reads damaged capsules, each made from its seed: python -m tests.fuzz.capsules FIRST COUNT FOLDER.

Bytes are cut, flipped, inserted and moved, records repeated, left out and put elsewhere. Where the checksums are made
right again afterwards, as somebody would who means harm, all that is asked for is a refusal or an orderly read; else
what is read must be a turn that was finished, with its rows. What ends the process, and its output, are as of `child`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyheadkv.capsule.format import CHECKSUM, OVERHEAD, PREAMBLE, RECORD, checksum_of
from pyheadkv.capsule.reader import CapsuleFile, Contents, open_capsule
from pyheadkv.errors import CapsuleError
from tests.fuzz.child import CASE_SECONDS, limit_memory, refused
from tests.unit.capsule.made import expected_rows, made, write_turns

TURNS = ([*range(40)], [*range(60)], [*range(25), 7, 7], [*range(25), 7, 7, 8, 8, 8])
N_ROWS = (40, 55, 27, 28)
_COUNTS = (0, 1, 2, 7, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)

Records = list[bytes]
Change = Callable[[Records, random.Random], None]


def main() -> None:
    """Entry point."""
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    path = folder / "case.hkv"
    path.unlink(missing_ok=True)
    write_turns(path, [made(turn, n, messages=j) for j, (turn, n) in enumerate(zip(TURNS, N_ROWS, strict=True))])
    records = split(path.read_bytes())
    assert b"".join(records) == path.read_bytes()
    limit_memory()
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        os.write(1, f"{seed}\n".encode())  # not held in a buffer that a crash would lose
        signal.alarm(CASE_SECONDS)
        content, is_forged = make_case(records, seed)
        path.write_bytes(content)
        outcomes[f"{'forged' if is_forged else 'damaged'}: {read(path, is_forged)}"] += 1
        signal.alarm(0)
    print(json.dumps(outcomes))


def read(path: Path, is_forged: bool) -> str:
    """Read a capsule in every way there is; returns the outcome."""
    try:
        with open_capsule(path) as capsule:
            capsule.verify()
            contents = capsule.contents
            n_rows = read_rows(capsule, None if is_forged else contents)
    except CapsuleError as error:
        return refused(error)
    assert n_rows == contents.n_rows <= len(contents.tokens)
    if not is_forged:
        turn = contents.n_turns - 1
        assert contents.tokens.tolist() == TURNS[turn] and contents.n_rows == N_ROWS[turn]
        assert len(contents.messages) == turn
    return f"turn {min(contents.n_turns, 4)}"


def read_rows(capsule: CapsuleFile, contents: Contents | None) -> int:
    """Read all rows, and compare them with what they should be; returns their number in a layer."""
    n_rows = 0
    for i, cell_bytes in enumerate(capsule.header.cell_bytes):
        for is_k in (True, False):
            n_rows = 0
            for first, rows in capsule.rows(i, is_k):
                assert first == n_rows and rows.shape[1] == cell_bytes[not is_k]
                if contents:
                    tokens = contents.tokens[first : first + len(rows)].tolist()
                    assert np.array_equal(rows, expected_rows(i, is_k, tokens, first))
                n_rows += len(rows)
    return n_rows


# ---- cases ----


def split(data: bytes) -> Records:
    """The preamble, and the records behind it."""
    records, at = [data[: PREAMBLE.size]], PREAMBLE.size
    while at < len(data):
        end = at + OVERHEAD + RECORD.unpack_from(data, at)[1]
        records.append(data[at:end])
        at = end
    return records


def make_case(records: Records, seed: int) -> tuple[bytes, bool]:
    """The file of a seed, and whether its checksums were made right again."""
    rng = random.Random(seed)
    case, is_forged = [*records], rng.random() < 0.4
    changes: list[Change] = [
        _flip,
        _overwrite,
        _set_count,
        _repeat,
        _leave_out,
        _swap,
        _truncate,
        _insert,
        _change_text,
    ]
    for change in rng.choices(changes, k=rng.choice((1, 1, 1, 2, 4))):
        change(case, rng)
    if is_forged:
        case = _forged(case)
    content = b"".join(case)
    return content[: rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content, is_forged


def _forged(records: Records) -> Records:
    """Lengths and checksums as they should be."""
    forged, at = [records[0]], len(records[0])
    for record in records[1:]:
        data = record[RECORD.size : -CHECKSUM.size]
        body = RECORD.pack(record[:8], len(data)) + data
        forged.append(body + CHECKSUM.pack(checksum_of(at, body)))
        at += len(forged[-1])
    return forged


def _pick(records: Records, rng: random.Random) -> tuple[int, int]:
    """A record, mostly none of rows, and a place in it."""
    j = rng.randrange(len(records))
    if b"HKV.ROWS" in records[j] and rng.random() < 0.7:
        j = rng.randrange(len(records))
    return j, rng.randrange(max(1, len(records[j])))


def _flip(records: Records, rng: random.Random) -> None:
    j, at = _pick(records, rng)
    if records[j]:
        changed = bytearray(records[j])
        changed[at] ^= 1 << rng.randrange(8)
        records[j] = bytes(changed)


def _overwrite(records: Records, rng: random.Random) -> None:
    j, at = _pick(records, rng)
    records[j] = records[j][:at] + rng.randbytes(rng.randrange(1, 9)) + records[j][at + rng.randrange(1, 9) :]


def _set_count(records: Records, rng: random.Random) -> None:
    j, _ = _pick(records, rng)
    at = rng.choice((8, 16, 24))
    records[j] = records[j][:at] + struct.pack("<Q", rng.choice(_COUNTS)) + records[j][at + 8 :]


def _repeat(records: Records, rng: random.Random) -> None:
    j, _ = _pick(records, rng)
    records.insert(rng.randrange(len(records)), records[j])


def _leave_out(records: Records, rng: random.Random) -> None:
    if len(records) > 1:
        j, _ = _pick(records, rng)
        del records[j]


def _swap(records: Records, rng: random.Random) -> None:
    (a, _), (b, _) = _pick(records, rng), _pick(records, rng)
    records[a], records[b] = records[b], records[a]


def _truncate(records: Records, rng: random.Random) -> None:
    j, at = _pick(records, rng)
    records[j] = records[j][:at]
    if rng.random() < 0.5:
        del records[max(1, j + 1) :]


def _insert(records: Records, rng: random.Random) -> None:
    j, at = _pick(records, rng)
    records[j] = records[j][:at] + rng.randbytes(rng.choice((1, 4, 8, 32))) + records[j][at:]


def _change_text(records: Records, rng: random.Random) -> None:
    """In the JSON of a header or a commit."""
    found = [j for j, record in enumerate(records) if b"{" in record]
    if not found:
        return
    j = rng.choice(found)
    at = records[j].index(b"{") + rng.randrange(len(records[j]) - records[j].index(b"{"))
    word = rng.choice(
        (b"9" * 5000, b"[" * 3000, b'"', b"-1", b"1e999", b"null", b"true", b"{}", b"\\ud800", b"\xff", b"")
    )
    records[j] = records[j][:at] + word + records[j][at + rng.randrange(4) :]


if __name__ == "__main__":
    main()
