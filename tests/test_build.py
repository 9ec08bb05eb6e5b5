"""`octavo build` on the four real models and on small ones: artifacts, manifest, repeatability, refusals."""
import hashlib
import json
import pathlib

import numpy as np
import onnx
import pytest
from conftest import load_samples, manifest, outputs, session, sqnr

REAL = [(m, p) for m in ("cls", "det", "minilm", "vit") for p in ("uint8", "int8")]


@pytest.fixture(scope="session")
def builds(octavo, models, data, tmp_path_factory):
    """builds(model, precision) -> OUT, built once a session from 32 samples, validated on 16 others."""
    made = {}

    def build(model, precision):
        if (model, precision) not in made:
            out = tmp_path_factory.mktemp("builds") / f"{model}-{precision}"
            octavo("build", "--onnx", models[model], "--device", "cpu", "--precision", precision, "--data", data[model],
                   "--samples", 32, "--validate-samples", 8 if model == "vit" else 16, "-o", out)
            made[model, precision] = out
        return made[model, precision]

    return build


@pytest.mark.parametrize("model,precision", REAL)
def test_real_models_build_and_run(builds, models, data, model, precision):
    out = builds(model, precision)
    m = manifest(out)
    assert m["quantize"]["nodes_quantized"] > 0
    assert m["calibration"]["samples"] == 32 and m["calibration"]["source"] == "data"
    assert m["validate"]["validated_on"] == "held_out"
    kinds = {n.op_type for n in onnx.load(str(out / "quantized.onnx"), load_external_data=False).graph.node}
    assert "QuantizeLinear" in kinds and "DequantizeLinear" in kinds
    # What the manifest says was measured is what ONNX Runtime's own Python package measures here.
    count = 8 if model == "vit" else 16
    held = load_samples(data[model])[32:32 + count]
    reference = outputs(models[model], held)
    got = sqnr(reference, outputs(out / "model.onnx", held))
    assert got > 10, f"{model} {precision}: {got:.1f} dB"
    quantized = outputs(out / "model.onnx", held)
    for i, output in enumerate(session(models[model]).get_outputs()):
        ours = next(o["sqnr_db"] for o in m["validate"]["outputs"] if o["name"] == output.name)
        theirs = sqnr([[r[i]] for r in reference], [[g[i]] for g in quantized])
        assert ours == 300 if theirs == float("inf") else abs(ours - theirs) < 0.5, (output.name, ours, theirs)
    # About as good without the runtime's optimizations: no kernel saturates.
    assert sqnr(reference, outputs(out / "model.onnx", held, optimize=False)) > got - 4


@pytest.mark.parametrize("model", ["cls", "det", "vit"])  # most of MiniLM is its embedding table, which stays float
def test_weights_are_stored_small(builds, models, model):
    m = manifest(builds(model, "uint8"))
    size = sum(a["bytes"] for a in m["artifacts"] if a["path"].startswith("model.onnx"))
    assert size < 0.75 * models[model].stat().st_size


def test_manifest_schema(builds, models):
    out = builds("cls", "uint8")
    m = manifest(out)
    assert m["schema_version"] == 1
    assert m["source"]["sha256"] == hashlib.sha256(models["cls"].read_bytes()).hexdigest()
    assert m["source"]["bytes"] == models["cls"].stat().st_size
    assert m["device"]["name"] == "cpu" and m["device"]["ep"] == "CPUExecutionProvider"
    assert m["precision"] == "uint8" and set(m["effective_types"]) >= {"weights", "activations"}
    assert m["quantization_config"]["samples"] == 32
    assert {"source", "samples", "method", "sha256"} <= set(m["calibration"])
    for stage in m["stages"]:
        assert {"name", "status", "seconds", "peak_rss_bytes"} <= set(stage)
        assert stage["seconds"] >= 0
    q = m["quantize"]
    assert q["nodes_total"] >= q["nodes_quantized"] > 0
    assert all(set(s) >= {"node", "op", "reason"} and s["reason"] for s in q["nodes_skipped"])
    assert q["calibration_time_seconds"] > 0 and q["qdq_insertion_time_seconds"] > 0
    assert all({"rule", "class", "applied", "refused"} <= set(r) for r in m["rewrite"])
    assert m["compile"]["ep_context_nodes"] == 0
    for o in m["validate"]["outputs"]:
        assert {"name", "sqnr_db", "cosine", "max_abs"} <= set(o)
    for a in m["artifacts"]:
        content = (out / a["path"]).read_bytes()
        assert a["bytes"] == len(content) and a["sha256"] == hashlib.sha256(content).hexdigest()
    assert {a["path"] for a in m["artifacts"]} >= {"model.onnx", "quantized.onnx", "config.json"}
    assert isinstance(m["warnings"], list)


