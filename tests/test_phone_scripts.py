"""What the scripts that judge kernels without the device read in what LLVM and Mesa print."""

from cpu_kernel_models import blocks, fmas, hottest_loop
from phones.mesa import Compiled, _printed_by_file, _read

CODE = [
    (0, "mov x0, #0"),
    (4, "fmla v0.4s, v1.4s, v2.s[0]"),
    (8, "fmla v3.4s, v1.4s, v2.s[1]"),
    (12, "str q0, [sp, #16]"),
    (16, "b.ne 0x4"),
    (20, "fmadd s0, s1, s2, s3"),
    (24, "ret"),
]


def test_the_hottest_loop_is_the_block_with_most_multiply_adds() -> None:
    assert [len(block) for block in blocks(CODE)] == [1, 4, 2]
    loop = hottest_loop(CODE)
    assert loop[-1] == "b.ne 0x4" and fmas(loop) == 8
    assert fmas(["vfmadd231ps (%rax), %ymm1, %ymm2", "vfmadd231ss (%rax), %xmm1, %xmm2", "vaddps %ymm1, %ymm2"]) == 9


def test_a_compiler_s_statistics_are_read_by_file() -> None:
    printed = _printed_by_file(
        "noise\nFILE a.cl\n"
        "MESA: info: ldg.u32 r3.y, g[r2.y], 4\nMESA: info: stg.u32 g[r2.y], r4.y, 1\n"
        "MESA: info: ; CL prog 2/1: 69 instr, 38 nops\n"
        "MESA: info: ; CL prog 2/1: 0 half, 6 full, 16 constlen\n"
        "MESA: info: ; CL prog 2/1: 16 max_waves, 1 double_threadsize\n"
        "FILE b.cl\nnothing\n"
    )
    assert set(printed) == {"a", "b"}
    assert _read({"private_bytes": 64}, printed["a"]) == Compiled(69, 6, 16, 64, wide=1, scalar=1)
