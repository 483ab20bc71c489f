#!/usr/bin/env python3
"""Try the Metal backend on Linux: ggml-metal as it is, host code and kernels, over an emulated Metal.framework.

    scripts/emulate_metal.py          types of our kernels, one case of tests/native/test-metal for each kernel, and a
                                      prompt that is read layer by layer
    scripts/emulate_metal.py --all    more shapes, orders of lanes and dispatches, data races, removed barriers, models,
                                      devices and compilers that refuse our kernels
    scripts/emulate_metal.py STEP...  some of them

The emulation is `metalshim`, in tools/ of the folder HEADKV_SHARED or of ../shared; it needs clang 19 and GNUstep.
Without them all is skipped, and the last line says why. What it proves is in native/README.md; it is no Mac, and tells
no times. The library in pyheadkv/lib must be built. The first run compiles each kernel, a second or two of a core for
each; later runs compile what changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from patches import PatchError, make_tree
from pin import PinError
from prepare import BUILD as BUILD_ROOT
from prepare import LIBRARY_DIR, PYTHON, ROOT, SetupError, find_tools

BUILD = BUILD_ROOT / "metal"
SOURCE = BUILD / "source"  # a llama.cpp tree with our files where its own build has them on a Mac
UPSTREAM = BUILD / "upstream"
UPSTREAM_METAL = UPSTREAM / "ggml" / "src" / "ggml-metal"
METAL = SOURCE / "ggml" / "src" / "ggml-metal"
OURS = ROOT / "native" / "attend" / "metal"
EMULATED_LIBRARY = BUILD / "lib"
KERNELS = 60  # N_KERNELS of test-metal.cpp: one case each, of which some do not exist
ROUNDS = 4
ORDERS = ("fwd/fwd", "rev/fwd", "rand:1/fwd", "fwd/rev", "fwd/rand", "rand:2/rand")  # of lanes and of dispatches
RACE_CASES = 60
LIMIT_S = 3600
# upstream's own kernels rely on lanes in lockstep and step beyond threadgroup memory: models need both
LENIENT = {"MSL_ORDER": "rev", "MSL_TG_SLACK": "1024"}


class SkipError(Exception):
    """Something that this machine lacks; its message is one line."""


@dataclass(frozen=True)
class Mutant:
    """A change to our sources that must make test-metal fail in one of the orders.

    `file` is the name in native/attend/metal or in upstream's folder; `old` its text, the `nth` time that it is there.
    """

    what: str
    file: str
    old: str
    new: str
    nth: int = 0
    orders: tuple[str, ...] = ("fwd/fwd", "rev/fwd")


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
# case 1 has 1300 rows in one head: several SIMD-groups with rows, and several chunks
MUTANT_CASE = "1"
MUTANTS = (
    Mutant("no barrier after the queries", "headkv-metal.metal", BARRIER, "", 0),
    Mutant("no barrier before a SIMD-group writes", "headkv-metal.metal", BARRIER, "", 1),
    Mutant("no barrier before it is read", "headkv-metal.metal", BARRIER, "", 2),
    Mutant(
        "no barrier between the kernels",
        "headkv-metal.cpp",
        "ggml_metal_encoder_memory_barrier(enc);",
        "",
        0,
        ("fwd/rev",),
    ),
    Mutant("accumulators keep their scale", "headkv-metal.metal", "o[i][n] *= rescale;", ""),
    Mutant("weight of another row", "headkv-metal.metal", "(ushort) (ty*NL + cc)", "(ushort) (ty*NL + cc)^1"),
    Mutant("a chunk too few", "headkv-metal-rows.h", "+ size - 1)/size;", ")/size;"),
)

# changes after which models must still answer as on the CPU, with the part of test_metal.py that says so
VARIANTS = {
    "no-reduction": Mutant(
        "a device without SIMD-group reduction",
        "ggml-metal-device.m",
        "dev->props.has_unified_memory =",
        "dev->props.has_simdgroup_reduction = dev->props.has_simdgroup_mm = false; dev->props.has_unified_memory =",
    ),
    "no-kernel": Mutant(
        "a compiler that refuses our kernels",
        "headkv-metal.metal",
        "using namespace metal;",
        "using namespace refused;",
    ),
}


# ---- the tool ----


def find_tool() -> Path:
    """Path of metalshim; raises SkipError where it or what it needs is missing."""
    shared = Path(os.environ.get("HEADKV_SHARED") or ROOT.parent / "shared")
    tool = shared / "tools" / "metalshim" / "metalshim"
    if not tool.is_file():
        raise SkipError("no metalshim (HEADKV_SHARED)")
    said = subprocess.run([tool, "deps"], capture_output=True, text=True, check=False).stdout
    missing = re.search(r"^missing: (.*)$", said, re.MULTILINE)
    if not missing or missing[1] != "none":
        raise SkipError(f"packages are missing: {missing[1] if missing else said}")
    if not any(LIBRARY_DIR.glob("libggml-cpu*")):
        raise SkipError(f"no library in {LIBRARY_DIR}: run scripts/pyheadkv")
    return tool


def environment(**settings: str) -> dict[str, str]:
    """Of all calls of the tool."""
    places = {"LLAMA_SRC": SOURCE, "OUT": BUILD / "out", "GGML_LIBS": LIBRARY_DIR}
    stock = {key: value for key, value in os.environ.items() if not key.startswith("MSL_")}
    return stock | {key: str(value) for key, value in places.items()} | {"OMP_WAIT_POLICY": "passive"} | settings


def call(command: Sequence[str | Path], **settings: str) -> tuple[int, str]:
    """(exit code, all output)."""
    done = subprocess.run(
        list(map(str, command)),
        env=environment(**settings),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout


# ---- sources ----


def copy_changed(source: Path, target: Path) -> None:
    """Copy a file unless it is there; the time of the source decides, as it does for the tool."""
    if target.is_file():
        old, new = target.stat(), source.stat()
        if (old.st_mtime_ns, old.st_size) == (new.st_mtime_ns, new.st_size):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def embed() -> None:
    """The kernels as a string, made again only when it changes."""
    made = BUILD / "headkv-metal-source.cpp"
    subprocess.run([find_tools(), f"-DOUTPUT={made}", "-P", METAL / "embed.cmake"], check=True)
    target = METAL / made.name
    if not target.is_file() or target.read_bytes() != made.read_bytes():
        shutil.copyfile(made, target)


def compose() -> None:
    """The patched tree with native/attend/metal in ggml-metal, and our test in the place of upstream's."""
    BUILD.mkdir(parents=True, exist_ok=True)
    make_tree(UPSTREAM, ROOT / "patches", force=True)
    for folder in (
        "ggml/include",
        "ggml/src",
        "ggml/src/ggml-metal",
        "ggml/src/ggml-metal/kernels",
        "ggml/src/ggml-cpu",
    ):
        for path in (UPSTREAM / folder).iterdir():
            if path.is_file():
                copy_changed(path, SOURCE / folder / path.name)
    for folder in ("common", "include"):
        (SOURCE / folder).mkdir(parents=True, exist_ok=True)
    for path in OURS.iterdir():
        copy_changed(path, METAL / path.name)
    copy_changed(OURS.parent / "node.h", METAL / "attend" / "node.h")
    embed()
    native = ROOT / "tests" / "native"
    copy_changed(native / "attention-problem.h", SOURCE / "tests" / "attention-problem.h")
    copy_changed(native / "test-metal.cpp", SOURCE / "tests" / "test-backend-ops.cpp")


