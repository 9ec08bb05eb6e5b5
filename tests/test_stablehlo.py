"""octavo export --to stablehlo: the text is parsed by StableHLO's parser, run by its interpreter and by IREE, and
compared with ONNX Runtime and with gguf's own dequantization."""
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

import stablehlo_tools as tools
from conftest import OCTAVO, load_samples, outputs, session, sqnr

RNG = np.random.default_rng(7)


def save(path, nodes, inputs, results, weights=(), opset=17, domains=()):
    """inputs: name -> array (its type and shape are declared); results: names, of any shape."""
    values = [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()]
    outs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = h.make_graph(nodes, "g", values, outs, [nh.from_array(np.asarray(a), n) for n, a in dict(weights).items()])
    imports = [h.make_opsetid("", opset)] + [h.make_opsetid(d, 1) for d in domains]
    model = h.make_model(graph, opset_imports=imports, ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, str(path))
    return path


def relative(got, want):
    got, want = got.astype(np.float64), want.astype(np.float64)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)


class Cases:
    """Many small nodes in one model: one compilation for all of them."""

    def __init__(self):
        self.nodes, self.inputs, self.weights, self.results = [], {}, {}, []

    def data(self, *shape, low=-3.0, high=3.0, dtype=np.float32):
        name = f"x{len(self.inputs)}"
        if np.dtype(dtype).kind == "f":
            self.inputs[name] = RNG.uniform(low, high, size=shape).astype(dtype)
        elif dtype == np.bool_:
            self.inputs[name] = RNG.integers(0, 2, size=shape).astype(bool)
        else:
            self.inputs[name] = RNG.integers(int(low), int(high) + 1, size=shape).astype(dtype)
        return name

    def weight(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def floats(self, *shape):
        return self.weight(RNG.normal(size=shape).astype(np.float32))

    def ints(self, *values):
        return self.weight(np.array(values, np.int64))

    def add(self, op, *inputs, count=1, domain="", **attributes):
        names = [f"{op}_{len(self.nodes)}" + (f"_{i}" if count > 1 else "") for i in range(count)]
        self.nodes.append(h.make_node(op, list(inputs), names, f"n{len(self.nodes)}", domain=domain, **attributes))
        self.results += names
        return names[0]

    def check(self, octavo, folder, opset, tolerance=2e-6, domains=(), interpreter=False):
        model = save(folder / "m.onnx", self.nodes, self.inputs, self.results, self.weights, opset, domains)
        octavo("export", model, "--to", "stablehlo", "-o", folder / "m.mlir")
        s = session(model, optimize=False)
        want = s.run(self.results, self.inputs)
        arguments = [self.inputs[i.name] for i in s.get_inputs()]
        runs = {"iree": tools.program(folder / "m.mlir")(*arguments)}
        if interpreter:
            runs["interpreter"] = tools.interpret(folder / "m.mlir", *arguments)
        wrong = []
        for where, got in runs.items():
            assert len(got) == len(want)
            for name, a, b in zip(self.results, got, want):
                a = a.astype(bool) if b.dtype == np.bool_ else a
                if a.shape != b.shape or a.dtype != b.dtype:
                    wrong.append(f"{where} {name}: {a.dtype}{a.shape} instead of {b.dtype}{b.shape}")
                elif b.dtype.kind != "f" and not np.array_equal(a, b):
                    wrong.append(f"{where} {name}: integers differ")
                elif b.dtype.kind == "f" and not relative(a, b) <= tolerance:
                    wrong.append(f"{where} {name}: {relative(a, b):.2e}")
        assert not wrong, "\n".join(wrong)


def test_elementwise_operators(octavo, tmp_path):
    c = Cases()
    x, y, row, one = c.data(2, 3, 4), c.data(2, 3, 4, low=0.3), c.data(4), c.data(1)
    for op in ("Add", "Sub", "Mul", "Div"):
        c.add(op, x, y)
        c.add(op, row, y)
        c.add(op, x, c.floats(3, 1))
    c.add("Pow", y, c.weight(np.float32(2)))
    c.add("Pow", y, c.weight(np.float32(0.5)))
    c.add("Pow", y, c.weight(np.float32(3)))
    c.add("Pow", y, c.weight(np.float32(1.7)))
    c.add("Min", x, y, row), c.add("Max", x, row), c.add("Sum", x, y, one), c.add("Mean", x, y, row)
    for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tanh", "Sigmoid", "Relu",
               "Softplus", "Softsign", "HardSwish", "Erf", "Selu", "Elu", "LeakyRelu", "HardSigmoid"):
        c.add(op, x)
    for op in ("Log", "Sqrt", "Reciprocal"):
        c.add(op, y)
    c.add("LeakyRelu", x, alpha=0.3), c.add("Elu", x, alpha=0.4), c.add("HardSigmoid", x, alpha=0.4, beta=0.3)
    c.add("PRelu", x, c.floats(3, 1)), c.add("Clip", x, c.weight(np.float32(-1)), c.weight(np.float32(1.5)))
    c.add("Clip", x, "", c.weight(np.float32(0.5)))
    i, j = c.data(2, 5, dtype=np.int64, low=-9, high=9), c.data(5, dtype=np.int64, low=1, high=4)
    for op in ("Add", "Sub", "Mul", "Div", "Mod"):
        c.add(op, i, j)
    c.add("Mod", i, j, fmod=1)
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        c.add(op, i, j)
        c.add(op, x, y)
    p, q = c.data(2, 3, dtype=np.bool_), c.data(3, dtype=np.bool_)
    c.add("And", p, q), c.add("Or", p, q), c.add("Xor", p, q), c.add("Not", p)
    c.add("Where", c.weight(np.array([True, False, True])[:, None]), x, y)
    u = c.data(3, 4, dtype=np.uint8, low=0, high=255)
    c.add("Cast", u, to=T.FLOAT), c.add("Cast", x, to=T.INT32), c.add("Cast", x, to=T.BOOL), c.add("Cast", i, to=T.FLOAT)
    c.add("Cast", p, to=T.FLOAT), c.add("Cast", y, to=T.UINT8), c.add("Cast", u, to=T.INT64), c.add("IsNaN", x)
    c.check(octavo, tmp_path, 17, interpreter=True)


def test_gelu_forms(octavo, tmp_path):
    c = Cases()
    x = c.data(2, 8, low=-8, high=8)
    c.add("Gelu", x), c.add("Gelu", x, approximate="tanh"), c.add("Mish", x)
    for op in ("Gelu", "FastGelu", "QuickGelu"):
        c.add(op, x, domain="com.microsoft")
    c.add("BiasGelu", x, c.floats(8), domain="com.microsoft"), c.add("FastGelu", x, c.floats(8), domain="com.microsoft")
    c.check(octavo, tmp_path, 20, domains=["com.microsoft"])


