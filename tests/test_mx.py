"""MX formats and fake quantization: numerics against gfloat and ml_dtypes, the road to ONNX and Circle."""
import json
import re

import circle_consumers as consumers
import gfloat
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import OCTAVO, load_samples, session
from gfloat import formats as gf
from onnx import TensorProto, helper, numpy_helper
from test_circle import DIMS

F32 = TensorProto.FLOAT
# emax, largest, gfloat's format, ml_dtypes' type
FORMATS = {
    "mxfp8_e5m2": (15, 57344.0, gf.format_info_ocp_e5m2, ml_dtypes.float8_e5m2),
    "mxfp8_e4m3": (8, 448.0, gf.format_info_ocp_e4m3, ml_dtypes.float8_e4m3fn),
    "mxfp6_e3m2": (4, 28.0, gf.format_info_ocp_e3m2, ml_dtypes.float6_e3m2fn),
    "mxfp6_e2m3": (2, 7.5, gf.format_info_ocp_e2m3, ml_dtypes.float6_e2m3fn),
    "mxfp4": (2, 6.0, gf.format_info_ocp_e2m1, ml_dtypes.float4_e2m1fn),
    "mxint8": (0, 127 / 64, gf.format_info_ocp_int8, None),
}


def blocks_of(x, axis, block):
    """[.., blocks, block] with the axis last, zero-padded."""
    x = np.moveaxis(x, axis, -1)
    pad = -x.shape[-1] % block
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)]).reshape(*x.shape[:-1], -1, block)


def element(v, name, rounding, library="gfloat"):
    """f64 numbers rounded to a format's grid, saturating."""
    _, largest, info, dtype = FORMATS[name]
    if rounding == "away":  # ties away from zero, as tico's "nearest" is described
        if name == "mxint8":
            step = 1 / 64
        else:
            emin = 1 - info.expBias if hasattr(info, "expBias") else 1 - info.bias
            exponent = np.maximum(np.frexp(np.where(v == 0, 1, v))[1] - 1, emin)
            step = np.ldexp(1.0, exponent - (info.precision - 1))
        q = np.abs(v) / step
        r = np.floor(q)
        r += (q - r) >= 0.5
        return np.copysign(np.minimum(r * step, largest), v)
    if library == "ml_dtypes" and dtype is not None:
        return np.clip(v, -largest, largest).astype(np.float32).astype(dtype).astype(np.float64)
    if name == "mxint8":
        return np.clip(np.rint(v * 64), -127, 127) / 64
    return gfloat.round_ndarray(info, v, gfloat.RoundMode.TiesToEven, sat=True)


def oracle(x, name, rounding, axis=-1, block=32, library="gfloat"):
    """OCP MX v1.0: the shared exponent by hand, the element by a library nobody here wrote."""
    if name == "nvfp4":
        return nvfp4_oracle(x, rounding, axis, block, library)
    emax = FORMATS[name][0]
    b = blocks_of(x, axis, block).astype(np.float64)
    amax = np.abs(b).max(-1, keepdims=True)
    e = np.where(amax == 0, -126, np.frexp(np.where(np.isfinite(amax), amax, 1))[1] - 1) - emax
    e = np.maximum(e, -127)
    with np.errstate(invalid="ignore"):
        v = np.ldexp(b, -e)
        v = np.where(np.isfinite(amax), v, 0)
    q = element(v, name, rounding, library)
    y = np.where(np.isfinite(amax), np.ldexp(q, e), np.nan).astype(np.float32)
    y = y.reshape(*y.shape[:-2], -1)[..., :x.shape[axis]]
    return np.moveaxis(y, -1, axis)


def nvfp4_oracle(x, rounding, axis, block, library):
    """Block scales in ml_dtypes' float8_e4m3fn, times one f32 of the tensor; elements as mxfp4's."""
    finite = np.abs(x[np.isfinite(x)])
    top = finite.max(initial=np.float32(0)) / np.float32(448 * 6)
    tensor = top if top >= np.finfo(np.float32).tiny else np.float32(1)
    b = blocks_of(x, axis, block)
    with np.errstate(all="ignore"):
        amax = np.abs(b).max(-1, keepdims=True)
        scale = np.minimum(amax / np.float32(6) / tensor, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        d = scale * tensor
        t = np.where(np.isfinite(amax) & (d != 0), b / d, np.copysign(np.float32(0), b))
        assert t.dtype == d.dtype == np.float32
        q = element(t.astype(np.float64), "mxfp4", rounding, library).astype(np.float32)
        y = np.where(np.isfinite(amax), q * d, np.float32(np.nan))
    y = y.reshape(*y.shape[:-2], -1)[..., :x.shape[axis]]
    return np.moveaxis(y, -1, axis)


@pytest.fixture(scope="session")
def custom_ops():
    """Sessions of ONNX Runtime's own Python package with the operators of liboctavo_ops.so."""
    library = OCTAVO.parent / "liboctavo_ops.so"
    assert library.exists(), f"{library} is missing: run `make`"

    def open_session(model, optimize=False):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(library))
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = model if isinstance(model, bytes) else model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return open_session


def fake_quantize_model(name, rounding, axis, block, rank, op="MXFakeQuantize"):
    node = helper.make_node(op, ["x"], ["y"], domain="octavo", elem_format=name, rounding=rounding, axis=axis, block_size=block)
    dims = [f"d{i}" for i in range(rank)]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", F32, dims)], [helper.make_tensor_value_info("y", F32, dims)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("octavo", 1)], ir_version=10)


