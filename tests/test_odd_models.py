"""Models as exporters leave them: every opset, weights anywhere, subgraphs, functions, strings, 3 GB; each builds and stays close."""
import json
import pathlib
import re
import subprocess
import time

import numpy as np
import onnx
import pytest
from conftest import OCTAVO, make_small_cnn, outputs, sqnr
from onnx import TensorProto, helper, numpy_helper


def test_strings_as_inputs(octavo, tmp_path):
    """NumPy's U and S arrays feed inputs of strings; an array of objects is refused."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("LabelEncoder", ["s"], ["f"], "labels", domain="ai.onnx.ml", keys_strings=["yes", "nein", "ü€"],
                              values_floats=[1.0, 2.0, 3.0], default_float=-9.0),
             helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("Mul", ["c", "f"], ["y"], "mul")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("s", TensorProto.STRING, [1]),
                                           helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 2)], ir_version=8),
              str(tmp_path / "m.onnx"))
    made = []
    for kind, words in (("U", ["yes", "ü€"]), ("S", [b"yes", "ü€".encode()])):
        folder = tmp_path / kind
        folder.mkdir()
        for i in range(12):
            np.savez(folder / f"{i:02d}.npz", s=np.array([words[i % 2]]), x=np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32))
        octavo("build", "--onnx", tmp_path / "m.onnx", "--data", folder, "--samples", "4", "--min-sqnr", "25", "-o", tmp_path / f"o{kind}")
        made.append((tmp_path / f"o{kind}" / "model.onnx").read_bytes())
    assert made[0] == made[1]
    (tmp_path / "O").mkdir()
    np.savez(tmp_path / "O" / "0.npz", s=np.array(["yes"], dtype=object), x=np.zeros((1, 3, 8, 8), np.float32))
    r = octavo("build", "--onnx", tmp_path / "m.onnx", "--data", tmp_path / "O", "-o", tmp_path / "o", code=4)
    assert "|O" in r.error


# --- models that odd exporters write -----------------------------------------------------------------------------------

def build_and_compare(octavo, model, tmp_path, samples, least):
    path = tmp_path / "m.onnx"
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, str(path))
    else:
        path = model
    folder = tmp_path / "d"
    folder.mkdir()
    for i, s in enumerate(samples):
        np.savez(folder / f"{i:03d}.npz", **s)
    octavo("build", "--onnx", path, "--device", "cpu", "--precision", "uint8", "--data", folder, "--samples", 8, "-o", tmp_path / "o")
    got = sqnr(outputs(path, samples), outputs(tmp_path / "o" / "model.onnx", samples))
    assert got > least, got
    return onnx.load(str(tmp_path / "o" / "model.onnx"))


def cnn_samples(n=16):
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(n)]


@pytest.mark.parametrize("opset", [8, 9, 11, 12, 13, 15, 17, 19, 21])
def test_opsets(octavo, tmp_path, opset):
    build_and_compare(octavo, make_small_cnn(opset=opset), tmp_path, cnn_samples(), 20)


def test_weights_in_constant_nodes(octavo, tmp_path):
    model = make_small_cnn()
    for t in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [t.name], value=t))
    del model.graph.initializer[:]
    made = build_and_compare(octavo, model, tmp_path, cnn_samples(), 20)
    assert any(i.data_type in (TensorProto.UINT8, TensorProto.INT8) and len(i.dims) == 4 for i in made.graph.initializer)


@pytest.mark.parametrize("nodes,shape", [
    # the runtime fuses these two in 16 bits, has no kernel for the fusion and crashes
    ([helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), helper.make_node("MatMul", ["t", "w"], ["y"])], [4, 3, 64]),
    ([helper.make_node("Transpose", ["x"], ["t"], perm=[1, 2, 0, 3]), helper.make_node("MatMul", ["t", "w"], ["y"])], [4, 3, 5, 64]),
    # kernels that refuse 16 bits when they run
    ([helper.make_node("MatMul", ["x", "w"], ["u"]), helper.make_node("ScatterElements", ["z", "i", "u"], ["y"], reduction="add")], [1, 64]),
    ([helper.make_node("MatMul", ["x", "w"], ["u"]), helper.make_node("ScatterND", ["z", "j", "u"], ["y"], reduction="max")], [1, 64]),
])
def test_fp16_of_what_the_runtime_cannot_do_in_16_bits(octavo, tmp_path, nodes, shape):
    rng = np.random.default_rng(0)
    init = [numpy_helper.from_array(rng.normal(size=(64, 96)).astype(np.float32), "w"),
            numpy_helper.from_array(np.ones((4, 96), np.float32), "z"),
            numpy_helper.from_array(rng.integers(0, 4, (1, 96)), "i"), numpy_helper.from_array(np.array([[2]]), "j")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [t for t in init if any(t.name in n.input for n in nodes)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    octavo("quantize", tmp_path / "m.onnx", "-o", tmp_path / "h.onnx", "--precision", "fp16")
    samples = [{"x": rng.normal(size=shape).astype(np.float32)}]
    got = sqnr(outputs(tmp_path / "m.onnx", samples), outputs(tmp_path / "h.onnx", samples))
    assert got > 55, got
    half = {t.name for t in onnx.load(str(tmp_path / "h.onnx")).graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert any(name.startswith("w") for name in half), half


def test_external_data(octavo, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    onnx.save(make_small_cnn(), str(path), save_as_external_data=True, location="m.bin", size_threshold=64)
    build_and_compare(octavo, path, tmp_path, cnn_samples(), 20)
    size = (tmp_path / "in" / "m.bin").stat().st_size
    octavo("inspect", path, "--json", tmp_path / "i.json")
    assert json.loads((tmp_path / "i.json").read_text())["external_bytes"] == size
    assert f"and {size / 1e6:.2f} MB beside it" in octavo("inspect", path).out


def test_a_dry_run_counts_the_samples_that_are_made(octavo, tmp_path):
    onnx.save(make_small_cnn(), str(tmp_path / "m.onnx"))
    dry = octavo("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--dim", "n=1", "--samples", 16, "--dry-run")
    assert " 16 synthetic samples" in dry.out
    octavo("calibrate", tmp_path / "m.onnx", "-o", tmp_path / "s.json", "--dim", "n=1", "--samples", 16, "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["samples"] == 16


def test_subgraph_with_captures(octavo, tmp_path):
    model = make_small_cnn()
    branch = [helper.make_graph([helper.make_node(op, ["y0"], [f"o{op}"])], op, [],
                                [helper.make_tensor_value_info(f"o{op}", TensorProto.FLOAT, None)]) for op in ("Relu", "Neg")]
    g = model.graph
    g.node[-1].output[0] = "y0"
    g.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    g.node.extend([helper.make_node("ReduceMax", ["y0"], ["m"], keepdims=0), helper.make_node("Greater", ["m", "zero"], ["c"]),
                   helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])])
    build_and_compare(octavo, model, tmp_path, cnn_samples(), 18)


def test_subgraph_behind_data_movement(octavo, tmp_path):
    """DequantizeLinear -> Transpose -> captured by an If: ONNX Runtime 1.31 aborts the process in its optimizer."""
    branch = [helper.make_graph([helper.make_node(op, ["t"], [op])], op, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)])
              for op in ("Relu", "Tanh")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], "transpose", perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["t"], ["m"], "mean", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["p"], "positive"),
        helper.make_node("If", ["p"], ["y"], "if", then_branch=branch[0], else_branch=branch[1]),
    ]
    rng = np.random.default_rng(0)
    init = [numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "w"), numpy_helper.from_array(np.float32(0), "zero")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], init)
    build_and_compare(octavo, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path, cnn_samples(), 15)


def test_local_function_and_metadata_survive(octavo, tmp_path):
    model = make_small_cnn()
    model.graph.node[-1].output[0] = "y0"
    model.graph.node.append(helper.make_node("Twice", ["y0"], ["y"], "twice", domain="mine"))
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                                [helper.make_opsetid("", 13)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.metadata_props.add(key="author", value="somebody")
    model.doc_string = "a small model"
    made = build_and_compare(octavo, model, tmp_path, cnn_samples(), 18)
    assert [f.name for f in made.functions] == ["Twice"] and made.doc_string == "a small model"
    assert {p.key: p.value for p in made.metadata_props}["author"] == "somebody"


def test_initializers_listed_as_inputs(octavo, tmp_path):
    model = make_small_cnn()
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    made = build_and_compare(octavo, model, tmp_path, cnn_samples(), 20)
    assert any(i.data_type in (TensorProto.UINT8, TensorProto.INT8) and len(i.dims) == 4 for i in made.graph.initializer)


def test_sequence_output_and_unfortunate_names(octavo, tmp_path):
    model = make_small_cnn()
    g = model.graph
    g.node[0].input[0] = g.input[0].name = "probe_scale_0"
    g.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    g.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    folder = tmp_path / "d"
    folder.mkdir()
    for i, s in enumerate(cnn_samples()):
        np.savez(folder / f"{i:03d}.npz", probe_scale_0=s["x"])
    octavo("quantize", tmp_path / "m.onnx", "--precision", "uint8", "--data", folder, "-o", tmp_path / "q.onnx")
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(str(tmp_path / "q.onnx")).graph.node)


def test_shared_and_transposed_weights(octavo, tmp_path):
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array((rng.normal(size=(16, 16)) / 4).astype(np.float32), "w")
    g = helper.make_graph([
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]), helper.make_node("MatMul", ["r", "wt"], ["b"], "second"),
        helper.make_node("Gemm", ["b", "w"], ["y"], "third", transB=1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])], [w])
    model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made = build_and_compare(octavo, model, tmp_path, [{"x": rng.normal(size=(4, 16)).astype(np.float32)} for _ in range(16)], 20)
    assert not any(i.data_type == TensorProto.FLOAT and list(i.dims) == [16, 16] for i in made.graph.initializer)


def test_names_that_collide(octavo, tmp_path):
    model = make_small_cnn()
    g = model.graph
    g.node[-1].output[0] = "x_quantized"  # what a quantizer would like to call its own tensor
    g.node.append(helper.make_node("Identity", ["x_quantized"], ["x_scale"]))
    g.node.append(helper.make_node("Neg", ["x_scale"], ["y"]))
    build_and_compare(octavo, model, tmp_path, cnn_samples(), 18)


@pytest.mark.slow
def test_three_gigabytes_within_one(octavo, tmp_path):
    """A 3 GB model is quantized within 1 GB of anonymous memory (weights stay mapped)."""
    layers, n = 12, 8192
    rng = np.random.default_rng(0)
    with open(tmp_path / "big.bin", "wb") as f:
        for _ in range(layers):
            for _ in range(8):
                f.write((rng.standard_normal((n // 8, n), dtype=np.float32) / 90).tobytes())
    init = []
    for i in range(layers):
        t = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[n, n], data_location=TensorProto.EXTERNAL)
        for k, v in (("location", "big.bin"), ("offset", str(i * n * n * 4)), ("length", str(n * n * 4))):
            t.external_data.add(key=k, value=v)
        init.append(t)
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(layers)]
    g = helper.make_graph(nodes, "big", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, n])],
                          [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [1, n])], init)
    (tmp_path / "big.onnx").write_bytes(helper.make_model(g, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(4):
        np.savez(folder / f"{i}.npz", x0=rng.standard_normal((1, n), dtype=np.float32))
    p = subprocess.Popen([str(OCTAVO), "quantize", str(tmp_path / "big.onnx"), "-o", str(tmp_path / "q.onnx"), "--precision", "int8",
                          "--data", str(folder)], stderr=subprocess.PIPE, text=True)
    peak = 0
    while p.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{p.pid}/status").read_text()
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status).group(1)))
        except (OSError, AttributeError):
            pass
        time.sleep(0.02)
    assert p.returncode == 0, p.stderr.read()
    assert peak < 1_000_000, f"{peak} kB of anonymous memory"


@pytest.mark.parametrize("lie", [[1, 8, 16, 16], [1, 8, 99, 16], [8, 256], None])
def test_stale_value_info_is_not_believed(octavo, tmp_path, lie):
    """An editor changed the model and left value_info behind; Shape must not be folded to what it says."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "one"], ["d"], "gather", axis=0),
        helper.make_node("Cast", ["d"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "f"], ["y"], "mul"),
    ]
    rng = np.random.default_rng(0)
    init = [numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"), numpy_helper.from_array(np.int64(2), "one")]
    info = [helper.make_tensor_value_info("c", TensorProto.FLOAT, lie)] if lie else []
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], init, value_info=info)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(tmp_path / "m.onnx"))
    octavo("quantize", tmp_path / "m.onnx", "-p", "fp32", "-o", tmp_path / "q.onnx")
    sample = {"x": rng.normal(size=(1, 3, 12, 16)).astype(np.float32)}
    for optimize in (False, True):
        # The runtime itself must not see the lie either: the original is run without it.
        clean = onnx.load(tmp_path / "m.onnx")
        del clean.graph.value_info[:]
        onnx.save(clean, str(tmp_path / "clean.onnx"))
        [want], [got] = outputs(tmp_path / "clean.onnx", [sample], optimize), outputs(tmp_path / "q.onnx", [sample], optimize)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
