"""Wrong inputs: one line that says what, where and how to go on, the right exit code, nothing half written."""
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import onnx
import pytest
from conftest import OCTAVO, make_small_cnn, manifest
from onnx import TensorProto, helper, numpy_helper


@pytest.mark.parametrize("args,code,pattern", [
    ([], 2, "build"),
    (["frobnicate"], 2, "frobnicate"),
    (["biuld"], 2, "build"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--precison", "uint8", "-o", "{out}"], 2, "precision"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--precision", "uint7", "-o", "{out}"], 2, "uint7.*uint8"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--precision", "q8_0", "--load-statistics", "s.json", "-o", "{out}"], 2, "load_path"),
    (["build", "--onnx", "{cnn}", "--device", "qnn", "--precision", "uint8", "-o", "{out}"], 4, "qnn"),
    (["build", "--onnx", "{cnn}", "--device", "toaster", "-o", "{out}"], 2, "toaster"),
    (["build", "--device", "cpu", "-o", "{out}"], 2, "--onnx"),
    (["build", "--onnx", "{cnn}", "--device", "cpu"], 2, "-o"),
    (["build", "--onnx", "missing.onnx", "--device", "cpu", "-o", "{out}"], 3, "missing.onnx"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "nowhere", "-o", "{out}"], 3, "nowhere"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "--samples", "-3", "-o", "{out}"], 2, "samples"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "--percentile", "140", "-o", "{out}"], 2, "percentile"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--percentile", "99.99", "-o", "{out}"], 2, "percentile.*no effect"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--block", "64", "-o", "{out}"], 2, "block.*no effect.*uint8"),
    (["quantize", "{cnn}", "-p", "fp16", "--calibration", "mse", "-o", "{out}"], 2, "calibration.*no effect.*fp16"),
    (["quantize", "{cnn}", "-p", "int4", "--calibration", "mse", "-o", "{out}"], 2, "calibration.*no effect.*int4"),
    (["quantize", "{cnn}", "-p", "mxfp4", "--save-statistics", "s.json", "-o", "{out}"], 2, "save_path.*no effect.*mxfp4"),
    (["quantize", "{cnn}", "-p", "mxfp4", "--activation-type", "mxint8", "-o", "{out}"], 2, "activation_type.*no effect.*mxfp4"),
    (["quantize", "{cnn}", "--weight-type", "f16", "-o", "{out}"], 4, "f16.*--weight-type"),
    (["quantize", "{cnn}", "-p", "fp32", "--exclude", "fc", "-o", "{out}"], 2, "exclude.*no effect.*fp32"),
    (["quantize", "{cnn}", "-p", "fp16", "--exclude", "cf", "-o", "{out}"], 2, "cf.*fc"),
    (["build", "--onnx", "{cnn}", "--no-quant", "--per-channel", "-o", "{out}"], 2, "--no-quant"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "--override", "zzz=u8", "-o", "{out}"], 2, "zzz"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "--op-types", "Convv", "-o", "{out}"], 2, "Convv.*Conv"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "--dim", "q=3", "-o", "{out}"], 2, "q"),
    (["build", "--onnx", "{cnn}", "--device", "cpu", "--data", "{data}", "-o", "/proc/nowhere/o"], 3, "/proc/nowhere"),
    (["export", "{cnn}", "--to", "circle", "-o", "{out}"], 4, "static shapes.*--dim"),
    (["inspect", "{text}"], 3, "text"),
    (["rewrite", "--list", "--json", "{out}"], 2, "--list.*no file.*--json"),
    (["rewrite", "{cnn}", "--bisect", "--data", "{data}", "-o", "{out}"], 2, "--bisect.*no file.*-o"),
    (["export", "--to", "stablehlo", "--list-operators", "--json", "{out}"], 2, "--list-operators.*no file.*--json"),
    (["compare", "{cnn}", "{cnn}"], 2, "--data"),
    (["quantize", "{cnn}", "-o", "{out}", "--config", "{text}"], 2, "text"),
    (["calibrate", "merge", "{text}", "{text}", "-o", "{out}"], 3, "text"),
    (["quantize", "{cnn}", "-o", "{out}", "--data", "{text}"], 3, "unknown form.*text"),
    (["quantize", "{cnn}", "-o", "{out}", "--data", "{data}", "--op-types", ""], 2, "--op-types"),
    (["compare", "{cnn}", "missing", "--data", "{data}"], 3, "No such file.*missing"),
    (["perf", "{cnn}", "--against", "{text}"], 3, "text"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", ".", "--force"], 2, "the present directory"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--samples", "99999999999999999999", "-o", "{out}"], 2, "beyond.*--samples"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--samples", "", "-o", "{out}"], 2, "whole number.*--samples"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--samples", "1e3", "-o", "{out}"], 2, "whole number.*--samples"),
    (["build", "--onnx", "{cnn}", "--dim", "n=1", "--samples", "9223372036854775807", "-o", "{out}"], 2, "samples can be made up"),
    (["build", "--onnx", "{cnn}", "--dim", "n=999999999999", "-o", "{out}"], 2, "too large"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--dim", "n=1", "--dim", "n=2", "-o", "{out}"], 2, "'n' is set twice"),
    (["build", "--onnx", "{cnn}", "--data", "", "-o", "{out}"], 2, "empty.*--data"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--data", "{data}", "-o", "{out}"], 2, "--data"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-p", "int8", "-p", "uint8", "-o", "{out}"], 2, "--precision"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--threads", "0", "-o", "{out}"], 2, "threads"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--seed", "-1", "-o", "{out}"], 2, "seed"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--validate-samples", "0", "-o", "{out}"], 2, "validate_samples"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--min-sqnr", "nan", "-o", "{out}"], 2, "min_sqnr"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--image-size", "0x5", "-o", "{out}"], 2, "--image-size"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--image-size", "16x16", "-o", "{out}"], 2, "no images"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--epoption", "x=1", "-o", "{out}"], 4, "--epoption x"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "--embed-context", "-o", "{out}"], 4, "--embed-context"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{text}"], 2, "is a file.*choose another"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{text}/x"], 3, "not a directory"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}", "stray"], 2, "'stray'"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}", "--config", "gone.json"], 2, "gone.json"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}", "--json", "{out}/manifest.json"], 2, "--json.*output directory"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}", "--json", "."], 3, "directory of this name"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}", "--json", "/proc/x"], 3, "/proc/x"),
    (["build", "--onnx", "/dev/zero", "-o", "{out}"], 3, "not a regular file"),
    (["inspect", "{cnn}", "--json", "{cnn}"], 2, "--json names the file that the command works on"),
    (["inspect", "{cnn}", "--json", "{text}"], 2, "exists and is no JSON"),
    (["quantize", "{cnn}", "--data", "{data}", "-o", "{out}", "--save-statistics", "{out}"], 2, "--save-statistics.*--output"),
    (["quantize", "{cnn}", "--data", "{data}", "-o", "{cnn}"], 2, "exists.*--force"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{text}", "--force"], 2, "is a file.*choose another"),
    (["quantize", "{cnn}", "-o", "{out}", "--samples", "1", "--samples", "2"], 2, "more than once: --samples: keep one"),
    (["quantize", "{cnn}", "-o", "{out}", "--samples"], 2, "needs a value: --samples: see octavo quantize --help"),
    (["quantize", "{cnn}", "-o", "{out}", "--force=maybe"], 2, "takes no value: --force"),
    (["--force", "quantize", "{cnn}", "-o", "{out}"], 2, "before the command.*octavo quantize --force"),
    (["export", "{cnn}", "--to", "circle", "--profile", "i8-chanel", "-o", "{out}", "--dry-run"], 2, "--profile.*'i8-channel'"),
    (["quantize", "{cnn}", "--data", "{data}", "-o", "{out}/"], 2, "is a directory"),
    (["quantize", "{cnn}", "--data", "{data}", "-o", "q.gguf"], 2, "would be onnx.*--to gguf"),
    (["quantize", "{cnn}", "--data", "{data}", "-o", "{out}", "--max-memory", "1G"], 2, "--max-memory"),
    (["quantize", "{cnn}", "-p", "q4_0", "--override", "y=f32", "-o", "{out}"], 2, "'y' has no effect with precision 'q4_0'"),
    (["export", "{cnn}", "--to", "stablehlo", "--dim", "n=1", "-o", "m.onnx"], 2, "would be stablehlo"),
    (["export", "{cnn}", "--to", "circle", "--dim", "n=1", "--constants", "codes", "-o", "{out}"], 2, "--constants"),
    (["calibrate", "{cnn}", "--data", "{data}", "-o", "s.onnx"], 2, "would be json"),
    (["calibrate", "merge", "a", "b", "-o", "{out}", "--dry-run"], 3, "No such file.*a"),
    (["rewrite", "{cnn}", "-o", "{out}", "--rules", "nosuch"], 2, "nosuch"),
    (["rewrite", "{cnn}", "-o", "r.circle"], 2, "would be onnx"),
    (["perf", "{cnn}", "--data", "{data}", "--iterations", "3", "--duration", "1"], 2, "keep one"),
    (["compare", "{cnn}", "{cnn}", "--data", "{data}", "--samples", "0"], 2, "samples"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{data}", "--force"], 2, "holds the data"),
    (["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{cnn}/..", "--force"], 2, "holds the model"),
])
def test_one_line_and_the_right_code(octavo, small_cnn, small_data, tmp_path, args, code, pattern):
    text = tmp_path / "text"
    text.write_text("this is no model")
    names = {"cnn": small_cnn, "data": small_data, "out": tmp_path / "out", "text": text}
    r = octavo(*[a.format(**names) for a in args], code=code, cwd=tmp_path)
    assert re.search(pattern, r.error), r.error
    assert r.out == "" and sorted(p.name for p in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize("config,pattern", [
    ('{"quantization": {"presicion": "uint8"}}', "presicion.*precision"),
    ('{"quantization": {"samples": "many"}}', "samples"),
    ('{"quantisation": {}}', "quantisation"),
    ('{"quantization": {"precision": "uint8"}, "compile": {"quantization": {"precision": "int8"}}}', "both"),
    ('{"quantization": ', "line|column|parse"),
    ('[' * 100000, "parse|deep|nest"),
])
def test_bad_configurations(octavo, small_cnn, small_data, tmp_path, config, pattern):
    (tmp_path / "c.json").write_text(config)
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--data", small_data, "--config", tmp_path / "c.json", "-o",
               tmp_path / "o", code=2)
    assert re.search(pattern, r.error), r.error
    assert not (tmp_path / "o").exists()