def test_shape_operators(octavo, tmp_path):
    c = Cases()
    x, i = c.data(2, 3, 4, 6), c.data(3, 4, dtype=np.int64, low=-20, high=20)
    c.add("Reshape", x, c.ints(0, -1, 8)), c.add("Flatten", x, axis=2), c.add("Flatten", x, axis=0)
    c.add("Transpose", x, perm=[0, 2, 3, 1]), c.add("Transpose", x), c.add("Transpose", i)
    c.add("Squeeze", c.data(1, 3, 1, 2), c.ints(0, -2)), c.add("Unsqueeze", x, c.ints(0, -1))
    c.add("Concat", x, c.data(2, 5, 4, 6), x, axis=1), c.add("Concat", i, i, axis=-1)
    c.add("Slice", x, c.ints(1, -3), c.ints(2**40, -1), c.ints(1, 3)), c.add("Slice", x, c.ints(0), c.ints(6), c.ints(3), c.ints(4))
    c.add("Slice", x, c.ints(-1, 3), c.ints(-(2**40), 0), c.ints(1, -2), c.ints(-1, -2))
    c.add("Split", x, c.ints(1, 4, 1), axis=3, count=3), c.add("Split", x, axis=-1, count=2)
    c.add("Expand", c.data(3, 1), c.ints(2, 3, 4)), c.add("Tile", x, c.ints(1, 2, 1, 3))
    c.add("Pad", x, c.ints(0, 1, 2, 0, 1, 0, 0, 3), c.weight(np.float32(2.5)))
    c.add("Pad", x, c.ints(0, 0, 2, 1, 0, 0, 1, 3), mode="reflect"), c.add("Pad", x, c.ints(0, 0, 2, 1, 0, 1, 1, 3), mode="edge")
    c.add("Pad", x, c.ints(0, 0, -1, 0, 0, 0, 0, -2))
    c.add("Gather", x, c.weight(np.array([[0, -1], [2, 1]])), axis=1), c.add("Gather", x, c.weight(np.array(-2)), axis=3)
    c.add("Gather", x, c.data(5, dtype=np.int64, low=-3, high=2), axis=1), c.add("Gather", c.floats(20, 7), c.data(2, 3, dtype=np.int64, low=0, high=19))
    c.add("DepthToSpace", c.data(1, 8, 2, 3), blocksize=2), c.add("DepthToSpace", c.data(1, 8, 2, 3), blocksize=2, mode="CRD")
    c.add("SpaceToDepth", c.data(1, 2, 4, 6), blocksize=2), c.add("Trilu", x), c.add("Trilu", x, c.weight(np.array(1)), upper=0)
    c.add("Shape", x), c.add("Size", x), c.add("ConstantOfShape", c.ints(2, 3), value=nh.from_array(np.array([7], np.int64)))
    # shapes that are computed
    n = c.add("Gather", c.add("Shape", x), c.weight(np.array(1)))
    s = c.add("Concat", c.add("Unsqueeze", n, c.ints(0)), c.ints(-1), axis=0)
    c.add("Reshape", x, s)
    c.check(octavo, tmp_path, 17, interpreter=True)


def test_resize(octavo, tmp_path):
    c = Cases()
    x = c.data(1, 2, 5, 6)

    def scales(*s):
        return c.weight(np.array(s, np.float32))

    for mode in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
        for s in ((1, 1, 2, 2), (1, 1, 0.6, 1.7), (1, 1, 3, 1.5)):
            c.add("Resize", x, "", scales(*s), mode="linear", coordinate_transformation_mode=mode)
        c.add("Resize", x, "", "", c.ints(1, 2, 7, 9), mode="linear", coordinate_transformation_mode=mode)
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        for mode in ("asymmetric", "half_pixel"):
            c.add("Resize", x, "", scales(1, 1, 2, 3), mode="nearest", nearest_mode=nearest, coordinate_transformation_mode=mode)
            c.add("Resize", x, "", "", c.ints(1, 2, 8, 4), mode="nearest", nearest_mode=nearest, coordinate_transformation_mode=mode)
    c.check(octavo, tmp_path, 13)


def test_cubic_resize(octavo, tmp_path):
    c = Cases()
    x = c.data(1, 2, 5, 6)
    for mode in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
        for s in ((1, 1, 2, 2), (1, 1, 0.6, 1.7), (1, 1, 3, 1.5)):
            s = c.weight(np.array(s, np.float32))
            c.add("Resize", x, "", s, mode="cubic", coordinate_transformation_mode=mode, cubic_coeff_a=-0.5)
            c.add("Resize", x, "", s, mode="cubic", coordinate_transformation_mode=mode, exclude_outside=1)
    c.check(octavo, tmp_path, 13, tolerance=1e-5)  # the runtime makes its weights in f32


def test_windows(octavo, tmp_path):
    c = Cases()
    x, line, cube = c.data(2, 6, 9, 8), c.data(2, 6, 11), c.data(1, 4, 5, 6, 7)
    c.add("Conv", x, c.floats(4, 6, 3, 3), c.floats(4), pads=[1, 2, 0, 1], strides=[2, 1])
    c.add("Conv", x, c.floats(6, 1, 3, 3), group=6, dilations=[2, 1]), c.add("Conv", x, c.floats(8, 3, 1, 1), group=2)
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        c.add("Conv", x, c.floats(4, 6, 2, 3), auto_pad=auto, strides=[2, 3])
        c.add("MaxPool", x, kernel_shape=[2, 3], auto_pad=auto, strides=[2, 2])
    c.add("Conv", line, c.floats(5, 6, 4), pads=[1, 2], strides=[2]), c.add("Conv", cube, c.floats(2, 4, 2, 3, 2), pads=[1, 0, 1, 0, 1, 0])
    c.add("ConvTranspose", x, c.floats(6, 4, 3, 3), c.floats(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0])
    c.add("ConvTranspose", x, c.floats(6, 2, 2, 2), strides=[2, 2], group=3), c.add("ConvTranspose", line, c.floats(6, 3, 3), dilations=[2])
    c.add("ConvTranspose", x, c.floats(6, 4, 3, 3), strides=[2, 2], output_shape=[18, 16])
    c.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), c.add("MaxPool", line, kernel_shape=[3], dilations=[2])
    c.add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1)
    for include in (0, 1):
        c.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=include)
        c.add("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 0, 1], count_include_pad=include, ceil_mode=1)
        c.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 3], count_include_pad=include, ceil_mode=1)  # no pads given
    c.add("AveragePool", line, kernel_shape=[4], strides=[3]), c.add("GlobalAveragePool", x), c.add("GlobalMaxPool", cube)
    c.check(octavo, tmp_path, 19)


def test_computed_kernels(octavo, tmp_path):
    """Kernels out of codes, one scale a channel, and kernels that are inputs of the model."""
    c = Cases()
    x, line, cube = c.data(2, 6, 9, 8), c.data(2, 6, 11), c.data(1, 4, 5, 6, 7)

    def codes(*shape, axis=0):
        names = [c.weight(RNG.integers(-127, 128, shape).astype(np.int8)), c.weight(RNG.uniform(0.001, 0.02, shape[axis]).astype(np.float32))]
        c.nodes.append(h.make_node("DequantizeLinear", names, [f"kernel{len(c.nodes)}"], axis=axis))
        return c.nodes[-1].output[0]

    c.add("Conv", x, codes(4, 6, 3, 2), c.floats(4), pads=[1, 2, 0, 1], strides=[2, 1]), c.add("Conv", x, c.data(4, 6, 2, 3))
    c.add("Conv", x, codes(6, 1, 3, 3), group=6, dilations=[2, 1]), c.add("Conv", x, codes(8, 3, 1, 1), group=2)
    c.add("Conv", line, codes(5, 6, 4), pads=[1, 2], strides=[2]), c.add("Conv", cube, codes(2, 4, 2, 3, 2), pads=[1, 0, 1, 0, 1, 0])
    c.add("ConvTranspose", x, codes(6, 4, 3, 2, axis=1), c.floats(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0])
    c.add("ConvTranspose", x, codes(6, 2, 2, 2), strides=[2, 2], group=3), c.add("ConvTranspose", line, c.data(6, 3, 3), dilations=[2])
    c.check(octavo, tmp_path, 19, interpreter=True)


def test_products(octavo, tmp_path):
    c = Cases()
    a, b, v = c.data(2, 3, 4, 5), c.data(3, 5, 6), c.data(5)
    c.add("MatMul", a, b), c.add("MatMul", a, c.floats(5, 7)), c.add("MatMul", v, b), c.add("MatMul", a, v)
    c.add("MatMul", v, v), c.add("MatMul", c.data(4, 5), c.data(2, 1, 5, 3)), c.add("MatMul", c.data(1, 5), c.floats(1, 5, 3))
    for ta in (0, 1):
        for tb in (0, 1):
            c.add("Gemm", c.data(*((5, 3) if ta else (3, 5))), c.floats(*((4, 5) if tb else (5, 4))), c.floats(4), transA=ta, transB=tb, alpha=0.7, beta=1.3)
    c.add("Gemm", c.data(3, 5), c.floats(5, 4))
    c.check(octavo, tmp_path, 17, interpreter=True)


