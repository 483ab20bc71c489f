"""Build the emulated CUDA runtime (tests/cuda) and what runs over it: a part of scripts/emulate_cuda.py.

Of upstream's ggml-cuda only what the demo model and the tiny models of the tests need is compiled; who calls anything
else is told the name of what is missing, and ends. Matrix products of f16 and f32 go to the emulated cuBLAS
where upstream has kernels of its own (mmf.cu, whose many instances would take longer to compile than all the rest).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from compile_cuda import FA_PAIRS, FA_TYPES, SkipError
from prepare import BUILD as BUILD_ROOT
from prepare import LIBRARY_DIR, PYTHON, ROOT, SetupError, find_tools

HERE = ROOT / "tests" / "cuda"
BUILD = BUILD_ROOT / "cuda"
TREE = BUILD / "upstream"
GGML = TREE / "ggml" / "src"
EMULATOR = BUILD / "emulator"
EMULATED_LIBRARY = BUILD / "lib"
TEST_DEVICE = BUILD_ROOT / "release" / "tests" / "native" / "test-device"
CACHE = BUILD / "kernels"
OURS = ROOT / "native" / "attend" / "cuda"
DEVICE_CASES = 500  # of tests/native/test-device.cpp
TYPES = ("f16", "bf16", "q8_0", "q4_0")
ARCH = "80"  # of the backend
FAST_ARCHS, ARCHS = ("75", "80"), ("75", "80", "90")  # of our kernels
N_JOBS = os.cpu_count() or 1
LIMIT_S = 3600
# as ggml's CMake files have them; PTX alone, uncompressed
NVCC_FLAGS = ("-std=c++17", "-use_fast_math", "-extended-lambda", "-Wno-deprecated-gpu-targets", "-lineinfo")

GGML_SOURCES = (
    "ggml-cuda.cu",
    *("binbcast.cu", "clamp.cu", "concat.cu", "convert.cu", "cpy.cu", "fattn.cu", "getrows.cu", "mean.cu", "mmvf.cu"),
    *(
        "mmq.cu",
        "mmvq.cu",
        "norm.cu",
        "pool2d.cu",
        "quantize.cu",
        "rope.cu",
        "scale.cu",
        "set-rows.cu",
        "softmax.cu",
        "sumrows.cu",
    ),
    *("unary.cu", "fwht.cu"),
    *(f"template-instances/mmq-instance-{name}.cu" for name in ("q4_1", "q8_0")),  # the demo model and how it comes
    *(f"template-instances/fattn-vec-instance-{name}-{name}.cu" for name in TYPES),
)
OUR_SOURCES = (
    "headkv-cuda.cu",
    "headkv-cuda-f16.cu",
    "headkv-cuda-bf16.cu",
    "headkv-cuda-q8_0.cu",
    "headkv-cuda-q4_0.cu",
)
DEFINES = (
    *("GGML_BACKEND_BUILD", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_CUDA_NO_VMM", "GGML_CUDA_USE_GRAPHS", "NDEBUG"),
    *("GGML_CUDA_PEER_MAX_BATCH_SIZE=128", "GGML_SCHED_MAX_COPIES=4"),
)


def call(command: Sequence[str | Path], **settings: str) -> tuple[int, str]:
    """(exit code, all output)."""
    stock = {key: value for key, value in os.environ.items() if not key.startswith("CUDAEMU_")}
    done = subprocess.run(
        list(map(str, command)),
        env=stock | {"CUDAEMU_CACHE": str(CACHE)} | settings,
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


def build(*command: str | Path, **settings: str) -> None:
    """A command that must succeed."""
    code, said = call(command, **settings)
    if code != 0:
        raise SetupError(f"{Path(command[0]).name} failed:\n{said[-4000:]}")


def demo_model() -> Path:
    """The demo model's file, in the user's cache."""
    code, said = call([PYTHON, "-c", "from pyheadkv.engine.sources import demo_model; print(demo_model())"])
    if code != 0:
        raise SetupError(f"no demo model: {said.strip()[-300:]}")
    return Path(said.strip().splitlines()[-1])


def toolkit(nvcc: Path) -> Path:
    """The folder that holds the toolkit's include and bin; nvcc may be a script that calls the real one."""
    said = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    if not found:
        raise SkipError(f"{nvcc} does not say where its toolkit is")
    return Path(found[1]).resolve()


