"""Attention masks as decoders are exported: far below any score, infinite perhaps, constant or computed, added or chosen."""
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import outputs, sqnr

S, D = 16, 32


def attention(form, value):
    rng = np.random.default_rng(0)
    lower = np.tril(np.ones((1, S, S), bool))
    constants = {n: rng.normal(size=(D, D)).astype(np.float32) / np.float32(np.sqrt(D)) for n in ("wq", "wk", "wv", "wo")}
    constants["scale"] = np.float32(1 / np.sqrt(D))
    node = helper.make_node
    nodes = [node("MatMul", ["x", "wq"], ["q"]), node("MatMul", ["x", "wk"], ["k"]), node("MatMul", ["x", "wv"], ["v"]),
             node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), node("MatMul", ["q", "kt"], ["raw"]), node("Mul", ["raw", "scale"], ["s"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, S, D])]
    added = np.where(lower, 0, value).astype(np.float32)
    if form == "where":
        constants |= {"lower": lower, "big": np.float32(value)}
        nodes.append(node("Where", ["lower", "s", "big"], ["m"]))
    elif form == "add":
        constants["mask"] = added
        nodes.append(node("Add", ["s", "mask"], ["m"]))
    elif form == "both":
        constants |= {"mask": added, "lower": lower, "big": np.float32(value)}
        nodes += [node("Add", ["s", "mask"], ["m1"]), node("Where", ["lower", "m1", "big"], ["m"])]
    else:
        constants |= {"least": np.int64(8), "big": np.float32(value), "zero": np.float32(0)}
        nodes += [node("GreaterOrEqual", ["ids", "least"], ["g"]), node("Where", ["g", "zero", "big"], ["mask"]),
                  node("Add", ["s", "mask"], ["m"])]
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 1, S]))
    nodes += [node("Softmax", ["m"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["c"]), node("MatMul", ["c", "wo"], ["y"])]
    graph = helper.make_graph(nodes, "attention", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, S, D])],
                              [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("precision", ["uint8", "w8a16"])
@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min, -10000.0])
@pytest.mark.parametrize("form", ["where", "add", "both", "computed"])
def test_masked_positions_stay_masked(octavo, tmp_path, form, value, precision):
    """A position that leaks costs tens of dB: the range of masked scores would be of the mask, or leave it out."""
    source, target, data = tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "data"
    onnx.save(attention(form, value), source)
    rng = np.random.default_rng(1)
    draw = lambda: {"x": rng.normal(size=(1, S, D)).astype(np.float32)} | ({"ids": rng.integers(0, 16, (1, 1, S))} if form == "computed" else {})
    data.mkdir()
    for i in range(16):
        np.savez(data / f"{i}.npz", **draw())
    result = octavo("quantize", source, "-o", target, "--device", "qnn", "--precision", precision, "--data", data)
    done, total = re.search(r"(\d+) of (\d+) nodes quantized", result.out).groups()
    assert int(done) >= int(total) - 2  # integers make the computed mask
    held = [draw() for _ in range(8)]
    assert sqnr(outputs(source, held, optimize=False), outputs(target, held, optimize=False)) > 24
