"""Read one prompt on the GPU in this process, as `gpu_reading.py MODEL N_PROMPT stock|ours`, and print its figures.

A part of scripts/gpu-check, which watches the card's memory meanwhile. The figures are those of `Reading` in
pyheadkv/bench/reading.py, as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from pyheadkv.bench import Setup
from pyheadkv.bench.reading import measure_ours, measure_stock
from pyheadkv.cli.parsing import make_trials, parse_budgets, split_policies
from pyheadkv.errors import HeadKVError
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.support import supported_shape

ALL_LAYERS = -1


def main() -> int:
    """Entry point; returns the exit code."""
    path, n_prompt, side = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    try:
        setup = Setup(path, supported_shape(read_gguf_metadata(path), path), n_gpu_layers=ALL_LAYERS, n_tokens=8)
        trial = make_trials(split_policies("snapkv"), parse_budgets("10%"), None)[0]
        reading = measure_stock(setup, n_prompt) if side == "stock" else measure_ours(setup, n_prompt, trial)
    except HeadKVError as error:
        print(error)
        return 1
    print(json.dumps(asdict(reading)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
