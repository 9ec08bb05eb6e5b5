"""GGUF: inspect, quantize file to file, weights in and out. The oracle is the `gguf` package's reader and writer and its
own quantizers."""
import hashlib
import json
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

rng = np.random.default_rng(7)


def write(path, tensors, fields=None, **options):
    """tensors: name -> array, or (array of bytes, type)."""
    w = gguf.GGUFWriter(str(path), "test", **options)
    for add, key, value in fields or []:
        getattr(w, add)(key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            w.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            w.add_tensor(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def read(path):
    reader = gguf.GGUFReader(str(path))
    return reader, {t.name: t for t in reader.tensors}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    """Matrices, a stack of matrices, a ragged row, a short row, a vector, integers: f32, f16 and bf16."""
    a = rng.normal(size=(48, 512)).astype(np.float32)
    tensors = {
        "blk.0.a.weight": a,
        "blk.0.half.weight": rng.normal(size=(40, 256)).astype(np.float16),
        "blk.0.bf16.weight": (gguf.quants.quantize(a, T.BF16), T.BF16),
        "blk.0.stack.weight": rng.normal(size=(3, 5, 256)).astype(np.float32),
        "blk.0.ragged.weight": rng.normal(size=(7, 96)).astype(np.float32),
        "blk.0.short.weight": rng.normal(size=(9, 20)).astype(np.float32),
        "norm.weight": rng.normal(size=(512,)).astype(np.float32),
        "table": np.arange(12, dtype=np.int32).reshape(3, 4),
    }
    fields = [("add_string", "general.name", "small"), ("add_array", "tokenizer.ggml.tokens", ["a", "b", "ü"]),
              ("add_uint32", "general.file_type", 0), ("add_float64", "custom.unknown", 0.1)]
    return write(tmp_path_factory.mktemp("gguf") / "f.gguf", tensors, fields)


def test_inspect_reports_every_metadata_type(octavo, tmp_path):
    fields = [("add_uint8", "t.u8", 200), ("add_int8", "t.i8", -100), ("add_uint16", "t.u16", 60000),
              ("add_int16", "t.i16", -30000), ("add_uint32", "t.u32", 4000000000), ("add_int32", "t.i32", -2000000000),
              ("add_uint64", "t.u64", 2**64 - 1), ("add_int64", "t.i64", -2**63), ("add_float32", "t.f32", 0.5),
              ("add_float64", "t.f64", 0.1), ("add_bool", "t.yes", True), ("add_bool", "t.no", False),
              ("add_string", "t.text", "żółw\n"), ("add_array", "t.ints", [1, -2, 3]),
              ("add_array", "t.words", ["x", "", "long " * 50]), ("add_array", "t.floats", [0.5, -1.5]),
              ("add_array", "t.bools", [True, False]), ("add_array", "t.nested", [[1, 2], [3], [4, 5, 6]])]
    path = write(tmp_path / "m.gguf", {"w": rng.normal(size=(3, 4)).astype(np.float32)}, fields)
    result = octavo("inspect", path, "--json", tmp_path / "i.json")
    info = json.loads((tmp_path / "i.json").read_text())
    got = {f["key"]: f["value"] for f in info["metadata"]}
    for _, key, value in fields:
        assert got[key] == value, key
    types = {f["key"]: f["type"] for f in info["metadata"]}
    assert types["t.u8"] == "u8" and types["t.i64"] == "i64" and types["t.f64"] == "f64" and types["t.nested"] == "array"
    assert "t.text" in result.out and "żółw" in result.out


def test_inspect_agrees_with_the_reader_on_every_type(octavo, tmp_path):
    tensors = {}
    for t, (block, size) in gguf.GGML_QUANT_SIZES.items():
        plain = {T.F32: np.float32, T.F16: np.float16, T.F64: np.float64, T.I8: np.int8, T.I16: np.int16,
                 T.I32: np.int32, T.I64: np.int64}.get(t)
        if plain is not None:
            tensors[t.name] = np.ones((2, 6), dtype=plain)
        else:
            tensors[t.name] = (np.zeros((3, 2 * size), dtype=np.uint8), t)
    path = write(tmp_path / "m.gguf", tensors)
    octavo("inspect", path, "--json", tmp_path / "i.json")
    info = {t["name"]: t for t in json.loads((tmp_path / "i.json").read_text())["tensors"]}
    _, expected = read(path)
    assert set(info) == set(expected) and len(info) >= 30
    for name, t in expected.items():
        assert info[name]["type"] == name.lower()
        assert info[name]["shape"] == t.shape.tolist()
        assert info[name]["bytes"] == t.n_bytes
        assert info[name]["offset"] == t.data_offset


@pytest.mark.parametrize("precision,qtype", [("q8_0", T.Q8_0), ("q4_0", T.Q4_0), ("q5_1", T.Q5_1), ("fp16", T.F16),
                                             ("bf16", T.BF16)])
def test_quantize_writes_what_ggml_writes(octavo, float_model, tmp_path, precision, qtype):
    out = tmp_path / "q.gguf"
    octavo("quantize", float_model, "-o", out, "--precision", precision, "--threads", 2)
    source, before = read(float_model)
    reader, after = read(out)
    assert list(after) == list(before)
    for name, t in after.items():
        x = before[name]
        assert t.shape.tolist() == x.shape.tolist()
        if name in ("norm.weight", "table"):
            assert t.tensor_type == x.tensor_type and np.array_equal(t.data, x.data)
            continue
        if name == "blk.0.short.weight" and qtype not in (T.F16, T.BF16):
            assert t.tensor_type == T.F16  # 20 elements are no block of 32
            assert np.array_equal(t.data, x.data.astype(np.float16))
            continue
        assert t.tensor_type == qtype
        values = gguf.quants.dequantize(x.data, x.tensor_type).astype(np.float32)
        expected = gguf.quants.quantize(values, qtype)
        assert np.array_equal(np.asarray(t.data).view(np.uint8), expected.view(np.uint8)), name
    # unknown metadata stay as they are, the type of the file is told
    assert reader.fields["custom.unknown"].contents() == 0.1
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "ü"]
    assert reader.fields["general.name"].contents() == "small"
    file_type = {"q8_0": 7, "q4_0": 2, "q5_1": 9, "fp16": 1, "bf16": 32}[precision]
    assert reader.fields["general.file_type"].contents() == file_type
    if qtype not in (T.F16, T.BF16):
        assert reader.fields["general.quantization_version"].contents() == 2


def test_fallbacks_are_said(octavo, float_model, tmp_path):
    out = tmp_path / "q.gguf"
    result = octavo("quantize", float_model, "-o", out, "--precision", "q4_k")
    _, after = read(out)
    assert after["blk.0.a.weight"].tensor_type == T.Q4_K
    assert after["blk.0.ragged.weight"].tensor_type == T.Q5_0  # rows of 96
    assert after["blk.0.short.weight"].tensor_type == T.F16    # rows of 20
    said = [l for l in result.out.splitlines() if l.startswith("  fallback: ")]
    assert len(said) == 2
    assert any("blk.0.ragged.weight" in l and "q5_0" in l and "96" in l for l in said)
    assert any("blk.0.short.weight" in l and "f16" in l for l in said)


def test_dry_run_says_exact_sizes_and_writes_nothing(octavo, float_model, tmp_path):
    out = tmp_path / "q.gguf"
    args = ("quantize", float_model, "-o", out, "--precision", "q6_k", "--override", "*stack*=q8_0", "--exclude",
            "blk.0.half*")
    result = octavo(*args, "--dry-run", "--json", tmp_path / "plan.json")
    assert not out.exists()
    octavo(*args)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["bytes"] == out.stat().st_size and str(out.stat().st_size) in result.out
    _, after = read(out)
    for t in plan["tensors"]:
        assert after[t["name"]].n_bytes == t["bytes"]
        assert after[t["name"]].tensor_type.name.lower() == t["type"]
    assert after["blk.0.stack.weight"].tensor_type == T.Q8_0
    assert after["blk.0.half.weight"].tensor_type == T.F16


def test_bytes_depend_on_neither_threads_nor_memory(octavo, tmp_path):
    tensors = {f"w{i}": rng.normal(size=(700, 512)).astype(np.float32) for i in range(5)}
    source = write(tmp_path / "f.gguf", tensors)
    digests = set()
    for i, args in enumerate([("--threads", 1), ("--threads", 3), ("--threads", 2, "--max-memory", "64M"),
                              ("--threads", 4, "--max-memory", "2G")]):
        out = tmp_path / f"{i}.gguf"
        octavo("quantize", source, "-o", out, "--precision", "q5_k", *args)
        digests.add(digest(out))
    assert len(digests) == 1
    error = octavo("quantize", source, "-o", tmp_path / "x.gguf", "--precision", "q5_k", "--max-memory", "1M", code=2)
    assert "--max-memory" in error.error and "give at least" in error.error


def test_split_input_becomes_one_file(octavo, tmp_path):
    tensors = {f"w{i}": rng.normal(size=(8, 256)).astype(np.float32) for i in range(5)}
    write(tmp_path / "m.gguf", tensors, [("add_string", "general.name", "split")], split_max_tensors=2)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    octavo("inspect", parts[0], "--json", tmp_path / "i.json")
    info = json.loads((tmp_path / "i.json").read_text())
    assert info["files"] == 3 and len(info["tensors"]) == 5
    out = tmp_path / "q.gguf"
    octavo("quantize", parts[1], "-o", out, "--precision", "q8_0")
    reader, after = read(out)
    assert not [k for k in reader.fields if k.startswith("split.")]
    assert reader.fields["general.name"].contents() == "split"
    for name, x in tensors.items():
        assert np.array_equal(after[name].data, gguf.quants.quantize(x, T.Q8_0))
    parts[2].unlink()
    assert "missing" in octavo("inspect", parts[0], code=3).error


def test_alignment_is_kept(octavo, tmp_path):
    w = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "test")
    w.add_custom_alignment(128)
    w.add_tensor("x", rng.normal(size=(3, 32)).astype(np.float32))
    w.add_tensor("y", rng.normal(size=(3, 32)).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    octavo("quantize", tmp_path / "a.gguf", "-o", tmp_path / "q.gguf", "--precision", "q8_0")
    reader, after = read(tmp_path / "q.gguf")
    assert reader.alignment == 128 and all(t.data_offset % 128 == 0 for t in after.values())


def test_requantizing_is_asked_for(octavo, tmp_path):
    x = rng.normal(size=(6, 256)).astype(np.float32)
    q8 = gguf.quants.quantize(x, T.Q8_0)
    source = write(tmp_path / "q8.gguf", {"w": (q8, T.Q8_0), "same": (gguf.quants.quantize(x, T.Q4_0), T.Q4_0)})
    error = octavo("quantize", source, "-o", tmp_path / "q4.gguf", "--precision", "q4_0", code=4).error
    assert "tensor w" in error and "--requantize" in error
    octavo("quantize", source, "-o", tmp_path / "q4.gguf", "--precision", "q4_0", "--requantize")
    _, after = read(tmp_path / "q4.gguf")
    assert np.array_equal(after["w"].data, gguf.quants.quantize(gguf.quants.dequantize(q8, T.Q8_0), T.Q4_0))
    assert np.array_equal(after["same"].data, gguf.quants.quantize(x, T.Q4_0))  # not decoded and encoded again
    octavo("quantize", source, "-o", tmp_path / "f.gguf", "--precision", "fp32")  # exact, so it needs no permission
    _, after = read(tmp_path / "f.gguf")
    assert np.array_equal(after["w"].data, gguf.quants.dequantize(q8, T.Q8_0))


def test_importance_matrix_changes_what_it_should(octavo, tmp_path):
    tensors = {"w": rng.normal(size=(8, 256)).astype(np.float32), "v": rng.normal(size=(8, 256)).astype(np.float32),
               "stack": rng.normal(size=(2, 4, 256)).astype(np.float32)}
    source = write(tmp_path / "f.gguf", tensors)
    importance = np.abs(rng.normal(size=256)).astype(np.float32) * 4
    stack = np.abs(rng.normal(size=(2, 256))).astype(np.float32)
    matrix = write(tmp_path / "i.gguf", {
        "w.in_sum2": importance.reshape(1, 256), "w.counts": np.full((1, 1), 4, np.float32),
        "stack.in_sum2": stack, "stack.counts": np.ones((2, 1), np.float32)})
    dat = b"".join([struct.pack("<i", 2)] + [
        struct.pack("<i", len(n)) + n + struct.pack("<ii", c, v.size) + v.tobytes()
        for n, c, v in [(b"w", 4, importance), (b"stack", 1, stack.ravel())]])
    (tmp_path / "i.dat").write_bytes(dat)
    outs = {}
    for name, args in {"plain": (), "gguf": ("--imatrix", matrix), "dat": ("--imatrix", tmp_path / "i.dat")}.items():
        octavo("quantize", source, "-o", tmp_path / f"{name}.gguf", "--precision", "q4_k", *args)
        outs[name] = read(tmp_path / f"{name}.gguf")
    for name in tensors:
        assert np.array_equal(outs["gguf"][1][name].data, outs["dat"][1][name].data)
        assert np.array_equal(outs["gguf"][1][name].data, outs["plain"][1][name].data) == (name == "v")
    # it lowers the error where the importance lies
    def error(kind, name, weight):
        got = gguf.quants.dequantize(outs[kind][1][name].data, T.Q4_K)
        return float((((got - tensors[name]) ** 2) * weight).sum())
    assert error("gguf", "w", importance) < error("plain", "w", importance)
    assert error("gguf", "stack", stack[:, None, :]) < error("plain", "stack", stack[:, None, :])
    assert outs["gguf"][0].fields["quantize.imatrix.entries_count"].contents() == 2
    wrong = write(tmp_path / "wrong.gguf", {"w.in_sum2": importance[:32].reshape(1, 32), "w.counts": np.ones((1, 1), np.float32)})
    for more in ([], ["--dry-run"]):
        assert "another model" in octavo("quantize", source, "-o", tmp_path / "x.gguf", "--precision", "q4_k", "--imatrix",
                                         wrong, *more, code=3).error


@pytest.mark.parametrize("args,says", [
    (("--precision", "uint8"), "cannot hold 'uint8'"),
    ((), "--precision q4_k"),
    (("--precision", "q4_k", "--override", "nothing*=q8_0"), "matches no tensor"),
    (("--precision", "q4_k", "--override", "blk.0.a.weight=q4_9"), "cannot hold 'q4_9'"),
    (("--precision", "q4_k", "--override", "table=q8_0"), "type i32 cannot become q8_0"),
    (("--precision", "q4_k", "--exclude", "blk.0.a.wieght"), "blk.0.a.weight"),
    (("--precision", "q4_k", "--per-channel"), "per_channel"),
    (("--precision", "q4_k", "--data", "."), "--data"),
    (("--precision", "q4_k", "--max-memory", "much"), "'much' is not a size"),
])
def test_usage_errors(octavo, float_model, tmp_path, args, says):
    result = octavo("quantize", float_model, "-o", tmp_path / "q.gguf", *args, code=2)
    assert says in result.error
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_gguf_are_refused_for_a_model(octavo, small_cnn, tmp_path):
    assert "--max-memory" in octavo("quantize", small_cnn, "-o", tmp_path / "q.onnx", "--max-memory", "1G", code=2).error


def test_nan_is_refused_and_nothing_is_left(octavo, tmp_path):
    x = rng.normal(size=(4, 256)).astype(np.float32)
    x[2, 7] = np.nan
    source = write(tmp_path / "f.gguf", {"w": x})
    assert "tensor w" in octavo("quantize", source, "-o", tmp_path / "q.gguf", "--precision", "q4_k", code=3).error
    assert [p.name for p in tmp_path.iterdir()] == ["f.gguf"]
    octavo("quantize", source, "-o", tmp_path / "q.gguf", "--precision", "q4_k", "--exclude", "w")


def test_weights_too_large_for_a_format_are_refused(octavo, tmp_path):
    x = rng.normal(size=(2, 256)).astype(np.float32)
    x[1, 3] = 1e9
    source = write(tmp_path / "f.gguf", {"w": x})
    for precision in ("q4_k", "q8_0", "fp16"):
        error = octavo("quantize", source, "-o", tmp_path / "q.gguf", "--precision", precision, code=3).error
        assert "too large for" in error and "tensor w" in error
    octavo("quantize", source, "-o", tmp_path / "q.gguf", "--precision", "bf16")


def test_hostile_files_are_refused_in_one_line(octavo, float_model, tmp_path):
    whole = float_model.read_bytes()
    path = tmp_path / "bad.gguf"
    for n in (3, 10, 24, 100, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:n])
        octavo("inspect", path, code=3).error
    at = whole.index(b"norm.weight") + len(b"norm.weight")
    for offset, value in [(4, struct.pack("<Q", 2**62)), (16, struct.pack("<Q", 2**63)), (12, struct.pack("<I", 4))]:
        bad = bytearray(whole)
        bad[at + offset:at + offset + len(value)] = value
        path.write_bytes(bad)
        result = octavo("inspect", path, code=None)
        assert result.code in (3, 4) and "norm.weight" in result.error


