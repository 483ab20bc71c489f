#!/usr/bin/env python3
"""Compile our CUDA files and the patched dispatch file: what a machine without a GPU can check of the CUDA backend.

    scripts/compile_cuda.py                  for one architecture; without nvcc: skipped, and why
    scripts/compile_cuda.py --arch 75 120a   for others

nvcc comes with the packages of the extra `dev`. They have no cublas_v2.h, which ggml's CUDA sources include: that
of tests/cuda stands in where the toolkit has none. Files that compiled before and did not change since, nor anything
that they may include, are not compiled again. The first time takes 2 minutes of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from patches import PatchError, make_tree
from pin import PinError
from prepare import BUILD as BUILD_ROOT
from prepare import ROOT, VENV

KERNELS = ROOT / "native" / "attend" / "cuda"
BUILD = BUILD_ROOT / "cuda-compile"
DISPATCH = "ggml/src/ggml-cuda/fattn.cu"
HEADER = "cublas_v2.h"
STAND_INS = ROOT / "tests" / "cuda" / "include"
# as ggml's CMake files have them, in a build with default options
FLAGS = ["-std=c++17", "-use_fast_math", "-extended-lambda", "-Werror", "all-warnings", "-Wno-deprecated-gpu-targets"]
FA_TYPES = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")
FA_PAIRS = ("Q4_0-Q4_0", "Q8_0-Q8_0", "F16-F16", "BF16-BF16")
LIMIT_S = 900


class SkipError(Exception):
    """Something that this machine lacks; its message is one line."""


def find_nvcc() -> Path:
    """Path of nvcc: of the packages in .venv, or of the toolkit; raises SkipError."""
    packaged = sorted(VENV.glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc"))
    return packaged[-1] if packaged else find_toolkit_nvcc()


def find_toolkit_nvcc() -> Path:
    """Path of nvcc in PATH or in CUDA_PATH, with which a library for a card can be built; raises SkipError."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_PATH', '/usr/local/cuda')}/bin")
    if not found:
        raise SkipError("no nvcc")
    return Path(found)


def find_headers(nvcc: Path) -> list[Path]:
    """Folders to add to the include path: none where the toolkit has cuBLAS."""
    return [] if (nvcc.resolve().parent.parent / "include" / HEADER).is_file() else [STAND_INS]


def cuda_version(nvcc: Path) -> tuple[str, str]:
    """("13", "0") of nvcc's release."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    if not match:
        raise SkipError(f"{nvcc} names no release")
    return match[1], match[2]


def compile_command(nvcc: Path, tree: Path, headers: Sequence[Path], arch: str, source: Path) -> list[str]:
    """The compiler's call for one file, without its output."""
    folders = [tree / "ggml" / "include", tree / "ggml" / "src", KERNELS, ROOT / "native", *headers]
    command = [str(nvcc), *FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    command += [f"-I{folder}" for folder in folders]
    command += [f"-DGGML_CUDA_FA_{k}_{v}={int(f'{k}-{v}' in FA_PAIRS)}" for k in FA_TYPES for v in FA_TYPES]
    return [*command, "-c", str(source)]


def stamp_of(command: Sequence[str], tree: Path) -> str:
    """Hash of the call and of everything it may read of ours and of ggml's."""
    digest = hashlib.sha256("\0".join(command).encode())
    files = [*KERNELS.iterdir(), KERNELS.parent / "node.h"]
    files += [path for folder in ("include", "src") for path in (tree / "ggml" / folder).glob("*.h")]
    files += (tree / "ggml" / "src" / "ggml-cuda").rglob("*.cu*")
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def compile_file(command: Sequence[str], stamp: str) -> bool:
    """Compile unless that went well before; the object is thrown away. Returns True if it compiles."""
    done = BUILD / stamp
    if done.is_file():
        return True
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([*command, "-o", f"{folder}/object.o"], timeout=LIMIT_S)
    if result.returncode == 0:
        done.touch()
    return result.returncode == 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["90"], metavar="N", help="architectures (90)")
    arguments = parser.parse_args(argv)
    try:
        nvcc = find_nvcc()
        headers = find_headers(nvcc)
        BUILD.mkdir(parents=True, exist_ok=True)
        tree = BUILD / "upstream"
        make_tree(tree, ROOT / "patches", force=True)
    except SkipError as reason:
        print(f"cuda: 0 files compiled, skipped: {reason}")
        return 0
    except (PatchError, PinError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    sources = [*sorted(KERNELS.glob("*.cu")), tree / DISPATCH]
    commands = {
        f"{source.name} for sm_{arch}": compile_command(nvcc, tree, headers, arch, source)
        for arch in arguments.arch
        for source in sources
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda command: compile_file(command, stamp_of(command, tree)), commands.values()))
    failed = [name for name, is_done in zip(commands, compiled, strict=True) if not is_done]
    n = len(commands)
    print(f"cuda: {n - len(failed)} of {n} files compiled with nvcc {'.'.join(cuda_version(nvcc))}, not run")
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
