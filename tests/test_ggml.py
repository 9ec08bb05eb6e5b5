"""Block formats against ggml's own library and against the gguf package."""
import ctypes
import importlib.metadata
import pathlib
import subprocess

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import OCTAVO

FORMATS = ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
           "tq1_0", "tq2_0", "mxfp4_gg", "nvfp4"]


def library():
    """libggml-base of the pywhispercpp wheel."""
    for file in importlib.metadata.files("pywhispercpp"):
        if file.name.startswith("libggml-base") and ".so" in file.name:
            path = pathlib.Path(file.locate())
            if path.exists():
                return path
    raise AssertionError("pywhispercpp has no libggml-base")


def check(formats, values):
    tool = OCTAVO.parent / "bench_ggml"
    assert tool.exists(), f"{tool} is missing: build with OCTAVO_TESTS"
    run = subprocess.run([str(tool), str(library()), "--formats", ",".join(formats), "--check", str(values)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("values identical") == len(formats), run.stdout


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_ggmls(name):
    """Encoders with and without importance, decoders: a million values each, edge cases among them."""
    check([name], 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_ggmls_ten_million(name):
    check([name], 10_000_000)


# --- ONNX whose weights are blocks ------------------------------------------------------------------------------------

BLOCKS = FORMATS[2:]
TYPES = {"mxfp4_gg": "MXFP4"}


@pytest.fixture(scope="module")
def ggml():
    """quantize(name, rows, importance) -> the bytes that ggml makes of float rows."""
    quantize_chunk = ctypes.CDLL(str(library())).ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

    def quantize(name, rows, importance=None):
        rows = np.ascontiguousarray(rows, np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind(name)]
        out = np.zeros((rows.shape[0], rows.shape[1] // block * size), np.uint8)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        quantize_chunk(int(kind(name)), rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1],
                       None if importance is None else importance.ctypes.data)
        return out

    return quantize


def kind(name):
    return gguf.GGMLQuantizationType[TYPES.get(name, name.upper())]


def meaning(ggml, name, rows, importance=None):
    """The float rows that ggml's blocks of these rows mean, by the gguf package."""
    return gguf.quants.dequantize(ggml(name, rows, importance), kind(name)).reshape(rows.shape)


def weights(rng, *shape):
    return (rng.normal(size=shape) * 0.05).astype(np.float32)


def save(path, nodes, inputs, outputs, initializers):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        [numpy_helper.from_array(v, n) for n, v in initializers.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """A model that reads a weight in each position that it can have: [K, N], [N, K], on the left, stacked, 1x1 Conv."""
    rng = np.random.default_rng(7)
    w = {"right": weights(rng, 512, 40), "gemm": weights(rng, 24, 512), "left": weights(rng, 16, 512),
         "stack": weights(rng, 3, 512, 8), "conv": weights(rng, 16, 512, 1, 1)}
    nodes = [helper.make_node("MatMul", ["x", "right"], ["a"]),
             helper.make_node("Gemm", ["x", "gemm"], ["b"], transB=1),
             helper.make_node("MatMul", ["left", "x"], ["c"]),
             helper.make_node("MatMul", ["x", "stack"], ["d"]),
             helper.make_node("Conv", ["i", "conv"], ["e"])]
    path = save(tmp_path_factory.mktemp("layers") / "m.onnx", nodes, [("x", [512, 512]), ("i", [512, 512, 1, 1])],
                [("a", [512, 40]), ("b", [512, 24]), ("c", [16, 512]), ("d", [3, 512, 8]), ("e", [512, 16, 1, 1])], w)
    return path, w


@pytest.mark.parametrize("name", BLOCKS)
def test_onnx_weights_are_the_blocks(octavo, ggml, layers, tmp_path, name):
    """Identity matrices through the quantized model give back what gguf makes of ggml's own bytes, bit for bit, with
    ONNX Runtime's optimizations and without."""
    path, w = layers
    octavo("quantize", path, "-o", tmp_path / "q.onnx", "--precision", name)
    eye = np.eye(512, dtype=np.float32)
    want = [meaning(ggml, name, w["right"].T).T, meaning(ggml, name, w["gemm"]).T, meaning(ggml, name, w["left"]),
            np.stack([meaning(ggml, name, s.T).T for s in w["stack"]]),
            meaning(ggml, name, w["conv"].reshape(16, 512)).T.reshape(512, 16, 1, 1)]
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"x": eye, "i": eye.reshape(512, 512, 1, 1)})
        for g, v in zip(got, want):
            np.testing.assert_array_equal(g, v)


@pytest.mark.parametrize("name", BLOCKS)
def test_onnx_is_small(octavo, tmp_path, name):
    """At most 1.2 times the bytes of the blocks, and half a bit a weight."""
    rng = np.random.default_rng(3)
    w = weights(rng, 1024, 1024)
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 1024])], [("y", [1, 1024])],
                {"w": w})
    octavo("quantize", path, "-o", tmp_path / "q.onnx", "--precision", name)
    block, size = gguf.GGML_QUANT_SIZES[kind(name)]
    blocks = w.size // block * size
    assert (tmp_path / "q.onnx").stat().st_size <= 1.2 * blocks + w.size / 16 + 4096


def test_ragged_rows_stay_float_and_are_named(octavo, tmp_path):
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("MatMul", ["h", "v"], ["y"], name="second")]
    path = save(tmp_path / "m.onnx", nodes, [("x", [1, 256])], [("y", [1, 16])],
                {"w": weights(rng, 256, 100), "v": weights(rng, 100, 16)})
    result = octavo("quantize", path, "-o", tmp_path / "q.onnx", "--precision", "q4_k", "--json", tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text() + result.out + result.err
    assert "rows of 100 numbers are no whole blocks of 256" in text and "second" in text


def test_too_large_weights_stay_float_and_are_named(octavo, tmp_path):
    w = np.full((256, 4), 1e9, np.float32)
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 256])], [("y", [1, 4])], {"w": w})
    result = octavo("quantize", path, "-o", tmp_path / "q.onnx", "--precision", "q8_0", "--json", tmp_path / "r.json")
    assert "beyond the scales of Q8_0" in (tmp_path / "r.json").read_text() + result.out + result.err
