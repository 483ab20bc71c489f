"""PTX to C++ (tests/cuda/ptx): what is translated, and that nothing is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from ptx.text import Module, UnknownError
from ptx.unit import Unit

KERNEL = """
.version 9.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 add_param_0, .param .align 8 .b8 add_param_1[16]) .maxntid 128, 1, 1
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    .shared .align 4 .b8 part[128];
    ld.param.u64 %rd1, [add_param_0];
    {instruction}
    ret;
}}
"""


def translate(folder: Path, instruction: str) -> str:
    """C++ of a kernel that holds the instruction."""
    path = folder / "module.ptx"
    path.write_text(KERNEL.format(instruction=instruction))
    return Unit(Module(str(path)), "add").text()


def test_limits_and_parameters_are_read(tmp_path: Path) -> None:
    text = translate(tmp_path, "")
    assert "static const Param params[] = {{0, 8}, {8, 16}};" in text
    assert '"add", 0, 0, 128, 0, 128, 0, 2, 24,' in text  # meets, flush, static shared, local, threads, blocks


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("add.s32 %r1, %r2, 7;", "v__r1 = (uint32_t) (int32_t) "),
        ("@%p1 bra DONE;", "no register %p1"),
        ("st.shared.u32 [part+4], %r1;", "at_shared<4>(t, (0 + 4)"),
        ("ld.global.v2.u32 {%r1, %r2}, [%rd1+8];", "at_global<8>(t, (uint64_t) (uint64_t) (v__rd1 + 8)"),
        ("bar.sync 0;", "barrier(t, ((uint32_t) 0x0ull), 0, BAR_PLAIN"),
        (
            "cp.async.cg.shared.global [%r1], [%rd1], 16;",
            "B->rt->copy_async(t, (uint64_t) v__r1, (uint64_t) v__rd1, 16, 16",
        ),
        ("cp.async.wait_group 1;", "B->rt->copy_wait(t, 1);"),
    ],
)
def test_an_instruction_becomes_code(tmp_path: Path, instruction: str, code: str) -> None:
    try:
        said = translate(tmp_path, instruction)
    except UnknownError as error:
        said = str(error)
    assert code in said


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.u32 %r1, %r2;",
        "add.rz.sat.f64 %r1, %r2, %r3;",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1};",
    ],
)
def test_what_is_not_known_is_refused_with_its_line(tmp_path: Path, instruction: str) -> None:
    with pytest.raises(UnknownError, match=r"module\.ptx:11: add: not known: "):
        translate(tmp_path, instruction)
