"""docs/fake_quantization.md, walked as a newcomer walks it: files and commands as they stand there, in order."""
import importlib.util
import os
import re
import shlex
import subprocess
import sys

import circle_consumers as consumers
import numpy as np
import onnx
import pytest
from conftest import OCTAVO, ROOT, make_small_cnn, session
from test_mx import custom_ops  # noqa: F401  a fixture

TORCH = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("onnxscript") is not None
PAGE = (ROOT / "docs" / "fake_quantization.md").read_text()


def walk(title, folder):
    """Writes the section's files into `folder` and runs its commands there, as they stand."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (folder / "build").symlink_to(OCTAVO.parent)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, target in (("octavo", OCTAVO), ("python", sys.executable)):
        (bin_folder / name).write_text(f"#!/bin/sh\nexec {shlex.quote(str(target))} \"$@\"\n")
        (bin_folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder / "cache")}
    count = 0
    for name, kind, body in re.findall(r"(?:`([a-z_]+\.py)`:\n)?```(python|sh)\n(.*?)```", text, re.S):
        if kind == "python":
            (folder / name).write_text(body)
            continue
        for line in body.splitlines():
            r = subprocess.run(["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
            assert r.returncode == 0, f"{line}\n{r.stdout}{r.stderr}"
            count += 1
    return count


def float_operators(path):
    """Operators of a Circle file that compute, and those of them that read or write a float tensor."""
    _, graph, operators, tensors = consumers.read(path)
    moves = ("QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "RESHAPE")
    computing = [i for i, name in enumerate(operators) if name not in moves]
    return len(computing), [operators[i] for i in computing if graph.Tensors(graph.Operators(i).Outputs(0)).Type() == 0]


def equal(open_session, a, b, samples):
    a, b = open_session(a), open_session(b)
    for sample in samples:
        for x, y in zip(a.run(None, sample), b.run(None, sample)):
            np.testing.assert_array_equal(x, y)


def images(count, seed=7):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def test_in_an_onnx_file(tmp_path, custom_ops):  # noqa: F811
    model = make_small_cnn()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, str(tmp_path / "plain.onnx"))
    assert walk("In an ONNX file", tmp_path) == 4
    equal(custom_ops, tmp_path / "plain-mx.onnx", tmp_path / "plain-twin.onnx", images(4))
    _, _, operators, tensors = consumers.read(tmp_path / "plain.circle")
    assert sum(t.Type() == -7 for t in tensors.values()) >= 6 and "CONV_2D" in operators


@pytest.mark.skipif(not TORCH, reason="torch and onnxscript are not installed: the page's torch sections are run where they are")
@pytest.mark.parametrize("title,commands", [("MX in torch", 5), ("Quantization-aware training in torch", 6)])
def test_torch(tmp_path, custom_ops, title, commands):  # noqa: F811
    assert walk(title, tmp_path) == commands
    for name in ("mx", "qat", "fake"):
        if not (tmp_path / f"{name}.onnx").exists():
            continue
        if name != "fake":
            equal(custom_ops, tmp_path / f"{name}.onnx", tmp_path / f"{name}-twin.onnx", images(4))
        if name == "mx":
            continue
        computing, floats = float_operators(tmp_path / f"{name}.circle")
        assert computing >= 1 and floats == []
        scale = 0.02 if name == "fake" else np.inf
        samples = images(4)
        want = [dict(zip(["y"], custom_ops(tmp_path / f"{name}.onnx").run(None, s))) for s in samples]
        twin = [dict(zip(["y"], session(tmp_path / f"{name}-twin.onnx", optimize=False).run(None, s))) for s in samples]
        for w, t, got in zip(want, twin, consumers.litert(tmp_path / f"{name}.circle", samples)):
            step = np.diff(np.unique(t["y"])).min() if name == "qat" else scale
            for other in (w, t):
                assert (np.rint(np.abs(other["y"] - got["y"].reshape(other["y"].shape)) / step) <= 1).all()