def fake_weight_model(w, name, rounding, axis, block=32):
    nodes = [helper.make_node("MXFakeQuantize", ["w"], ["wq"], "fq", domain="octavo", elem_format=name, rounding=rounding, axis=axis, block_size=block),
             helper.make_node("MatMul", ["x", "wq"], ["y"], "mm")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [2, w.shape[0]])],
                              [helper.make_tensor_value_info("y", F32, [2, w.shape[1]])], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("octavo", 1)], ir_version=10)


def twin_values(path):
    """The numbers of the blocked DequantizeLinear of a written model, computed here."""
    model = onnx.load(str(path))
    init = {i.name: i for i in model.graph.initializer}
    dq, = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    a = {x.name: helper.get_attribute_value(x) for x in dq.attribute}
    codes, scale = numpy_helper.to_array(init[dq.input[0]]), numpy_helper.to_array(init[dq.input[1]])
    s = np.repeat(scale, a["block_size"], a["axis"])
    s = np.take(s, np.arange(codes.shape[a["axis"]]), a["axis"])
    return codes.astype(np.float32) * s, codes.dtype


def values(count, seed):
    """Numbers of many magnitudes, ties, subnormals and zeros; no NaN or infinity."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count).astype(np.float32)
    kind = np.repeat(rng.integers(0, 6, count // 32 + 1), 32)[:count]
    ties = (rng.integers(-256, 257, count) / 2.0 ** rng.integers(0, 9, count)).astype(np.float32)
    bits = (rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32) & np.uint32(0xFF7FFFFF)).view(np.float32)
    tiny = (rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32) & np.uint32(0x80FFFFFF)).view(np.float32)
    spread = np.ldexp(x, rng.integers(-40, 40, count)).astype(np.float32)
    return np.select([kind == 1, kind == 2, kind == 3, kind == 4, kind == 5], [ties, bits, tiny, spread, np.zeros(count, np.float32)], x).astype(np.float32)


def check_numerics(octavo, tmp_path, name, rounding, rows, columns):
    for axis, seed in ((0, 1), (1, 2)):
        w = values(rows * columns, seed).reshape(rows, columns)
        onnx.save(fake_weight_model(w, name, rounding, axis - 2), str(tmp_path / "m.onnx"))
        octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx", "--force")
        got, _ = twin_values(tmp_path / "t.onnx")
        want = oracle(w, name, rounding, axis, library=("ml_dtypes", "gfloat")[axis])
        wrong = np.flatnonzero(got.ravel() != want.ravel())
        assert wrong.size == 0, f"{wrong.size} differ, first {w.ravel()[wrong[:5]]} -> {got.ravel()[wrong[:5]]}, not {want.ravel()[wrong[:5]]}"


def check_operator(custom_ops, name, rounding, dims):
    """The operator in ONNX Runtime, bit for bit (signs of zeros and NaN too), along every axis, with ragged tails."""
    for axis in range(len(dims)):
        x = values(int(np.prod(dims)), axis)
        special = np.random.default_rng(axis).integers(0, x.size, x.size // 5000)
        if name == "nvfp4":  # one scale for all: what is 2^-22 of the largest number is zero
            mantissa, exponent = np.frexp(x)
            x = np.ldexp(mantissa, exponent % 22).astype(np.float32)
        large = np.float32(5e6 if name == "nvfp4" else 3.4e38)
        x[special] = np.resize(np.array([np.nan, np.inf, -np.inf, -np.nan, large, -large, 1e-45, -0.0], np.float32), special.size)
        x = x.reshape(dims)
        block = 16 if name == "nvfp4" else 32
        y, = custom_ops(fake_quantize_model(name, rounding, axis - (len(dims) if axis % 2 else 0), block, len(dims))).run(None, {"x": x})
        want = oracle(x, name, rounding, axis, block, ("ml_dtypes", "gfloat")[axis % 2])
        same = (y.view(np.uint32) == want.view(np.uint32)) | (np.isnan(y) & np.isnan(want))
        if name == "mxint8":
            same |= (y == 0) & (want == 0)  # two's complement has one zero
        wrong = np.flatnonzero(~same)
        assert wrong.size == 0, f"{wrong.size} differ, first {x.ravel()[wrong[:5]]} -> {y.ravel()[wrong[:5]]}, not {want.ravel()[wrong[:5]]}"
        assert np.isnan(y).sum() > x.size // 5000 * 6  # whole blocks


@pytest.mark.parametrize("rounding", ["even", "away"])
@pytest.mark.parametrize("name", [*FORMATS, "nvfp4"])
def test_operator(custom_ops, name, rounding):
    """10^6 values along three axes."""
    check_operator(custom_ops, name, rounding, (61, 75, 73))


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["even", "away"])
@pytest.mark.parametrize("name", [*FORMATS, "nvfp4"])
def test_operator_ten_million(custom_ops, name, rounding):
    check_operator(custom_ops, name, rounding, (67, 225, 223))


@pytest.mark.parametrize("name", [*FORMATS, "nvfp4"])
@pytest.mark.parametrize("block", [1, 3, 16, 32, 100])
def test_operator_blocks_and_shapes(custom_ops, name, block):
    for dims in [(1,), (7,), (31, 33), (2, 1, 5, 3), (0, 4), (4, 0)]:
        for axis in range(-len(dims), len(dims)):
            x = values(int(np.prod(dims)), 10 + axis + block).reshape(dims)
            y, = custom_ops(fake_quantize_model(name, "even", axis, block, len(dims))).run(None, {"x": x})
            np.testing.assert_array_equal(y, oracle(x, name, "even", axis, block) if x.size else x)


@pytest.mark.parametrize("change,sentence", [
    (dict(elem_format="mxfp5"), "unknown elem_format 'mxfp5'"), (dict(rounding="up"), "rounding must be away or even"),
    (dict(block_size=0), "block_size must be positive"), (dict(shared_exponent="ceil"), "shared_exponent must be floor"),
    (dict(axis=2), "axis 2 is outside of a tensor of rank 2"), (dict(axis=-3), "axis -3 is outside of a tensor of rank 2")])
def test_operator_refusals(custom_ops, change, sentence):
    attributes = {"elem_format": "mxfp4", "axis": -1, "rounding": "even", **change}
    model = fake_quantize_model("mxfp4", "even", -1, 32, 2)
    model.graph.node[0].ClearField("attribute")
    model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    with pytest.raises(Exception, match=re.escape(sentence)):
        custom_ops(model).run(None, {"x": np.ones((2, 4), np.float32)})


@pytest.mark.parametrize("rounding", ["even", "away"])
@pytest.mark.parametrize("name", FORMATS)
def test_numerics(octavo, tmp_path, name, rounding):
    """Weights: 10^5 values along each axis, ragged tails on both."""
    check_numerics(octavo, tmp_path, name, rounding, 500, 200)


@pytest.mark.parametrize("name", FORMATS)
def test_nan_and_infinity_take_their_block(octavo, tmp_path, name):
    w = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
    w[3, 0], w[40, 1], w[95, 3] = np.nan, np.inf, -np.inf
    onnx.save(fake_weight_model(w, name, "away", 0), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx")
    got, _ = twin_values(tmp_path / "t.onnx")
    want = oracle(w, name, "away", 0)
    assert np.isnan(want[:32, 0]).all() and np.isnan(want[32:64, 1]).all() and np.isnan(want[64:, 3]).all()
    np.testing.assert_array_equal(got, want)


def conv_model(w_format, x_format, rounding="away", fq_out=True):
    rng = np.random.default_rng(4)
    init = [numpy_helper.from_array((rng.normal(size=(8, 40, 3, 3)) / 19).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=8).astype(np.float32), "b")]

    def fq(i, o, f, axis):
        return helper.make_node("MXFakeQuantize", [i], [o], o, domain="octavo", elem_format=f, axis=axis, rounding=rounding)

    nodes = [fq("x", "xq", x_format, -3), fq("w", "wq", w_format, 1), helper.make_node("Conv", ["xq", "wq", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["c"], ["r"], "relu")]
    nodes.append(fq("r", "y", x_format, 1) if fq_out else helper.make_node("Identity", ["r"], ["y"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [1, 40, 8, 8])], [helper.make_tensor_value_info("y", F32, [1, 8, 8, 8])], init)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("octavo", 1)], ir_version=10)


@pytest.fixture
def conv_data(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(4):
        np.savez(tmp_path / "data" / f"{i}.npz", x=np.random.default_rng(i).normal(size=(1, 40, 8, 8)).astype(np.float32))
    return tmp_path / "data"


@pytest.mark.parametrize("rounding", ["away", "even"])
@pytest.mark.parametrize("name", ["mxint8", "mxfp4", "mxfp8_e4m3"])
def test_the_onnx_twin_equals_the_fake_quantized_model(octavo, conv_data, tmp_path, name, rounding):
    onnx.save(conv_model(name, name, rounding), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx")
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "t.onnx")).graph.node]
    assert "DequantizeLinear" in kinds and kinds.count("MXFakeQuantize") == 2
    octavo("compare", tmp_path / "m.onnx", tmp_path / "t.onnx", "--data", conv_data, "--json", tmp_path / "c.json")
    c = json.loads((tmp_path / "c.json").read_text())
    assert all(o["max_abs"] == 0 for o in c["outputs"]), c


@pytest.mark.parametrize("name,code", [("mxint8", -7), ("mxfp4", -6)])
def test_circle_tensors_carry_mx(octavo, tmp_path, name, code):
    from circle_schema import circle
    onnx.save(conv_model(name, name), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle", "--json", tmp_path / "r.json")
    model, graph, operators, tensors = consumers.read(tmp_path / "m.circle")
    mx = [t for t in tensors.values() if t.Type() == code]
    assert len(mx) >= 3  # input, weight, result
    for t in mx:
        q = t.Quantization()
        assert q.DetailsType() == 2
        details = circle.MXQuantization.MXQuantization()
        details.Init(q.Details().Bytes, q.Details().Pos)
        assert details.Axis() == q.QuantizedDimension() in (1, 3)  # the channels: of the NCHW input, in NHWC and OHWI
    assert operators.count("CONV_2D") == 1 and operators.count("DEQUANTIZE") == 1  # at the graph's float output
    conv = next(i for i, o in enumerate(operators) if o == "CONV_2D")
    for k in range(2):
        t = graph.Tensors(graph.Operators(conv).Inputs(k))
        assert t.Type() == code and t.Quantization().QuantizedDimension() == 3
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["facts"]["kept in float"] == "0" and report["facts"]["profile"] == name


@pytest.mark.parametrize("name", ["mxint8", "mxfp4"])
def test_circle_mx_comes_back_bit_for_bit(octavo, conv_data, tmp_path, name):
    onnx.save(conv_model(name, name), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle")
    octavo("export", tmp_path / "m.circle", "--to", "onnx", "-o", tmp_path / "b.onnx")
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "b.onnx")).graph.node]
    assert "MXFakeQuantize" in kinds and "DequantizeLinear" in kinds
    octavo("compare", tmp_path / "m.onnx", tmp_path / "b.onnx", "--data", conv_data, "--json", tmp_path / "c.json")
    c = json.loads((tmp_path / "c.json").read_text())
    assert all(o["max_abs"] == 0 for o in c["outputs"]), c


@pytest.mark.parametrize("rows,transposed", [(1, 1), (3, 1), (3, 0)])
@pytest.mark.parametrize("name", ["mxint8", "mxfp4"])
def test_a_gemm_comes_back_from_circle_bit_for_bit(octavo, custom_ops, tmp_path, name, rows, transposed):
    """With weights as torch's Linear has them: of one row the runtime sums these in another order than others."""
    rng = np.random.default_rng(rows)
    w = rng.normal(size=(30, 200) if transposed else (200, 30)).astype(np.float32)
    nodes = [helper.make_node("MXFakeQuantize", [i], [o], o, domain="octavo", elem_format=name, axis=axis) for i, o, axis in
             (("x", "xq", 1), ("w", "wq", 1 if transposed else 0))] + [helper.make_node("Gemm", ["xq", "wq", "b"], ["y"], "fc", transB=transposed)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [rows, 200])], [helper.make_tensor_value_info("y", F32, [rows, 30])],
                              [numpy_helper.from_array(w, "w"), numpy_helper.from_array(rng.normal(size=30).astype(np.float32), "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("octavo", 1)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle")
    octavo("export", tmp_path / "m.circle", "--to", "onnx", "-o", tmp_path / "b.onnx")
    x = {"x": rng.normal(size=(rows, 200)).astype(np.float32)}
    np.testing.assert_array_equal(custom_ops(tmp_path / "m.onnx").run(None, x)[0], custom_ops(tmp_path / "b.onnx").run(None, x)[0])


def fake_quantized(source, target, name):
    """MXFakeQuantize on what every product reads: activations and weights, along the axis that is summed over."""
    m = onnx.load(str(source))
    nodes, made = [], {}

    def fq(x, axis):
        if (x, axis) not in made:
            made[x, axis] = f"{x}_fq{axis % 7}"
            nodes.append(helper.make_node("MXFakeQuantize", [x], [made[x, axis]], domain="octavo", elem_format=name, axis=axis, rounding="away"))
        return made[x, axis]

    for n in m.graph.node:
        group = next((a.i for a in n.attribute if a.name == "group"), 1)
        if n.op_type == "Conv" and group == 1:
            n.input[0], n.input[1] = fq(n.input[0], 1), fq(n.input[1], 1)
        elif n.op_type == "MatMul":
            n.input[0], n.input[1] = fq(n.input[0], -1), fq(n.input[1], -2)
        nodes.append(n)
    del m.graph.node[:]
    m.graph.node.extend(nodes)
    m.opset_import.append(helper.make_opsetid("octavo", 1))
    onnx.save(m, str(target))
    return len(made)


@pytest.mark.parametrize("name", ["mxint8", "mxfp4"])
@pytest.mark.parametrize("model", ["cls", "det", "minilm", "vit"])
def test_circle_mx_models_come_back_bit_for_bit(octavo, models, data, custom_ops, tmp_path, model, name):
    """Fake-quantized model = its Circle file, read back and written as the ONNX twin: every bit of every output."""
    fake, circle, back = tmp_path / "fq.onnx", tmp_path / "m.circle", tmp_path / "b.onnx"
    assert fake_quantized(models[model], fake, name) > 20
    octavo("export", fake, "--to", "circle", "-o", circle, *DIMS[model])
    _, _, operators, tensors = consumers.read(circle)
    assert sum(t.Type() == (-7 if name == "mxint8" else -6) for t in tensors.values()) > 20
    octavo("export", circle, "--to", "onnx", "-o", back)
    want, got = custom_ops(fake), custom_ops(back)
    assert [o.name for o in want.get_outputs()] == [o.name for o in got.get_outputs()]
    for sample in load_samples(data[model], 34)[32:]:
        for a, b in zip(want.run(None, sample), got.run(None, sample)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("profile,code", [("mxint8", -7), ("mxfp4", -6)])
def test_circle_mx_profiles(octavo, small_cnn, tmp_path, profile, code):
    octavo("export", small_cnn, "--to", "circle", "-o", tmp_path / "m.circle", "--profile", profile, "--dim", "n=1")
    _, _, operators, tensors = consumers.read(tmp_path / "m.circle")
    assert sum(t.Type() == code for t in tensors.values()) >= 6
    assert "CONV_2D" in operators


@pytest.mark.parametrize("name", FORMATS)
def test_weight_only_precisions(octavo, tmp_path, name):
    rng = np.random.default_rng(9)
    w = rng.normal(size=(96, 64)).astype(np.float32)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], "g", [helper.make_tensor_value_info("x", F32, [2, 96])],
                              [helper.make_tensor_value_info("y", F32, [2, 64])], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "m.onnx"))
    octavo("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--precision", name)
    got, dtype = twin_values(tmp_path / "q.onnx")
    np.testing.assert_array_equal(got, oracle(w, name, "even", 0))
    x = rng.normal(size=(2, 96)).astype(np.float32)
    y, = session(tmp_path / "q.onnx", optimize=False).run(None, {"x": x})  # optimized, the runtime rounds activations too
    np.testing.assert_allclose(y, x @ got, rtol=1e-4, atol=1e-4)