def build_emulator(nvcc: Path) -> None:
    """The emulator and the programs over it."""
    options = {
        "CUDA_INCLUDE": toolkit(nvcc) / "include",
        "GGML_SOURCE": TREE,
        "GGML_LIBRARIES": LIBRARY_DIR,
    }
    cmake = find_tools()
    defined = [f"-D{name}={value}" for name, value in options.items()]
    build(cmake, "-S", HERE, "-B", EMULATOR, "-G", "Ninja", *defined)
    build(cmake, "--build", EMULATOR, "--parallel", str(N_JOBS))


def nvcc_command(nvcc: Path, kernels: Path) -> list[str]:
    """The compiler's call for any of ggml's or our files, with our kernels in folder `kernels`."""
    folders = [HERE / "include", kernels, TREE / "ggml" / "include", TREE / "ggml" / "src", ROOT / "native"]
    pairs = [f"-DGGML_CUDA_FA_{k}_{v}={int(f'{k}-{v}' in FA_PAIRS)}" for k in FA_TYPES for v in FA_TYPES]
    return [str(nvcc), *NVCC_FLAGS, *(f"-I{folder}" for folder in folders), *pairs]


def make_ptx(nvcc: Path, kernels: Path, arch: str, target: Path, types: Sequence[str] = TYPES) -> Path:
    """PTX of the kernels in a folder, a file a cache type, in folder `target`; what is newer than them is kept."""
    target.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in kernels.iterdir())

    def make(cache_type: str) -> None:
        ptx = target / f"{cache_type}.ptx"
        if ptx.is_file() and ptx.stat().st_mtime > newest:
            return
        source = kernels / f"headkv-cuda-{cache_type}.cu"
        build(*nvcc_command(nvcc, kernels), f"-arch=compute_{arch}", "-ptx", "-o", f"{ptx}.tmp", source)
        Path(f"{ptx}.tmp").replace(ptx)

    with ThreadPoolExecutor(N_JOBS) as pool:
        list(pool.map(make, types))
    return target


def translate(folder: Path, **settings: str) -> None:
    """Compile all kernels of a folder of PTX, on all cores."""
    files = sorted(folder.glob("*.ptx"))
    parts = [[EMULATOR / "translate", str(part), str(N_JOBS), *files] for part in range(N_JOBS)]
    with ThreadPoolExecutor(N_JOBS) as pool:
        list(pool.map(lambda command: build(*command, **settings), parts))


def build_faults(nvcc: Path) -> Path:
    """tests/cuda/faults.cu as a program over the emulated runtime."""
    program, source = BUILD / "faults", HERE / "faults.cu"
    library = EMULATOR / "libcudart.so"
    if program.is_file() and program.stat().st_mtime > max(source.stat().st_mtime, library.stat().st_mtime):
        return program
    codes = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in FAST_ARCHS]
    link = ["-cudart", "none", str(library), "-Xlinker", "-rpath", "-Xlinker", str(EMULATOR)]
    build(nvcc, "-std=c++17", "-lineinfo", "--no-compress", *codes, "-o", program, source, *link)
    return program


# ---- the backend ----


@cache
def headers_digest(is_ours: bool) -> str:
    """Hash of everything that one of our sources, or one of upstream's, may include."""
    folders = [GGML / "ggml-cuda", GGML, TREE / "ggml" / "include", HERE / "include", *([OURS] if is_ours else [])]
    headers = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".h", ".cuh")]
    digest = hashlib.sha256()
    for path in (*headers, OURS / "headkv-cuda.h", OURS.parent / "node.h"):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def compile_objects(command: Sequence[str], sources: Sequence[Path], target: Path) -> list[Path]:
    """Objects of the sources, in their order; one that was made of the same bytes is taken again."""
    target.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        call_of = "\0".join([*command, headers_digest(source.parent == OURS)])
        made = target / f"{source.stem}-{hashlib.sha256(call_of.encode() + source.read_bytes()).hexdigest()[:16]}.o"
        if not made.is_file():
            build(*command, "-c", "-o", f"{made}.tmp", source)
            Path(f"{made}.tmp").replace(made)
        return made

    with ThreadPoolExecutor(N_JOBS) as pool:
        return list(pool.map(compile_one, sources))


def symbols(library: Path, kind: str) -> set[str]:
    """Names that a library defines, or those that it needs of libraries without versions."""
    said = subprocess.run(["nm", "-D", f"--{kind}-only", library], capture_output=True, text=True, check=True).stdout
    kinds = "U" if kind == "undefined" else "TBDRVWi"
    return {name for *_, letter, name in map(str.split, said.splitlines()) if letter in kinds and "@" not in name}


