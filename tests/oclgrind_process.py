"""Runs kernels of every family on Oclgrind's simulated device, or one kernel that is wrong: ``wrong``.

Oclgrind writes what it finds to its log; a result that is wrong is an error here.
"""

from __future__ import annotations

import sys

import numpy as np
from test_matmul import rows

from tvm_coexec import schedules
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import (
    AnyLayer,
    Attention,
    Concat,
    Conv2d,
    Elementwise,
    Linear,
    MatMul,
    PlaceRows,
    Pool,
    Resize,
    RowWise,
)
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

LAYERS: list[AnyLayer] = [  # without local norm, which Oclgrind computes otherwise than every driver does
    Linear(5, 40, 100, ("bias", "relu")),
    Linear(1, 70, 130, ("bias", "residual")),
    Conv2d(9, 9, 8, 40, 3, padding=1, epilogue=("bias",)),
    Conv2d(7, 7, 40, 70, 1),
    Conv2d(9, 9, 40, 40, 3, stride=2, padding=1, groups=40),
    Conv2d(9, 9, 3, 40, 3, stride=2, padding=1),
    Pool("max", 9, 9, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    Resize((1, 3, 7, 33), 5, 4, (0.5, 2.0), epilogue=("residual",)),
    Concat(5, 7, (32, 64, 20), batch=2),
    PlaceRows(2, 6, 7, 70, 1, True, ("bias", "residual", "sigmoid")),
    Attention(1, 2, 5, 7, 24, 0.2, (48, 48, 48), (0, 0, 0)),
    MatMul(2, 1, 5, 7, 70, rows(2, 1, 5, 7, 7), rows(2, 1, 7, 70, 80, 3)),
    RowWise("softmax", 5, 70),
    RowWise("layer_norm", 3, 70, (), 1e-5),
    Elementwise("add", (1, 5, 5, 40), (1, 5, 5, 40)),
]
VARIANTS = 2
"""Kernels of each layer: the default, and one that is drawn."""

WRONG = """
__kernel void wrong(__global int* out) {
  out[0] = get_global_id(0);
  out[get_global_id(0) + 60] = 1;
}
"""


def run_kernels(device: Device) -> None:
    """Check results whole on the GPU, and divided so that each side has a first and a last unit once."""
    facts, rng = device.facts(), np.random.default_rng(0)
    target = target_for(facts)
    for layer in LAYERS:
        family = schedules.family(layer)
        variants = family.variants(layer, "gpu", target.hardware)
        cpu = family.default_variant(layer, "cpu", target.hardware)
        for variant in {variants[0], variants[int(rng.integers(len(variants)))]}:
            module = Module(single_layer(layer, cpu, variant, target, facts), device)
            for cpu_units in {0, min(1, layer.units - 1)}:
                error = module.check_step(0, cpu_units, layer.units - cpu_units)
                assert error <= module.error_bound(0), f"{layer}, {variant}, {cpu_units} on the CPU: {error}"
            print(layer.op, variant, flush=True)


def run_wrong_kernel() -> None:
    import pyopencl as cl

    (platform,) = (one for one in cl.get_platforms() if "Oclgrind" in one.name)
    context = cl.Context(platform.get_devices())
    queue = cl.CommandQueue(context)
    buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE, 4 * 64)
    kernel = cl.Program(context, WRONG).build(cache_dir=False).wrong
    kernel(queue, (8,), (8,), buffer)
    queue.finish()


if __name__ == "__main__":
    run_wrong_kernel() if sys.argv[1:] == ["wrong"] else run_kernels(open_device("oclgrind"))