def test_products_of_rows_that_no_tile_divides(octavo, tmp_path):
    """They are written with rows of zeros behind them."""
    c = Cases()
    c.add("MatMul", c.data(257, 12), c.floats(12, 5)), c.add("MatMul", c.data(1, 17, 12), c.floats(12, 5)), c.add("MatMul", c.data(2, 3, 11, 7), c.floats(7, 9))
    c.add("MatMul", c.data(2, 13, 6), c.data(6, 4)), c.add("MatMul", c.data(7, 12), c.floats(12, 5)), c.add("MatMul", c.data(24, 12), c.floats(12, 5))
    c.add("Gemm", c.data(13, 6), c.floats(6, 4), c.floats(4), alpha=0.5), c.add("Gemm", c.data(19, 6), c.floats(4, 6), c.floats(19, 1), transB=1, beta=2.0)
    c.add("Gemm", c.data(6, 13), c.floats(6, 4), transA=1), c.add("MatMul", c.data(12), c.floats(12, 5))
    c.add("MatMul", c.data(3, 34, 6), c.data(3, 6, 37)), c.add("MatMul", c.data(2, 1, 16, 6), c.data(3, 6, 38)), c.add("MatMul", c.data(3, 5, 17), c.data(3, 17, 4))
    c.check(octavo, tmp_path, 17, interpreter=True)
    text = (tmp_path / "m.mlir").read_text()
    assert sorted(int(n) for n in re.findall(r"stablehlo.pad .*-> tensor<(\d+)x\d+xf32", text)) == [16, 24, 24, 32, 72, 264]
    assert re.findall(r"stablehlo.pad .*-> tensor<(\S+x\d+x\d+)xf32>", text) == ["3x40x6", "3x6x40", "2x3x6x40"]


def test_reductions_and_normalizations(octavo, tmp_path):
    c = Cases()
    x = c.data(2, 6, 4, 3)
    for op in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd"):
        c.add(op, x, axes=[1, -1]), c.add(op, x, axes=[2], keepdims=0), c.add(op, x)
    c.add("ReduceSum", x, c.ints(1, 2)), c.add("ReduceSum", x, c.ints(-1), keepdims=0), c.add("ReduceSum", x)
    for axis in (-1, 1, 0):
        c.add("Softmax", x, axis=axis), c.add("LogSoftmax", x, axis=axis)
    positive = c.weight(RNG.uniform(0.5, 2, 6).astype(np.float32))
    c.add("BatchNormalization", x, c.floats(6), c.floats(6), c.floats(6), positive, epsilon=1e-3)
    c.add("InstanceNormalization", x, c.floats(6), c.floats(6))
    c.add("LRN", x, size=3, alpha=0.5, bias=2.0, beta=0.6), c.add("LRN", x, size=5, alpha=0.9)
    c.add("LayerNormalization", x, c.floats(3), c.floats(3)), c.add("LayerNormalization", x, c.floats(4, 3), axis=2, epsilon=1e-2)
    c.check(octavo, tmp_path, 17, interpreter=True, tolerance=1e-5)  # terms of a sum may cancel
    old = Cases()
    old.add("Softmax", old.data(2, 3, 4), axis=1), old.add("Softmax", old.data(2, 3, 4)), old.add("Clip", old.data(4), min=-0.5, max=1.0)
    old.add("Upsample", old.data(1, 2, 3, 3), scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    (tmp_path / "old").mkdir()
    old.check(octavo, tmp_path / "old", 8)


def test_pools_of_a_concatenation(octavo, tmp_path):
    """As in GoogLeNet: IREE does not compile windows over the last dimensions here (its stack limit)."""
    c = Cases()
    both = c.add("Concat", c.data(1, 256, 27, 27), c.data(1, 224, 27, 27), axis=1)
    pool = c.add("MaxPool", both, kernel_shape=[3, 3], strides=[2, 2])
    c.add("Conv", pool, c.weight(RNG.normal(size=(16, 480, 1, 1)).astype(np.float32) / 20))
    c.add("MaxPool", pool, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    c.add("AveragePool", pool, kernel_shape=[3, 3], pads=[1, 0, 1, 2], strides=[1, 2])
    c.check(octavo, tmp_path, 17)


def test_sums_places_and_skips(octavo, tmp_path):
    c = Cases()
    x, n = c.data(2, 5, 4), c.data(3, 6, low=0, high=2, dtype=np.int64)  # equal elements: which place counts
    for more in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        c.add("CumSum", x, c.weight(np.array(1, np.int64)), **more), c.add("CumSum", n, c.ints(-1), **more)
    for op in ("ArgMax", "ArgMin"):
        c.add(op, x, axis=1), c.add(op, n, axis=-1, keepdims=0), c.add(op, n, axis=1, select_last_index=1)
    skip = c.data(2, 5, 4)
    c.add("SkipLayerNormalization", x, skip, c.floats(4), c.floats(4), c.floats(4), domain="com.microsoft", epsilon=1e-5)
    c.add("SkipLayerNormalization", x, skip, c.floats(4), domain="com.microsoft")
    c.check(octavo, tmp_path, 17, domains=("com.microsoft",))


def test_quantized_operators(octavo, tmp_path):
    """Integers throughout: equal codes. Signed weights have 7 bits: with more, ONNX Runtime saturates on machines without VNNI."""
    c = Cases()
    x, y = c.data(1, 4, 6, 6), c.data(3, 8)
    u8, s8 = (lambda v: c.weight(np.uint8(v))), (lambda v: c.weight(np.int8(v)))
    f = lambda v: c.weight(np.float32(v))
    qx = c.add("QuantizeLinear", x, f(0.021), u8(120))
    qs = c.add("QuantizeLinear", x, f(0.03), s8(-5))
    c.add("DequantizeLinear", qx, f(0.021), u8(120)), c.add("DequantizeLinear", qs, f(0.03), s8(-5))
    w = c.weight(RNG.integers(-64, 64, (5, 4, 3, 3)).astype(np.int8))
    wu = c.weight(RNG.integers(0, 256, (5, 4, 3, 3)).astype(np.uint8))
    c.add("ConvInteger", qx, wu, u8(120), u8(131))
    scales = c.weight(RNG.uniform(0.001, 0.01, 5).astype(np.float32))
    zeros = c.weight(np.zeros(5, np.int8))
    bias = c.weight(RNG.integers(-5000, 5000, 5).astype(np.int32))
    c.add("QLinearConv", qx, f(0.021), u8(120), w, scales, zeros, f(0.09), u8(128), bias, pads=[1, 1, 1, 1])
    qy = c.add("DynamicQuantizeLinear", y, count=3)
    m = c.weight(RNG.integers(-64, 64, (8, 4)).astype(np.int8))
    c.add("MatMulInteger", "DynamicQuantizeLinear_%d_0" % (len(c.nodes) - 1), m, "DynamicQuantizeLinear_%d_2" % (len(c.nodes) - 1))
    q = c.add("QuantizeLinear", y, f(0.025), u8(119))
    c.add("QLinearMatMul", q, f(0.025), u8(119), m, f(0.01), s8(0), f(0.07), u8(100))
    # rounding: ties, saturation
    ties = c.weight(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 400, -400, 0.25], np.float32))
    t = c.add("Add", ties, c.data(1, low=0, high=0))
    c.add("QuantizeLinear", t, f(1.0), u8(3)), c.add("QuantizeLinear", t, f(1.0), s8(3)), c.add("QuantizeLinear", t, f(0.5), s8(-3))
    c.add("QuantizeLinear", y, c.weight(RNG.uniform(0.01, 0.1, 8).astype(np.float32)), c.weight(RNG.integers(100, 150, 8).astype(np.uint8)), axis=1)
    c.check(octavo, tmp_path, 13)


# --- weights in blocks --------------------------------------------------------------------------------------------------

slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
FORMATS = ["q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl", "nvfp4"] + [
    slow(f) for f in ("q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q5_k", "iq4_xs", "mxfp4_gg", "tq1_0", "tq2_0")]


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """y = x w with w of [256, 32]: x = identity gives the weight itself."""
    folder = tmp_path_factory.mktemp("blocked")
    w = (np.random.default_rng(3).normal(size=(256, 32)) / 16).astype(np.float32)
    x = np.eye(256, dtype=np.float32)
    return save(folder / "m.onnx", [h.make_node("MatMul", ["x", "w"], ["y"], "mm")], {"x": x}, ["y"], {"w": w}), x


def reference(octavo, model, precision, folder):
    """What gguf makes of the blocks that octavo writes: rows along the summed dimension."""
    import gguf
    octavo("export", model, "--to", "gguf", "-o", folder / "w.gguf", "--precision", precision, "--force")
    tensor = next(t for t in gguf.GGUFReader(folder / "w.gguf").tensors if t.name == "w")
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type), tensor.tensor_type.name


@pytest.mark.parametrize("precision", FORMATS)
def test_blocks_bit_for_bit(octavo, blocked, precision, tmp_path):
    model, x = blocked
    rows, name = reference(octavo, model, precision, tmp_path)
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", precision)
    text = (tmp_path / "m.mlir").read_text()
    assert f'"w" = "{name}"' in text and f'encoding = "{name}"' in text
    (got,) = tools.program(tmp_path / "m.mlir")(x)
    np.testing.assert_array_equal(got, rows.T)
    if precision in ("q8_0", "q4_k", "iq4_nl"):
        (interpreted,) = tools.interpret(tmp_path / "m.mlir", x)
        np.testing.assert_array_equal(interpreted, rows.T)


@pytest.mark.parametrize("precision", ["q4_k", "iq4_nl"] + [slow(f) for f in ("q8_0", "q4_0", "q6_k", "iq4_xs", "mxfp4_gg", "nvfp4")])
@pytest.mark.parametrize("form", ("dequantize", "codes"))
def test_blocks_in_other_forms(octavo, blocked, precision, form, tmp_path):
    model, x = blocked
    rows, name = reference(octavo, model, precision, tmp_path)
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", precision, "--constants", form)
    text = (tmp_path / "m.mlir").read_text()
    assert ("octavo.quant_params" in text) == (form == "codes") and "composite" not in text
    (got,) = tools.program(tmp_path / "m.mlir")(x)
    np.testing.assert_array_equal(got, rows.T)


@pytest.mark.parametrize("precision", ["fp32", "q4_k"] + [slow(f) for f in ("q8_0", "q4_0", "q6_k")])
def test_parameter_archive(octavo, blocked, precision, tmp_path):
    """Weights outside the text: iree-dump-parameters reads the archive, the module its tensors."""
    model, x = blocked
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", precision, "--constants", "parameters")
    assert (tmp_path / "m.mlir").stat().st_size < 8000
    (got,) = tools.program(tmp_path / "m.mlir", tmp_path / "m.mlir.irpa")(x)
    want = reference(octavo, model, precision, tmp_path)[0].T if precision != "fp32" else nh.to_array(onnx.load(model).graph.initializer[0])
    np.testing.assert_array_equal(got, want)


# all the block formats of which IREE opens a GGUF
@pytest.mark.parametrize("precision", ["q5_1", "q3_k", "q4_k", "q6_k"] + [slow(f) for f in ("q8_0", "q4_0", "q4_1", "q5_0", "q2_k", "q5_k")])
def test_weights_stay_in_the_gguf(octavo, blocked, precision, tmp_path):
    """The module reads the file's raw blocks; its own text holds no weight."""
    model, x = blocked
    rows, _ = reference(octavo, model, precision, tmp_path)
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--constants", "parameters", "--parameters", tmp_path / "w.gguf")
    assert (tmp_path / "m.mlir").stat().st_size < 16000 and not (tmp_path / "m.mlir.irpa").exists()
    (got,) = tools.program(tmp_path / "m.mlir", tmp_path / "w.gguf")(x)
    np.testing.assert_array_equal(got, rows.T)


@pytest.mark.parametrize("precision", ("iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4_gg", "nvfp4"))
def test_files_that_iree_does_not_open(octavo, blocked, precision, tmp_path):
    """IREE's own reader says so, and octavo before it."""
    import iree.runtime
    model, _ = blocked
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "w.gguf", "--precision", precision)
    with pytest.raises(Exception, match="not supported"):
        iree.runtime.ParameterIndex().load(str(tmp_path / "w.gguf"))
    r = octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "n.mlir", "--constants", "parameters", "--parameters", tmp_path / "w.gguf", code=4)
    assert "IREE does not open" in r.error


MX = ["mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "mxint8"]


@pytest.mark.parametrize("precision,form", [(p, "packed") for p in MX] + [
    slow("mxfp6_e3m2", "packed"), slow("mxfp8_e5m2", "packed"), ("mxfp4", "codes"), ("mxint8", "parameters"), ("mxfp8_e4m3", "dequantize"), ("mxfp4", "quant")])
def test_mx_weights(octavo, tmp_path, precision, form):
    """Codes and scale bytes in the text; the numbers are those of OCP MX as gfloat and ml_dtypes round them."""
    from test_mx import oracle
    w = np.random.default_rng(5).normal(size=(160, 48)).astype(np.float32) * np.exp2(RNG.integers(-20, 20, (1, 48))).astype(np.float32)
    x = np.eye(160, dtype=np.float32)
    model = save(tmp_path / "m.onnx", [h.make_node("MatMul", ["x", "w"], ["y"], "mm")], {"x": x}, ["y"], {"w": w})
    command = ("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", precision, "--constants", form)
    if form == "quant":
        assert f"!quant.uniform cannot say {precision}" in octavo(*command, code=4).error
        return
    octavo(*command)
    text = (tmp_path / "m.mlir").read_text()
    assert f'encoding = "{precision}"' in text and f'"w" = "{precision}"' in text
    stored = "160x48xi4" if precision == "mxfp4" else "160x48xi8"
    assert (stored in text) == (form != "dequantize") and ("octavo.quant_params" in text) == (form == "codes")
    want = oracle(w, precision, "even", axis=0)
    archive = tmp_path / "m.mlir.irpa" if form == "parameters" else None
    (got,) = tools.program(tmp_path / "m.mlir", archive)(x)
    np.testing.assert_array_equal(got, want)
    if form == "packed":
        (interpreted,) = tools.interpret(tmp_path / "m.mlir", x)
        np.testing.assert_array_equal(interpreted, want)


@pytest.mark.parametrize("name,axis,block", [("mxfp4", 1, 32), ("mxint8", 0, 24), ("nvfp4", 1, 16)])
def test_mx_fake_quantized_weights(octavo, tmp_path, name, axis, block):
    """A model that says by an operator what its weight is; blocks along any axis, the last of a row shorter."""
    from test_mx import fake_weight_model, oracle
    w = RNG.normal(size=(40, 48)).astype(np.float32)
    onnx.save(fake_weight_model(w, name, "even", axis, block), str(tmp_path / "m.onnx"))
    octavo("export", tmp_path / "m.onnx", "--to", "stablehlo", "-o", tmp_path / "m.mlir")
    if name != "nvfp4":  # its blocks become blocks of integers with f32 scales
        assert f'encoding = "{name}"' in (tmp_path / "m.mlir").read_text()
    x = np.eye(40, dtype=np.float32)
    program = tools.program(tmp_path / "m.mlir")
    got = np.concatenate([program(x[i:i + 2])[0] for i in range(0, 40, 2)])
    np.testing.assert_array_equal(got, oracle(w, name, "even", axis, block))


def test_stored_codes_are_those_of_the_file(octavo, blocked, tmp_path):
    """The payload is read back by StableHLO's own parser."""
    from jaxlib.mlir import ir
    import gguf
    model, _ = blocked
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", "q8_0")
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "w.gguf", "--precision", "q8_0")
    raw = next(t for t in gguf.GGUFReader(tmp_path / "w.gguf").tensors if t.name == "w").data.reshape(32, 8, 34)
    context, module = tools.parse(tmp_path / "m.mlir")
    found = {}
    with context, ir.Location.unknown():
        main = next(op for op in module.body.operations if "main" in str(op.attributes["sym_name"]))
        for op in main.regions[0].blocks[0].operations:
            if op.operation.name == "stablehlo.constant":
                a = np.array(ir.DenseElementsAttr(op.attributes["value"]))
                found[a.shape] = a
    np.testing.assert_array_equal(found[(32, 8, 1, 32)].reshape(32, 8, 32), raw[:, :, 2:].view(np.int8))
    np.testing.assert_array_equal(found[(32, 8)].view(np.uint16), raw[:, :, :2].copy().view(np.uint16)[..., 0])