def test_a_flag_overrides_what_the_file_made_of_the_same(octavo, small_cnn, small_data, tmp_path):
    """A build's config.json takes another precision or method on the command line, whatever went with the file's own."""
    octavo("build", "--onnx", small_cnn, "--data", small_data, "--calibration", "percentile", "--percentile", "99.5",
           "--override", "g0=u8", "-o", tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    for flags in (["--calibration", "minmax"], ["-p", "fp16"], ["-p", "fp32"], ["--no-quant"]):
        octavo("build", "--config", config, *flags, "-o", tmp_path / "b", "--force")
    q = json.loads((tmp_path / "b" / "config.json").read_text())
    octavo("build", "--config", tmp_path / "b" / "config.json", "-o", tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == q


def test_seed_with_data_is_said(octavo, small_cnn, small_data, tmp_path):
    r = octavo("quantize", small_cnn, "--data", small_data, "--seed", "7", "-o", tmp_path / "a.onnx")
    assert "no effect" in r.err
    r = octavo("quantize", small_cnn, "--data", small_data, "-o", tmp_path / "b.onnx")
    assert "no effect" not in r.err
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fp16_keeps_what_is_excluded(octavo, small_cnn, tmp_path):
    octavo("quantize", small_cnn, "-p", "fp16", "--exclude", "f*", "--json", tmp_path / "r.json", "-o", tmp_path / "q.onnx")
    kept = json.loads((tmp_path / "r.json").read_text())["quantize"]["nodes_skipped"]
    assert {"node": "fc", "op": "Gemm", "reason": "it is excluded"} in kept
    types = {i.name: i.data_type for i in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert types["fc"] == TensorProto.FLOAT


def sample(**arrays):
    return {"x": np.zeros((1, 3, 16, 16), np.float32), **arrays}


@pytest.mark.parametrize("bad,pattern", [
    (sample(x=np.zeros((1, 4, 16, 16), np.float32)), r"'x'.*\[n,3,16,16\].*\[1,4,16,16\].*bad\.npz"),
    (sample(x=np.zeros((1, 3, 16, 16), np.float64)), r"'x'.*f32.*f64.*bad\.npz"),
    (sample(x=np.full((1, 3, 16, 16), np.nan, np.float32)), r"bad\.npz"),
    (sample(x=np.full((1, 3, 16, 16), np.inf, np.float32)), r"bad\.npz"),
    ({"y": np.zeros((1, 3, 16, 16), np.float32)}, r"'x'.*bad\.npz"),
])
def test_bad_samples_are_named(octavo, small_cnn, tmp_path, bad, pattern):
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", **sample())
    np.savez(folder / "bad.npz", **bad)
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "--data", folder, "-o", tmp_path / "o", code=3)
    assert re.search(pattern, r.error), r.error
    assert not (tmp_path / "o").exists()


def test_truncated_data_is_named(octavo, small_cnn, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    np.savez(folder / "0.npz", **sample())
    (folder / "1.npz").write_bytes((folder / "0.npz").read_bytes()[:700])
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "--data", folder, "-o", tmp_path / "o", code=3)
    assert "1.npz" in r.error


def forms(tmp_path, rng):
    """Each --data form, holding the same 12 samples."""
    arrays = [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) for _ in range(12)]
    for name in ("npz", "npy", "sub/x", "pb"):
        (tmp_path / name).mkdir(parents=True)
    for i, a in enumerate(arrays):
        np.savez_compressed(tmp_path / "npz" / f"{i}.npz", x=a)
        np.save(tmp_path / "npy" / f"{i}.npy", np.asfortranarray(a))
        np.save(tmp_path / "sub" / "x" / f"{i}.npy", a)
        (tmp_path / "pb" / f"test_data_set_{i}").mkdir()
        (tmp_path / "pb" / f"test_data_set_{i}" / "input_0.pb").write_bytes(numpy_helper.from_array(a, "x").SerializeToString())
    np.savez(tmp_path / "stacked.npz", x=np.stack(arrays))
    return ["npz", "stacked.npz", "npy", "sub", "pb"]


def test_every_form_of_data_gives_the_same_model(octavo, small_cnn, tmp_path):
    made = []
    for form in forms(tmp_path, np.random.default_rng(2)):
        out = tmp_path / f"{form}.onnx"
        octavo("quantize", small_cnn, "-o", out, "--precision", "uint8", "--data", tmp_path / form)
        made.append(out.read_bytes())
    assert all(m == made[0] for m in made)


def test_images(octavo, small_cnn, tmp_path):
    from PIL import Image
    folder = tmp_path / "d"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, kind in enumerate(["png", "jpg", "bmp"] * 4):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / f"{i}.{kind}")
    octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "--data", folder, "--image-layout", "nchw",
           "--image-size", "16x16", "--image-mean", "0.5,0.5,0.5", "--image-std", "0.5,0.5,0.5", "--samples", "4", "-o", tmp_path / "o")
    assert manifest(tmp_path / "o")["validate"]["validated_on"] == "held_out"


