"""Saves with a limit on the size of files, in a process of its own: python full_disk.py MODEL FILE new|append."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.errors import CapsuleError


def main() -> None:
    """Prints what saving says."""
    model, path, place = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    llama = load(model, n_ctx=2048, n_threads=1)
    headkv = HeadKV(llama, policy="snapkv", budget=0.1, archive="ram")
    tokens = [7 * n % 251 for n in range(1200)]
    headkv.read_whole(tokens[:600])
    n_bytes = 300 * headkv.shape.bytes_per_token()
    if place == "append":
        headkv.save(path)
        n_bytes += path.stat().st_size
        headkv.llama.eval(tokens[600:])
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    try:
        headkv.save(path)
    except CapsuleError as error:
        print(error)
    headkv.close()
    llama.close()


if __name__ == "__main__":
    main()