@pytest.mark.parametrize("precision,limit", [("q4_k", 640_000), ("q8_0", 1_150_000), slow("q4_0", 640_000)])
def test_size_of_the_compiled_module(octavo, precision, limit, tmp_path):
    w = (RNG.normal(size=(1024, 1024)) / 32).astype(np.float32)
    x = RNG.normal(size=(1, 1024)).astype(np.float32)
    model = save(tmp_path / "m.onnx", [h.make_node("MatMul", ["x", "w"], ["y"], "mm")], {"x": x}, ["y"], {"w": w})
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--precision", precision)
    program = tools.program(tmp_path / "m.mlir")
    assert program.size <= limit
    rows, _ = reference(octavo, model, precision, tmp_path)
    (got,) = program(x)
    assert relative(got, x @ rows.T) < 1e-5


@pytest.mark.parametrize("operator", ("Transpose", "Reshape", "Slice"))
def test_encoding_is_followed_through(octavo, tmp_path, operator):
    """Super-blocks of 256 through one operator each: the trace names it, the bits stay in blocks and are the file's."""
    w = (RNG.normal(size=(512, 24)) / 16).astype(np.float32)
    x = {"Transpose": np.eye(512), "Reshape": np.eye(512), "Slice": np.eye(256)}[operator].astype(np.float32)
    node = {"Transpose": h.make_node("Transpose", ["w"], ["v"], "move", perm=[1, 0]),
            "Reshape": h.make_node("Reshape", ["w", "shape"], ["v"], "move"),
            "Slice": h.make_node("Slice", ["w", "from", "to", "axis"], ["v"], "move")}[operator]
    weights = {"w": w, "shape": np.array([1, 512, 24]), "from": np.array([256]), "to": np.array([512]), "axis": np.array([0])}
    # the product with w itself says along which dimension its blocks run
    use = ("Gemm", {"transB": 1}) if operator == "Transpose" else ("MatMul", {})
    nodes = [h.make_node("MatMul", ["one", "w"], ["z"], "first"), node, h.make_node(use[0], ["x", "v"], ["y"], "mm", **use[1])]
    one = np.eye(512, dtype=np.float32)
    used = {k: v for k, v in weights.items() if k == "w" or k in node.input}
    model = save(tmp_path / "m.onnx", nodes, {"one": one, "x": x}, ["z", "y"], used)
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "w.gguf", "--precision", "q4_k")
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--weights", tmp_path / "w.gguf", "--json", tmp_path / "r.json")
    trace = json.loads((tmp_path / "r.json").read_text())["details"]["trace"]
    assert any(f"weight 'w' (Q4_K) reaches {use[0]} 'mm' through {operator}" in line for line in trace), trace
    assert not any("dequantized" in line for line in trace)
    want = reference(octavo, model, "q4_k", tmp_path)[0].T
    z, y = tools.program(tmp_path / "m.mlir")(one, x)
    np.testing.assert_array_equal(z, want)
    np.testing.assert_array_equal(y, {"Transpose": want, "Reshape": want[None], "Slice": want[256:]}[operator])


def test_encoding_is_followed(octavo, tmp_path):
    """Through Transpose, Reshape and Slice on block borders; where a Slice cuts blocks, the trace says so."""
    w = (RNG.normal(size=(512, 64)) / 16).astype(np.float32)
    x, k = np.eye(512, dtype=np.float32), np.eye(256, dtype=np.float32)
    weights = {"w": w, "shape": np.array([64, 2, 256]), "s0": np.array([64]), "s1": np.array([320]), "s2": np.array([50]),
               "s3": np.array([306]), "a": np.array([1])}
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["y"], "mm"),
        h.make_node("Transpose", ["w"], ["t"], "tr", perm=[1, 0]),
        h.make_node("Gemm", ["x", "t"], ["yt"], "gemm", transB=1),
        h.make_node("Reshape", ["t", "shape"], ["r"], "reshape"),
        h.make_node("Mul", ["r", "two"], ["yr"], "mul"),
        h.make_node("Slice", ["t", "s0", "s1", "a"], ["c"], "cut"),
        h.make_node("Gemm", ["k", "c"], ["yc"], "gemm2", transB=1),
        h.make_node("Slice", ["t", "s2", "s3", "a"], ["b"], "broken"),
        h.make_node("Gemm", ["k", "b"], ["yb"], "gemm3", transB=1),
    ]
    inputs = {"x": x, "k": k, "two": np.array([2], np.float32)}
    model = save(tmp_path / "m.onnx", nodes, inputs, ["y", "yt", "yr", "yc", "yb"], weights)
    # the weights come out of a GGUF: a constant in blocks that other operators read
    octavo("export", model, "--to", "gguf", "-o", tmp_path / "w.gguf", "--precision", "q8_0")
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--weights", tmp_path / "w.gguf", "--json",
           tmp_path / "r.json")
    rows, _ = reference(octavo, model, "q8_0", tmp_path)
    trace = json.loads((tmp_path / "r.json").read_text())["details"]["trace"]
    lines = "\n".join(trace)
    assert "weight 'w' (Q8_0) reaches MatMul 'mm'" in lines
    assert "reaches Gemm 'gemm' through Transpose" in lines
    assert "reaches Mul 'mul' through Transpose, Reshape" in lines
    assert "reaches Gemm 'gemm2' through Transpose, Slice" in lines
    assert re.search(r"is dequantized at Slice 'broken' behind Transpose: it cuts blocks of 32 at 50 to 306", lines)
    y, yt, yr, yc, yb = tools.program(tmp_path / "m.mlir")(x, k, inputs["two"])
    np.testing.assert_array_equal(y, rows.T)
    np.testing.assert_array_equal(yt, rows.T)
    np.testing.assert_array_equal(yr, 2 * rows.reshape(64, 2, 256))
    np.testing.assert_array_equal(yc, rows[:, 64:320].T)
    np.testing.assert_array_equal(yb, rows[:, 50:306].T)


# --- affine weights and activations ---------------------------------------------------------------------------------------


def qdq_model(path, weight, scale, zero, axis=None, x_type=np.int8, x_zero=3):
    """Conv and MatMul between Q and DQ; the second weight's scale is per tensor."""
    zero = np.asarray(zero)
    weights = {"w": weight, "ws": np.asarray(scale, np.float32), "wz": zero, "xs": np.float32(0.03), "xz": x_type(x_zero),
               "ys": np.float32(0.4), "b": RNG.integers(-3000, 3000, weight.shape[0]).astype(np.int32),
               "bs": np.asarray(0.03 * np.asarray(scale), np.float32)}
    bias_axis = {} if axis is None else {"axis": 0}
    nodes = [
        h.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        h.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        h.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **({} if axis is None else {"axis": axis})),
        h.make_node("DequantizeLinear", ["b", "bs"], ["bd"], **bias_axis),
        h.make_node("Conv", ["xd", "wd", "bd"], ["c"], "conv", pads=[1, 1, 1, 1]),
        h.make_node("QuantizeLinear", ["c", "ys", "xz"], ["cq"]),
        h.make_node("DequantizeLinear", ["cq", "ys", "xz"], ["y"]),
    ]
    x = RNG.uniform(-3, 3, (1, 4, 9, 9)).astype(np.float32)
    return save(path, nodes, {"x": x}, ["y"], weights, opset=17), x


