"""Loops and Scans written out as their steps, from the command line. Oracle: ONNX Runtime runs the loop; LiteRT the Circle file;
the onnx package reads what is left."""
import circle_consumers as consumers
import numpy as np
import onnx
import pytest
from conftest import manifest, session
from onnx import TensorProto, helper, numpy_helper
from test_devices import emulator_and_cpu, needs_qnn, qnn_env

F32, I32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
UNITS, INPUTS = 12, 8


def value(name, dtype, dims):
    return helper.make_tensor_value_info(name, dtype, dims)


def constant(name, data):
    return numpy_helper.from_array(np.asarray(data), name)


def lstm_cell(h, c, gates):
    """Of [1, 4 * UNITS], in Keras' order."""
    n = helper.make_node
    return [n("Split", [gates], ["i", "f", "g", "o"], axis=1), n("Sigmoid", ["i"], ["si"]), n("Sigmoid", ["f"], ["sf"]), n("Sigmoid", ["o"], ["so"]),
            n("Tanh", ["g"], ["tg"]), n("Mul", ["sf", c], ["kept"]), n("Mul", ["si", "tg"], ["fresh"]), n("Add", ["kept", "fresh"], ["c_new"]),
            n("Tanh", ["c_new"], ["tc"]), n("Mul", ["so", "tc"], ["h_new"])]


def while_lstm(path, limit=None):
    """A Keras LSTM as tf2onnx writes it: no number of steps, a counter of int32 compared as float, captured arrays, a mask of the
    input, and every step's state collected. `limit`: an input that is compared with instead of the number of rows."""
    n, rng = helper.make_node, np.random.default_rng(7)
    body = helper.make_graph(
        [n("Gather", ["xt", "t"], ["row"]), n("Gather", ["mt", "t"], ["m"]), n("Not", ["m"], ["not_m"]), n("Cast", ["m"], ["mf"], to=F32), n("Cast", ["not_m"], ["nf"], to=F32),
         n("MatMul", ["row", "w"], ["xw"]), n("MatMul", ["h", "r"], ["hr"]), n("Add", ["xw", "hr"], ["sum"]), n("Add", ["sum", "b"], ["gates"]),
         *lstm_cell("h", "c", "gates"),
         n("Mul", ["mf", "h_new"], ["h1"]), n("Mul", ["nf", "h"], ["h2"]), n("Add", ["h1", "h2"], ["h_out"]),
         n("Mul", ["mf", "c_new"], ["c1"]), n("Mul", ["nf", "c"], ["c2"]), n("Add", ["c1", "c2"], ["c_out"]),
         n("Add", ["t", "one"], ["t_out"]), n("Cast", ["t_out"], ["tf"], to=F32), n("Cast", ["k"], ["kf"], to=F32), n("Less", ["tf", "kf"], ["more"]),
         n("Identity", ["h_out"], ["all"])],
        "body", [value("iteration", I64, []), value("go", BOOL, []), value("t", I32, []), value("k", I32, []), value("h", F32, ["a", UNITS]), value("c", F32, ["a", UNITS])],
        [value("more", BOOL, []), value("t_out", I32, []), value("k", I32, []), value("h_out", F32, ["b", UNITS]), value("c_out", F32, ["b", UNITS]), value("all", F32, ["b", UNITS])],
        [constant("one", np.int32(1))])
    nodes = [n("Transpose", ["x"], ["xt"], perm=[1, 0, 2]), n("ReduceMax", ["x"], ["peak"], axes=[2], keepdims=1), n("Greater", ["peak", "nothing"], ["mask"]),
             n("Transpose", ["mask"], ["mt"], perm=[1, 0, 2]),
             n("Shape", ["xt"], ["dims"]), n("Cast", ["dims"], ["dims32"], to=I32), n("Slice", ["dims32", "zero1", "one1"], ["first"]), n("Squeeze", ["first"], ["rows"]),
             n("Cast", ["rows"], ["rows_f"], to=F32), n("Less", ["nothing", "rows_f"], ["any"]),
             n("Loop", ["", "any", "start", limit or "rows", "h0", "h0"], ["t_end", "k_end", "h_end", "c_end", "states"], body=body),
             n("Transpose", ["states"], ["turned"], perm=[1, 0, 2]), n("MatMul", ["turned", "v"], ["y"])]
    init = [constant("w", (rng.normal(size=(INPUTS, 4 * UNITS)) / 3).astype(np.float32)), constant("r", (rng.normal(size=(UNITS, 4 * UNITS)) / 4).astype(np.float32)),
            constant("b", (rng.normal(size=(4 * UNITS,)) / 4).astype(np.float32)), constant("v", (rng.normal(size=(UNITS, 4)) / 3).astype(np.float32)),
            constant("h0", np.zeros((1, UNITS), np.float32)), constant("start", np.int32(0)), constant("nothing", np.float32(0)),
            constant("zero1", np.array([0])), constant("one1", np.array([1]))]
    inputs = [value("x", F32, [1, "steps", INPUTS])] + ([value(limit, I32, [])] if limit else [])
    graph = helper.make_graph(nodes, "g", inputs, [value("y", F32, [1, "steps", 4])], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), str(path))


