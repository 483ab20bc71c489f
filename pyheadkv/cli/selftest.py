"""`pyheadkv selftest`: facts and checks of this very machine, as a report to paste."""

from __future__ import annotations

import time

from pyheadkv.cli.facts import fact_lines, version_line
from pyheadkv.cli.options import SelftestOptions
from pyheadkv.cli.render import note
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.selftest import run_checks
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.support import supported_shape
from pyheadkv.model.weights import weight_types


def run(options: SelftestOptions) -> None:
    """Print the report, each check as soon as it is done.

    Raises
    ------
    HeadKVError
        the model cannot be had, loaded or compressed, or a check failed
    """
    path = resolve_model(options.model, note)
    shape = supported_shape(read_gguf_metadata(path), path)
    print("\n".join([version_line(), *fact_lines()]))
    weights = next(iter(weight_types(path)), "no")
    print(
        f"model        {path.name}, {shape.architecture}, {shape.n_layer} layers, {weights} weights, "
        f"cache {options.type_k}/{options.type_v}, {options.n_gpu_layers} layers on the GPU"
    )
    start, n_failed, n_checks = time.perf_counter(), 0, 0
    for check in run_checks(
        path,
        shape,
        options.type_k,
        options.type_v,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        on_notice=note,
    ):
        n_checks, n_failed = n_checks + 1, n_failed + (not check.is_passed)
        print(
            f"{'pass' if check.is_passed else 'FAIL'}         {check.name}: {check.words} ({check.seconds:.1f} s)",
            flush=True,
        )
    if n_failed:
        raise EvaluationError(f"{n_failed} of {n_checks} checks failed on this machine: please report what is above")
    print(f"all {n_checks} checks passed in {time.perf_counter() - start:.1f} s")