@pytest.mark.slow
def test_big_file_keeps_within_its_memory(octavo, tmp_path):
    """4 GB of f32 through 512 MiB; the peak is the kernel's own account of the process."""
    import os
    import subprocess
    from conftest import OCTAVO
    source, out = tmp_path / "big.gguf", tmp_path / "q.gguf"
    row = rng.normal(size=(1024, 4096)).astype(np.float32)
    w = gguf.GGUFWriter(str(source), "test")
    for i in range(256):
        w.add_tensor_info(f"w{i}", row.shape, row.dtype, row.nbytes)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for _ in range(256):
        w.write_tensor_data(row)
    w.close()
    assert source.stat().st_size > 4e9
    process = subprocess.Popen([str(OCTAVO), "quantize", str(source), "-o", str(out), "--precision", "q8_0",
                                "--max-memory", "512M", "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    assert usage.ru_maxrss * 1024 <= 512 << 20
    expected = gguf.quants.quantize(row, T.Q8_0)
    _, after = read(out)
    assert np.array_equal(after["w0"].data, expected) and np.array_equal(after["w255"].data, expected)


# --- weights of a model, out and in -----------------------------------------------------------------------------------


def matmul_model(path, inputs, tensors, nodes, opset=17):
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """MatMul [K, N], Gemm with transB, a square MatMul, a MatMul behind a Transpose, a bias; and its tensors."""
    from onnx import helper
    tensors = {"w1": rng.normal(size=(256, 64)), "b1": rng.normal(size=(64,)), "w2": rng.normal(size=(96, 64)),
               "b2": rng.normal(size=(96,)), "w3": rng.normal(size=(96, 96)), "w4": rng.normal(size=(32, 96))}
    tensors = {k: (v / 8).astype(np.float32) for k, v in tensors.items()}
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["m1"]), helper.make_node("Add", ["m1", "b1"], ["a1"]),
             helper.make_node("Gemm", ["a1", "w2", "b2"], ["m2"], transB=1),
             helper.make_node("MatMul", ["m2", "w3"], ["m3"]), helper.make_node("Transpose", ["w4"], ["w4t"], perm=[1, 0]),
             helper.make_node("MatMul", ["m3", "w4t"], ["y"])]
    return matmul_model(tmp_path_factory.mktemp("mlp") / "m.onnx", [5, 256], tensors, nodes), tensors


