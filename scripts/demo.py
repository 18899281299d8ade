"""The main job from end to end: tune this machine, build a real network, run it, and look at how good the plan is.

A multi-layer perceptron that reads handwritten digits is trained and exported to ONNX; its layers and those of
ViT-Base are measured through an RPC tracker; predictors are trained; the network has trial runs and is built, and its
answers are compared with ONNX Runtime's. At the end every split of every layer is measured, to see how far the plan is
from the best.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from compare_grid_search import compare_all
from digits import Digits, trained_digits
from reporting import run_main

import tvm_coexec
from tvm_coexec.errors import CoexecError
from tvm_coexec.frontends import to_graph
from tvm_coexec.prediction.evaluation import format_table
from tvm_coexec.tuning.workloads import vit_base

PATIENCE_S = 4.0
"""What each of nine layers may wait for a steady machine: the demo is to end in three minutes, and marks the others."""


def run_digits(digits: Digits, profile: Path, device: str | None) -> None:
    """Build the network by the profile, and compare its answers with ONNX Runtime's on the test images."""
    module = tvm_coexec.build(digits.model, device=device, profile=profile)
    session = onnxruntime.InferenceSession(digits.model.SerializeToString())
    ours, theirs = module(digits.images), session.run(None, {"images": digits.images})[0]
    print(f"\n{module.plan}\n")
    print(f"one run of {len(digits.images)} images: {module.benchmark()}")
    accuracy, expected = digits.accuracy(ours), digits.accuracy(theirs)
    print(
        f"accuracy {accuracy:.4f}, ONNX Runtime's {expected:.4f}, largest difference {np.abs(ours - theirs).max():.1e}"
    )
    if accuracy != expected:
        raise CoexecError(f"the module's accuracy {accuracy} is not ONNX Runtime's {expected}; please report this")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME", help="any unambiguous part of a device's name")
    parser.add_argument("--minutes", type=float, default=0.3, help="time for tuning (default: %(default)s)")
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="where everything goes (default: %(default)s)")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)

    print("training the digits network …")
    digits = trained_digits()
    onnx.save(digits.model, out / "digits.onnx")
    profile = out / "profile"
    print(f"tuning into {profile} …")
    evaluations = tvm_coexec.tune(
        profile, device=options.device, minutes=options.minutes, layers=vit_base(), models=[digits.model]
    )
    print(f"errors of the predictors on layers held out of training:\n{format_table(evaluations)}")

    run_digits(digits, profile, options.device)
    layers = list(dict.fromkeys([*(node.layer for node in to_graph(digits.model).nodes), *vit_base()]))
    print("\nmeasuring every split of every layer …")
    title = "Layers of the digits network and of ViT-Base"
    compare_all(str(profile), layers, str(out), title, patience_s=PATIENCE_S)


if __name__ == "__main__":
    run_main(main)
