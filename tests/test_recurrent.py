"""Weights of recurrent operators are stored in 8 or 16 bits and computed once, when the model is loaded; the oracle is
ONNX Runtime on the float model."""
import json
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from conftest import OCTAVO

UNITS, WIDTH, STEPS = 64, 48, 12
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def network(path, op, directions=2, constants=False):
    """x -> op -> y, as files are that PyTorch writes: W, R and B are initializers, or the outputs of Constant nodes."""
    random = np.random.default_rng(3)
    rows = GATES[op] * UNITS
    weights = {"W": random.standard_normal((directions, rows, WIDTH)) * 0.15,
               "R": random.standard_normal((directions, rows, UNITS)) * 0.08,
               "B": random.standard_normal((directions, 2 * rows)) * 0.05}
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if constants else []
    nodes.append(helper.make_node(op, ["x", "W", "R", "B"], ["y"], name="cell", hidden_size=UNITS,
                                  direction="bidirectional" if directions == 2 else "forward"))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, [STEPS, 1, WIDTH])],
                              [helper.make_tensor_value_info("y", T.FLOAT, [STEPS, directions, 1, UNITS])],
                              [] if constants else tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def quantize(source, target, precision, *more):
    run = subprocess.run([OCTAVO, "quantize", source, "-o", target, "--precision", precision, "--quiet", *more],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


def sqnr(reference, model, inputs):
    a = ort.InferenceSession(str(reference)).run(None, inputs)
    b = ort.InferenceSession(str(model)).run(None, inputs)
    error = sum(((x - y) ** 2).sum() for x, y in zip(a, b))
    return 10 * np.log10(sum((x ** 2).sum() for x in a) / max(error, 1e-30))


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("precision,share,least", [("uint8", 0.33, 30), ("int8", 0.33, 30), ("w8a16", 0.33, 30),
                                                   ("int16", 0.56, 65), ("int4", 0.33, 30)])
def test_weights_are_stored_small(tmp_path, op, precision, share, least):
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    network(source, op)
    quantize(source, target, precision)
    assert target.stat().st_size < share * source.stat().st_size
    inputs = {"x": np.random.default_rng(5).standard_normal((STEPS, 1, WIDTH)).astype(np.float32)}
    assert sqnr(source, target, inputs) > least
    wide = T.INT16 if precision == "int16" else T.INT8
    assert sum(t.data_type == wide for t in onnx.load(target).graph.initializer) == 2


def test_the_runtime_computes_them_once(tmp_path):
    network(tmp_path / "m.onnx", "LSTM")
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "uint8")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(str(tmp_path / "q.onnx"), options)
    assert [n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node] == ["LSTM"]


def test_in_constants_and_in_a_branch(tmp_path):
    network(tmp_path / "c.onnx", "GRU", 1, constants=True)
    quantize(tmp_path / "c.onnx", tmp_path / "cq.onnx", "int8")
    inputs = {"x": np.random.default_rng(5).standard_normal((STEPS, 1, WIDTH)).astype(np.float32)}
    assert sqnr(tmp_path / "c.onnx", tmp_path / "cq.onnx", inputs) > 30
    assert (tmp_path / "cq.onnx").stat().st_size < 0.4 * (tmp_path / "c.onnx").stat().st_size

    inner = onnx.load(tmp_path / "c.onnx").graph
    shape = [STEPS, 1, 1, UNITS]
    then = helper.make_graph(list(inner.node), "then", [], [helper.make_tensor_value_info("y", T.FLOAT, shape)])
    zeros = numpy_helper.from_array(np.zeros(shape, np.float32), "zeros")
    other = helper.make_graph([helper.make_node("Constant", [], ["none"], value=zeros)], "else", [],
                              [helper.make_tensor_value_info("none", T.FLOAT, shape)])
    node = helper.make_node("If", ["go"], ["out"], then_branch=then, else_branch=other)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("go", T.BOOL, []), *inner.input],
                              [helper.make_tensor_value_info("out", T.FLOAT, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "i.onnx")
    quantize(tmp_path / "i.onnx", tmp_path / "iq.onnx", "uint8")
    assert (tmp_path / "iq.onnx").stat().st_size < 0.5 * (tmp_path / "i.onnx").stat().st_size
    assert sqnr(tmp_path / "i.onnx", tmp_path / "iq.onnx", {"go": np.array(True), **inputs}) > 30


def test_excluded_and_said(tmp_path):
    network(tmp_path / "m.onnx", "LSTM")
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "uint8", "--exclude", "cell")
    assert not any(t.data_type == T.INT8 for t in onnx.load(tmp_path / "q.onnx").graph.initializer)
    quantize(tmp_path / "m.onnx", tmp_path / "r.onnx", "uint8", "--json", tmp_path / "r.json")
    skipped = json.loads((tmp_path / "r.json").read_text())["quantize"]["nodes_skipped"]
    assert [n["reason"] for n in skipped if n["op"] == "LSTM"] == [
        "it computes in float; its weights are stored in 8 bits"]