def build_small(octavo, cnn, data, out, *more, **kw):
    return octavo("build", "--onnx", cnn, "--device", "cpu", "--data", data, "--samples", 32, "-o", out, *more, **kw)


@pytest.mark.parametrize("precision", ["uint8", "int8", "w8a16", "int16"])
def test_static_precisions(octavo, small_cnn, small_data, tmp_path, precision):
    build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", precision)
    held = load_samples(small_data)[32:]
    got = sqnr(outputs(small_cnn, held), outputs(tmp_path / "o" / "model.onnx", held))
    assert got > (20 if precision in ("uint8", "int8") else 30), got


@pytest.mark.parametrize("model,precision,least", [("cls", "fp16", 55), ("minilm", "fp16", 55), ("det", "fp16", 55), ("minilm", "bf16", 30), ("cls", "bf16", 30),
                                                   ("cls", "fp32", 90), ("minilm", "fp32", 90), ("det", "fp32", 90)])
def test_float_precisions(octavo, models, data, tmp_path, model, precision, least):
    out = tmp_path / "o"
    octavo("build", "--onnx", models[model], "--device", "cpu", "--precision", precision, "--data", data[model],
           "--samples", 8, "--validate-samples", 8, "-o", out)
    held = load_samples(data[model], 8)
    assert sqnr(outputs(models[model], held), outputs(out / "model.onnx", held)) >= least
    if model == "minilm" and precision != "fp32":
        assert (out / "model.onnx").stat().st_size < 0.6 * models[model].stat().st_size + 100_000


def test_config_json_repeats_the_build(octavo, small_cnn, small_data, tmp_path):
    build_small(octavo, small_cnn, small_data, tmp_path / "a", "--precision", "int8", "--calibration", "percentile",
                "--percentile", "99.9", "--exclude", "depthwise")
    octavo("build", "--onnx", small_cnn, "--data", small_data, "--config", tmp_path / "a" / "config.json", "-o", tmp_path / "b")
    for name in ("model.onnx", "quantized.onnx", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("model", ["small", "cls"])
def test_threads_do_not_change_the_artifact(octavo, small_cnn, small_data, models, data, tmp_path, model):
    onnx_path, folder = (small_cnn, small_data) if model == "small" else (models["cls"], data["cls"])
    for n in (1, 2):
        octavo("build", "--onnx", onnx_path, "--device", "cpu", "--precision", "uint8", "--data", folder, "--samples", 16,
               "--calibration", "entropy", "--threads", n, "--no-cache", "-o", tmp_path / str(n))
    assert (tmp_path / "1" / "model.onnx").read_bytes() == (tmp_path / "2" / "model.onnx").read_bytes()


def test_staged_commands_give_the_same_bytes(octavo, small_cnn, small_data, tmp_path):
    build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "uint8")
    octavo("quantize", small_cnn, "-o", tmp_path / "q.onnx", "--precision", "uint8", "--data", small_data, "--samples", 32)
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "o" / "quantized.onnx").read_bytes()
    octavo("calibrate", small_cnn, "--data", small_data, "--samples", 32, "-o", tmp_path / "s.json")
    octavo("quantize", small_cnn, "-o", tmp_path / "r.onnx", "--precision", "uint8", "--load-statistics", tmp_path / "s.json")
    assert (tmp_path / "r.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_merged_shards_equal_one_run(octavo, small_cnn, small_data, tmp_path, method):
    shards = [tmp_path / "s0", tmp_path / "s1"]
    for s in shards:
        s.mkdir()
    files = sorted(small_data.glob("*.npz"))
    for i, f in enumerate(files):
        (shards[i % 2] / f.name).symlink_to(f)
    for i, folder in enumerate([*shards, small_data]):
        octavo("calibrate", small_cnn, "--data", folder, "--samples", len(files), "--calibration", method, "-o", tmp_path / f"{i}.json")
    octavo("calibrate", "merge", tmp_path / "1.json", tmp_path / "0.json", "-o", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert json.loads((tmp_path / "m.json").read_text())["tensors"]


def test_up_to_date_refused_and_forced(octavo, small_cnn, small_data, tmp_path):
    out = tmp_path / "o"
    build_small(octavo, small_cnn, small_data, out, "--precision", "uint8")
    before = (out / "manifest.json").read_bytes()
    again = build_small(octavo, small_cnn, small_data, out, "--precision", "uint8")
    assert "up to date" in again.out + again.err
    assert (out / "manifest.json").read_bytes() == before
    refused = build_small(octavo, small_cnn, small_data, out, "--precision", "int8", code=2)
    assert "--force" in refused.error
    assert (out / "manifest.json").read_bytes() == before
    build_small(octavo, small_cnn, small_data, out, "--precision", "int8", "--force")
    assert manifest(out)["precision"] == "int8"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    build_small(octavo, small_cnn, small_data, tmp_path / "mine", code=2)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_one_changed_byte_of_data_rebuilds(octavo, small_cnn, small_data, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for f in small_data.glob("*.npz"):
        (folder / f.name).write_bytes(f.read_bytes())
    build_small(octavo, small_cnn, folder, tmp_path / "o", "--precision", "uint8")
    sample = dict(np.load(folder / "00.npz"))
    sample["x"].flat[0] += 1
    np.savez(folder / "00.npz", **sample)
    assert "--force" in build_small(octavo, small_cnn, folder, tmp_path / "o", "--precision", "uint8", code=2).error


def test_min_sqnr_is_a_gate(octavo, small_cnn, small_data, tmp_path):
    r = build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "uint8", "--min-sqnr", "200", code=5)
    assert "200" in r.error and not (tmp_path / "o").exists()
    build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "uint8", "--min-sqnr", "15")


def test_without_data_is_honest(octavo, small_cnn, tmp_path):
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "-o", tmp_path / "o", "--dim", "n=1")
    m = manifest(tmp_path / "o")
    assert m["calibration"]["source"] == "synthetic"
    assert "--data" in r.err and any("synthetic" in w for w in m["warnings"])
    for more, env in ((["--require-data"], {}), ([], {"OCTAVO_REQUIRE_DATA": "1"})):
        r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "-o", tmp_path / "p", "--dim", "n=1", *more,
                   env=env, code=2)
        assert "--data" in r.error and not (tmp_path / "p").exists()
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "-o", tmp_path / "p", code=2)
    assert "--dim" in r.error