def write_missing(library: Path, needed: Sequence[Path]) -> Path:
    """C functions in the place of all that was left out of a library: who calls one is told its name."""
    missing = symbols(library, "undefined").difference(*(symbols(other, "defined") for other in needed))
    functions = "".join(f'extern "C" void {name}() {{ missing("{name}"); }}\n' for name in sorted(missing))
    path = BUILD / "missing.cpp"
    path.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'static void missing(const char * s) { fprintf(stderr, "cudaemu: not compiled: %s\\n", s); abort(); }\n'
        f"{functions}"
    )
    return path


def backend_objects(nvcc: Path) -> dict[str, Path]:
    """Objects of the CUDA backend, by the names of their sources."""
    sources = [HERE / "attention.cu", HERE / "without-mmf.cu"]  # the first takes longest
    sources += [*(GGML / "ggml-cuda" / name for name in GGML_SOURCES), *(OURS / name for name in OUR_SOURCES)]
    objects = compile_objects(backend_command(nvcc), sources, BUILD / "objects")
    return {source.name: made for source, made in zip(sources, objects, strict=True)}


def backend_command(nvcc: Path) -> list[str]:
    """The compiler's call for a file of the backend."""
    target = ("--no-compress", f"-gencode=arch=compute_{ARCH},code=compute_{ARCH}", "-Xcompiler", "-fPIC,-O1")
    return [*nvcc_command(nvcc, OURS), *(f"-D{name}" for name in DEFINES), *target]


def link_backend(objects: Iterable[Path], target: Path) -> Path:
    """The libraries of pyheadkv/lib with a CUDA backend, in a folder of their own."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*LIBRARY_DIR.glob("lib*"), *(EMULATOR / name for name in ("libcudart.so.13", "libnvidia-ml.so.1"))):
        shutil.copy2(path, target / path.name)
    cuda, ggml = target / "libggml-cuda.so", target / "libggml.so"
    link = ["-shared", "-Wl,-rpath,$ORIGIN", f"-L{target}", "-lggml-base"]
    runtime = str(target / "libcudart.so.13")
    link_cuda = ["-o", str(cuda), *map(str, objects), *link, runtime, "-Wl,--unresolved-symbols=ignore-all"]
    build("c++", *link_cuda)
    build("c++", "-fPIC", *link_cuda, write_missing(cuda, [target / "libggml-base.so", Path(runtime)]))
    settings = ("GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_USE_CPU", "GGML_USE_CUDA", "NDEBUG")
    defines = [f"-D{name}" for name in settings]
    includes = [f"-I{folder}" for folder in (TREE / "ggml" / "include", GGML)]
    registry = [str(GGML / name) for name in ("ggml-backend-dl.cpp", "ggml-backend-reg.cpp")]
    build("c++", "-std=c++17", "-O1", "-fPIC", *defines, *includes, "-o", ggml, *registry, *link, "-lggml-cpu", cuda)
    return target


def build_backend(nvcc: Path) -> Path:
    """Folder of the libraries with the CUDA backend."""
    return link_backend(backend_objects(nvcc).values(), EMULATED_LIBRARY)


def build_changed_backend(nvcc: Path, source: Path, target: Path) -> Path:
    """The same in folder `target`, with `source` in the place of the file of its name."""
    changed = source.with_suffix(".o")
    build(*backend_command(nvcc), f"-I{GGML / 'ggml-cuda'}", "-c", "-o", changed, source)
    return link_backend((backend_objects(nvcc) | {source.name: changed}).values(), target)


# ---- programs over a backend in folder `library`; each returns (exit code, all output) ----


def run_device(library: Path, step: int, **settings: str) -> tuple[int, str]:
    """Every step-th case of test-device: our kernels, launched by our code, called by ggml-cuda's patched dispatch."""
    return call([TEST_DEVICE, "CUDA0", "0", str(DEVICE_CASES), str(step)], LD_LIBRARY_PATH=str(library), **settings)


def run_models(library: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """End-to-end tests with the emulated device."""
    # what the emulator says is not kept from us when the tests end at once
    command: list[str | Path] = [PYTHON, "-m", "pytest", "--color=no", "-q", "--capture=sys", *arguments]
    return call(command, HEADKV_LIB_DIR=str(library), **settings)