def sample(rng, steps):
    x = rng.normal(size=(1, steps, INPUTS)).astype(np.float32)
    x[:, steps - rng.integers(0, steps // 2 + 1):] = -1  # the mask ends the sequence there
    return x


def test_circle_holds_the_steps(octavo, tmp_path):
    while_lstm(tmp_path / "m.onnx")
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "--dim", "steps=9", "-o", tmp_path / "m.circle")
    x = sample(np.random.default_rng(1), 9)
    want = session(tmp_path / "m.onnx", False).run(None, {"x": x})[0]
    got = consumers.litert(tmp_path / "m.circle", [{"x": x}])[0]["y"]
    assert np.abs(got - want).max() < 1e-5


def test_the_steps_of_a_circle_file_share_their_weights(octavo, tmp_path):
    while_lstm(tmp_path / "m.onnx")
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "--dim", "steps=40", "-o", tmp_path / "m.circle")
    model, _, _, _ = consumers.read(tmp_path / "m.circle")
    held = [bytes(model.Buffers(i).DataAsNumpy()) for i in range(model.BuffersLength()) if model.Buffers(i).DataLength()]
    assert len(held) == len(set(held))


def test_a_loop_that_data_ends_has_no_form_in_circle(octavo, tmp_path):
    while_lstm(tmp_path / "m.onnx", limit="limit")
    error = octavo("export", tmp_path / "m.onnx", "--to", "circle", "--dim", "steps=9", "-o", tmp_path / "m.circle", code=4).err
    assert "Loop" in error and not (tmp_path / "m.circle").exists()


@needs_qnn
@pytest.mark.parametrize("precision", ["uint8", "w8a16"])
def test_a_keras_lstm_is_one_context(octavo, tmp_path, precision):
    while_lstm(tmp_path / "m.onnx")
    rng = np.random.default_rng(2)
    (tmp_path / "data").mkdir()
    for i in range(12):
        np.savez(tmp_path / "data" / f"{i:02}.npz", x=sample(rng, 8))
    octavo("build", "--onnx", tmp_path / "m.onnx", "--device", "qnn", "--precision", precision, "--dim", "steps=8", "--data", tmp_path / "data",
           "-o", tmp_path / "out", "--samples", "8", "--validate-samples", "4", env=qnn_env())
    emulator, cpu = emulator_and_cpu(tmp_path / "out")
    assert cpu > 20 and emulator > cpu - 1.5
    assert [r["applied"] for r in manifest(tmp_path / "out")["rewrite"] if r["rule"] == "unroll-loop"] == [1]


@needs_qnn
def test_the_manifest_says_why_a_loop_stays(octavo, tmp_path):
    """The classifier beside the loop is compiled; the loop is not, and the reason is its own."""
    n, rng = helper.make_node, np.random.default_rng(3)
    body = helper.make_graph([n("Mul", ["h", "half"], ["next"]), n("ReduceMax", ["next"], ["peak"], keepdims=0), n("Greater", ["peak", "tenth"], ["more"])], "body",
                             [value("i", I64, []), value("go", BOOL, []), value("h", F32, [1, 8])], [value("more", BOOL, []), value("next", F32, [1, 8])],
                             [constant("half", np.float32(0.5)), constant("tenth", np.float32(0.1))])
    nodes = [n("MatMul", ["x", "w"], ["a"]), n("Relu", ["a"], ["b"]), n("MatMul", ["b", "v"], ["y"]), n("Loop", ["", "yes", "b"], ["z"], body=body)]
    init = [constant(k, (rng.normal(size=(8, 8)) / 2).astype(np.float32)) for k in "wv"] + [constant("yes", np.array(True))]
    graph = helper.make_graph(nodes, "g", [value("x", F32, [1, 8])], [value("y", F32, [1, 8]), value("z", F32, [1, 8])], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx"))
    (tmp_path / "data").mkdir()
    for i in range(12):
        np.savez(tmp_path / "data" / f"{i:02}.npz", x=rng.normal(size=(1, 8)).astype(np.float32))
    octavo("build", "--onnx", tmp_path / "m.onnx", "--device", "qnn", "--precision", "uint8", "--data", tmp_path / "data",
           "-o", tmp_path / "out", "--samples", "8", "--validate-samples", "4", env=qnn_env())
    left = manifest(tmp_path / "out")["compile"]["cpu_fallback_nodes"]
    reasons = [f["reason"] for f in left if f["op"] == "Loop"]
    assert len(reasons) == 1 and "after how many steps it ends depends on data" in reasons[0]