def test_few_samples_are_marked(octavo, small_cnn, small_data, tmp_path):
    r = octavo("build", "--onnx", small_cnn, "--device", "cpu", "--precision", "uint8", "--data", small_data, "-o", tmp_path / "o")
    m = manifest(tmp_path / "o")
    assert m["calibration"]["samples"] == 48 and m["validate"]["validated_on"] == "calibration"
    assert any("hold any out" in w for w in m["warnings"]), (r.err, m["warnings"])


def test_selectors(octavo, small_cnn, small_data, tmp_path):
    build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "uint8", "--exclude", "conv*", "--exclude", "depthwise")
    skipped = {s["node"]: s["reason"] for s in manifest(tmp_path / "o")["quantize"]["nodes_skipped"]}
    assert {"conv0", "conv1", "depthwise"} <= set(skipped)
    convs = [n for n in onnx.load(str(tmp_path / "o" / "model.onnx")).graph.node if n.op_type == "Conv"]
    initializers = {i.name: i.data_type for i in onnx.load(str(tmp_path / "o" / "model.onnx")).graph.initializer}
    assert convs and all(initializers.get(c.input[1]) == onnx.TensorProto.FLOAT for c in convs)
    r = build_small(octavo, small_cnn, small_data, tmp_path / "p", "--exclude", "conv9", code=2)
    assert "conv9" in r.error and "conv0" in r.error


def test_quantized_input_keeps_its_quantization(octavo, small_cnn, small_data, tmp_path):
    build_small(octavo, small_cnn, small_data, tmp_path / "a", "--precision", "uint8")
    q = tmp_path / "a" / "model.onnx"
    r = build_small(octavo, q, small_data, tmp_path / "b", "--precision", "int8")
    assert "quantized already" in r.out + r.err
    assert {s["name"]: s["status"] for s in manifest(tmp_path / "b")["stages"]}["quantize"] == "skipped"
    samples = load_samples(small_data)
    a, b = (outputs(p, samples, optimize=False) for p in (q, tmp_path / "b" / "model.onnx"))
    assert all(np.array_equal(x, y) for s, t in zip(a, b) for x, y in zip(s, t))
    build_small(octavo, q, small_data, tmp_path / "c", "--precision", "int8", "--requantize")
    assert manifest(tmp_path / "c")["quantize"]["nodes_quantized"] > 0


