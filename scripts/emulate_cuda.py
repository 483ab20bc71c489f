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
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compile_cuda import SkipError, find_nvcc
from cuda_emulator import (
    ARCHS,
    BUILD,
    EMULATOR,
    FAST_ARCHS,
    N_JOBS,
    OURS,
    TREE,
    build,
    build_backend,
    build_emulator,
    build_faults,
    call,
    demo_model,
    make_ptx,
    run_device,
    run_models,
    toolkit,
    translate,
)
from cuda_mutants import check_mutants
from patches import PatchError, make_tree
from pin import PinError
from prepare import LIBRARY_DIR, PYTHON, ROOT, SetupError

CASES = 400  # of tests/native/cuda-cases.h
SPILL_MAX = 32  # bytes of a thread
FAST_STEP = 7  # between those of test-device that the fast part runs: no digit of a case's number divides it
MODEL_TESTS = tuple(f"tests/e2e/test_{name}.py" for name in ("cuda", "device", "sweep_device"))
ORDERS = ("rev", "rand:1")


# what tests/cuda/faults.cu does wrong, and how it is noticed: "wrong" are the program's own numbers
NUMBERS = "wrong: element"
LATE, LAST, TWO = {"CUDAEMU_LATE": "1"}, {"CUDAEMU_LATE": "2"}, {"CUDAEMU_DEVICES": "2"}
QUICK = {"CUDAEMU_OPTIMIZE": "-O0"}  # kernels that run for seconds
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
    "missing-event-of-the-first": (LAST, NUMBERS),
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


def kernels_of(nvcc: Path, arch: str, **settings: str) -> Path:
    """Folder of the PTX of our kernels, translated."""
    folder = make_ptx(nvcc, OURS, arch, BUILD / "ptx" / arch)
    translate(folder, **settings)
    return folder


def check_runtime(nvcc: Path) -> str:
    """The runtime notices what is wrong in a program, and finds nothing in one that is right."""
    program = build_faults(nvcc)
    problems = []
    for arch in FAST_ARCHS:
        for settings in (CHECKED, LATE | TWO, LAST | TWO):
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
    return "".join(run_cases(kernels_of(nvcc, arch, **QUICK), **QUICK) for arch in FAST_ARCHS)


def say_end(result: tuple[int, str]) -> str:
    """Print how a program ended; "" if well."""
    code, said = result
    print(said.strip().splitlines()[-1] if said else code, flush=True)
    return "" if code == 0 else said


def pass_models(library: Path, *arguments: str, **settings: str) -> str:
    """All tests of models, a file in a process of its own."""
    with ThreadPoolExecutor(N_JOBS) as pool:
        results = list(pool.map(lambda file: run_models(library, file, *arguments, **settings), MODEL_TESTS))
    return "".join(map(say_end, results))


def check_device(nvcc: Path) -> str:
    """A part of the cases; all that is asynchronous as late as it may be."""
    return say_end(run_device(build_backend(nvcc), FAST_STEP, **LATE))


def check_ops(nvcc: Path) -> str:
    """Each operation of the demo model's graphs, as upstream's own test compares it with the CPU's."""
    library, tests = build_backend(nvcc), BUILD / "ops.txt"
    build(EMULATOR / "export-ops", demo_model(), tests)
    program = str(EMULATOR / "test-backend-ops")
    settings = {"LD_LIBRARY_PATH": str(library), "CUDAEMU_FILL": "0"}  # it compares memory that it never wrote
    code, said = call([program, "test", "-b", "CUDA0", "--test-file", str(tests)], **settings)
    print(*re.findall(r"\d+/\d+ tests passed", said), sep="\n", flush=True)
    return "" if code == 0 else said


def check_models(nvcc: Path) -> str:
    """Tiny models; the demo model, read layer by layer, all layers on the device. Recorded graphs are replayed."""
    small = "not demo or (layer and not half)"
    return pass_models(build_backend(nvcc), "-k", small)


def check_device_cases(nvcc: Path) -> str:
    """All cases, with what is waited for done last."""
    return say_end(run_device(build_backend(nvcc), 1, **LAST))


def check_conversations(nvcc: Path) -> str:
    """Every test of a model on two devices: as late as may be, and in another order without recorded graphs."""
    library = build_backend(nvcc)
    settings = (LATE | TWO, LAST | TWO | {"GGML_CUDA_DISABLE_GRAPHS": "1"})
    return "".join(pass_models(library, **each) for each in settings)


def spilled(ptxas: Path, ptx: Path, arch: str) -> str:
    """Kernels of a file that spill more than SPILL_MAX bytes; how many registers the others take is printed."""
    code, said = call([ptxas, "-v", f"-arch=sm_{arch}", "-o", "/dev/null", ptx])
    if code != 0:
        return said
    entry = re.compile(r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL)
    found = entry.findall(said)
    print(
        f"sm_{arch}: {ptx.stem}: {len(found)} kernels, at most {max(int(n) for *_, n in found)} registers", flush=True
    )
    return "".join(f"{name}: {n} bytes spilled\n" for name, n, _ in found if int(n) > SPILL_MAX)


def check_registers(nvcc: Path) -> str:
    """What ptxas makes of our kernels has room in the registers."""
    ptxas = toolkit(nvcc) / "bin" / "ptxas"
    folders = {arch: make_ptx(nvcc, OURS, arch, BUILD / "ptx" / arch) for arch in ARCHS}
    return "".join(
        spilled(ptxas, ptx, arch) for arch, folder in folders.items() for ptx in sorted(folder.glob("*.ptx"))
    )


def check_gpu_check(nvcc: Path) -> str:
    """What a person with a card runs, in tiny sizes."""
    return say_end(call([PYTHON, "scripts/gpu-check", "--emulated", "-o", BUILD / "gpu-check.json"]))


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


# the first five are the fast part
STEPS: dict[str, Callable[[Path], str]] = {
    "runtime": check_runtime,
    "kernels": check_kernels,
    "device": check_device,
    "ops": check_ops,
    "models": check_models,
    "cases": check_cases,
    "orders": check_orders,
    "races": check_races,
    "device-cases": check_device_cases,
    "conversations": check_conversations,
    "registers": check_registers,
    "gpu-check": check_gpu_check,
    "mutants": check_mutants,
}
N_FAST = 5


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
            lines = problem.strip().splitlines()
            print("\n".join([line for line in lines[:-40] if "cudaemu:" in line] + lines[-40:]), flush=True)
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