def activation_model():
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
             helper.make_node("Conv", ["c", "g"], ["d"], "grouped", group=2),
             helper.make_node("Conv", ["d", "one"], ["e"], "depthwise", group=8),
             helper.make_node("MatMul", ["e", "d"], ["p"], "product"),
             helper.make_node("MatMul", ["p", "m"], ["y"], "matmul")]
    init = [numpy_helper.from_array((rng.normal(size=s) / 5).astype(np.float32), n)
            for n, s in (("w", (8, 40, 3, 3)), ("g", (8, 4, 1, 1)), ("one", (8, 1, 1, 1)), ("m", (6, 5)))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [1, 40, 6, 6])],
                              [helper.make_tensor_value_info("y", F32, [1, 8, 6, 5])], init)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("name", FORMATS)
def test_activation_types(octavo, custom_ops, tmp_path, name):
    """Weights and what they are multiplied with: the bits of a model with the same operators put in by hand."""
    onnx.save(activation_model(), str(tmp_path / "m.onnx"))
    (tmp_path / "d").mkdir()
    for i in range(2):
        np.savez(tmp_path / "d" / f"{i}.npz", x=np.random.default_rng(i).normal(size=(1, 40, 6, 6)).astype(np.float32))
    octavo("build", "--onnx", tmp_path / "m.onnx", "--precision", name, "--activation-type", name, "--data", tmp_path / "d", "-o", tmp_path / "o")
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["effective_types"] == {"weights": f"{name}, blocks of 32", "activations": f"{name}, blocks of 32"}
    assert json.loads((tmp_path / "o" / "config.json").read_text())["quantization"]["activation_type"] == name
    reasons = {s["node"]: s["reason"] for s in manifest["quantize"]["nodes_skipped"]}
    assert reasons == {"grouped": "its activations stay float, its weight does not: blocks of 32 channels would reach over the borders of its 2 groups",
                       "depthwise": "the dimension that it sums over has one number: there is nothing to share a scale"}
    fakes = [n for n in onnx.load(str(tmp_path / "o" / "model.onnx")).graph.node if n.op_type == "MXFakeQuantize"]
    assert [{a.name: helper.get_attribute_value(a) for a in n.attribute}["axis"] for n in fakes] == [1, 3, 2, 3]
    source = activation_model()
    # Weights are computed in both models: the runtime packs constant ones, and sums in another order then.
    nodes = []
    for n in source.graph.node:
        for k, axis in {"conv": {0: 1, 1: 1}, "grouped": {1: 1}, "product": {0: 3, 1: 2}, "matmul": {0: 3, 1: 0}}.get(n.name, {}).items():
            nodes.append(helper.make_node("MXFakeQuantize", [n.input[k]], [f"{n.name}{k}"], domain="octavo", elem_format=name, axis=axis, rounding="even"))
            n.input[k] = f"{n.name}{k}"
        nodes.append(n)
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    source.opset_import.append(helper.make_opsetid("octavo", 1))
    x = {"x": np.load(tmp_path / "d" / "0.npz")["x"]}
    want, = custom_ops(source).run(None, x)
    for written in ("quantized.onnx", "model.onnx"):
        np.testing.assert_array_equal(custom_ops(tmp_path / "o" / written).run(None, x)[0], want, written)


