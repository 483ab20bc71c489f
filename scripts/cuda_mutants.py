"""Changes to our kernels, to their launch and to what calls it, which must not pass: a part of scripts/emulate_cuda.py.

Changes to kernels are run by tests/cuda/test-ptx.cpp, one case after another; others by the programs that run over the
whole backend. Each must be noticed by what should notice it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_emulator import (
    BUILD,
    EMULATOR,
    GGML,
    HERE,
    OURS,
    build,
    build_changed_backend,
    call,
    nvcc_command,
    run_device,
    run_models,
)
from prepare import SetupError

ATTEND, COMBINE, LINE = "headkv-cuda-attend.cuh", "headkv-cuda-combine.cuh", "headkv-cuda-line.cuh"
LAUNCH, NODE = "headkv-cuda-launch.cuh", "headkv-cuda.cu"
DISPATCH, GGML_CUDA = "fattn.cu", "ggml-cuda.cu"  # upstream's
SYNC = "sync_block();"
RACE, BOUNDS, WRONG, FAILED_TEST = "race: ", " outside ", "FAILED case", "FAILED tests/e2e/test_cuda.py"
SHARED_CHECKS = {"CUDAEMU_CHECK": "1", "CUDAEMU_REPORTS": "100"}
ORDERS = ({"CUDAEMU_LATE": "1", "CUDAEMU_DEVICES": "2"}, {"CUDAEMU_LATE": "2", "CUDAEMU_DEVICES": "2"})
KERNEL_CASES = range(0, 400, 20)  # of test-ptx: f16 rows of 64 elements
DEVICE_STEP = 20  # the same ones of test-device


@dataclass(frozen=True)
class Mutant:
    """A change that a check must notice.

    `file` is a name in native/attend/cuda or in upstream's ggml-cuda, `old` its text. `by` is what must be said of it:
    by the numbers, the bounds of memory, the checks of shared memory, or `test`, of tests/e2e/test_cuda.py.
    """

    what: str
    file: str
    old: str
    new: str
    by: str
    test: str = ""


KERNEL_MUTANTS = (
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


COPY_IN = "data, size, cudaMemcpyHostToDevice, cudaStreamPerThread));"
WAIT = "CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));"
BACKEND_MUTANTS = (
    Mutant("parts are combined in another stream", LAUNCH, "sizeof(float), ctx.stream()>>>", "sizeof(float)>>>", WRONG),
    Mutant("room for half of the parts", LAUNCH, "(size_t) 2*args.n_block", "(size_t) args.n_block", BOUNDS),
    Mutant("no room for the parts' weights", LAUNCH, "args.n_block*sizeof(float), ctx", "0, ctx", BOUNDS),
    Mutant(
        "only the first head's parts are combined", LAUNCH, "args.n_query(), args.n_head_kv)", "args.n_query())", WRONG
    ),
    Mutant("one tile for all queries", NODE, "(args.n_query() + MAX_TILE - 1)/MAX_TILE", "1", WRONG),
    Mutant("a token's offset for a head", NODE, "nb_q_head = node.q->nb[2]", "nb_q_head = node.q->nb[1]", WRONG),
    Mutant("the scale as if there were no softcap", NODE, "node.logit_scale()", "node.scale", WRONG),
    Mutant("no sinks", NODE, "node.sinks ?", "false ?", WRONG),
    Mutant(
        "lengths of the first node",
        *(NODE, "(const int32_t *) node.row_ptr->data;"),
        *("[&] { static auto first = (const int32_t *) node.row_ptr->data; return first; }();", BOUNDS),
    ),
    Mutant(
        "hot rows are left to upstream's kernel",
        *(DISPATCH, "        headkv_cuda_flash_attn(ctx, dst);\n        return;\n", ""),
        *(FAILED_TEST, "test_attention_is_that_of_the_cpu"),
    ),
    Mutant(
        "all nodes are taken",
        *(DISPATCH, "return headkv_cuda_supported(device, dst)", "return true"),
        *("GGML_ASSERT(headkv_cuda_supported(ctx.device, dst))", "test_head_size_without_a_kernel_is_unfused"),
    ),
    Mutant(
        "bytes on their way to the device are not waited for",
        *(GGML_CUDA, f"{COPY_IN}\n    {WAIT}", COPY_IN, WRONG),
    ),
    Mutant(
        "another device's rows are not waited for",
        *(GGML_CUDA, "CUDA_CHECK(cudaStreamWaitEvent(cuda_ctx_dst->stream(), cuda_ctx_src->copy_event, 0));", ""),
        *(FAILED_TEST, "test_hot_rows_lie_where_their_layers_do"),
    ),
    Mutant(
        "a recorded graph is taken for its successor",
        *(GGML_CUDA, "cgraph->uid == graph->uid) {", "graph->uid != 0) {"),
        *(FAILED_TEST, "test_attention_is_that_of_the_cpu"),
    ),
)


def changed(mutant: Mutant, original: Path, folder: Path) -> None:
    """Write the mutant's text of a file into a folder; raises SetupError when the text is not there once."""
    text = original.read_text()
    if text.count(mutant.old) != 1:
        raise SetupError(f"{mutant.file} has not once what mutant `{mutant.what}` changes")
    (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))


