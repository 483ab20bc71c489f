"""A copy of a model file whose weights are Q8_0, for which every machine has a fast matrix kernel."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

from pyheadkv.engine.native import llama_bindings
from pyheadkv.errors import ModelError


def write_q8_0(source: Path, target: Path) -> None:
    """Write `target`, the weights of `source` as Q8_0, whatever type they have; a second for 100 MB.

    Raises
    ------
    ModelError
        llama.cpp cannot read `source` or write `target`
    LibraryError
        the native library is missing
    """
    bindings = llama_bindings()
    params = bindings.llama_model_quantize_default_params()
    params.ftype = bindings.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    logger = logging.getLogger("llama-cpp-python")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a line for each tensor
    try:
        status = bindings.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    finally:
        logger.setLevel(level)
    if status:
        raise ModelError(f"{source.name} cannot be made into Q8_0: status {status} of llama.cpp")
