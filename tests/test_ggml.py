"""Block formats against ggml's own library and against the gguf package."""
import ctypes
import hashlib
import importlib.metadata
import pathlib
import struct
import subprocess

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import OCTAVO, load_samples, manifest, outputs, sqnr

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


def test_q4_0_in_the_operators_of_the_runtime(octavo, ggml, tmp_path):
    """--form qlinear: products and lookups on the codes themselves, with the numbers of the blocks."""
    rng = np.random.default_rng(8)
    w, table = weights(rng, 512, 48), weights(rng, 100, 512)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x2", "w"], ["a2"]),
             helper.make_node("Cast", ["f"], ["i"], to=TensorProto.INT64), helper.make_node("Gather", ["t", "i"], ["b"])]
    ids = np.arange(100, dtype=np.int64)[::-1].copy()
    path = save(tmp_path / "m.onnx", nodes, [("x", [512, 512]), ("x2", [2, 3, 512]), ("f", [100])],
                [("a", [512, 48]), ("a2", [2, 3, 48]), ("b", [100, 512])], {"w": w, "t": table})
    octavo("export", path, "--to", "onnx", "--form", "qlinear", "--precision", "q4_0", "-o", tmp_path / "q.onnx")
    # scales stay f16 in the file, behind a Cast
    ops = sorted(n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node if n.op_type != "Cast")
    assert ops == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits"]
    rows = meaning(ggml, "q4_0", w.T).T
    x = np.eye(512, dtype=np.float32)
    y = rng.normal(size=(2, 3, 512)).astype(np.float32)
    a, a2, b = ort.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"x": x, "x2": y, "f": ids.astype(np.float32)})
    np.testing.assert_array_equal(a, rows)
    np.testing.assert_allclose(a2, y @ rows, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(b, meaning(ggml, "q4_0", table)[ids])


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


# --- importance -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """A model with one weight that two nodes read, a Gemm, and samples whose columns differ by orders of magnitude."""
    folder = tmp_path_factory.mktemp("skewed")
    rng = np.random.default_rng(11)
    w = {"w": weights(rng, 512, 512), "v": weights(rng, 64, 512)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("MatMul", ["h", "w"], ["k"], name="second"),
             helper.make_node("Gemm", ["k", "v"], ["y"], transB=1, name="third")]
    path = save(folder / "m.onnx", nodes, [("x", [4, 512])], [("k", [4, 512]), ("y", [4, 64])], w)
    data = folder / "data"
    data.mkdir()
    scale = np.exp(rng.normal(size=512) * 2).astype(np.float32)
    samples = [(rng.normal(size=(4, 512)) * scale).astype(np.float32) for _ in range(6)]
    for i, x in enumerate(samples):
        np.savez(data / f"{i}.npz", x=x)
    h = [x @ w["w"] for x in samples]
    k = [v @ w["w"] for v in h]
    square = lambda many: np.concatenate(many).astype(np.float64) ** 2
    return {"path": path, "weights": w, "data": data, "samples": samples, "importance": {
        "w": np.mean(np.concatenate([square(samples), square(h)]), axis=0), "v": np.mean(square(k), axis=0)}}


def stored_weight(path, node):
    """The float weight that a node of the quantized model reads, by ONNX Runtime: an output is added for it."""
    model = onnx.load(path)
    name = next(n for n in model.graph.node if n.name == node).input[1]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
    return session.run([name], feed)[0]


@pytest.mark.parametrize("name", ["q4_k", "q4_0", "q3_k", "iq4_xs"])
def test_importance_of_the_data(octavo, ggml, skewed, tmp_path, name):
    """With --data, the weights are what ggml makes of the mean squares of their inputs; fewer errors come out."""
    octavo("quantize", skewed["path"], "-o", tmp_path / "with.onnx", "--precision", name, "--data", skewed["data"])
    octavo("quantize", skewed["path"], "-o", tmp_path / "without.onnx", "--precision", name)
    got = stored_weight(tmp_path / "with.onnx", "third")
    want = meaning(ggml, name, skewed["weights"]["v"], skewed["importance"]["v"])
    # ONNX Runtime's sums on the way to k differ from NumPy's in their last bits: so may an importance, and here and there a code.
    assert np.mean(got != want) < 0.02
    assert np.mean(got != meaning(ggml, name, skewed["weights"]["v"])) > 0.1
    error = {}
    reference = np.concatenate([x @ skewed["weights"]["w"] for x in skewed["samples"]])
    for kind_ in ("with", "without"):
        w = stored_weight(tmp_path / f"{kind_}.onnx", "first")
        error[kind_] = float(np.mean((np.concatenate([x @ w for x in skewed["samples"]]) - reference) ** 2))
    assert error["with"] < 0.9 * error["without"], error


def test_importance_is_saved_merged_and_loaded(octavo, skewed, tmp_path):
    """Statistics of shards, merged, give the same bytes as one run on all of the data; threads leave no trace."""
    precision = ("--precision", "q4_k")
    octavo("quantize", skewed["path"], "-o", tmp_path / "data.onnx", *precision, "--data", skewed["data"],
           "--save-statistics", tmp_path / "s.json", "--threads", 1)
    octavo("quantize", skewed["path"], "-o", tmp_path / "threads.onnx", *precision, "--data", skewed["data"], "--threads", 2)
    for shard, files in enumerate((range(0, 2), range(2, 6))):
        folder = tmp_path / f"shard{shard}"
        folder.mkdir()
        for i in files:
            np.savez(folder / f"{i}.npz", x=skewed["samples"][i])
        octavo("calibrate", skewed["path"], *precision, "--data", folder, "-o", tmp_path / f"s{shard}.json")
    octavo("calibrate", "merge", tmp_path / "s1.json", tmp_path / "s0.json", "-o", tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "s.json").read_bytes()
    octavo("quantize", skewed["path"], "-o", tmp_path / "merged.onnx", *precision, "--load-statistics", tmp_path / "merged.json")
    one = (tmp_path / "data.onnx").read_bytes()
    assert (tmp_path / "merged.onnx").read_bytes() == one and (tmp_path / "threads.onnx").read_bytes() == one


def write_imatrix(path, entries):
    """llama.cpp's older binary form, from its documentation: count, then name, calls, values as sums over the calls."""
    with open(path, "wb") as out:
        out.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            raw = name.encode()
            out.write(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", 1, len(values)))
            out.write(np.asarray(values, np.float32).tobytes())
        out.write(struct.pack("<ii", 1, 0))


def test_imatrix_file(octavo, ggml, skewed, tmp_path):
    importance = {k: v.astype(np.float32) for k, v in skewed["importance"].items()}
    write_imatrix(tmp_path / "m.dat", importance)
    octavo("quantize", skewed["path"], "-o", tmp_path / "q.onnx", "--precision", "q4_k", "--imatrix", tmp_path / "m.dat")
    np.testing.assert_array_equal(stored_weight(tmp_path / "q.onnx", "third"),
                                  meaning(ggml, "q4_k", skewed["weights"]["v"], importance["v"]))
    np.testing.assert_array_equal(stored_weight(tmp_path / "q.onnx", "first"),
                                  meaning(ggml, "q4_k", skewed["weights"]["w"].T, importance["w"]).T)
    octavo("build", "--onnx", skewed["path"], "--device", "cpu", "--precision", "q4_k", "--data", skewed["data"], "--imatrix",
           tmp_path / "m.dat", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()
    calibration = manifest(tmp_path / "out")["calibration"]
    assert calibration["source"] == "loaded" and calibration["sha256"] == hashlib.sha256((tmp_path / "m.dat").read_bytes()).hexdigest()
    write_imatrix(tmp_path / "short.dat", {"v": importance["v"][:256]})
    result = octavo("quantize", skewed["path"], "-o", tmp_path / "x.onnx", "--precision", "q4_k", "--imatrix", tmp_path / "short.dat",
                    code=3)
    assert "256 columns" in result.error and "512" in result.error
    write_imatrix(tmp_path / "other.dat", {"blk.0": importance["v"]})
    assert "no entry" in octavo("quantize", skewed["path"], "-o", tmp_path / "x.onnx", "--precision", "q4_k", "--imatrix",
                                tmp_path / "other.dat", code=3).error


def test_importance_where_it_says_nothing_is_refused(octavo, skewed, tmp_path):
    write_imatrix(tmp_path / "m.dat", {"v": np.ones(512)})
    for precision in ("q8_0", "int8", "mxfp4_gg"):
        result = octavo("quantize", skewed["path"], "-o", tmp_path / "x.onnx", "--precision", precision, "--imatrix", tmp_path / "m.dat",
                        code=2)
        assert "imatrix has no effect" in result.error


def test_real_model(octavo, models, data, tmp_path):
    """MiniLM in Q8_0: small, and close to the float model."""
    octavo("quantize", models["minilm"], "-o", tmp_path / "q.onnx", "--precision", "q8_0")
    assert (tmp_path / "q.onnx").stat().st_size < 0.35 * models["minilm"].stat().st_size
    samples = load_samples(data["minilm"])[:4]
    assert sqnr(outputs(models["minilm"], samples), outputs(tmp_path / "q.onnx", samples)) > 20
