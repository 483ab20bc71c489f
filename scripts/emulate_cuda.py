#!/usr/bin/env python3
"""Try the CUDA backend on the CPU: our kernels as nvcc makes them, over an emulated CUDA runtime (tests/cuda).

    scripts/emulate_cuda.py          the fast part: our kernels for sm_75 and sm_80
    scripts/emulate_cuda.py --all    every case, sm_90, orders of blocks and lanes, races, mutants
    scripts/emulate_cuda.py STEP...  some of them

Needs nvcc (tests/cuda/README.md says where it comes from) and a CPU with AVX2. Without them all is skipped, and the
last line says why. The library in pyheadkv/lib must be built. The first run translates and compiles each kernel, some
seconds of a core for each; later runs compile what changed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compile_cuda import SkipError, find_nvcc
from cuda_emulator import (
    ARCHS,
    BUILD,
    EMULATOR,
    FAST_ARCHS,
    HERE,
    OURS,
    TREE,
    build,
    build_backend,
    build_emulator,
    build_faults,
    call,
    make_ptx,
    nvcc_command,
    translate,
)
from patches import PatchError, make_tree
from pin import PinError
from prepare import BUILD as BUILD_ROOT
from prepare import LIBRARY_DIR, PYTHON, ROOT, SetupError

CASES = 400  # of tests/native/cuda-cases.h
DEVICE_CASES = 500  # of tests/native/test-device.cpp
TEST_DEVICE = BUILD_ROOT / "release" / "tests" / "native" / "test-device"
ORDERS = ("rev", "rand:1")


@dataclass(frozen=True)
class Mutant:
    """A change to our kernels that their tests must notice.

    `file` is a name in native/attend/cuda, `old` its text, `by` what must notice it: the numbers, the bounds of memory,
    or the checks of shared memory.
    """

    what: str
    file: str
    old: str
    new: str
    by: str


ATTEND, COMBINE, LINE = "headkv-cuda-attend.cuh", "headkv-cuda-combine.cuh", "headkv-cuda-line.cuh"
SYNC = "sync_block();"
RACE, BOUNDS, WRONG = "race: ", " outside ", "FAILED case"
MUTANT_CASES = range(0, CASES, 20)  # f16 rows of 64 elements
MUTANTS = (
    Mutant(
        "no barrier after the queries", ATTEND, "load_queries(it);\n        sync_block();", "load_queries(it);", RACE
    ),
    Mutant("no barrier before the next queries", ATTEND, f"{SYNC} // before the next work tile's queries", "", RACE),
    Mutant("no barrier after the maxima", ATTEND, f"{SYNC} // and nobody reads the queries any more", "", RACE),
    Mutant(
        "no barrier before a warp's sums are read",
        *(
            ATTEND,
            "                sync_block();\n                if (split == 0)",
            "                if (split == 0)",
            RACE,
        ),
    ),
    Mutant(
        "no barrier before the next warp's sums",
        *(
            ATTEND,
            "                }\n                sync_block();\n            }\n",
            "                }\n            }\n",
            RACE,
        ),
    ),
    Mutant(
        "no barrier in a reduction", COMBINE, "        sync_block();\n        x = shared", "        x = shared", RACE
    ),
    Mutant(
        "no barrier behind a reduction", COMBINE, "        sync_block();\n        return x;", "        return x;", RACE
    ),
    Mutant(
        "no barrier before the last sum",
        COMBINE,
        "        sync_block();\n\n        const output",
        "        const output",
        RACE,
    ),
    Mutant("the first token's mask", ATTEND, "args.mask + j/args.n_gqa*args.nb_mask", "args.mask + 0*j", WRONG),
    Mutant("one row too many counts", ATTEND, "if (row >= it.n_rows) {", "if (row > it.n_rows) {", WRONG),
    Mutant(
        "one row too many of K is read",
        *(ATTEND, "k_row(const attn_args & args, int row) const {\n            row = row < n_rows ? row : n_rows - 1;"),
        *("k_row(const attn_args & args, int row) const {\n            row = row < n_rows ? row : n_rows;", BOUNDS),
    ),
    Mutant(
        "the next head's rows", ATTEND, "args.v_hot + args.row_ptr[ih]*", "args.v_hot + args.row_ptr[ih + 1]*", WRONG
    ),
    Mutant("no ragged end", LINE, "(n_rows(ih) + ROW_TILE - 1)/ROW_TILE", "n_rows(ih)/ROW_TILE", WRONG),
    Mutant("K of a row tile too early", ATTEND, "row + N_SPLIT*ROW_TILE, g, t);", "row + ROW_TILE, g, t);", WRONG),
    Mutant(
        "sums keep their scale",
        ATTEND,
        "        st.rescale(factor);\n    }\n\n    // column",
        "    }\n\n    // column",
        WRONG,
    ),
    Mutant("a maximum of half of the lanes", ATTEND, "m = fmaxf(m, lane_xor(m, 2));", "", WRONG),
    Mutant("the part of another block", COMBINE, "line.part(x, first + i_part)", "line.part(x, first)", WRONG),
    Mutant(
        "a block's slice ends early",
        ATTEND,
        "(hi - start < n ? hi - start : n)",
        "(hi - start < n ? hi - start - 1 : n)",
        WRONG,
    ),
)


# what tests/cuda/faults.cu does wrong, and how it is noticed: "wrong" are the program's own numbers
NUMBERS = "wrong: element"
LATE, TWO = {"CUDAEMU_LATE": "1"}, {"CUDAEMU_DEVICES": "2"}
CHECKED = {"CUDAEMU_CHECK": "1", "CUDAEMU_REPORTS": "100"}
FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "bounds": ({}, "0 bytes behind an allocation of 4096"),
    "alignment": ({}, "not aligned"),
    "freed": ({}, "freed, or never allocated"),
    "host-memory": ({}, "no device memory"),
    "device-memory": ({}, "host code touches device memory"),
    "unwritten": ({}, NUMBERS),
    "race": (CHECKED, "race: write after read"),
    "shared-unwritten": (CHECKED, "uninitialised read at shared address 252"),
    "divergent-barrier": ({}, "lanes of a warp come to different barriers"),
    "missed-barrier": ({}, "deadlock"),
    "async-copy": ({}, NUMBERS),
    "shared-opt-in": ({}, "0 allowed by cudaFuncSetAttribute"),
    "shared-size": ({}, "shared memory: "),
    "grid": ({}, "blocks: 1 x 65536 x 1"),
    "threads": ({}, "threads: 1056"),
    "missing-event": (LATE, NUMBERS),
    "wrong-stream": (LATE, NUMBERS),
    "early-look": (LATE, NUMBERS),
    "early-write": (LATE, NUMBERS),
    "stream-of-other-device": (TWO, "a stream of device 0 while device 1 is set"),
    "no-peer": (TWO, "of device 0, without peer access"),
    "sync-in-capture": ({}, "cudaStreamSynchronize of a stream that is captured"),
    "unjoined-capture": ({}, "a stream that joined the capture was not waited for"),
    "stale-graph": ({}, NUMBERS),
    "other-graph": ({}, "the graph update was not performed"),
}


# ---- steps; each returns what went wrong, "" if nothing did ----


def run_cases(folder: Path, *cases: int, **settings: str) -> str:
    """Cases of test-ptx, of one architecture."""
    code, said = call([EMULATOR / "test-ptx", folder, *map(str, cases)], **settings)
    print(f"sm_{folder.name}: {said.strip().splitlines()[-1] if said else code}", flush=True)
    return "" if code == 0 else said


def kernels_of(nvcc: Path, arch: str) -> Path:
    """Folder of the PTX of our kernels, translated."""
    folder = make_ptx(nvcc, OURS, arch, BUILD / "ptx" / arch)
    translate(folder)
    return folder


def check_runtime(nvcc: Path) -> str:
    """The runtime notices what is wrong in a program, and finds nothing in one that is right."""
    program = build_faults(nvcc)
    problems = []
    for arch in FAST_ARCHS:
        for settings in (CHECKED, LATE | TWO):
            code, said = call([program], CUDAEMU_ARCH=arch, **settings)
            problems += [f"fails as it is right: {said}"] if code != 0 else []
    for name, (settings, words) in FAULTS.items():
        code, said = call([program, name], **settings)
        if code == 0 or words not in said:
            problems.append(f"{name}: not noticed as `{words}`: {said.strip()[-300:]}")
    print(f"{len(FAULTS) - len(problems)} of {len(FAULTS)} faults noticed")
    return "\n".join(problems)


def check_kernels(nvcc: Path) -> str:
    """Every third case."""
    return "".join(run_cases(kernels_of(nvcc, arch)) for arch in FAST_ARCHS)


def run_device(nvcc: Path, n_cases: int, **settings: str) -> str:
    """Cases of test-device: our kernels with their launch code, as ggml-cuda's patched dispatch calls them."""
    library = build_backend(nvcc)
    code, said = call([TEST_DEVICE, "CUDA0", "0", str(n_cases)], LD_LIBRARY_PATH=str(library), **settings)
    print(said.strip().splitlines()[-1] if said else code, flush=True)
    return "" if code == 0 else said