def test_activation_types_are_the_precisions_own(octavo, tmp_path):
    onnx.save(activation_model(), str(tmp_path / "m.onnx"))
    for precision, activation in (("mxfp4", "mxint8"), ("uint8", "mxfp4"), ("mxfp4", "u8")):
        r = octavo("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--precision", precision, "--activation-type", activation, code=2)
        assert f"activation_type has no effect with precision '{precision}'" in r.error


@pytest.mark.parametrize("name,code", [("mxint8", -7), ("mxfp4", -6)])
def test_activation_types_in_circle(octavo, tmp_path, name, code):
    onnx.save(activation_model(), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle", "--precision", name, "--activation-type", name)
    _, _, operators, tensors = consumers.read(tmp_path / "m.circle")
    mx = [t for t in tensors.values() if t.Type() == code]
    assert len(mx) >= 7 and all(t.Quantization().DetailsType() == 2 for t in mx)
    assert "DEQUANTIZE" not in operators


@pytest.mark.parametrize("change,sentence", [
    (dict(block_size=16), "blocks of 32"), (dict(elem_format="mxfp8_e4m3"), "mxint8 and mxfp4")])
def test_what_circle_tensors_cannot_say(octavo, tmp_path, change, sentence):
    """Their blocks are 32 elements: another block would be rounded in another way by who reads it."""
    attributes = {"elem_format": "mxfp4", "axis": -1, "rounding": "away", **change}
    model = fake_quantize_model("mxfp4", "away", -1, 32, 2)
    model.graph.node[0].ClearField("attribute")
    model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    onnx.save(model, str(tmp_path / "m.onnx"))
    dims = [a for i in model.graph.input for d, a in ((0, "2"), (1, "64")) for a in ("--dim", f"{i.name}:{d}={a}")]
    r = octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle", *dims, code=4)
    assert sentence in r.error and not (tmp_path / "m.circle").exists()


def test_affine_fake_quantize_becomes_a_type(octavo, tmp_path):
    """FakeQuantize(x, s, z) is a Q/DQ pair, runs as it is, and gives integer tensors in Circle."""
    rng = np.random.default_rng(2)
    w = (rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32)
    ws = (np.abs(w).max((1, 2, 3)) / 63).astype(np.float32)  # with 8 bits a default session saturates on machines without VNNI
    init = [numpy_helper.from_array(np.asarray(a), n) for n, a in
            [("w", w), ("ws", ws), ("wz", np.zeros(8, np.int32)), ("xs", np.float32(0.02)), ("xz", np.int32(3)), ("ys", np.float32(0.03)), ("yz", np.int32(-5))]]

    def fq(i, s, z, o, **a):
        return helper.make_node("FakeQuantize", [i, s, z], [o], o, domain="octavo", quant_min=-128, quant_max=127, **a)

    nodes = [fq("x", "xs", "xz", "xq"), fq("w", "ws", "wz", "wq", axis=0), helper.make_node("Conv", ["xq", "wq"], ["c"], "conv"), fq("c", "ys", "yz", "y")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [1, 3, 9, 9])], [helper.make_tensor_value_info("y", F32, [1, 8, 7, 7])], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("octavo", 1)], ir_version=9), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "q.onnx")
    (tmp_path / "d").mkdir()
    samples = [{"x": rng.normal(size=(1, 3, 9, 9)).astype(np.float32)} for _ in range(4)]
    for i, s in enumerate(samples):
        np.savez(tmp_path / "d" / f"{i}.npz", **s)
    octavo("compare", tmp_path / "m.onnx", tmp_path / "q.onnx", "--data", tmp_path / "d", "--json", tmp_path / "c.json")
    c = json.loads((tmp_path / "c.json").read_text())
    assert all(o["max_abs"] <= 0.0301 and o["sqnr_db"] > 40 for o in c["outputs"]), c  # a step where the float sums differ in order
    octavo("export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "m.circle", "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["facts"]["kept in float"] == "0"
    s = session(tmp_path / "q.onnx", optimize=False)
    for sample, got in zip(samples, consumers.litert(tmp_path / "m.circle", samples)):
        steps = np.rint(np.abs(s.run(None, sample)[0] - got["y"]) / 0.03)
        assert steps.max() <= 1


def mx_node(**change):
    """A model of one MXFakeQuantize on x, f32 of [2, 64], with its attributes changed; None drops one."""
    attributes = {"elem_format": "mxfp4", "axis": -1, "rounding": "away", **change}
    return one_node("MXFakeQuantize", ["x"], {}, **attributes)


def affine_node(scale=np.float32(0.02), zero=np.uint8(3), **attributes):
    init = {k: v for k, v in (("s", scale), ("z", zero)) if v is not None}
    return one_node("FakeQuantize", ["x", "s" if scale is not None else "", *(["z"] if zero is not None else [])], init, **attributes)


def one_node(op, inputs, init, kind=F32, shape=(2, 64), version=1, outputs=("y",), **attributes):
    node = helper.make_node(op, inputs, list(outputs), "fq", domain="octavo", **{k: v for k, v in attributes.items() if v is not None})
    after = helper.make_node("Identity", ["y"], ["r"])
    graph = helper.make_graph([node, after], "g", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("r", kind, shape)],
                              [numpy_helper.from_array(np.asarray(a), n) for n, a in init.items()])
    imports = [helper.make_opsetid("", 21)] + ([helper.make_opsetid("octavo", version)] if version else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


CHANNELS = np.full(64, 0.02, np.float32)
BAD_OPERATORS = [
    (lambda: mx_node(axis=2), 3, "axis 2 is outside of a tensor of rank 2.*'x'.*-2 to 1"),
    (lambda: mx_node(axis=-3), 3, "axis -3 is outside of a tensor of rank 2"),
    (lambda: mx_node(axis=2**62), 3, "axis 4611686018427387904 is outside"),
    (lambda: mx_node(axis=0, shape=()), 3, "axis 0 is outside of a tensor of rank 0.*scalar"),
    (lambda: mx_node(axis=1.0), 3, "another kind.*'axis'.*integer"),
    (lambda: mx_node(block_size=0), 3, "block_size is 0"),
    (lambda: mx_node(block_size=-32), 3, "block_size is -32"),
    (lambda: mx_node(block_size=2**40), 3, "block_size is 1099511627776"),
    (lambda: mx_node(elem_format="mxfp5"), 3, "unknown elem_format 'mxfp5'.*mxfp6_e2m3"),
    (lambda: mx_node(elem_format=None), 3, "'elem_format' is missing.*mxint8"),
    (lambda: mx_node(elem_format=4), 3, "another kind.*'elem_format'.*string"),
    (lambda: mx_node(rounding="up"), 3, "unknown rounding 'up'.*away or even"),
    (lambda: mx_node(shared_exponent="ceil"), 3, "unknown shared_exponent 'ceil'.*floor"),
    (lambda: mx_node(blocksize=32), 3, "unknown attribute 'blocksize'.*'block_size'"),
    (lambda: mx_node(kind=TensorProto.FLOAT16), 4, "it is f16, not f32.*'x'.*Cast"),
    (lambda: mx_node(kind=TensorProto.INT32), 3, "it is s32, not f32"),
    (lambda: mx_node(version=2), 4, "version 2 of the domain 'octavo'"),
    (lambda: mx_node(version=0), 3, "imports no operator set of the domain 'octavo'"),
    (lambda: one_node("MXFakeQuantise", ["x"], {}, elem_format="mxfp4"), 4, "no such operator.*'MXFakeQuantize'"),
    (lambda: one_node("MXFakeQuantize", [""], {}, elem_format="mxfp4"), 3, "required input is missing.*input 0"),
    (lambda: one_node("MXFakeQuantize", ["x", "x"], {}, elem_format="mxfp4"), 3, "2 inputs.*takes 1"),
    (lambda: one_node("MXFakeQuantize", ["x"], {}, outputs=("y", "z"), elem_format="mxfp4"), 3, "one output"),
    (lambda: one_node("QuantizeMx", ["x"], {}, elem_format="mxfp4", axis=5), 3, "axis 5 is outside"),
    (lambda: one_node("DequantizeMx", ["x"], {}, elem_format="mxfp4", block_size=0), 3, "block_size is 0"),
    (lambda: affine_node(scale=None), 3, "required input is missing.*input 1"),
    (lambda: affine_node(scale=np.float32(0)), 3, "scale 0 is 0.0.*above 0"),
    (lambda: affine_node(scale=np.float32(-1)), 3, "scale 0 is -1.0"),
    (lambda: affine_node(scale=np.float32(np.nan)), 3, "scale 0 is nan"),
    (lambda: affine_node(scale=np.float32(np.inf)), 3, "scale 0 is inf"),
    (lambda: affine_node(scale=np.float16(0.02)), 4, "it is f16, not f32.*scale 's'"),
    (lambda: affine_node(scale=np.int32(1)), 3, "it is s32, not f32.*scale 's'"),
    (lambda: affine_node(scale=np.full((1, 1), 0.1, np.float32)), 3, "scale of 2 dimensions"),
    (lambda: affine_node(scale=np.zeros(0, np.float32), zero=None), 3, "no scale in the list"),
    (lambda: affine_node(scale=CHANNELS, zero=None), 3, "64 scales without an axis"),
    (lambda: affine_node(scale=CHANNELS, zero=None, axis=0), 3, "64 scales for 2 channels"),
    (lambda: affine_node(scale=CHANNELS, zero=None, axis=2), 3, "axis 2 is outside"),
    (lambda: affine_node(scale=CHANNELS, zero=np.zeros(2, np.uint8), axis=1), 3, "2 zero points for 64 scales"),
    (lambda: affine_node(zero=np.int32(256)), 3, "zero point 0 is 256.*quant_min 0 and quant_max 255"),
    (lambda: affine_node(zero=np.int8(-1)), 3, "zero point 0 is -1"),
    (lambda: affine_node(zero=np.float32(np.nan)), 3, "zero point 0 is nan"),
    (lambda: affine_node(zero=np.uint32(3)), 4, "it is u32.*zero point 'z'.*uint8"),
    (lambda: affine_node(quant_min=5, quant_max=5), 3, "codes are 5 to 5"),
    (lambda: affine_node(quant_max=2**40), 3, "codes are 0 to 1099511627776"),
    (lambda: affine_node(quant_min=0.0), 3, "another kind.*'quant_min'"),
    (lambda: affine_node(narrow_range=1), 3, "unknown attribute 'narrow_range'"),
]


@pytest.mark.parametrize("model,code,pattern", BAD_OPERATORS, ids=[p for _, _, p in BAD_OPERATORS])
def test_bad_operators_are_refused_at_import(octavo, tmp_path, model, code, pattern):
    onnx.save(model(), str(tmp_path / "m.onnx"))
    for args in (["inspect", tmp_path / "m.onnx"], ["export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx"]):
        r = octavo(*args, code=code)
        assert re.search(pattern, r.error) and (str(tmp_path / "m.onnx") in r.error), r.error
        assert r.err.count("\n") == 1 and r.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("model", [lambda: mx_node(axis=2), lambda: affine_node(scale=np.float32(0))])
def test_every_command_refuses_bad_operators(octavo, tmp_path, model):
    m, o = tmp_path / "m.onnx", tmp_path / "o"
    onnx.save(model(), str(m))
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "0.npz", x=np.zeros((2, 64), np.float32))
    for args in (["build", "--onnx", m, "--data", tmp_path / "d", "-o", o], ["quantize", m, "--data", tmp_path / "d", "-o", o], ["rewrite", m, "-o", o],
                 ["calibrate", m, "--data", tmp_path / "d", "-o", o], ["compile", m, "--device", "cpu", "-o", o], ["perf", m],
                 ["export", m, "--to", "circle", "-o", o], ["export", m, "--to", "stablehlo", "-o", o],
                 ["export", m, "--to", "gguf", "--precision", "q8_0", "-o", o], ["compare", m, m, "--data", tmp_path / "d"]):
        r = octavo(*args, code=3)
        assert "'fq'" in r.error and not o.exists(), (args, r.error)