def folder_of(mutant: Mutant) -> Path:
    """An empty folder."""
    folder = BUILD / "mutants" / re.sub(r"\W+", "-", mutant.what)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def spare_barriers() -> int:
    """Barriers between threads that no mutant removes."""
    n_barriers = sum((OURS / file).read_text().count(SYNC) for file in (ATTEND, COMBINE))
    return n_barriers - sum(mutant.old.count(SYNC) for mutant in KERNEL_MUTANTS)


def times_noticed(mutant: Mutant, outputs: Sequence[str]) -> int:
    """Number of outputs that say what they should; it is printed."""
    n = sum(mutant.by in said for said in outputs)
    print(f"mutant: {mutant.what}: noticed in {n} of {len(outputs)}", flush=True)
    return n


def kernel_noticed(nvcc: Path, mutant: Mutant) -> bool:
    """Run the cases of one kind over a changed kernel."""
    folder = folder_of(mutant)
    source = folder / "source"
    shutil.copytree(OURS, source)
    changed(mutant, OURS / mutant.file, source)
    build(*nvcc_command(nvcc, source), "-arch=compute_80", "-ptx", "-o", folder / "f16.ptx", HERE / "small.cu")
    settings = {} if mutant.by == WRONG else SHARED_CHECKS
    said = [call([EMULATOR / "test-ptx", folder, str(case)], **settings)[1] for case in KERNEL_CASES]
    return times_noticed(mutant, said) > 0


def backend_noticed(nvcc: Path, mutant: Mutant) -> bool:
    """Run cases, or a test of models, over a changed backend; what is asynchronous is late, in two orders."""
    folder = folder_of(mutant)
    is_ours = (OURS / mutant.file).is_file()
    if is_ours:
        shutil.copytree(OURS, folder, dirs_exist_ok=True)
    changed(mutant, (OURS if is_ours else GGML / "ggml-cuda") / mutant.file, folder)
    source = folder / ("headkv-cuda-f16.cu" if mutant.file == LAUNCH else mutant.file)
    library = build_changed_backend(nvcc, source, folder / "lib")
    said = []
    for order in ORDERS:
        if mutant.test:
            said.append(run_models(library, "tests/e2e/test_cuda.py", "-x", "-k", mutant.test, **order)[1])
        else:
            said.append(run_device(library, DEVICE_STEP, **order)[1])
    return times_noticed(mutant, said) > 0


def check_mutants(nvcc: Path) -> str:
    """Each must be noticed, by what should notice it."""
    missed = [f"{spare_barriers()} barriers have no mutant"] if spare_barriers() else []
    for is_noticed, mutants in ((kernel_noticed, KERNEL_MUTANTS), (backend_noticed, BACKEND_MUTANTS)):
        missed += [f"{mutant.what}: not noticed" for mutant in mutants if not is_noticed(nvcc, mutant)]
    return "\n".join(missed)