def run_models(nvcc: Path, *arguments: str, **settings: str) -> str:
    """End-to-end tests with the emulated device."""
    library = build_backend(nvcc)
    code, said = call([PYTHON, "-m", "pytest", "--color=no", "-q", *arguments], HEADKV_LIB_DIR=str(library), **settings)
    print(said.strip().splitlines()[-1], flush=True)
    return "" if code == 0 else said


def check_device(nvcc: Path) -> str:
    """A part of the cases; all that is asynchronous as late as it may be."""
    return run_device(nvcc, DEVICE_CASES // 5, **LATE)


def check_models(nvcc: Path) -> str:
    """Tiny models, and the demo model with all layers on the device; recorded graphs are replayed."""
    small = "not demo or (f16 and whole)"
    return run_models(nvcc, "tests/e2e/test_cuda.py", "tests/e2e/test_device.py", "-k", small)


def check_device_cases(nvcc: Path) -> str:
    """All cases, with all work done at once."""
    return run_device(nvcc, DEVICE_CASES)


def check_conversations(nvcc: Path) -> str:
    """Every test of a model: late on two devices, and without recorded graphs."""
    tests = ("tests/e2e/test_cuda.py", "tests/e2e/test_device.py")
    return run_models(nvcc, *tests, **LATE, **TWO) + run_models(nvcc, *tests, GGML_CUDA_DISABLE_GRAPHS="1")


def check_cases(nvcc: Path) -> str:
    """All cases, for all architectures."""
    return "".join(run_cases(kernels_of(nvcc, arch), 0, CASES) for arch in ARCHS)


def check_orders(nvcc: Path) -> str:
    """The same in other orders of blocks, warps and lanes: a result that depends on them is a race."""
    folder = kernels_of(nvcc, FAST_ARCHS[-1])
    return "".join(run_cases(folder, CUDAEMU_ORDER=order) for order in ORDERS)


def check_races(nvcc: Path) -> str:
    """Races in shared memory, and reads of what nobody wrote."""
    return "".join(run_cases(kernels_of(nvcc, arch), CUDAEMU_CHECK="1") for arch in FAST_ARCHS)


def mutated(mutant: Mutant) -> Path:
    """A copy of our kernels with the mutant's text; raises SetupError when the text is not there once."""
    folder = BUILD / "mutants" / re.sub(r"\W+", "-", mutant.what)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(OURS, folder / "source")
    text = (OURS / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SetupError(f"{mutant.file} has not once what mutant `{mutant.what}` changes")
    (folder / "source" / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    return folder


def spare_barriers() -> int:
    """Barriers between threads that no mutant removes."""
    n_barriers = sum((OURS / file).read_text().count(SYNC) for file in (ATTEND, COMBINE))
    return n_barriers - sum(mutant.old.count(SYNC) for mutant in MUTANTS)


def check_mutants(nvcc: Path) -> str:
    """Each of MUTANTS must be noticed, by what should notice it."""
    missed = [f"{spare_barriers()} barriers have no mutant"] if spare_barriers() else []
    for mutant in MUTANTS:
        folder = mutated(mutant)
        source = folder / "source"
        build(*nvcc_command(nvcc, source), "-arch=compute_80", "-ptx", "-o", folder / "f16.ptx", HERE / "small.cu")
        settings = {} if mutant.by == WRONG else CHECKED
        said = [call([EMULATOR / "test-ptx", folder, str(case)], **settings)[1] for case in MUTANT_CASES]
        n = sum(mutant.by in text for text in said)
        print(f"mutant: {mutant.what}: noticed in {n} of {len(said)} cases", flush=True)
        missed += [] if n else [f"{mutant.what}: not noticed"]
    return "\n".join(missed)


# the first four are the fast part
STEPS: dict[str, Callable[[Path], str]] = {
    "runtime": check_runtime,
    "kernels": check_kernels,
    "device": check_device,
    "models": check_models,
    "cases": check_cases,
    "orders": check_orders,
    "races": check_races,
    "device-cases": check_device_cases,
    "conversations": check_conversations,
    "mutants": check_mutants,
}
N_FAST = 4


def run_steps(nvcc: Path, names: Sequence[str]) -> list[str]:
    """Names of the steps that failed; what they said is printed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    make_tree(TREE, ROOT / "patches", force=True)
    build_emulator(nvcc)
    failed = []
    for name in names:
        print(f"- {name}", flush=True)
        problem = STEPS[name](nvcc)
        if problem:
            print("\n".join(problem.strip().splitlines()[-40:]), flush=True)
            failed.append(name)
    return failed


def find_compiler() -> Path:
    """nvcc, on a machine that can run what it makes; raises SkipError."""
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or not {"avx2", "fma", "f16c"} <= set(flags.read_text().split()):
        raise SkipError("not Linux on a CPU with AVX2")
    if not any(LIBRARY_DIR.glob("libggml-cpu*")):
        raise SkipError(f"no library in {LIBRARY_DIR}: run scripts/pyheadkv")
    return find_nvcc()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fast = list(STEPS)[:N_FAST]
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} ({', '.join(fast)})")
    parser.add_argument("--all", action="store_true", help="all steps")
    arguments = parser.parse_args(argv)
    names = list(STEPS) if arguments.all else arguments.steps or fast
    if not set(names) <= set(STEPS):
        parser.error(f"unknown step: {', '.join(sorted(set(names) - set(STEPS)))}")
    try:
        failed = run_steps(find_compiler(), names)
    except SkipError as skip:
        print(f"cuda, emulated: {len(names)} steps, all skipped: {skip}")
        return 0
    except (PatchError, PinError, SetupError, subprocess.TimeoutExpired) as error:
        print(f"cuda, emulated: error: {error}")
        return 1
    print(f"cuda, emulated: {len(names)} steps, {len(failed)} failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
