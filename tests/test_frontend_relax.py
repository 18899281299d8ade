"""Relax modules, built by hand: their graphs, and what is refused of them."""

import keyword

import numpy as np
import pytest
import tvm
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx_builder import layers
from reference import evaluate
from tvm import relax, te
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

RANDOM = np.random.default_rng(3)


def const(*shape):
    return relax.const(RANDOM.standard_normal(shape).astype("float32"))


def module(build, *shapes, dtype="float32"):
    """A module whose ``main`` is what ``build`` makes of a block builder and parameters x0, x1, …"""
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, shape in enumerate(shapes)]
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(build(builder, *parameters))
        builder.emit_func_output(result)
    return builder.get()


def run_relax(mod, *arrays):
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target({"kind": "llvm", "opt-level": 0})), tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(array) for array in arrays)).numpy()


def test_module_from_the_block_builder():
    def build(bb, x):
        weights = bb.emit(relax.op.permute_dims(const(9, 6)))
        hidden = bb.emit(relax.op.nn.silu(relax.op.add(relax.op.matmul(x, weights), const(1, 9))))
        normal = bb.emit(relax.op.nn.layer_norm(hidden, const(9), const(9), axes=-1))
        flat = bb.emit(relax.op.reshape(normal, (6, 9)))
        return relax.op.nn.softmax(relax.op.add(relax.op.matmul(flat, const(9, 9)), flat))

    mod = module(build, (2, 3, 6))
    graph = to_graph(mod)
    assert layers(graph) == [
        ("linear", ("bias", "silu")),
        ("layer_norm", ()),
        ("linear", ("residual",)),
        ("softmax", ()),
    ]
    x = RANDOM.standard_normal((2, 3, 6)).astype("float32")
    (result,) = evaluate(graph, {"x0": x}).values()
    np.testing.assert_allclose(result, run_relax(mod, x), rtol=1e-4, atol=1e-6)


def test_script_with_nested_calls_and_two_outputs():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4, 5), "float32")):  # noqa: N805
            y = R.nn.relu(R.nn.gelu(x))
            return (y, R.nn.softmax(y), y)

    graph = to_graph(Module)
    assert layers(graph) == [("map", ("gelu", "relu")), ("softmax", ()), ("map", ())]
    assert graph.outputs[0] == "y" and len(set(graph.outputs)) == 3


def test_dropout_is_nothing_in_inference():
    graph = to_graph(module(lambda bb, x: bb.emit(relax.op.nn.dropout(relax.op.nn.relu(x), 0.5))[0], (4, 5)))
    assert layers(graph) == [("map", ("relu",))]


@pytest.mark.parametrize(
    ("build", "shapes", "message"),
    [
        (lambda bb, x: bb.emit(relax.op.nn.dropout(x, 0.5))[1], [(4, 5)], "reads something that is no float32 tensor"),
        (lambda bb, x: bb.emit(relax.op.shape_of(x)), [(4, 5)], "only tensors can pass"),
    ],
)
def test_what_is_refused(build, shapes, message):
    with pytest.raises(ModelError, match=message):
        to_graph(module(build, *shapes))


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (lambda bb, x: relax.op.nn.conv2d_transpose(x, const(3, 4, 3, 3), dilation=2), [(1, 3, 8, 8)]),
        (lambda bb, x, w: relax.op.matmul(x, w), [(2, 1, 3, 4, 5), (1, 2, 1, 5, 6)]),
        (lambda bb, x: relax.op.matmul(const(7, 4), x), [(4, 5)]),
        (lambda bb, x: relax.op.matmul(x, const(2, 5, 6)), [(2, 4, 5)]),
        (lambda bb, x: relax.op.astype(x, "float16"), [(4, 5)]),
        (lambda bb, x: relax.op.broadcast_to(x, (3, 4, 5)), [(4, 5)]),
        (
            lambda bb, x: relax.op.nn.conv2d(x, const(3, 3, 4, 8), data_layout="NHWC", kernel_layout="HWIO"),
            [(1, 8, 8, 4)],
        ),
        (lambda bb, x: bb.emit(relax.op.nn.batch_norm(x, *(const(4) for _ in range(4)), axis=1))[0], [(1, 4, 8, 8)]),
        (lambda bb, x: relax.op.nn.adaptive_avg_pool2d(x, (2, 2)), [(1, 4, 8, 8)]),
        (lambda bb, x, g: relax.op.nn.layer_norm(x, g, g, axes=-1), [(4, 5), (5,)]),
        (lambda bb, x: relax.op.nn.layer_norm(x, const(5), const(5), axes=-1, center=False), [(4, 5)]),
    ],
)
def test_what_only_relax_takes(build, shapes):
    graph = to_graph(module(build, *shapes))
    assert "opaque" in dict(layers(graph))
    graph.validate()