WEIGHTS = {
    "s8": (np.int8, 0, None), "s8-channel": (np.int8, np.zeros(6, np.int8), 0), "u8": (np.uint8, 131, None),
    "u8-channel": (np.uint8, RNG.integers(100, 150, 6).astype(np.uint8), 0),
}


@pytest.mark.parametrize("kind,form", [(k, "packed") for k in WEIGHTS] + [("s8", f) for f in ("dequantize", "codes", "quant")]
                         + [("u8-channel", "codes"), ("s8-channel", "quant"), ("u8", "quant")])
def test_affine_weights(octavo, kind, form, tmp_path):
    dtype, zero, axis = WEIGHTS[kind]
    info = np.iinfo(dtype)
    weight = RNG.integers(max(info.min, -127), info.max + 1, (6, 4, 3, 3)).astype(dtype)
    scale = RNG.uniform(0.01, 0.03, 6 if axis is not None else ())
    model, x = qdq_model(tmp_path / "q.onnx", weight, scale, np.asarray(zero, dtype), axis)
    command = ("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--constants", form)
    if form == "quant" and kind != "s8":
        r = octavo(*command, code=4)
        assert "'w'" in r.error and ("unsigned" in r.error if dtype == np.uint8 else "axis 0, which is not the last" in r.error)
        assert not (tmp_path / "m.mlir").exists()
        return
    octavo(*command)
    text = (tmp_path / "m.mlir").read_text()
    tools.parse(tmp_path / "m.mlir")
    if form == "quant":
        assert re.search(r"stablehlo.convolution.*!quant.uniform<i8:f32.*-> tensor<.*!quant.uniform<i32:f32", text)
    if form in ("codes", "packed"):
        assert "ui8> \n" not in text and not re.search(r"constant.*dense<\"0x[0-9A-F]+\"> : tensor<6x4x3x3xui8>", text)
    (want,) = session(model, optimize=False).run(None, {"x": x})
    (got,) = tools.program(tmp_path / "m.mlir")(x)
    steps = np.abs(got - want) / 0.4
    assert steps.max() <= 1.001 and (steps > 0.5).mean() < 0.02  # one step at most, at ties


def test_int4_weights(octavo, tmp_path):
    """4-bit codes in blocks: masked nibbles, and bytes where there are few."""
    x = np.eye(64, dtype=np.float32)
    for n, stored in ((64, "i4"), (5, "i8")):
        codes = RNG.integers(-8, 8, (64, n))
        scales = RNG.uniform(0.1, 1, (2, n)).astype(np.float32)
        packed = h.make_tensor("w", T.INT4, codes.shape, codes.flatten().tolist())
        nodes = [h.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=32), h.make_node("MatMul", ["x", "d"], ["y"])]
        graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, x.shape)],
                             [h.make_tensor_value_info("y", T.FLOAT, [64, n])], [packed, nh.from_array(scales, "s")])
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), str(tmp_path / "m.onnx"))
        octavo("export", tmp_path / "m.onnx", "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--force")
        assert f"tensor<64x{n}x{stored}>" in (tmp_path / "m.mlir").read_text()
        (got,) = tools.program(tmp_path / "m.mlir")(x)
        np.testing.assert_array_equal(got, (codes * np.repeat(scales, 32, axis=0)).astype(np.float32))


def recurrent(c, op, gates, steps, batch, inputs, hidden, directions=1, bias=True, states=0, lengths=None, peepholes=False, **attributes):
    layout = attributes.get("layout", 0)
    x = c.data(batch, steps, inputs) if layout else c.data(steps, batch, inputs)
    names = [x, c.floats(directions, gates * hidden, inputs), c.floats(directions, gates * hidden, hidden)]
    names.append(c.floats(directions, 2 * gates * hidden) if bias else "")
    names.append(lengths if isinstance(lengths, str) else c.weight(np.array(lengths, np.int32)) if lengths else "")
    first = [c.data(*((batch, directions, hidden) if layout else (directions, batch, hidden)), low=-1, high=1) for _ in range(states)]
    names += first + [""] * (2 - len(first)) + ([c.floats(directions, 3 * hidden)] if peepholes else [])
    while not names[-1]:
        names.pop()
    c.add(op, *names, count=3 if op == "LSTM" else 2, hidden_size=hidden, **attributes)