def test_peer_quantized_models_come_through_bit_identical(octavo, small_cnn, small_data, models, data, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, samples):
            self.it = iter(samples)

        def get_next(self):
            return next(self.it, None)

    for name, path, folder in (("cnn", small_cnn, small_data), ("det", models["det"], data["det"])):
        for weights, per_channel in ((QuantType.QUInt8, False), (QuantType.QInt8, True)):
            q = tmp_path / f"{name}-{weights}.onnx"
            quantize_static(str(path), str(q), Reader(load_samples(folder, 4)), quant_format=QuantFormat.QDQ,
                            activation_type=QuantType.QUInt8, weight_type=weights, per_channel=per_channel)
            out = tmp_path / f"{name}-{weights}-out"
            octavo("build", "--onnx", q, "--device", "cpu", "--data", folder, "--samples", 4, "--validate-samples", 8, "-o", out)
            samples = load_samples(folder, 4)
            a, b = outputs(q, samples, optimize=False), outputs(out / "quantized.onnx", samples, optimize=False)
            assert all(np.array_equal(x, y) for s, t in zip(a, b) for x, y in zip(s, t)), (name, weights)


def test_dry_run_writes_nothing(octavo, small_cnn, small_data, tmp_path):
    r = build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "uint8", "--dry-run")
    assert r.out and not (tmp_path / "o").exists() and list(tmp_path.iterdir()) == []


def test_dry_run_wants_no_more_than_the_run(octavo, small_cnn, tmp_path):
    model = onnx.load(str(small_cnn))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "m.onnx"))
    for args in (("quantize", tmp_path / "m.onnx", "-p", "int4", "-o", tmp_path / "q.onnx"),
                 ("export", tmp_path / "m.onnx", "--to", "gguf", "-p", "q8_0", "-o", tmp_path / "w.gguf"),
                 ("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "e.onnx")):
        plan = octavo(*args, "--dry-run").out  # no samples: the batch needs no size
        assert "samples      none" in plan and not args[-1].exists(), plan
        octavo(*args)
        assert args[-1].exists()
    assert "--dim" in octavo("quantize", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--dry-run", code=2).error


def test_a_precision_that_changes_nothing_says_so(octavo, small_cnn, small_data, tmp_path):
    # The model's matrices are smaller than a block, and its convolutions have windows.
    r = octavo("quantize", small_cnn, "-p", "q4_k", "-o", tmp_path / "q.onnx")
    assert "warning: precision 'q4_k' changed nothing" in r.err and "conv0" in r.err
    build_small(octavo, small_cnn, small_data, tmp_path / "o", "--precision", "q4_k")
    assert any("changed nothing" in w for w in manifest(tmp_path / "o")["warnings"])
    assert "changed nothing" not in octavo("quantize", small_cnn, "-p", "fp16", "-o", tmp_path / "p.onnx").err


def test_commands_around_the_build(octavo, small_cnn, small_data, tmp_path):
    out = tmp_path / "o"
    build_small(octavo, small_cnn, small_data, out, "--precision", "uint8")
    octavo("compare", small_cnn, out / "model.onnx", "--data", small_data, "--per-layer", "--json", tmp_path / "c.json")
    c = json.loads((tmp_path / "c.json").read_text())
    assert c["outputs"][0]["sqnr_db"] > 20
    octavo("compare", small_cnn, small_cnn, "--data", small_data)
    octavo("perf", out / "model.onnx", "--against", small_cnn, "--dim", "n=1", "--json", tmp_path / "p.json")
    p = json.loads((tmp_path / "p.json").read_text())
    assert p["latency_ms"]["p50"] > 0 and p["against"]["ratio"] > 0
    for target in (small_cnn, out / "model.onnx"):
        assert "Conv" in octavo("inspect", target).out
    assert "graph" in octavo("inspect", out / "model.onnx", "--ir").out
    assert "cpu" in octavo("devices").out
    octavo("devices", "--json", tmp_path / "d.json")
    assert any(d["name"] == "cpu" for d in json.loads((tmp_path / "d.json").read_text())["devices"])
