"""Make a tiny model of each architecture, load it and compress its cache; a child process for each, which may crash.

    python -m tests.e2e.try_architectures FOLDER NAME...

Prints a JSON line for each: what pyheadkv says of the file's keys, and how it went with a cache that starts small and
with one of full size. "outcome" is

    "compressed"  attached, and with every row kept in the prefix the logits that follow are `error` away from stock's;
                  read layer by layer, logits and rows are those of stock (`differs` is empty), or `crosses` says what
                  stands against it
    "whole"       loaded and evaluated; `words` say why its cache cannot be compressed
    "refused"     not loaded; `words` say why
    "crashed"     the process ended; `words` name the signal
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.llama import empty, log_lines
from pyheadkv.engine.native import Native
from pyheadkv.errors import ModelError
from pyheadkv.model.beside import bytes_beside
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.model.support import unsupported_reason
from tests import architectures
from tests.e2e.context import Context, make_tokens, relative_error
from tests.e2e.masked import masked_logits, random_kept
from tests.e2e.sweep import differences

N_CTX = 512
N_CELLS = 64  # of a cache that starts small
N_PROMPT, N_OBS, N_NEXT = 300, 8, 128
N_BATCH = 128  # where it is read layer by layer
LIMIT_S = 60


def judged(path: Path) -> dict[str, Any]:
    """What the file's keys tell."""
    try:
        metadata = read_gguf_metadata(path)
    except ModelError as error:
        return {"reason": str(error), "layers": [], "beside": 0}
    reason = unsupported_reason(metadata)
    layers = [] if reason else [asdict(layer) for layer in shape_from_metadata(metadata).layers]
    n_beside = 0 if reason else bytes_beside(metadata, N_CTX, "f16", "f16").n_bytes
    return {"reason": reason, "layers": layers, "beside": n_beside}


def tried(path: Path, n_cells: int) -> dict[str, Any]:
    """Load, and compress if that can be."""
    try:
        llama: Any = load(path, n_ctx=N_CTX, n_threads=1, n_cells=n_cells, logits_all=True)
    except ModelError as error:
        return {"outcome": "refused", "words": str(error)}
    tokens = make_tokens(N_PROMPT + N_NEXT, architectures.N_VOCAB)
    try:
        native = Native(llama)
    except ModelError as error:
        return {"outcome": "whole", "words": str(error), "is_finite": evaluated(llama, tokens)}
    layers, n_beside = native.layers(), native.stats().bytes_beside
    with HeadKV(llama, policy="snapkv", budget=0.25) as headkv:
        is_finite = evaluated(llama, tokens[:N_PROMPT]) and evaluated(llama, tokens[N_PROMPT:])
        kept = headkv.native.stats().n_rows_hot
    return {
        "outcome": "compressed",
        **swept(path, n_cells, tokens),
        "layers": [asdict(layer) for layer in layers],
        "beside": n_beside,
        **distances(path, n_cells, tokens),
        "is_finite": is_finite,
        "n_rows_hot": kept,
    }


def evaluated(llama: Any, tokens: list[int]) -> bool:
    """Evaluate; whether all logits are finite."""
    first = llama.n_tokens
    llama.eval(tokens)
    return bool(np.isfinite(llama.scores[first : llama.n_tokens]).all())


def distances(path: Path, n_cells: int, tokens: list[int]) -> dict[str, float]:
    """How far logits over a ragged prefix are from the masked oracle's, and how far those of the whole cache are."""
    options: dict[str, Any] = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_ubatch": N_BATCH, "swa_full": False}
    context = Context(path, **options, n_cells=n_cells)
    kept = random_kept(context.native, N_PROMPT - N_OBS)
    whole = context.decode(tokens)[N_PROMPT:]
    empty(context.llama)
    context.decode(tokens[:N_PROMPT])
    context.native.keep([positions for heads in kept.values() for positions in heads], N_OBS)
    ragged = context.decode(tokens[N_PROMPT:])
    context.close()
    truth = masked_logits(path, tokens, N_PROMPT, kept, N_PROMPT - N_OBS, **options)
    return {"error": relative_error(ragged, truth), "effect": relative_error(whole, truth)}


def in_a_child(folder: Path, name: str) -> dict[str, Any]:
    """Everything about one architecture."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT_S)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native code may print
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(examined(folder / "model.gguf", name), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        how = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"status {status}"
        return {"outcome": "crashed", "words": how}
    report: dict[str, Any] = json.loads(text)
    return report


def examined(path: Path, name: str) -> dict[str, Any]:
    """Judge and try one architecture, in this process."""
    with log_lines([]):
        architectures.write(path, name)
    report = judged(path)
    logging.disable()
    with log_lines([]):
        report["small"], report["full"] = (tried(path, n_cells) for n_cells in (N_CELLS, 0))
    path.unlink()
    return report


def swept(path: Path, n_cells: int, tokens: list[int]) -> dict[str, Any]:
    """Read the prompt as stock does and layer by layer, if that can be, and a token more."""
    options: dict[str, Any] = {"n_ctx": N_CTX, "n_batch": N_BATCH, "logits_all": False}
    stock, ours = Context(path, **options, attach=False), Context(path, **options, n_cells=n_cells)
    if reason := ours.native.read_reason():
        return {"crosses": reason}
    stock.llama.eval(tokens[:N_PROMPT])
    ours.read(tokens[:N_PROMPT])
    return {"crosses": "", "differs": differences(stock, ours, tokens[N_PROMPT])}


def main() -> None:
    """Entry point."""
    folder, *names = sys.argv[1:]
    for name in names:
        print(json.dumps({"name": name, **in_a_child(Path(folder), name)}), flush=True)


if __name__ == "__main__":
    main()
