"""Devices: what is compiled for an NPU, run in its emulator, and what is refused. Oracles: the onnx package reads the
artifacts, ONNX Runtime the quantized form; QNN's own compiler says what it took."""
import json
import os
import pathlib

import onnx
import pytest

from conftest import CACHE, manifest, outputs, load_samples, sqnr

PLUGIN = pathlib.Path(os.environ.get("OCTAVO_QNN_LIBRARY", CACHE / "qnn-2.7.0/onnxruntime_qnn/libonnxruntime_providers_qnn.so"))
needs_qnn = pytest.mark.skipif(not PLUGIN.exists(), reason="no QNN plugin: run tools/qnn")
FIX = ("--dim", "n=1", "--samples", "8", "--validate-samples", "4")


def build(octavo, cnn, data, out, *more, code=0, env=None, device="qnn"):
    return octavo("build", "--onnx", cnn, "--device", device, "--data", data, "-o", out, *FIX, *more, code=code, env=env)


def nothing_left(folder):
    return [p.name for p in folder.iterdir()] == []


def qnn_env(**more):
    return {"OCTAVO_QNN_LIBRARY": str(PLUGIN), **more}


@needs_qnn
@pytest.mark.parametrize("precision", ["uint8", "int8", "w8a16"])
def test_one_context_and_nothing_on_the_cpu(octavo, small_cnn, small_data, tmp_path, precision):
    out = tmp_path / "out"
    build(octavo, small_cnn, small_data, out, "--precision", precision, env=qnn_env())
    m = manifest(out)
    assert m["compile"]["ep_context_nodes"] == 1
    assert m["compile"]["cpu_fallback_nodes"] == []
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    assert [n.op_type for n in model.graph.node] == ["EPContext"]
    assert {a["path"] for a in m["artifacts"]} >= {"model.onnx", "quantized.onnx"}
    assert m["validate"]["artifact_session"] == "QNNExecutionProvider"
    # What ran in the emulator is what the quantized form says on the CPU, down to the emulator's own rounding.
    emulator, quantized = m["validate"]["pooled_sqnr_db"], m["validate"]["quantized_on_cpu_pooled_sqnr_db"]
    assert emulator > min(quantized, 55) - 1.5
    samples = load_samples(small_data)[8:12]
    cpu = sqnr(outputs(small_cnn, samples), outputs(out / "quantized.onnx", samples, optimize=False))
    assert abs(cpu - m["validate"]["quantized_on_cpu_pooled_sqnr_db"]) < 0.01
    assert cpu > 20
    again = build(octavo, small_cnn, small_data, out, "--precision", precision, env=qnn_env())
    assert "up to date" in again.out


@needs_qnn
def test_the_context_can_lie_in_the_model_and_perf_takes_the_directory(octavo, small_cnn, small_data, tmp_path):
    out = tmp_path / "out"
    build(octavo, small_cnn, small_data, out, "--embed-context", env=qnn_env())
    assert not list(out.glob("*.bin"))
    node = onnx.load(str(out / "model.onnx")).graph.node[0]
    assert {a.name: a.i for a in node.attribute if a.name == "embed_mode"} == {"embed_mode": 1}
    octavo("perf", out, "--iterations", "3", "--warmup", "1", "--json", tmp_path / "p.json", env=qnn_env())
    perf = json.loads((tmp_path / "p.json").read_text())
    assert perf["provider"] == "QNNExecutionProvider" and perf["runs"] == 3


@needs_qnn
def test_compile_takes_a_quantized_model(octavo, small_cnn, small_data, tmp_path):
    build(octavo, small_cnn, small_data, tmp_path / "q", "--no-compile", env=qnn_env())
    octavo("compile", tmp_path / "q" / "quantized.onnx", "--device", "qnn", "--data", small_data, "-o", tmp_path / "c",
           "--validate-samples", "2", env=qnn_env())
    assert manifest(tmp_path / "c")["compile"]["ep_context_nodes"] == 1


@needs_qnn
@pytest.mark.parametrize("option, code", [("htp_arch=12", 2), ("htp_arhc=73", 2), ("soc_model=banana", 2)])
def test_wrong_options_are_one_line(octavo, small_cnn, small_data, tmp_path, option, code):
    folder = tmp_path / "o"
    folder.mkdir()
    r = build(octavo, small_cnn, small_data, folder / "out", "--epoption", option, code=code, env=qnn_env())
    assert r.err.count("octavo: error:") == 1
    assert nothing_left(folder)


def test_a_missing_and_a_truncated_plugin(octavo, small_cnn, small_data, tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    r = build(octavo, small_cnn, small_data, folder / "out", code=4, env={"OCTAVO_QNN_LIBRARY": str(tmp_path / "none.so")})
    assert "OCTAVO_QNN_LIBRARY" in r.err and nothing_left(folder)
    broken = tmp_path / "lib.so"
    broken.write_bytes(b"\x7fELF" + b"\0" * 1000)
    (tmp_path / "libQnnHtp.so").write_bytes(b"")
    r = build(octavo, small_cnn, small_data, folder / "out", code=4, env={"OCTAVO_QNN_LIBRARY": str(broken)})
    assert r.err.count("octavo: error:") == 1 and nothing_left(folder)


def test_dynamic_dimensions_are_refused_by_name(octavo, small_cnn, small_data, tmp_path):
    r = octavo("build", "--onnx", small_cnn, "--device", "qnn", "--data", small_data, "-o", tmp_path / "out", code=4)
    assert "'n'" in r.err and "--dim n=N" in r.err


def test_dml_is_delivered_uncompiled(octavo, small_cnn, small_data, tmp_path):
    out = tmp_path / "out"
    build(octavo, small_cnn, small_data, out, device="dml")
    m = manifest(out)
    assert "Windows" in m["compile"]["not_compiled_here"]
    assert (out / "model.onnx").exists() and m["validate"]["pooled_sqnr_db"] > 15


def test_devices_says_what_is_here(octavo, tmp_path):
    octavo("devices", "--json", tmp_path / "d.json", env={"OCTAVO_QNN_LIBRARY": str(tmp_path / "none.so")})
    devices = {d["name"]: d for d in json.loads((tmp_path / "d.json").read_text())["devices"]}
    assert set(devices) == {"cpu", "qnn", "openvino", "dml"}
    assert devices["cpu"]["can_run"] and not devices["qnn"]["can_run"]
    assert "none.so" in devices["qnn"]["state"] and "Windows" in devices["dml"]["state"]


def test_quantization_in_two_places_is_a_conflict(octavo, small_cnn, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"quantization": {"precision": "uint8"}, "compile": {"quantization": {"precision": "int8"}}}))
    octavo("build", "--onnx", small_cnn, "--device", "dml", "--config", config, "-o", tmp_path / "out", "--dim", "n=1", code=2)