# Rows run along the dimension that is summed over.
ROWS = {"w1": lambda w: w.T, "w2": lambda w: w, "w3": lambda w: w.T, "w4": lambda w: w}


def run(path, x):
    from conftest import session
    return session(path, optimize=False).run(None, {"x": x})[0]


def reference(tensors, x):
    t = {k: v.astype(np.float64) for k, v in tensors.items()}
    return ((x @ t["w1"] + t["b1"]) @ t["w2"].T + t["b2"]) @ t["w3"] @ t["w4"].T


def test_export_writes_rows_of_the_summed_dimension(octavo, mlp, tmp_path):
    model, tensors = mlp
    octavo("export", model, "--to", "gguf", "--precision", "q8_0", "-o", tmp_path / "w.gguf")
    _, got = read(tmp_path / "w.gguf")
    assert set(got) == set(tensors)
    for name, w in tensors.items():
        if name in ROWS:
            assert np.array_equal(got[name].data, gguf.quants.quantize(np.ascontiguousarray(ROWS[name](w)), T.Q8_0)), name
        else:
            assert got[name].tensor_type == T.F32 and np.array_equal(got[name].data, w)
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "f.gguf")
    _, got = read(tmp_path / "f.gguf")
    assert all(np.array_equal(got[n].data, ROWS.get(n, lambda w: w)(w)) for n, w in tensors.items())