def cyclic():
    return helper.make_model(helper.make_graph(
        [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], "g", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])]))


def outside(location):
    model = make_small_cnn()
    t = model.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for k, v in (("location", location), ("offset", "0"), ("length", "864")):
        t.external_data.add(key=k, value=v)
    return model


def with_dims(dims):
    model = make_small_cnn()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def ep_context():
    return helper.make_model(helper.make_graph(
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="c.bin")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])


@pytest.mark.parametrize("model,code,pattern", [
    (cyclic, 3, "cycl"),
    (lambda: outside("../secret.bin"), 3, "secret"),
    (lambda: outside("/etc/hostname"), 3, "hostname"),
    (lambda: outside("gone.bin"), 3, "gone.bin"),
    (lambda: with_dims([2**40, 2**40, 3, 3]), 3, "w0"),
    (lambda: with_dims([8, 3, 3, 4]), 3, "w0"),
    (lambda: with_dims([-8, 3, 3, 3]), 3, "w0"),
    (ep_context, 4, "EPContext"),
])
def test_hostile_models(octavo, small_data, tmp_path, model, code, pattern):
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    r = octavo("build", "--onnx", tmp_path / "m.onnx", "--device", "cpu", "--precision", "uint8", "--data", small_data, "-o",
               tmp_path / "o", code=code)
    assert re.search(pattern, r.error), r.error
    assert not (tmp_path / "o").exists()


