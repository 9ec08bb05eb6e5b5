"""Fixtures of the end-to-end tests: the command, the real models, their data, small models made on the spot.

Everything goes through the command line, as a user would; ONNX Runtime's Python package is the oracle and the peer.
"""
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OCTAVO = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo"))
CACHE = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
MODELS = ("cls", "det", "vit", "minilm")
# The fixed dimensions that each model's data have.
SHAPES = {
    "cls": {"x": [1, 3, 48, 192]},
    "det": {"x": [1, 3, 320, 320]},
    "vit": {"input_image": [1, 3, 224, 224]},
    "minilm": {"input_ids": [1, 128], "attention_mask": [1, 128]},
}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


class Result:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def error(self):
        """The one error line; asserts that there is exactly one."""
        lines = [l for l in self.err.splitlines() if l.startswith("octavo: error:")]
        assert len(lines) == 1, f"expected one error line, stderr is:\n{self.err}"
        return lines[0]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    env = dict(os.environ)
    env["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("xdg"))  # never the user's own
    env.pop("OCTAVO_REQUIRE_DATA", None)
    return env


@pytest.fixture(scope="session")
def octavo(environment, tmp_path_factory):
    """octavo("build", "--onnx", ...) -> Result. `code` is what the exit code must be (None: not checked).

    Each call has a cache of its own, so that a build that is made twice is made; a test of the cache names one."""
    assert OCTAVO.exists(), f"{OCTAVO} is missing: run `make`"

    def run(*args, code=0, cwd=None, env=None, timeout=600):
        cache = str(tmp_path_factory.mktemp("xdg"))
        process = subprocess.run([str(OCTAVO), *map(str, args)], capture_output=True, text=True, cwd=cwd,
                                 env={**environment, "XDG_CACHE_HOME": cache, **(env or {})}, timeout=timeout, stdin=subprocess.DEVNULL)
        shutil.rmtree(cache)
        result = Result(process)
        if code is not None:
            assert result.code == code, f"octavo {' '.join(map(str, args))}\nexit {result.code}, expected {code}\n{result.out}\n{result.err}"
        return result

    return run


@pytest.fixture(scope="session")
def models():
    found = {name: CACHE / "models" / f"{name}.onnx" for name in MODELS}
    missing = [str(p) for p in found.values() if not p.exists()]
    assert not missing, f"missing {missing}: run `make models`"
    return found


@pytest.fixture(scope="session")
def data():
    """data[model] -> folder with 32 calibration samples, then 64 held-out ones."""
    folder = CACHE / "data"
    assert folder.exists(), "no sample data: run `make models`"
    return {name: folder / name / "all" for name in MODELS}


def load_samples(folder, count=None):
    return [dict(np.load(f)) for f in sorted(pathlib.Path(folder).glob("*.npz"))[:count]]


def session(path, optimize=True):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, samples, optimize=True):
    s = session(path, optimize)
    return [s.run(None, sample) for sample in samples]


def sqnr(reference, got):
    """Pooled over all float outputs' elements and all samples, in dB."""
    signal = noise = 0.0
    for r, g in zip(reference, got):
        for a, b in zip(r, g):
            if a.dtype.kind != "f":
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            signal += float((a * a).sum())
            noise += float(((a - b) ** 2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def manifest(out):
    return json.loads((pathlib.Path(out) / "manifest.json").read_text())


@pytest.fixture(scope="session")
def small_cnn(tmp_path_factory):
    """Conv, BatchNormalization, Relu, depthwise Conv, Add, pooling and Gemm: builds in well under a second."""
    path = tmp_path_factory.mktemp("small") / "cnn.onnx"
    onnx.save(make_small_cnn(), str(path))
    return path


def make_small_cnn(seed=0, opset=13):
    from onnx import TensorProto, helper, numpy_helper
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)

    init = [weight("w0", 8, 3, 3, 3), weight("b0", 8), weight("wd", 8, 1, 3, 3), weight("w1", 8, 8, 1, 1),
            weight("fc", 8, 10), weight("fcb", 10)]
    for n in ("scale", "bias", "mean", "var"):
        init.append(numpy_helper.from_array((rng.uniform(0.5, 1.5, 8)).astype(np.float32), f"bn_{n}"))
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "bn_scale", "bn_bias", "bn_mean", "bn_var"], ["n0"], "bn0"),
        helper.make_node("Relu", ["n0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "wd"], ["d0"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d0"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w1"], ["c1"], "conv1"),
        helper.make_node("Add", ["c1", "r0"], ["a0"], "add"),
        helper.make_node("GlobalAveragePool", ["a0"], ["g0"], "pool"),
        helper.make_node("Flatten", ["g0"], ["f0"], "flatten"),
        helper.make_node("Gemm", ["f0", "fc", "fcb"], ["y"], "fc"),
    ]
    graph = helper.make_graph(nodes, "cnn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])], init)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """48 samples of the small CNN's input as .npz files."""
    folder = tmp_path_factory.mktemp("small_data")
    rng = np.random.default_rng(1)
    for i in range(48):
        np.savez(folder / f"{i:02d}.npz", x=rng.normal(size=(1, 3, 16, 16)).astype(np.float32))
    return folder