def pair_node(scale, zero, axis=None, w=False):
    """QuantizeLinear and DequantizeLinear of x, f32 of [2, 8]; `w`: just the latter, of constant codes."""
    a = {} if axis is None else {"axis": axis}
    init = {"s": np.asarray(scale, np.float32), "z": np.asarray(zero, np.uint8)} | ({"q": np.zeros((2, 8), np.uint8)} if w else {})
    nodes = [] if w else [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "Q", **a)]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "D", **a), helper.make_node("Add", ["x", "d"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, [2, 8])], [helper.make_tensor_value_info("y", F32, [2, 8])],
                              [numpy_helper.from_array(v, k) for k, v in init.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("model,pattern", [
    (lambda: pair_node(0, 3), "scale 0 is 0.0.*'Q'.*above 0"), (lambda: pair_node(-1, 3), "scale 0 is -1.0.*'Q'"),
    (lambda: pair_node(np.nan, 3), "scale 0 is nan"), (lambda: pair_node(np.inf, 3), "scale 0 is inf"),
    (lambda: pair_node(np.full(3, 0.1), np.zeros(3), 1), "3 scales for 8 channels.*axis 1"),
    (lambda: pair_node(np.full(8, 0.1), np.zeros(8), 5), "axis 5 is outside of a tensor of rank 2"),
    (lambda: pair_node(np.full(8, 0.1), np.zeros(2), 1), "2 zero points for 8 scales"),
    (lambda: pair_node([0.1] * 7 + [-0.1], np.zeros(8), 1, True), "scale 7 is -0.1.*'D'.*not negative"),
    (lambda: pair_node(np.full(2, 0.1), np.zeros(2), 1, True), "2 scales for 8 channels")])
def test_bad_pairs_are_refused_at_import(octavo, tmp_path, model, pattern):
    onnx.save(model(), str(tmp_path / "m.onnx"))
    for args in (["inspect", tmp_path / "m.onnx"], ["export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx"]):
        assert re.search(pattern, octavo(*args, code=3).error)


def test_a_channel_of_zeros_may_have_no_scale(octavo, tmp_path):
    onnx.save(pair_node([0.1] * 7 + [0], np.zeros(8), 1, True), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx")
    x = {"x": np.ones((2, 8), np.float32)}
    np.testing.assert_array_equal(session(tmp_path / "t.onnx").run(None, x)[0], x["x"])


def test_an_axis_outside_of_a_computed_value(octavo, tmp_path):
    """What a file says of values inside is not believed: their rank is known when types are inferred, or when it runs."""
    model = mx_node(axis=2)
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["h"]))
    model.graph.node[1].input[0] = "h"
    onnx.save(model, str(tmp_path / "m.onnx"))
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "0.npz", x=np.zeros((2, 64), np.float32))
    for args in (["export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t"], ["export", tmp_path / "m.onnx", "--to", "circle", "-o", tmp_path / "t"],
                 ["build", "--onnx", tmp_path / "m.onnx", "--data", tmp_path / "d", "-o", tmp_path / "t"],
                 ["compare", tmp_path / "m.onnx", tmp_path / "m.onnx", "--data", tmp_path / "d"]):
        r = octavo(*args, code=3)
        assert "axis 2 is outside of a tensor of rank 2" in r.error and not (tmp_path / "t").exists(), r.error