# ---- steps; each returns what went wrong, "" if nothing did ----


def check_types(tool: Path) -> str:
    """Types and address spaces of our kernels."""
    code, said = call([tool, "check", METAL / "headkv-metal.metal"])
    print(said.strip().splitlines()[-1])
    return "" if code == 0 else said


def check_kernels(tool: Path) -> str:
    """One case of test-metal for each kernel, in the strict setting."""
    return run_cases(tool, 0, KERNELS)


def check_shapes(tool: Path) -> str:
    """Its other cases."""
    return run_cases(tool, KERNELS, KERNELS * ROUNDS)


def run_cases(tool: Path, first: int, end: int) -> str:
    """Cases [first, end) of test-metal."""
    code, said = call([tool, "test", str(first), str(end)])
    passed = re.findall(r"(\d+)/(\d+) tests passed", said)
    if code != 0 or not passed:
        return said
    print(f"cases: {passed[-1][0]} passed, each of two nodes at once; NMSE at most {worst_error(said)}")
    return ""


def worst_error(said: str) -> str:
    """Largest error that test-metal printed."""
    return max(re.findall(r"nmse=([\d.e+-]+)", said), key=float, default="?")


def check_orders(tool: Path) -> str:
    """The same in other orders: a result that depends on them is a race."""
    code, said = call([tool, "test-orders", "0", str(KERNELS)], ORDERS=" ".join(ORDERS))
    print(said.strip())
    return "" if code == 0 else said


def check_races(tool: Path) -> str:
    """ThreadSanitizer over the threads of threadgroups."""
    code, said = call([tool, "tsan", "0", str(RACE_CASES)])
    print(said.strip().splitlines()[-1])
    return "" if code == 0 else said


def mutate(mutant: Mutant) -> None:
    """Put the mutant's text into the unfused tree; raises ValueError when the text is not there."""
    path = METAL / mutant.file
    parts = path.read_text().split(mutant.old)
    if len(parts) < mutant.nth + 2:
        raise ValueError(f"{mutant.file} has no such text as in mutant `{mutant.what}`")
    before, after = mutant.old.join(parts[: mutant.nth + 1]), mutant.old.join(parts[mutant.nth + 1 :])
    path.write_text(before + mutant.new + after)
    embed()


def restore(mutant: Mutant) -> None:
    """Take the mutant's text out again."""
    ours = OURS / mutant.file
    shutil.copy2(ours if ours.is_file() else UPSTREAM_METAL / mutant.file, METAL / mutant.file)
    os.utime(METAL / mutant.file)  # newer than what was built from the mutant
    embed()


