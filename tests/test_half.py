"""fp16: what 16 bits lose of networks that amplify it, with and without samples, against ONNX Runtime's float results."""
import json

import numpy as np
import onnx
import pytest
from conftest import load_samples, outputs, sqnr
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 96


def save(path, nodes, weights, shape):
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, str(path))
    return path


def samples(folder, shape, mean=0.0, count=40):
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        np.savez(folder / f"{i:02d}.npz", x=(mean + rng.normal(size=shape)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def cancelling(tmp_path_factory):
    """1x1 convolutions whose biases cancel the large mean of their inputs, as folded BatchNormalizations do."""
    folder = tmp_path_factory.mktemp("cancelling")
    rng = np.random.default_rng(0)
    nodes, weights, x = [], {"six": 6.0}, "x"
    for i in range(7):
        w = rng.normal(size=(CHANNELS, CHANNELS, 1, 1)) / np.sqrt(CHANNELS)
        mean = 6 + 0.1 * rng.normal(size=CHANNELS)
        weights[f"w{i}"], weights[f"b{i}"] = w, -(mean * w[:, :, 0, 0]).sum(axis=1)
        weights[f"t{i}"] = (mean - 3).reshape(-1, 1, 1)
        nodes += [helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"]), helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"]),
                  helper.make_node("Mul", [f"s{i}", "six"], [f"m{i}"]), helper.make_node("Add", [f"m{i}", f"t{i}"], [f"a{i}"])]
        x = f"a{i}"
    nodes = nodes[:-3]
    nodes[-1].output[0] = "y"
    shape = [1, CHANNELS, 6, 6]
    return save(folder / "m.onnx", nodes, weights, shape), samples(folder / "data", shape, 6.0)


def halves(path):
    return {t.name for t in onnx.load(str(path)).graph.initializer if t.data_type == TensorProto.FLOAT16}


def test_weights_are_rounded_so_that_means_stay(octavo, cancelling, tmp_path):
    model, data = cancelling
    held = load_samples(data)[24:]
    reference = outputs(model, held)
    octavo("quantize", model, "-p", "fp16", "-o", tmp_path / "blind.onnx")
    blind = sqnr(reference, outputs(tmp_path / "blind.onnx", held))
    octavo("build", "--onnx", model, "-p", "fp16", "--data", data, "--samples", 16, "-o", tmp_path / "o")
    got = sqnr(reference, outputs(tmp_path / "o" / "model.onnx", held))
    print(f"{blind:.1f} -> {got:.1f} dB")
    assert blind < 55 < got, (blind, got)
    assert (tmp_path / "o" / "model.onnx").stat().st_size < 0.6 * model.stat().st_size
    m = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert m["calibration"]["source"] == "data" and m["calibration"]["samples"] == 16
    assert m["validate"]["validated_on"] == "held_out"
    assert m["quantize"]["predicted_sqnr_db"] > 55
    for threads in (1, 2):
        octavo("quantize", model, "-p", "fp16", "--data", data, "--samples", 16, "--threads", threads, "-o",
               tmp_path / f"{threads}.onnx")
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes() == (tmp_path / "o" / "model.onnx").read_bytes()


def test_what_is_measured_too_noisy_computes_in_float(octavo, tmp_path):
    """Numbers around 2000 have steps of 1 in 16 bits: the nodes that hold them compute in f32, the other layers do not."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], {}, "x"
    for i in range(8):
        weights[f"w{i}"] = rng.normal(size=(CHANNELS, CHANNELS, 1, 1)) / np.sqrt(CHANNELS)
        weights[f"b{i}"] = 0.1 * rng.normal(size=CHANNELS) + (2000 if i == 3 else 0)
        nodes += [helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}"), helper.make_node("Relu", [f"c{i}"], [f"r{i}"])]
        x = f"r{i}"
        if i == 3:
            weights["back"] = 2000 + 0.1 * rng.normal(size=(1, CHANNELS, 1, 1))
            nodes += [helper.make_node("Sub", [x, "back"], ["near"], "sub"), helper.make_node("MaxPool", ["near"], ["p"], kernel_shape=[1, 1])]
            x = "p"
    nodes[-1].output[0] = "y"
    shape = [1, CHANNELS, 6, 6]
    model, data = save(tmp_path / "m.onnx", nodes, weights, shape), samples(tmp_path / "data", shape)
    held = load_samples(data)[24:]
    reference = outputs(model, held)
    octavo("quantize", model, "-p", "fp16", "-o", tmp_path / "blind.onnx")
    assert sqnr(reference, outputs(tmp_path / "blind.onnx", held)) < 30
    run = octavo("quantize", model, "-p", "fp16", "--data", data, "--samples", 16, "--json", tmp_path / "r.json", "-o", tmp_path / "q.onnx")
    assert "nodes compute in f32 for that" in run.err
    assert sqnr(reference, outputs(tmp_path / "q.onnx", held)) > 55
    kept = [s for s in json.loads((tmp_path / "r.json").read_text())["quantize"]["nodes_skipped"] if s["reason"].startswith("measured")]
    assert 0 < len(kept) < 8, kept
    # The weights stay small, all of them.
    assert len([n for n in halves(tmp_path / "q.onnx") if n.startswith("w")]) == 8


def test_says_what_16_bits_cannot_do(octavo, tmp_path):
    """The difference of two products that are nearly equal: only 32-bit weights would give 55 dB, and they are all there is."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(256, 128))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["ra"]),
             helper.make_node("MatMul", ["x", "v"], ["b"]), helper.make_node("Relu", ["b"], ["rb"]), helper.make_node("Sub", ["ra", "rb"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": w, "v": w * (1 + 1e-4 * rng.normal(size=w.shape))}, [4, 256])
    data = samples(tmp_path / "data", [4, 256])
    run = octavo("quantize", model, "-p", "fp16", "--data", data, "-o", tmp_path / "q.onnx")
    assert len([l for l in run.err.splitlines() if "warning" in l and "less than 55" in l]) == 1, run.err
    assert (tmp_path / "q.onnx").stat().st_size < 0.65 * model.stat().st_size
    assert octavo("build", "--onnx", model, "-p", "fp16", "--data", data, "--min-sqnr", 55, "-o", tmp_path / "o", code=5).code == 5