def test_truncated_and_flipped_models(octavo, small_cnn, tmp_path):
    whole = small_cnn.read_bytes()
    rng = random.Random(0)
    for i in range(40):
        broken = bytearray(whole[:rng.randrange(1, len(whole))] if i % 2 else whole)
        for _ in range(0 if i % 2 else 3):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        (tmp_path / "m.onnx").write_bytes(broken)
        r = octavo("inspect", tmp_path / "m.onnx", code=None)
        assert r.code in (0, 3, 4), (i, r.code, r.err)
        if r.code:
            assert r.error


def test_a_killed_build_leaves_nothing_behind(octavo, environment, models, data, tmp_path):
    out = tmp_path / "o"
    args = [str(OCTAVO), "build", "--onnx", str(models["cls"]), "--device", "cpu", "--precision", "uint8", "--data", str(data["cls"]),
            "--samples", "32", "--no-cache", "-o", str(out)]
    start = time.time()
    subprocess.run(args, env=environment, check=True, capture_output=True)
    whole = time.time() - start
    shutil.rmtree(out)
    for i in range(8):
        p = subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * (i + 0.5) / 8)
        p.send_signal(signal.SIGKILL)
        p.wait()
        if out.exists():  # it had finished
            shutil.rmtree(out)
    subprocess.run(args, env=environment, check=True, capture_output=True)
    assert [p.name for p in tmp_path.iterdir()] == ["o"], "litter of killed builds"
    for part in (3, 6, 12, 24):  # a build that outran the signal is tried again, sooner
        # A shell's background job ignores SIGINT, and its children with it: not this one.
        p = subprocess.Popen([*args[:-1], str(tmp_path / "p")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        time.sleep(whole / part)
        p.send_signal(signal.SIGINT)
        if p.wait(timeout=30) != 0:
            break
        shutil.rmtree(tmp_path / "p")
    assert p.returncode == 130
    assert [q.name for q in tmp_path.iterdir()] == ["o"]


def test_disk_full(octavo, small_cnn, small_data, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "full"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "--data", small_data, "-o", mount / "o", code=3)
        assert r.error and list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_nothing_is_left_where_nothing_can_be_written(octavo, small_cnn, small_data, tmp_path):
    """A full disk, a read-only one: each command that writes ends in one line, and what was there stays."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        octavo("export", small_cnn, "--to", "gguf", "-o", tmp_path / "w.gguf")
        (mount / "old.onnx").write_bytes(b"x" * 8192)
        commands = [
            ["quantize", small_cnn, "--data", small_data, "-o", mount / "old.onnx", "--force"],
            ["calibrate", small_cnn, "--data", small_data, "-o", mount / "s.json"],
            ["rewrite", small_cnn, "-o", mount / "r.onnx"],
            ["export", small_cnn, "--to", "circle", "--dim", "n=1", "-o", mount / "m.circle"],
            ["export", small_cnn, "--to", "stablehlo", "--dim", "n=1", "-o", mount / "m.mlir"],
            ["export", small_cnn, "--to", "gguf", "-o", mount / "m.gguf"],
            ["quantize", tmp_path / "w.gguf", "-p", "q8_0", "-o", mount / "q.gguf"],
        ]
        for state, reason in (("full", "No space left"), ("read-only", "Read-only file system")):
            if state == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
            for command in commands:
                r = octavo(*command, code=3)
                assert reason in r.error, (state, command, r.error)
                assert [p.name for p in mount.iterdir()] == ["old.onnx"]
        assert (mount / "old.onnx").read_bytes() == b"x" * 8192
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("command", [
    ["quantize", "{model}", "-p", "int4", "-o", "{out}.onnx"],
    ["export", "{vit}", "--to", "stablehlo", "--dim", "batch_size=1", "-o", "{out}.mlir"],
    ["quantize", "{gguf}", "-p", "q2_k", "-o", "{out}.gguf"],
])
def test_interrupted(octavo, environment, models, tmp_path, command):
    """SIGINT: exit 130, nothing left, and the file that --force was to replace is still there."""
    names = {"model": models["minilm"], "vit": models["vit"], "gguf": tmp_path / "w.gguf", "out": tmp_path / "out"}
    if "{gguf}" in command:
        octavo("export", models["minilm"], "--to", "gguf", "-o", names["gguf"])
    args = [str(OCTAVO), *[a.format(**names) for a in command], "--force"]
    out = pathlib.Path(args[-2])
    out.write_text("old")
    before = sorted(tmp_path.iterdir())
    for wait in (0.4, 0.2, 0.1, 0.8, 0.05, 1.6):  # before the handler stands it is -SIGINT, after the end it is 0
        p = subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        time.sleep(wait)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
        if p.returncode == 130:
            break
        out.write_text("old")
    assert p.returncode == 130 and err.count("octavo: error:") == 1, err
    assert sorted(tmp_path.iterdir()) == before and out.read_text() == "old"


def test_names_that_are_no_ascii(octavo, small_cnn, small_data, tmp_path):
    folder = tmp_path / "ein Ördner" / "数据"
    shutil.copytree(small_data, folder / "prøver 1")
    shutil.copy(small_cnn, folder / "möd el.onnx")
    octavo("build", "--onnx", folder / "möd el.onnx", "--data", folder / "prøver 1", "-o", folder / "aus gabe")
    assert manifest(folder / "aus gabe")["source"]["path"].endswith("möd el.onnx")


@pytest.mark.parametrize("command", [
    ["build", "--onnx", "{cnn}", "--data", "{data}", "-o", "{out}"],
    ["quantize", "{cnn}", "--data", "{data}", "-o", "{out}"],
    ["calibrate", "{cnn}", "--data", "{data}", "-o", "{out}"],
    ["compile", "{cnn}", "--data", "{data}", "-o", "{out}"],
    ["export", "{cnn}", "--to", "circle", "--dim", "n=1", "-o", "{out}"],
    ["rewrite", "{cnn}", "-o", "{out}"],
    ["quantize", "{gguf}", "-p", "q8_0", "-o", "{out}"],
    ["calibrate", "merge", "{stats}", "{stats}", "-o", "{out}"],
])
def test_dry_runs_write_json_and_nothing_else(octavo, small_cnn, small_data, tmp_path, command):
    names = {"cnn": small_cnn, "data": small_data, "out": tmp_path / "out", "gguf": tmp_path / "w.gguf", "stats": tmp_path / "s.json"}
    octavo("export", small_cnn, "--to", "gguf", "-o", names["gguf"])
    octavo("calibrate", small_cnn, "--data", small_data, "-o", names["stats"])
    r = octavo(*[a.format(**names) for a in command], "--dry-run", "--json", tmp_path / "plan.json")
    assert r.out and json.loads((tmp_path / "plan.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "s.json", "w.gguf"]


def test_a_cache_that_cannot_be_written_is_done_without(octavo, small_cnn, small_data, tmp_path):
    (tmp_path / "file").write_text("")
    for n, cache in enumerate((tmp_path / "file", "/proc/nowhere")):
        r = octavo("build", "--onnx", small_cnn, "--data", small_data, "-o", tmp_path / f"o{n}", env={"XDG_CACHE_HOME": str(cache)})
        assert "not kept" in r.err
        m = manifest(tmp_path / f"o{n}")
        assert any("not kept" in w for w in m["warnings"]) and m["calibration"]["samples"] == 48


def test_the_cache_gives_the_same_model(octavo, small_cnn, small_data, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    build = ["build", "--onnx", small_cnn, "--data", small_data, "--samples", "16", "-p", "int8"]
    octavo(*build, "-o", tmp_path / "a", env=env)
    shutil.rmtree(tmp_path / "cache" / "octavo" / "builds")
    octavo(*build, "-o", tmp_path / "b", env=env)
    status = {s["name"]: s["status"] for s in manifest(tmp_path / "b")["stages"]}
    assert status["quantize"] == "reused" and status["validate"] == "done"
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    a, b = manifest(tmp_path / "a")["calibration"], manifest(tmp_path / "b")["calibration"]
    assert a == b and a["source"] == "data" and a["samples"] == 16
    shutil.rmtree(tmp_path / "cache" / "octavo" / "builds")
    [kept] = (tmp_path / "cache" / "octavo" / "calibration").iterdir()
    kept.write_text(kept.read_text()[:1000])
    r = octavo(*build, "-o", tmp_path / "c", env=env)
    assert "damaged" in r.err
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "c" / "model.onnx").read_bytes()


def test_a_build_that_is_finished_comes_from_the_cache(octavo, small_cnn, small_data, tmp_path):
    """Other places, the same contents. Warnings are repeated; one bit of one byte and nothing is reused."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    octavo("build", "--onnx", small_cnn, "--dim", "n=1", "-o", tmp_path / "a", env=env)
    moved = shutil.copy(small_cnn, tmp_path / "moved.onnx")
    r = octavo("build", "--onnx", moved, "--dim", "n=1", "-o", tmp_path / "b", "--json", tmp_path / "b.json", env=env)
    assert "from the cache" in r.out and r.err.count("NOT validated") == 1
    a, b = manifest(tmp_path / "a"), manifest(tmp_path / "b")
    assert b == json.loads((tmp_path / "b.json").read_text()) and b["source"]["path"] == str(moved)
    assert [s["status"] for s in b["stages"] if s["name"] in ("quantize", "validate")] == ["reused", "reused"]
    assert a["validate"] == b["validate"] and a["inputs_sha256"] == b["inputs_sha256"]
    for artifact in b["artifacts"]:
        assert hashlib.sha256((tmp_path / "b" / artifact["path"]).read_bytes()).hexdigest() == artifact["sha256"]
    assert "from the cache" not in octavo("build", "--onnx", moved, "--dim", "n=1", "-o", tmp_path / "c", "--no-cache", env=env).out
    model = onnx.load(moved)
    weight = np.frombuffer(model.graph.initializer[0].raw_data, np.uint8).copy()
    weight[0] ^= 1
    model.graph.initializer[0].raw_data = weight.tobytes()
    onnx.save(model, moved)
    assert "from the cache" not in octavo("build", "--onnx", moved, "--dim", "n=1", "-o", tmp_path / "d", env=env).out
    [entry] = [p for p in (tmp_path / "cache" / "octavo" / "builds").iterdir() if p.name == a["inputs_sha256"]]
    damaged = bytearray((entry / "model.onnx").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (entry / "model.onnx").write_bytes(damaged)
    r = octavo("build", "--onnx", small_cnn, "--dim", "n=1", "-o", tmp_path / "e", env=env)
    assert "damaged" in r.err and "from the cache" not in r.out
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "e" / "model.onnx").read_bytes()


def test_two_builds_of_the_same_inputs_at_once(small_cnn, small_data, tmp_path):
    command = [str(OCTAVO), "build", "--onnx", str(small_cnn), "--data", str(small_data), "--samples", "8", "-o", str(tmp_path / "out")]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    runs = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [(*run.communicate(), run.returncode) for run in runs]
    assert [s[2] for s in said] == [0] * 4, said
    assert sum("built" in s[0] for s in said) == 1 and sum("up to date" in s[0] for s in said) == 3, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]
    assert "up to date" in subprocess.run(command, env=env, capture_output=True, text=True).stdout


def test_missing_parents_of_the_output(octavo, small_cnn, small_data, tmp_path):
    octavo("build", "--onnx", small_cnn, "--data", small_data, "-o", tmp_path / "a" / "b" / "o")
    octavo("quantize", small_cnn, "--data", small_data, "-o", tmp_path / "c" / "d" / "q.onnx", "--json", tmp_path / "e" / "j.json")
    octavo("calibrate", small_cnn, "--data", small_data, "-o", tmp_path / "f" / "s.json")
    octavo("build", "--onnx", small_cnn, "--data", small_data, "--min-sqnr", "200", "-o", tmp_path / "g" / "o", code=5)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if "a/b/o/" not in str(p))
    assert found == ["a", "a/b", "a/b/o", "c", "c/d", "c/d/q.onnx", "e", "e/j.json", "f", "f/s.json"]