def test_operators_at_the_edge_of_what_is_allowed(octavo, custom_ops, tmp_path):
    x = values(128, 5).reshape(2, 64)
    for i, model in enumerate([mx_node(axis=-2), mx_node(axis=0, block_size=1), mx_node(block_size=2**31 - 1), mx_node(elem_format="nvfp4", block_size=16),
                               affine_node(zero=None), affine_node(scale=CHANNELS, zero=np.zeros(64, np.int32), axis=-1),
                               affine_node(scale=np.full(1, 0.1, np.float32), zero=np.zeros(1, np.int64), axis=1),
                               affine_node(zero=np.int8(-128), quant_min=-128, quant_max=127), affine_node(zero=np.float32(7))]):
        m, t = tmp_path / f"{i}.onnx", tmp_path / f"{i}t.onnx"
        onnx.save(model, str(m))
        octavo("export", m, "--to", "onnx", "-o", t)
        np.testing.assert_array_equal(custom_ops(m).run(None, {"x": x})[0], custom_ops(t).run(None, {"x": x})[0])


@pytest.mark.parametrize("scale,zero,sentence", [(0.0, 0, "not finite and above 0"), (np.nan, 0, "not finite and above 0"), (0.1, 300, "zero point lies outside")])
def test_computed_parameters_are_checked_when_they_are_used(custom_ops, scale, zero, sentence):
    model = affine_node()
    del model.graph.initializer[:]
    model.graph.input.extend([helper.make_tensor_value_info("s", F32, []), helper.make_tensor_value_info("z", TensorProto.INT32, [])])
    with pytest.raises(Exception, match=sentence):
        custom_ops(model).run(None, {"x": np.ones((2, 64), np.float32), "s": np.array(scale, np.float32), "z": np.array(zero, np.int32)})


