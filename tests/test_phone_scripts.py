"""What the scripts that judge kernels without the device read in what LLVM and Mesa print."""

from pathlib import Path

import mobile_gpu_compilers
import pytest
from cpu_kernel_models import blocks, fmas, hottest_loop
from phones.mesa_prints import Compiled, by_file, read_adreno, read_mali

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


def test_what_is_printed_is_told_apart_by_file() -> None:
    assert by_file("noise\nFILE a.cl\none\ntwo\nFILE b.cl\nthree\n") == {"a": "\none\ntwo\n", "b": "\nthree\n"}


def test_the_statistics_of_adreno_s_compiler_are_read() -> None:
    printed = (
        "MESA: info: ldg.u32 r3.y, g[r2.y], 4\nMESA: info: stg.u32 g[r2.y], r4.y, 1\n"
        "MESA: info: ; CL prog 2/1: 69 instr, 38 nops\n"
        "MESA: info: ; CL prog 2/1: 0 half, 6 full, 16 constlen\n"
        "MESA: info: ; CL prog 2/1: 16 max_waves, 1 double_threadsize\n"
    )
    answer = {"private_bytes": 64, "largest_group": 512}
    assert read_adreno(answer, printed) == Compiled(69, 6, 16, 512, 64, wide=1, scalar=1)


BIFROST = """
block0 {
        r13:r14:r15:r16 = LOAD.i128 r13, r11, byte_offset:0
        r9 = LOAD.i32 r13, r11, byte_offset:0
}
block0 {
id(0) nbb
    * NOP
    +         r13:r14:r15:r16 = LOAD.i128 r13, t1, byte_offset:0
    +         r22:r23:r24:r25 = LOAD.i128.wls t1, fau.x, byte_offset:0
    * NOP
    +         r11 = LOAD.i32.tl fau.y, fau.x, byte_offset:0
    +         STORE.i64 r1:r2, r7, t1, byte_offset:0
}
clause_0:
    +LOAD.i128 t1, r13, t1, @r13
    +STORE.i64 t1, r7, t1, @r1

MESA_SHADER_KERNEL shader: 654 instrs, 526 tuples, 71 clauses, 32.000000 cycles, 20.750000 arith, 0.000000 t, \
32.000000 ldst, 0.000000 v, 0 preloads, 1 threads, 7072 code size, 0 loops, 0:1 spills:fills, 0 spill cost, \
49 registers used, 12 uniforms used
"""
VALHALL = """
block0 {
         r2:r3:r4:r5 = LOAD.i128.flow4 r2^, r3^, byte_offset:0
         r2:r3:r4:r5 = LOAD.i128.flow2.wls r2^, r3^, byte_offset:0
         STORE.i32.flow2 r2, r4^, r5^, byte_offset:0
}
   LOAD.i128.unsigned.slot1.wait1 @r2:r3:r4:r5, r2^, offset:0
   STORE.i32.slot0.reconverge @r2, r4^, offset:0

MESA_SHADER_KERNEL shader: 5140 instrs, 2866.000000 cycles, 9.750000 fma, 20.187500 cvt, 28.687500 sfu, \
0.000000 v, 0.000000 t, 2866.000000 ls, 41216 code size, 2 threads, 2 loops, 856:1302 spills:fills, \
82110 spill cost, 32 registers used, 9 uniforms used
"""


def test_the_statistics_of_mali_s_compilers_are_read_of_their_last_stage() -> None:
    answer = {"private_bytes": 16, "largest_group": 128}
    bifrost = Compiled(654, 49, 1, 128, 16, wide=2, scalar=0, access_cycles=32.0, spilled=1)
    assert read_mali(answer, BIFROST) == bifrost
    valhall = Compiled(5140, 32, 2, 128, 16, wide=1, scalar=1, access_cycles=2866.0, spilled=2158)
    assert read_mali(answer, VALHALL) == valhall


def test_no_kernel_is_compiled_twice_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, made = [], Compiled(9, 32, 2, 256, 0, wide=3, scalar=0, access_cycles=4.0, spilled=0)

    def compile_kernels(gpu: str, kernels: dict[str, str]) -> dict[str, Compiled | str]:
        asked.extend((gpu, name) for name in kernels)
        return {name: "no reason" if "wrong" in code else made for name, code in kernels.items()}

    monkeypatch.setattr(mobile_gpu_compilers, "compile_kernels", compile_kernels)
    for good, bad in (("a1", "b1"), ("a2", "b2")):  # what makes kernels changed, and their names with it
        codes = {good: f"void {good}() {{}}", bad: f"void {bad}() {{ wrong }}"}
        sources = {name: mobile_gpu_compilers.Source(code, "a layer", 64) for name, code in codes.items()}
        results = mobile_gpu_compilers.Results(tmp_path / "compiled.json")
        for gpu in ("mali-g52", "mali-g610"):
            assert results.compiled(gpu, sources) == {good: made, bad: "no reason"}
    assert asked == [("mali-g52", "a1"), ("mali-g52", "b1"), ("mali-g610", "a1"), ("mali-g610", "b1")]