def test_a_refused_result_does_not_cost_the_old_file(octavo, tmp_path):
    """The runtime knows no such operator: the model cannot be loaded, before or after."""
    node = helper.make_node("Frob", ["x"], ["y"], domain="nobody")
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("nobody", 1)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    (tmp_path / "q.onnx").write_text("precious")
    r = octavo("quantize", tmp_path / "m.onnx", "-p", "fp32", "-o", tmp_path / "q.onnx", "--force", code=None)
    assert r.code in (3, 4) and "Frob" in r.error
    assert (tmp_path / "q.onnx").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "q.onnx"]
    onnx.save(make_small_cnn(), str(tmp_path / "m.onnx"))
    octavo("quantize", tmp_path / "m.onnx", "-p", "fp32", "-o", tmp_path / "q.onnx", "--force")
    onnx.checker.check_model(str(tmp_path / "q.onnx"))


def test_a_json_without_statistics_is_named_so(octavo, tmp_path):
    (tmp_path / "c.json").write_text('{"schema_version": 1, "quantization": {"precision": "int8"}}')
    assert "no calibration statistics" in octavo("inspect", tmp_path / "c.json", code=3).error


def test_the_dry_run_of_an_export_says_what_the_profile_makes(octavo, small_cnn, small_data, tmp_path):
    args = ["export", small_cnn, "--to", "circle", "--dim", "n=1", "--profile", "i8-channel", "--data", small_data,
            "-o", tmp_path / "m.circle"]
    octavo(*args, "--dry-run", "--json", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert not (tmp_path / "m.circle").exists() and "48 samples" in plan["samples"]
    assert plan["effective_types"] == {"weights": "s8 per channel, symmetric", "activations": "s8"}
    octavo(*args, "--keep-float", "none")
    stored = octavo("inspect", tmp_path / "m.circle").out
    assert "s8 per channel" in stored and "u8" not in stored, stored