def test_recurrent_operators(octavo, tmp_path):
    """ONNX Runtime's activations are approximations: hence the tolerance."""
    c = Cases()
    both = {"directions": 2, "direction": "bidirectional"}
    for op, gates, states in (("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)):
        recurrent(c, op, gates, 5, 2, 3, 4)
        recurrent(c, op, gates, 1, 2, 3, 4, states=states)
        recurrent(c, op, gates, 4, 2, 3, 2, bias=False, states=states, direction="reverse")
        recurrent(c, op, gates, 4, 3, 2, 3, states=states, lengths=[4, 1, 3], **both)
        recurrent(c, op, gates, 3, 1, 2, 3, clip=0.3)
    recurrent(c, "LSTM", 4, 4, 2, 3, 4, states=2, peepholes=True)
    recurrent(c, "LSTM", 4, 4, 2, 3, 4, input_forget=1)
    recurrent(c, "LSTM", 4, 3, 2, 3, 2, activations=["Sigmoid", "Softsign", "Relu"])
    recurrent(c, "GRU", 3, 4, 2, 3, 4, linear_before_reset=1, states=1, **both)
    recurrent(c, "GRU", 3, 3, 2, 3, 2, bias=False, linear_before_reset=1, activations=["Sigmoid", "Softplus"])
    ends = c.data(2, dtype=np.int32, low=1, high=4)
    recurrent(c, "GRU", 3, 4, 2, 3, 2, lengths=ends, direction="reverse")
    c.check(octavo, tmp_path, 17, tolerance=1e-5, interpreter=True)


def test_dynamically_quantized_lstm(octavo, tmp_path):
    """As ONNX Runtime's dynamic quantization writes it: the input's range is found once, the state's in every step
    (of a batch of one: with more, ONNX Runtime's threads find a range each). Signed codes have 7 bits: with more, it saturates without VNNI."""
    c = Cases()
    for dtype, each, directions, direction in ((np.int8, (), 1, "reverse"), (np.uint8, (32,), 2, "bidirectional"), (np.int8, (32,), 1, "forward")):
        low, high = (-64, 64) if dtype == np.int8 else (0, 256)
        code = lambda *shape: c.weight(RNG.integers(low, high, (directions, *shape)).astype(dtype))
        scale = lambda: c.weight(RNG.uniform(0.002, 0.01, (directions, *each)).astype(np.float32))
        zero = lambda: c.weight(np.full((directions, *each), 130 if dtype == np.uint8 else 0, dtype))
        states = [c.data(directions, 1, 8, low=-1, high=1) for _ in range(2)] if directions == 2 else ["", ""]
        c.add("DynamicQuantizeLSTM", c.data(4, 1, 6), code(6, 32), code(8, 32), c.floats(directions, 64), "", *states, "",
              scale(), zero(), scale(), zero(), count=3, domain="com.microsoft", hidden_size=8, direction=direction)
    c.check(octavo, tmp_path, 17, tolerance=1e-5, domains=("com.microsoft",), interpreter=True)


def test_recurrent_batch_first(octavo, tmp_path):
    """layout = 1, which ONNX Runtime does not run: the onnx package's reference does, forward and without lengths."""
    from onnx.reference import ReferenceEvaluator
    for op, gates, states in (("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)):
        c = Cases()
        recurrent(c, op, gates, 5, 2, 3, 4, states=states, layout=1)
        model = save(tmp_path / f"{op}.onnx", c.nodes, c.inputs, c.results, c.weights, 14)
        want = ReferenceEvaluator(onnx.load(str(model))).run(None, c.inputs)
        octavo("export", model, "--to", "stablehlo", "-o", tmp_path / f"{op}.mlir")
        got = tools.interpret(tmp_path / f"{op}.mlir", *c.inputs.values())
        for name, a, b in zip(c.results, got, want):
            assert a.shape == b.shape, name
            np.testing.assert_allclose(a, b, atol=2e-6, err_msg=name)


def test_sorted_operators(octavo, tmp_path):
    c = Cases()
    x, ties = c.data(3, 17), c.data(4, 9, 2, low=-2, high=2, dtype=np.int64)
    for largest in (0, 1):
        c.add("TopK", x, c.ints(5), count=2, largest=largest)
        c.add("TopK", ties, c.ints(9), count=2, axis=1, largest=largest)
    c.add("TopK", x, c.ints(1), count=2, axis=0)
    c.check(octavo, tmp_path, 17, interpreter=True)


def test_computed_places(octavo, tmp_path):
    c = Cases()
    x, flat = c.data(3, 4, 5), c.data(6)
    c.add("GatherElements", x, c.data(2, 4, 3, low=-3, high=2, dtype=np.int64), axis=0)
    c.add("GatherElements", x, c.data(3, 4, 7, low=-5, high=4, dtype=np.int32), axis=-1)
    c.add("GatherND", x, c.data(2, 3, 2, low=0, high=2, dtype=np.int64))
    c.add("GatherND", x, c.data(3, 2, 1, low=-4, high=3, dtype=np.int64), batch_dims=1)
    c.add("GatherND", x, c.data(2, 3, low=-3, high=2, dtype=np.int64))
    c.add("ScatterND", x, c.weight(np.array([[2], [0]])), c.data(2, 4, 5))
    c.add("ScatterND", flat, c.weight(np.array([[1], [1], [-1]])), c.data(3), reduction="add")
    c.add("ScatterElements", flat, c.ints(4, 0, -1), c.data(3))
    places = c.weight(np.stack([RNG.permutation(5)[:2] for _ in range(8)]).reshape(2, 4, 2))
    c.add("ScatterElements", x, places, c.data(2, 4, 2), axis=2)
    again = c.weight(np.array([[1, 1, 0, 2, 1]] * 4)[None])
    for how in ("add", "mul"):
        c.add("ScatterElements", x, again, c.data(1, 4, 5), axis=0, reduction=how)
    c.add("OneHot", c.data(2, 3, low=-6, high=6, dtype=np.int64), c.ints(4), c.weight(np.array([0.5, 2], np.float32)), axis=1)
    a, b = c.data(2, 3, 4), c.data(2, 4, 5)
    for equation in ("bij,bjk->bik", "bij,bjk->kbi", "bij,bjk->i", "bij,cjk->bcik"):
        c.add("Einsum", a, b, equation=equation)
    c.add("Einsum", a, equation="bij->jb"), c.add("Einsum", a, b, c.data(5, 3), equation="bij,bjk,ki->b")
    c.check(octavo, tmp_path, 16, interpreter=True)


def test_windows_that_stand_once(octavo, tmp_path):
    """There is more behind the window than it reads."""
    c = Cases()
    for pads in ([1, 1], [1, 0], [0, 0]):
        c.add("Conv", c.data(1, 6, 5 - sum(pads)), c.floats(5, 6, 3), pads=pads, strides=[3])
    c.add("Conv", c.data(1, 6, 9, 4), c.floats(5, 6, 3, 3), pads=[0, 0, 1, 0], strides=[2, 2])
    c.check(octavo, tmp_path, 17)


def branch(name, nodes, results, weights=()):
    outs = [onnx.ValueInfoProto(name=r) for r in results]
    return h.make_graph(nodes, name, [], outs, [nh.from_array(np.asarray(a), n) for n, a in dict(weights).items()])


def test_conditions(octavo, tmp_path):
    """If: with a condition that is known its branch alone stands in the text; otherwise both do, and captures, also of
    constants that are used behind it, are seen by both."""
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    w = RNG.normal(size=(4, 4)).astype(np.float32)
    inner = h.make_node("If", ["small"], ["inner"], then_branch=branch("t2", [h.make_node("Exp", ["x"], ["e"])], ["e"]),
                        else_branch=branch("e2", [h.make_node("MatMul", ["x", "w"], ["f"])], ["f"]))
    yes = branch("t", [h.make_node("MatMul", ["x", "w"], ["m"]), h.make_node("Add", ["m", "own"], ["p"]), h.make_node("Neg", ["x"], ["q"])],
                 ["p", "q"], {"own": np.float32(3)})
    no = branch("e", [inner, h.make_node("Mul", ["inner", "x"], ["r"]), h.make_node("Identity", ["x"], ["s"])], ["r", "s"])
    static = h.make_node("If", ["wide"], ["z"], then_branch=branch("t3", [h.make_node("Hardmax", ["x"], ["d"])], ["d"]),
                         else_branch=branch("e3", [h.make_node("Tanh", ["x"], ["g"])], ["g"]))
    nodes = [h.make_node("Size", ["x"], ["n"]), h.make_node("Greater", ["n", "hundred"], ["wide"]), static,
             h.make_node("If", ["big"], ["a", "b"], then_branch=yes, else_branch=no), h.make_node("MatMul", ["a", "w"], ["y"])]
    flags = {n: np.array(False) for n in ("big", "small")}
    model = save(tmp_path / "m.onnx", nodes, {"x": x, **flags}, ["y", "b", "z"], {"w": w, "hundred": np.array(100)})
    octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir")
    assert (tmp_path / "m.mlir").read_text().count("stablehlo.if") == 2
    program, reference_ = tools.program(tmp_path / "m.mlir"), session(model, optimize=False)
    for big, small in ((True, False), (False, True), (False, False)):
        arguments = {"x": x, "big": np.array(big), "small": np.array(small)}
        want = reference_.run(["y", "b", "z"], arguments)
        for got in (program(*arguments.values()), tools.interpret(tmp_path / "m.mlir", *arguments.values())):
            for a, b in zip(got, want):
                assert a.shape == b.shape and relative(a, b) <= 2e-6


def test_a_branch_that_no_run_can_take(octavo, tmp_path):
    """A model for two sampling rates, say: with these shapes ONNX Runtime fails in one branch; that one gives NaN."""
    x, w = RNG.normal(size=(1, 1, 5)).astype(np.float32), RNG.normal(size=(1, 8, 3)).astype(np.float32)
    narrow = [h.make_node("LSTM", ["x", "w", "r"], ["", "l"], "narrow", hidden_size=2)]
    deep = h.make_node("If", ["deep"], ["d"], "inner", then_branch=branch("t1", narrow, ["l"], {"w": w, "r": w[..., :2]}),
                       else_branch=branch("e1", [h.make_node("Abs", ["m"], ["a"])], ["a"]))
    yes = branch("t", [h.make_node("MatMul", ["x", "fits"], ["m"]), deep], ["d"], {"fits": RNG.normal(size=(5, 2)).astype(np.float32)})
    no = branch("e", [h.make_node("MatMul", ["x", "narrow"], ["n"])], ["n"], {"narrow": np.ones((4, 2), np.float32)})
    inputs = {"x": x, "big": np.array(True), "deep": np.array(False)}
    model = save(tmp_path / "m.onnx", [h.make_node("If", ["big"], ["y"], "choice", then_branch=yes, else_branch=no)], inputs, ["y"])
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "n"  # ONNX Runtime finds out when it runs
    onnx.save(proto, model)
    r = octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", "--dim", "n=5")
    assert "If 'choice': its else_branch does not go with the shapes there are (inner dimensions differ" in r.out
    assert "If 'inner': its then_branch does not go with the shapes there are (its weights do not fit its input" in r.out
    assert r.out.count("a run that would take it gives NaN") == 2
    program, reference_ = tools.program(tmp_path / "m.mlir"), session(model, optimize=False)
    for big, deep in ((True, False), (True, True), (False, False)):
        arguments = {"x": x, "big": np.array(big), "deep": np.array(deep)}
        outputs = [program(*arguments.values())[0], tools.interpret(tmp_path / "m.mlir", *arguments.values())[0]]
        if big and not deep:
            (want,) = reference_.run(None, arguments)
            assert max(relative(got, want) for got in outputs) <= 2e-6
        else:
            with pytest.raises(Exception, match="choice"):
                reference_.run(None, arguments)
            assert all(got.shape == (1, 1, 2) and np.isnan(got).all() for got in outputs)


# --- refusals -------------------------------------------------------------------------------------------------------------


def test_refusals(octavo, tmp_path, small_cnn, blocked):
    out = tmp_path / "m.mlir"
    assert "--dim n=1" in octavo("export", small_cnn, "--to", "stablehlo", "-o", out, code=4).error
    r = octavo("export", blocked[0], "--to", "stablehlo", "-o", out, "--precision", "q8_0", "--constants", "quant", code=4)
    assert "!quant.uniform cannot say" in r.error and "packed" in r.error
    assert "did you mean 'packed'" in octavo("export", small_cnn, "--to", "stablehlo", "-o", out, "--constants", "paked", "--dim", "n=1", code=2).error
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    model = save(tmp_path / "d.onnx", [h.make_node("Det", ["q"], ["y"], "determinant")], {"q": x[:, :2]}, ["y"])
    assert "operator Det has no lowering: node Det 'determinant'" in octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    model = save(tmp_path / "r.onnx", [h.make_node("Reshape", ["x", "s"], ["y"], "reshape")], {"x": x, "s": np.array([3, 2])}, ["y"])
    assert "the shape must be a constant" in octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    model = save(tmp_path / "p.onnx", [h.make_node("MaxPool", ["i"], ["y", "indices"], "pool", kernel_shape=[2, 2])],
                 {"i": RNG.normal(size=(1, 1, 4, 4)).astype(np.float32)}, ["y", "indices"])
    assert "its indices are used: node MaxPool 'pool'" in octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    cubic = [h.make_node("Resize", ["i", "", "s"], ["y"], "resize", mode="cubic", coordinate_transformation_mode="tf_crop_and_resize")]
    model = save(tmp_path / "c.onnx", cubic, {"i": RNG.normal(size=(1, 1, 4, 4)).astype(np.float32)}, ["y"], {"s": np.array([1, 1, 2, 2], np.float32)})
    assert "coordinate transformation 'tf_crop_and_resize': node Resize 'resize'" in octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    flag = np.array(True)
    other = h.make_node("If", ["c"], ["y"], "choice", then_branch=branch("t", [h.make_node("Abs", ["x"], ["a"])], ["a"]),
                        else_branch=branch("e", [h.make_node("Flatten", ["x"], ["f"], axis=0)], ["f"]))
    model = save(tmp_path / "i.onnx", [other], {"x": x, "c": flag}, ["y"])
    error = octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    assert "branches give tensor<2x3xf32> and tensor<1x6xf32>: shapes must be one: node If 'choice'" in error
    narrow = h.make_node("If", ["c"], ["y"], "choice", then_branch=branch("t", [h.make_node("Abs", ["x"], ["a"])], ["a"]),
                         else_branch=branch("e", [h.make_node("Hardmax", ["x"], ["f"], "inside")], ["f"]))
    model = save(tmp_path / "i2.onnx", [narrow], {"x": x, "c": flag}, ["y"])
    error = octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    assert "its else_branch cannot be lowered with the shapes there are (operator Hardmax has no lowering, node Hardmax 'inside'" in error
    apart = h.make_node("If", ["c"], ["y"], "choice", then_branch=branch("t", [h.make_node("MatMul", ["x", "x"], ["a"])], ["a"]),
                        else_branch=branch("e", [h.make_node("MatMul", ["x", "x"], ["f"])], ["f"]))
    model = save(tmp_path / "i3.onnx", [apart], {"x": x, "c": flag}, ["y"])
    assert "neither branch goes with its inputs: inner dimensions differ" in octavo("export", model, "--to", "stablehlo", "-o", out, code=3).error
    c = Cases()
    recurrent(c, "RNN", 1, 2, 1, 2, 2, activations=["Affine"])
    model = save(tmp_path / "n.onnx", c.nodes, c.inputs, c.results, c.weights)
    assert "the activation 'affine'" in octavo("export", model, "--to", "stablehlo", "-o", out, code=4).error
    assert not out.exists()


def test_operators_of_the_documentation(octavo):
    """The page's table is the program's."""
    page = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "stablehlo.md").read_text()
    listed = octavo("export", "--list-operators", "--to", "stablehlo").out
    for line in listed.splitlines():
        assert line in page, line
    assert len(listed.splitlines()) > 100


# --- real models ------------------------------------------------------------------------------------------------------------

DIMS = {"cls": ["x:0=1", "x:2=48", "x:3=192"], "det": ["x:0=1", "x:2=320", "x:3=320"], "vit": ["batch_size=1"],
        "minilm": ["batch_size=1", "sequence_length=128"]}


def dims(name):
    return [part for d in DIMS[name] for part in ("--dim", d)]


def run_real(octavo, models, data, name, folder, count, *options):
    octavo("export", models[name], "--to", "stablehlo", "-o", folder / "m.mlir", *dims(name), *options)
    program = tools.program(folder / "m.mlir")
    samples = load_samples(data[name])[-count:]
    order = [i.name for i in session(models[name]).get_inputs()]
    return [program(*[sample[n] for n in order]) for sample in samples], samples, program


REAL = ["cls"] + [slow(n) for n in ("det", "minilm", "vit")]


@pytest.mark.parametrize("name", REAL)
def test_float_models(octavo, models, data, name, tmp_path):
    got, samples, _ = run_real(octavo, models, data, name, tmp_path, 4)
    for want, result in zip(outputs(models[name], samples), got):
        for a, b in zip(result, want):
            assert relative(a, b) <= 1e-4


@pytest.mark.parametrize("name,precision", [("cls", "uint8"), slow("cls", "int8")] + [
    slow(n, p) for n in ("det", "minilm", "vit") for p in ("uint8", "int8")] + [slow("cls", "q8_0"), slow("minilm", "q4_k"), slow("vit", "q8_0")])
def test_quantized_models(octavo, models, data, name, precision, tmp_path):
    calibration = [] if precision.startswith("q") else ["--data", data[name], "--samples", 16]
    octavo("quantize", models[name], "-o", tmp_path / "q.onnx", "--precision", precision, *calibration, *dims(name))
    octavo("export", tmp_path / "q.onnx", "--to", "stablehlo", "-o", tmp_path / "m.mlir")
    program = tools.program(tmp_path / "m.mlir")
    # Between 8 samples of the ViT and 8 others the difference varies by 4 dB, either way (bench/stablehlo_models.py).
    samples = load_samples(data[name])[-(64 if name in ("cls", "vit") else 8):]
    order = [i.name for i in session(models[name]).get_inputs()]
    got = [program(*[s[n] for n in order]) for s in samples]
    reference_ = outputs(models[name], samples)
    ours, theirs = sqnr(reference_, got), sqnr(reference_, outputs(tmp_path / "q.onnx", samples, optimize=False))
    # Codes flip at ties, either way; nothing may be lost, and what differs is less than what quantization costs.
    between = sqnr(outputs(tmp_path / "q.onnx", samples, optimize=False), got)
    assert ours >= theirs - 1 and between > theirs, f"{ours:.2f} dB in IREE, {theirs:.2f} dB in ONNX Runtime, {between:.2f} dB between"


def test_speed_and_memory_of_the_text(models, environment, tmp_path):
    """The command's own time, which other work on the machine does not lengthen, and its peak. Started by a small process:
    the peak of a program counts what its starter held."""
    measure = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)"""
    command = [str(OCTAVO), "export", str(models["vit"]), "--to", "stablehlo", "-o", str(tmp_path / "m.mlir"), *dims("vit")]
    out = subprocess.run([sys.executable, "-c", measure, *command], check=True, capture_output=True, text=True, env=environment).stdout
    seconds, peak = map(float, out.split())
    assert seconds < 3
    assert peak * 1024 <= 1.3 * models["vit"].stat().st_size