@pytest.mark.parametrize("name,kind", [("mxfp4", TensorProto.FLOAT4E2M1), ("mxfp8_e4m3", TensorProto.FLOAT8E4M3FN), ("mxfp8_e5m2", TensorProto.FLOAT8E5M2)])
def test_the_standard_form_equals_the_twin(octavo, tmp_path, name, kind):
    """--form mx: codes of the ONNX type with float8e8m0 scales; onnx's own evaluator is the oracle."""
    from onnx.reference import ReferenceEvaluator
    onnx.save(conv_model(name, name), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "-o", tmp_path / "t.onnx")
    octavo("export", tmp_path / "m.onnx", "--to", "onnx", "--form", "mx", "-o", tmp_path / "s.onnx")
    twin, _ = twin_values(tmp_path / "t.onnx")
    model = onnx.load(str(tmp_path / "s.onnx"))
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    init = {i.name: i for i in model.graph.initializer}
    codes, scale = init[node.input[0]], init[node.input[1]]
    assert codes.data_type == kind and scale.data_type == TensorProto.FLOAT8E8M0
    assert next(o.version for o in model.opset_import if o.domain == "") >= 24
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info(node.output[0], F32, list(codes.dims))], [codes, scale])
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    onnx.checker.check_model(alone)
    got, = ReferenceEvaluator(alone).run(None, {})
    np.testing.assert_array_equal(np.asarray(got, np.float32), twin)


def test_the_standard_form_is_refused_without_its_types(octavo, tmp_path):
    onnx.save(conv_model("mxint8", "mxint8"), str(tmp_path / "m.onnx"))
    r = octavo("export", tmp_path / "m.onnx", "--to", "onnx", "--form", "mx", "-o", tmp_path / "s.onnx", code=4)
    assert "mxfp4" in r.error