def spare_barriers() -> int:
    """Barriers between threads that no mutant removes."""
    n_barriers = sum(path.read_text().count("threadgroup_barrier(") for path in OURS.iterdir())
    return n_barriers - len({mutant.nth for mutant in MUTANTS if mutant.old == BARRIER})


def check_mutants(tool: Path) -> str:
    """Each of MUTANTS must be noticed, by numbers and not by a compiler."""
    if spare_barriers():
        return f"{spare_barriers()} barriers have no mutant"
    code, said = call(
        [tool, "test-orders", MUTANT_CASE], ORDERS=" ".join(sorted({o for m in MUTANTS for o in m.orders}))
    )
    if code != 0:
        return f"fails without a mutant\n{said}"
    missed = []
    for mutant in MUTANTS:
        try:
            mutate(mutant)
            code, said = call([tool, "test-orders", MUTANT_CASE], ORDERS=" ".join(mutant.orders))
            logs = "".join(path.read_text(errors="replace") for path in (BUILD / "out" / "log").glob("test-*.log"))
        finally:
            restore(mutant)
        is_built = "build failed" not in said and "compilation of" not in logs
        print(f"mutant: {mutant.what}: {'noticed' if code != 0 and is_built else 'NOT NOTICED'}", flush=True)
        if code == 0 or not is_built:
            missed.append(mutant.what)
    return "; ".join(missed)


def run_models(tool: Path, *tests: str, **settings: str) -> tuple[int, str]:
    """(exit code, output) of end-to-end tests with the emulated device."""
    code, said = call([tool, "build"])
    if code != 0:
        return code, said
    EMULATED_LIBRARY.mkdir(exist_ok=True)
    built = [BUILD / "out" / "bin" / name for name in ("libggml.so", "libggml-metal.so")]
    for path in [*LIBRARY_DIR.glob("lib*"), *built]:
        shutil.copy2(path, EMULATED_LIBRARY / path.name)
    places = {
        "HEADKV_LIB_DIR": EMULATED_LIBRARY,
        "MSL_SHIM": tool.parent,
        "MSL_CACHE": BUILD / "out" / "cache",
        "GGML_METAL_PATH_RESOURCES": METAL,
    }
    settings |= {name: str(path) for name, path in places.items()}
    return call([PYTHON, "-m", "pytest", "--color=no", "-q", *tests], **settings, **LENIENT)


def check_models(tool: Path) -> str:
    """Whole models on the emulated device, against the CPU."""
    return pass_models(tool, *(f"tests/e2e/test_{name}.py" for name in ("metal", "device", "sweep_device")))


def check_reading(tool: Path) -> str:
    """A prompt that is read layer by layer on the emulated device, against llama_decode there."""
    return pass_models(tool, "tests/e2e/test_sweep_device.py::test_reading_on_devices_is_stocks[one device-f16-file]")


def pass_models(tool: Path, *tests: str) -> str:
    """ "" when they pass."""
    code, said = run_models(tool, *tests)
    print(said.strip().splitlines()[-1])
    return "" if code == 0 else said


def check_variants(tool: Path) -> str:
    """Models where our kernels cannot be had, for each of VARIANTS."""
    problems = []
    for name, mutant in VARIANTS.items():
        try:
            mutate(mutant)
            code, said = run_models(tool, "tests/e2e/test_metal.py", "-s", HEADKV_METAL_VARIANT=name, MSL_TRACE="1")
        finally:
            restore(mutant)
        if code == 0 and "headkv_attend" in said:
            code, said = 1, f"our kernel ran on {mutant.what}"
        print(f"{mutant.what}: {said.strip().splitlines()[-1]}", flush=True)
        problems += [said] if code != 0 else []
    return "\n".join(problems)


# the first ones are the fast part
N_FAST = 3
STEPS: dict[str, Callable[[Path], str]] = {
    "types": check_types,
    "kernels": check_kernels,
    "reading": check_reading,
    "shapes": check_shapes,
    "orders": check_orders,
    "races": check_races,
    "mutants": check_mutants,
    "models": check_models,
    "variants": check_variants,
}


def run_steps(tool: Path, names: Sequence[str]) -> list[str]:
    """Names of the steps that failed; what they said is printed."""
    compose()
    failed = []
    for name in names:
        print(f"- {name}", flush=True)
        problem = STEPS[name](tool)
        if problem:
            print("\n".join(problem.strip().splitlines()[-40:]), flush=True)
            failed.append(name)
    return failed


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (the first {N_FAST})")
    parser.add_argument("--all", action="store_true", help="all steps")
    arguments = parser.parse_args(argv)
    names = list(STEPS) if arguments.all else arguments.steps or list(STEPS)[:N_FAST]
    if not set(names) <= set(STEPS):
        parser.error(f"unknown step: {', '.join(sorted(set(names) - set(STEPS)))}")
    try:
        failed = run_steps(find_tool(), names)
    except SkipError as skip:
        print(f"metal: {len(names)} steps, all skipped: {skip}")
        return 0
    except (PatchError, PinError, SetupError, subprocess.TimeoutExpired) as error:
        print(f"metal: error: {error}")
        return 1
    print(f"metal: {len(names)} steps emulated, {len(failed)} failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