def test_export_types_of_single_tensors(octavo, mlp, tmp_path):
    """--override with and without a precision: any type that a GGUF holds; the rest keeps what it had."""
    model, tensors = mlp
    pairs = ("--override", "w1=q4_1", "--override", "w2=bf16", "--override", "b*=fp16")
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "f.gguf", *pairs)
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "q.gguf", "--precision", "q8_0", *pairs)
    for file, rest in (("f.gguf", T.F32), ("q.gguf", T.Q8_0)):
        _, got = read(tmp_path / file)
        types = {"w1": T.Q4_1, "w2": T.BF16, "b1": T.F16, "b2": T.F16, "w3": rest, "w4": rest}
        assert {n: t.tensor_type for n, t in got.items()} == types
        for name in ("w1", "w2", "w3"):
            want = gguf.quants.quantize(np.ascontiguousarray(ROWS[name](tensors[name])), types[name])
            np.testing.assert_array_equal(got[name].data, want)
    for bad, text in (("nothing=q8_0", "matches no tensor"), ("w1=u8", "cannot hold 'u8'")):
        assert text in octavo("export", model, "--to", "gguf", "-o", tmp_path / "n.gguf", "--override", bad, code=2).error


@pytest.mark.parametrize("precision", ["q8_0", "q4_0", "fp16", "bf16", "fp32"])
def test_weights_of_a_gguf_keep_their_bits(octavo, mlp, tmp_path, precision):
    model, tensors = mlp
    other = {k: (rng.normal(size=v.shape) / 8).astype(np.float32) for k, v in tensors.items()}
    qtype = {"q8_0": T.Q8_0, "q4_0": T.Q4_0, "fp16": T.F16, "bf16": T.BF16, "fp32": T.F32}[precision]
    stored, meant = {}, {}
    for name, w in other.items():
        rows = np.ascontiguousarray(ROWS.get(name, lambda v: v)(w))
        if name in ROWS:
            data = gguf.quants.quantize(rows, qtype)
            stored[name] = (data, qtype) if qtype not in (T.F32, T.F16) else data
            rows = gguf.quants.dequantize(data, qtype).astype(np.float32)
            meant[name] = ROWS[name](rows)
        else:
            stored[name], meant[name] = w, w
    weights = write(tmp_path / "w.gguf", stored)
    octavo("quantize", model, "--weights", weights, "-o", tmp_path / "q.onnx", "--precision", "fp32")
    x = rng.normal(size=(5, 256)).astype(np.float32)
    expected = reference(meant, x.astype(np.float64))
    got = run(tmp_path / "q.onnx", x)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
    assert np.abs(got - reference(tensors, x)).max() > 0.1 * np.abs(expected).max()  # not the model's own weights