def test_types_and_shapes_of_inputs():
    def identity(bb, x):
        return relax.op.nn.relu(x)

    assert to_graph(module(identity, (4, 5), dtype="float16")).tensors["x0"].dtype == "float16"
    batch = tvm.tirx.Var("batch", "int64")
    with pytest.raises(ModelError, match=r"input 'x0' has the dynamic dimension 'batch' \(axis 0\).*BindSymbolicVars"):
        to_graph(module(identity, (batch, 5)))
    assert to_graph(module(identity, ())).tensors["x0"].shape == ()
    with pytest.raises(ModelError, match="input 'x0' is no tensor of known shape"):
        to_graph(tvm.IRModule({"main": _function_of_unknown_shape()}))


def _function_of_unknown_shape():
    builder = relax.BlockBuilder()
    x = relax.Var("x0", relax.TensorType(ndim=2, dtype="float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    return builder.get()["main"]


def test_module_without_main():
    mod = module(lambda bb, x: relax.op.nn.relu(x), (4, 5))
    renamed = tvm.IRModule({"forward": mod["main"].with_attr("global_symbol", "forward")})
    with pytest.raises(ModelError, match=r"no function 'main', only \['forward'\]"):
        to_graph(renamed)


def test_a_network_for_images():
    def build(bb, x):
        padded = bb.emit(relax.op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]))
        hidden = bb.emit(relax.op.nn.conv2d(padded, const(8, 3, 3, 3), strides=2))
        statistics = [const(8), const(8), const(8), relax.const(np.linspace(0.5, 1.5, 8).astype("float32"))]
        hidden = bb.emit(relax.op.nn.batch_norm(hidden, *statistics, axis=1, training=False))[0]
        hidden = bb.emit(relax.op.clip(hidden, 0, 6))
        pair = bb.emit(relax.Tuple([hidden, bb.emit(relax.op.nn.relu6(hidden))]))
        joined = bb.emit(relax.op.concat(pair, axis=1))
        pooled = bb.emit(relax.op.nn.adaptive_avg_pool2d(joined, (1, 1)))
        return relax.op.matmul(bb.emit(relax.op.reshape(pooled, (2, 16))), const(16, 5))

    mod = module(build, (2, 3, 9, 9))
    graph = to_graph(mod)
    assert layers(graph) == [
        ("conv2d", ("bias", "relu6")),
        ("average", ("relu6",)),
        ("concat", ()),
        ("average", ()),
        ("linear", ()),
    ]
    x = RANDOM.standard_normal((2, 3, 9, 9)).astype("float32")
    (result,) = evaluate(graph, {"x0": x}).values()
    np.testing.assert_allclose(result, run_relax(mod, x), rtol=1e-4, atol=1e-5)


KEYWORDS = [*keyword.kwlist, "T", "R", "I", "tvm", "main", "x0", "c0", "function0", "a b", "a\0b", "1", "é", ""]
NAMES = st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=4))


def called(value: str, axis: str, block: str, function: str) -> tvm.IRModule:
    """A module with loops of its own, of which every part has a name."""

    def sums(x):
        along = te.reduce_axis((0, 8), name=axis)
        return te.compute((4,), lambda i: te.sum(x[i, along], axis=along), name=block)

    builder, x = relax.BlockBuilder(), relax.Var(value, relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit_te(sums, x, primfunc_name_hint=function))
    return builder.get()


@settings(max_examples=40)
@given(names=st.lists(NAMES, min_size=4, max_size=4))
@example(names=["lambda", "class", "while", "for"])
def test_loops_do_not_depend_on_the_names_that_the_user_gave_them(names):
    assume(names[3] != "main")
    (node,) = to_graph(called(*names)).nodes
    (plain,) = to_graph(called("x", "k", "sums", "sum")).nodes
    assert node.layer.program == plain.layer.program


def test_loops_called_main_are_refused():
    with pytest.raises(ModelError, match="'main' is a function of loops"):
        to_graph(called("x", "k", "sums", "main"))
