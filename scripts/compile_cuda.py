#!/usr/bin/env python3
"""Compile our CUDA files and the patched dispatch file: what a machine without a GPU can check of the CUDA backend.

    scripts/compile_cuda.py                  for one architecture; without nvcc or cuBLAS's headers: skipped, and why
    scripts/compile_cuda.py --arch 75 120a   for others
    scripts/compile_cuda.py --fetch-headers  first take the headers from the package nvidia-cublas (420 MB, once)

ggml's CUDA sources include cublas_v2.h, which the compiler's own package may lack; a toolkit has it. Files that
compiled before and did not change since, nor anything that they may include, are not compiled again. The first time
takes 2 minutes of one core.
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
import zipfile
from collections.abc import Sequence
from pathlib import Path

from patches import PatchError, make_tree
from pin import PinError, cache_dir

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "native" / "attend" / "cuda"
BUILD = ROOT / "build" / "cuda-compile"
DISPATCH = "ggml/src/ggml-cuda/fattn.cu"
HEADER = "cublas_v2.h"
# as ggml's CMake files have them, in a build with default options
FLAGS = ["-std=c++17", "-use_fast_math", "-extended-lambda", "-Werror", "all-warnings", "-Wno-deprecated-gpu-targets"]
FA_TYPES = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")
FA_PAIRS = ("Q4_0-Q4_0", "Q8_0-Q8_0", "F16-F16", "BF16-BF16")
LIMIT_S = 900


class SkipError(Exception):
    """Something that this machine lacks; its message is one line."""


def find_nvcc() -> Path:
    """Path of nvcc: in PATH, or in CUDA_PATH; raises SkipError."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_PATH', '/usr/local/cuda')}/bin")
    if not found:
        raise SkipError("no nvcc")
    return Path(found)


def headers_dir() -> Path:
    """Where --fetch-headers puts them."""
    return cache_dir() / "cublas"


def find_headers(nvcc: Path) -> list[Path]:
    """Folders to add to the include path: none where the toolkit has cuBLAS; raises SkipError."""
    if (nvcc.resolve().parent.parent / "include" / HEADER).is_file():
        return []
    found = sorted(headers_dir().rglob(HEADER))
    if not found:
        raise SkipError(
            f"no {HEADER}: `scripts/compile_cuda.py --fetch-headers` takes it from the package nvidia-cublas"
        )
    return [found[-1].parent]


def cuda_version(nvcc: Path) -> tuple[str, str]:
    """("13", "0") of nvcc's release."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    if not match:
        raise SkipError(f"{nvcc} names no release")
    return match[1], match[2]


def fetch_headers(nvcc: Path) -> None:
    """Put the headers of the cuBLAS of nvcc's release into this user's cache."""
    major, minor = cuda_version(nvcc)
    package = "nvidia-cublas" if int(major) >= 13 else f"nvidia-cublas-cu{major}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, f"{package}=={major}.{minor}.*"], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        target = headers_dir() / wheel.name.split("-")[1] / "include"
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if re.search(r"/include/[^/]+\.h$", name):
                    (target / Path(name).name).write_bytes(archive.read(name))


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
    parser.add_argument("--fetch-headers", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        nvcc = find_nvcc()
        if arguments.fetch_headers:
            fetch_headers(nvcc)
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
    failed = []
    for arch in arguments.arch:
        for source in sources:
            command = compile_command(nvcc, tree, headers, arch, source)
            if not compile_file(command, stamp_of(command, tree)):
                failed.append(f"{source.name} for sm_{arch}")
    n = len(sources) * len(arguments.arch)
    print(f"cuda: {n - len(failed)} of {n} files compiled with nvcc {'.'.join(cuda_version(nvcc))}, not run")
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