def test_weights_by_map_and_from_safetensors(octavo, mlp, tmp_path):
    from safetensors.numpy import save_file
    model, tensors = mlp
    other = {k: (rng.normal(size=v.shape) / 8).astype(np.float32) for k, v in tensors.items()}
    save_file({f"net.{k}": np.ascontiguousarray(ROWS.get(k, lambda v: v)(w)) for k, w in other.items()},
              str(tmp_path / "w.safetensors"))
    (tmp_path / "map.json").write_text(json.dumps({k: f"net.{k}" for k in tensors}))
    assert "--weight-map" in octavo("quantize", model, "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "q.onnx",
                                    "--precision", "fp32", code=3).error
    octavo("quantize", model, "--weights", tmp_path / "w.safetensors", "--weight-map", tmp_path / "map.json", "-o",
           tmp_path / "q.onnx", "--precision", "fp32")
    x = rng.normal(size=(5, 256)).astype(np.float32)
    expected = reference(other, x.astype(np.float64))
    assert np.abs(run(tmp_path / "q.onnx", x) - expected).max() <= 2e-5 * np.abs(expected).max()
    (tmp_path / "map.json").write_text('{"w1": "net.w9"}')
    assert "net.w" in octavo("quantize", model, "--weights", tmp_path / "w.safetensors", "--weight-map",
                             tmp_path / "map.json", "-o", tmp_path / "z.onnx", code=2).error
    info = octavo("inspect", tmp_path / "w.safetensors", "--json", tmp_path / "i.json")
    assert "net.w1" in info.out and json.loads((tmp_path / "i.json").read_text())["kind"] == "safetensors"


