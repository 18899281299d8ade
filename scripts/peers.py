"""Other inference engines that a user would pick, each ready to run a whole ONNX network in float32.

Every engine keeps its inputs and outputs in memory of its own, so that a run copies nothing. Threads inherit the
cores of the process: see ``peer_process.py``.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_coexec.errors import CoexecError, ModelError, first_line

Inputs = Mapping[str, np.ndarray]


class PeerError(CoexecError):
    """An engine is not installed, or cannot take a network."""


@dataclass(frozen=True)
class Prepared:
    """A network in an engine: ``run`` computes it once, ``output`` is its first output after that."""

    run: Callable[[], object]
    output: Callable[[], np.ndarray]


def onnxruntime(path: Path, inputs: Inputs, threads: int) -> Prepared:
    """ONNX Runtime, with inputs and outputs bound to memory that is used again and again."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    values = []
    # what comes out tells shapes that the file leaves open
    for value, array in zip(session.get_outputs(), session.run(None, dict(inputs)), strict=True):
        values.append(ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type))
        binding.bind_ortvalue_output(value.name, values[-1])
    return Prepared(lambda: session.run_with_iobinding(binding), values[0].numpy)


def openvino(path: Path, inputs: Inputs, threads: int) -> Prepared:
    """OpenVINO, held to float32: left alone it computes in bfloat16 where the CPU can."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, ov.Tensor(array, shared_memory=True))
    return Prepared(request.infer, lambda: np.array(request.get_output_tensor(0).data))


def ncnn(path: Path, inputs: Inputs, threads: int) -> Prepared:
    """Open the network in ncnn: converted by pnnx, with packed layouts and Winograd, without half precision."""
    import ncnn as engine

    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for narrow in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        setattr(net.opt, f"use_{narrow}", False)
    net.opt.use_packing_layout = net.opt.use_winograd_convolution = net.opt.use_sgemm_convolution = True
    engine.set_omp_num_threads(threads)
    param = _ncnn_param(path, inputs)
    if net.load_param(str(param)) or net.load_model(str(param.with_suffix(".bin"))):
        raise PeerError("refused: ncnn has no layers for what pnnx made of the network")
    # an image without its batch axis; token numbers are 32 bits wide in ncnn
    arrays = [np.ascontiguousarray(a[0] if a.dtype == np.float32 and a.ndim > 2 else a) for a in inputs.values()]
    mats = [engine.Mat(array.astype(np.int32).reshape(-1) if array.dtype == np.int64 else array) for array in arrays]
    result: list[engine.Mat] = []

    def run() -> None:
        extractor = net.create_extractor()
        for position, mat in enumerate(mats):
            extractor.input(f"in{position}", mat)
        status, found = extractor.extract("out0")
        if status:
            raise PeerError("ncnn fails to run the network")
        result[:] = [found]

    return Prepared(run, lambda: np.array(result[0]))


def _ncnn_param(path: Path, inputs: Inputs) -> Path:
    """The network as ncnn reads it, converted unless that is done."""
    param = path.with_suffix(".ncnn.param")
    if not param.exists():
        package = importlib.util.find_spec("pnnx")  # not imported: its Python side needs torch, its converter does not
        if package is None or package.origin is None:
            raise PeerError("not installed: pnnx, which converts networks for ncnn")
        shapes = ",".join(f"[{','.join(map(str, a.shape))}]{_pnnx_type(a)}" for a in inputs.values())
        converter = Path(package.origin).with_name("pnnx")
        command = [str(converter), path.name, f"inputshape={shapes}", "fp16=0"]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
        if done.returncode or not param.exists():
            raise PeerError(f"not converted: pnnx ends with status {done.returncode}")
    return param


def _pnnx_type(array: np.ndarray) -> str:
    return "i64" if array.dtype == np.int64 else "f32"


def litert(path: Path, inputs: Inputs, threads: int) -> Prepared:
    """Open a TFLite file, or a network that ``onnx_to_tflite.py`` converts, in LiteRT with XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter
    from onnx_to_tflite import UnsupportedError, convert

    from tvm_coexec.verification.litert_models import with_own_operators

    converted = path.with_suffix(".tflite")
    if not converted.exists():
        try:
            converted.write_bytes(convert(path))
        except (UnsupportedError, ModelError) as error:
            raise PeerError(f"not converted: {error}") from error
    content = with_own_operators(converted.read_bytes())
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], _as_converted(inputs[detail["name"]], detail["shape"]))
    (output, *_) = interpreter.get_output_details()
    return Prepared(interpreter.invoke, lambda: interpreter.get_tensor(output["index"]))


def _as_converted(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An image with its channels last, or anything else as rows of channels."""
    is_image = len(shape) == 4 and array.shape != tuple(shape)
    return (array.transpose(0, 2, 3, 1) if is_image else array).reshape(shape)


PEERS: dict[str, Callable[[Path, Inputs, int], Prepared]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "litert": litert,
    "ncnn": ncnn,
}
"""Engines by name: from a network's path, its inputs and a number of threads to a network that is ready.

LiteRT takes TFLite files, too, all others ONNX files alone.
"""


def prepare(name: str, path: Path, inputs: Inputs, threads: int) -> Prepared:
    """Make a network ready in an engine, and run it once.

    Raises
    ------
    PeerError
        The engine is not installed, or refuses the network; the message says which.
    """
    try:
        prepared = PEERS[name](path, inputs, threads)
        prepared.run()
    except ModuleNotFoundError as error:
        raise PeerError(f"not installed: there is no package {error.name}") from error
    except PeerError:
        raise
    except Exception as error:  # engines raise what they like, and a comparison goes on without one of them
        raise PeerError(f"refused: {first_line(error)}") from error
    return prepared