def test_weights_that_do_not_fit_are_named(octavo, mlp, tmp_path):
    model, tensors = mlp
    wrong = write(tmp_path / "w.gguf", {"w1": rng.normal(size=(64, 128)).astype(np.float32)})
    error = octavo("quantize", model, "--weights", wrong, "-o", tmp_path / "q.onnx", code=3).error
    assert "tensor w1" in error and "[64, 128]" in error and "[256, 64]" in error
    # One weight that is stored as ONNX has it, and a square one: which way round the square one is cannot be told.
    mixed = write(tmp_path / "m.gguf", {"w1": tensors["w1"], "w3": tensors["w3"]})
    assert "orientation" in octavo("quantize", model, "--weights", mixed, "-o", tmp_path / "q.onnx", code=3).error
    junk = tmp_path / "junk.bin"
    junk.write_bytes(b"junk" * 10)
    assert "neither" in octavo("quantize", model, "--weights", junk, "-o", tmp_path / "q.onnx", code=3).error
    assert not (tmp_path / "q.onnx").exists()


def test_export_and_weights_round_trip_on_a_real_model(octavo, models, data, tmp_path):
    """MiniLM: float weights out to a GGUF and in again give the same model; q8_0 ones a close one."""
    from conftest import load_samples, outputs, sqnr
    octavo("export", models["minilm"], "--to", "gguf", "-o", tmp_path / "f.gguf")
    octavo("quantize", models["minilm"], "--weights", tmp_path / "f.gguf", "--precision", "fp32", "-o", tmp_path / "f.onnx")
    octavo("export", models["minilm"], "--to", "gguf", "--precision", "q8_0", "-o", tmp_path / "q.gguf")
    octavo("quantize", models["minilm"], "--weights", tmp_path / "q.gguf", "-o", tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 0.3 * (tmp_path / "f.onnx").stat().st_size
    samples = load_samples(data["minilm"], 2)
    expected = outputs(models["minilm"], samples)
    assert sqnr(expected, outputs(tmp_path / "f.onnx", samples)) > 100
    assert 30 < sqnr(expected, outputs(tmp_path / "q.onnx", samples)) < 60


def test_build_notices_other_weights(octavo, mlp, tmp_path):
    model, tensors = mlp
    stored = {k: np.ascontiguousarray(ROWS.get(k, lambda v: v)(w)) for k, w in tensors.items()}
    weights = write(tmp_path / "w.gguf", {k: (gguf.quants.quantize(w, T.Q8_0), T.Q8_0) if k in ROWS else w
                                          for k, w in stored.items()})
    args = ("build", "--onnx", model, "--weights", weights, "-o", tmp_path / "out")
    octavo(*args)
    assert "up to date" in octavo(*args).out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["weights"] == str(weights)
    x = rng.normal(size=(5, 256)).astype(np.float32)
    first = run(tmp_path / "out" / "model.onnx", x)
    write(weights, {k: (gguf.quants.quantize(w * 2, T.Q8_0), T.Q8_0) if k in ROWS else w for k, w in stored.items()})
    octavo(*args, code=2)
    octavo("build", "--config", tmp_path / "out" / "config.json", "-o", tmp_path / "second")
    assert np.abs(run(tmp_path / "second" / "model.onnx", x) - first).max() > 0.1 * np.abs(first).max()
    # A map without weights says nothing.
    assert "--weights" in octavo("build", "--onnx", model, "--weight-map", tmp_path / "m.json", "-o", tmp_path / "z",
                                 code=2).error


def test_half_and_shared_square_weights_come_back_the_same_way(octavo, tmp_path):
    """A square f16 weight, and a square one that Gather and MatMul read along different dimensions."""
    from onnx import TensorProto, helper
    half = (rng.normal(size=(64, 64)) / 8).astype(np.float16)
    shared = (rng.normal(size=(64, 64)) / 8).astype(np.float32)
    nodes = [helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
             helper.make_node("MatMul", ["xh", "half"], ["mh"]),
             helper.make_node("Cast", ["mh"], ["m"], to=TensorProto.FLOAT),
             helper.make_node("MatMul", ["m", "shared"], ["s"]), helper.make_node("Gather", ["shared", "rows"], ["g"]),
             helper.make_node("Add", ["s", "g"], ["y"])]
    model = matmul_model(tmp_path / "m.onnx", [3, 64],
                         {"half": half, "shared": shared, "rows": np.array([5, 0, 9], np.int64)}, nodes)
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "w.gguf")
    _, got = read(tmp_path / "w.gguf")
    assert np.array_equal(got["half"].data, half.T) and np.array_equal(got["shared"].data, shared)
    octavo("quantize", model, "--weights", tmp_path / "w.gguf", "--precision", "fp32", "-o", tmp_path / "q.onnx")
    x = rng.normal(size=(3, 64)).astype(np.float32)
    assert np.array_equal(run(tmp_path / "q.onnx", x), run(model, x))
