"""TFLite files into ONNX: small ones made with circle_schema, and LiteRT against ONNX Runtime on the same random inputs."""
import importlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest

TYPES = {np.dtype("float32"): 0, np.dtype("int32"): 2, np.dtype("uint8"): 3, np.dtype("int64"): 4, np.dtype("bool"): 6, np.dtype("int8"): 9}


def schema(name):
    return importlib.import_module(f"circle_schema.v0_10.circle.{name}")


def table(name, /, **fields):
    t = getattr(schema(name), f"{name}T")()
    for key, value in fields.items():
        assert hasattr(t, key), (name, key)
        setattr(t, key, value)
    return t


class File:
    """One subgraph after the other: tensor() and operator() give what it holds, in order."""

    def __init__(self):
        self.buffers, self.codes, self.graphs = [table("Buffer")], [], []
        self.graph()

    def graph(self, name="main"):
        self.now = table("SubGraph", tensors=[], operators=[], inputs=[], outputs=[], name=name)
        self.graphs.append(self.now)
        return self

    def tensor(self, name, shape, dtype=np.float32, data=None, scale=None, zero=0, **fields):
        buffer = 0
        if data is not None:
            buffer = len(self.buffers)
            self.buffers.append(table("Buffer", data=np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)))
        if scale is not None:
            fields["quantization"] = table("QuantizationParameters", scale=[scale], zeroPoint=[zero])
        kind = fields.pop("type", None)
        self.now.tensors.append(table("Tensor", name=name, shape=list(shape), buffer=buffer,
                                      type=TYPES[np.dtype(dtype)] if kind is None else kind, **fields))
        return len(self.now.tensors) - 1

    def constant(self, data, **fields):
        data = np.asarray(data)
        return self.tensor(f"c{len(self.now.tensors)}", data.shape, data.dtype, data, **fields)

    def operator(self, op, inputs, outputs, options=None, custom=None, **fields):
        number = getattr(schema("BuiltinOperator").BuiltinOperator, op)
        code = table("OperatorCode", builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=2 if op == "BROADCAST_TO" else 1, customCode=custom)
        self.codes.append(code)
        op = table("Operator", opcodeIndex=len(self.codes) - 1, inputs=list(inputs), outputs=list(outputs))
        if options:
            op.builtinOptionsType = getattr(schema("BuiltinOptions").BuiltinOptions, options)
            op.builtinOptions = table(options, **fields)
        self.now.operators.append(op)

    def save(self, path):
        import flatbuffers
        builder = flatbuffers.Builder(1 << 16)
        model = table("Model", version=3, operatorCodes=self.codes, subgraphs=self.graphs, buffers=self.buffers, description="")
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def one(op, inputs, outputs, options=None, **fields):
    """One operator: inputs are (shape, dtype) or constants (arrays), outputs (shape, dtype)."""
    f, ins, computed = File(), [], []
    for i, x in enumerate(inputs):
        if x is None:
            ins.append(-1)
        elif isinstance(x, (np.ndarray, np.generic)):
            ins.append(f.constant(x))
        else:
            ins.append(f.tensor(f"x{i}", *x))
            computed.append(ins[-1])
    outs = [f.tensor(f"y{i}", *y) for i, y in enumerate(outputs)]
    f.operator(op, ins, outs, options, **fields)
    f.now.inputs, f.now.outputs = computed, outs
    return f


def interpreter(path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    it = Interpreter(model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    it.allocate_tensors()
    return it


def litert(it, feed):
    for d in it.get_input_details():
        it.set_tensor(d["index"], feed[d["name"]])
    it.invoke()
    return {d["name"]: it.get_tensor(d["index"]).copy() for d in it.get_output_details()}


def load(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def draw(it, rng):
    def values(d):
        if d["dtype"] == np.float32:
            return rng.normal(size=d["shape"]).astype(np.float32)
        return rng.integers(0, 2 if d["dtype"] == np.bool_ else 3, size=d["shape"]).astype(d["dtype"])
    return {d["name"]: values(d) for d in it.get_input_details()}


def check_equal(octavo, path, tolerance=2e-6):
    back = path.with_suffix(".onnx")
    octavo("export", path, "--to", "onnx", "-o", back)
    it, s = interpreter(path), load(back)
    feed = draw(it, np.random.default_rng(4))
    want, got = litert(it, feed), dict(zip([o.name for o in s.get_outputs()], s.run(None, feed)))
    assert want.keys() == got.keys() and want
    for key in want:
        assert want[key].shape == got[key].shape and want[key].dtype == got[key].dtype, key
        if want[key].dtype.kind != "f":
            np.testing.assert_array_equal(got[key], want[key])
        else:
            np.testing.assert_allclose(got[key], want[key], rtol=tolerance, atol=tolerance * max(1, np.abs(want[key]).max()))
    return onnx.load(str(back))


F, I, B = np.float32, np.int32, np.bool_
i32 = lambda *v: np.array(v, I)
WEIGHTS = lambda *s: np.random.default_rng(len(s)).normal(size=s).astype(F)
PICTURE = ((1, 5, 6, 4), F)
SAME, VALID = 0, 1
OPERATORS = {
    "split": one("SPLIT", [i32(-1), PICTURE], [((1, 5, 6, 2), F)] * 2, "SplitOptions", numSplits=2),
    "split_v": one("SPLIT_V", [PICTURE, i32(1, 3, 1), i32(1)], [((1, 1, 6, 4), F), ((1, 3, 6, 4), F), ((1, 1, 6, 4), F)], "SplitVOptions", numSplits=3),
    "pack": one("PACK", [((2, 3), F), ((2, 3), F)], [((2, 2, 3), F)], "PackOptions", valuesCount=2, axis=1),
    "unpack": one("UNPACK", [((2, 3, 4), F)], [((2, 4), F)] * 3, "UnpackOptions", num=3, axis=1),
    "topk": one("TOPK_V2", [((3, 7), F), i32(3).reshape(())], [((3, 3), F), ((3, 3), I)], "TopKV2Options"),
    "arg_max": one("ARG_MAX", [PICTURE, i32(3).reshape(())], [((1, 5, 6), I)], "ArgMaxOptions", outputType=2),
    "arg_min": one("ARG_MIN", [((4, 9), F), i32(-2).reshape(())], [((9,), np.int64)], "ArgMinOptions", outputType=4),
    "select_rows": one("SELECT", [((3,), B), ((3, 4), F), ((3, 4), F)], [((3, 4), F)], "SelectOptions"),
    "select_v2": one("SELECT_V2", [((3, 1), B), ((3, 4), F), ((4,), F)], [((3, 4), F)], "SelectV2Options"),
    "gather_nd": one("GATHER_ND", [((3, 4, 2), F), i32([0, 3], [2, 1])], [((2, 2), F)], "GatherNdOptions"),
    "scatter_nd": one("SCATTER_ND", [i32([1], [3], [1]), ((3, 2), F), i32(5, 2)], [((5, 2), F)], "ScatterNdOptions"),
    "one_hot": one("ONE_HOT", [((2, 3), I), i32(2).reshape(()), np.float32(2), np.float32(-1)], [((2, 3, 2), F)], "OneHotOptions", axis=-1),
    "reverse": one("REVERSE_V2", [((2, 3, 4), F), i32(1)], [((2, 3, 4), F)], "ReverseV2Options"),
    "cumsum": one("CUMSUM", [((2, 5), F), i32(1).reshape(())], [((2, 5), F)], "CumsumOptions", exclusive=True, reverse=True),
    "space_to_batch": one("SPACE_TO_BATCH_ND", [PICTURE, i32(2, 3), i32([1, 0], [0, 3])], [((6, 3, 3, 4), F)], "SpaceToBatchNDOptions"),
    "batch_to_space": one("BATCH_TO_SPACE_ND", [((6, 3, 3, 4), F), i32(2, 3), i32([1, 0], [0, 3])], [PICTURE], "BatchToSpaceNDOptions"),
    "mirror_pad": one("MIRROR_PAD", [((2, 4), F), i32([1, 0], [2, 3])], [((3, 9), F)], "MirrorPadOptions", mode=0),
    "pad_v2": one("PADV2", [((2, 4), F), i32([1, 0], [2, 3]), np.float32(-2)], [((3, 9), F)], "PadV2Options"),
    "any": one("REDUCE_ANY", [((3, 4), B), i32(1)], [((3,), B)], "ReducerOptions", keepDims=False),
    "all": one("REDUCE_ALL", [((3, 4), B), i32(0)], [((1, 4), B)], "ReducerOptions", keepDims=True),
    "broadcast": one("BROADCAST_TO", [((3, 1), F), i32(2, 3, 4)], [((2, 3, 4), F)], "BroadcastToOptions"),
    "fill": one("FILL", [i32(2, 3), ((), F)], [((2, 3), F)], "FillOptions"),
    "zeros_like": one("ZEROS_LIKE", [((2, 3), F)], [((2, 3), F)], "ZerosLikeOptions"),
    "shape": one("SHAPE", [((2, 3), F)], [((2,), I)], "ShapeOptions", outType=2),
    "strided_shrink": one("STRIDED_SLICE", [((3, 4, 5), F), i32(-1, 1, 0), i32(0, 4, 5), i32(1, 2, 1)], [((2, 5), F)], "StridedSliceOptions", shrinkAxisMask=1),
    "strided_back": one("STRIDED_SLICE", [((3, 4), F), i32(0, 3), i32(3, 0), i32(1, -1)], [((3, 3), F)], "StridedSliceOptions", beginMask=1),
    "strided_new": one("STRIDED_SLICE", [((3, 4), F), i32(0, 0, 1), i32(0, 0, 3), i32(1, 1, 1)], [((3, 1, 2), F)], "StridedSliceOptions", newAxisMask=2,
                       beginMask=1, endMask=1),
    "strided_ellipsis": one("STRIDED_SLICE", [((2, 3, 4), F), i32(0, 1), i32(0, 3), i32(1, 1)], [((2, 3, 2), F)], "StridedSliceOptions", ellipsisMask=1),
    "square": one("SQUARE", [((2, 3), F)], [((2, 3), F)], "SquareOptions"),
    "squared_difference": one("SQUARED_DIFFERENCE", [((2, 3), F), ((3,), F)], [((2, 3), F)], "SquaredDifferenceOptions"),
    "not_equal": one("NOT_EQUAL", [((2, 9), I), ((2, 9), I)], [((2, 9), B)], "NotEqualOptions"),
    "floor_div": one("FLOOR_DIV", [((2, 9), F), np.float32([0.3])], [((2, 9), F)], "FloorDivOptions"),
    "floor_div_int": one("FLOOR_DIV", [i32(7, -7, 7, -7, 6), i32(2, 2, -2, -2, 3)], [((5,), I)], "FloorDivOptions"),
    "floor_mod": one("FLOOR_MOD", [((2, 9), F), np.float32([-0.3])], [((2, 9), F)], "FloorModOptions"),
    "add_n": one("ADD_N", [((2, 3), F)] * 3, [((2, 3), F)], "AddNOptions"),
    "relu_n1_to_1": one("RELU_N1_TO_1", [((2, 30), F)], [((2, 30), F)]),
    "relu_0_to_1": one("RELU_0_TO_1", [((2, 30), F)], [((2, 30), F)]),
    "l2_normalization": one("L2_NORMALIZATION", [((2, 30), F)], [((2, 30), F)], "L2NormOptions"),
    "local_response": one("LOCAL_RESPONSE_NORMALIZATION", [PICTURE], [PICTURE], "LocalResponseNormalizationOptions", radius=1, bias=1.5, alpha=0.3, beta=0.6),
    "transpose_conv_same": one("TRANSPOSE_CONV", [i32(1, 9, 12, 2), WEIGHTS(2, 3, 3, 4), ((1, 5, 6, 4), F)], [((1, 9, 12, 2), F)], "TransposeConvOptions",
                               padding=SAME, strideH=2, strideW=2),
    "transpose_conv_valid": one("TRANSPOSE_CONV", [i32(1, 11, 13, 2), WEIGHTS(2, 3, 3, 4), PICTURE, WEIGHTS(2)], [((1, 11, 13, 2), F)],
                                "TransposeConvOptions", padding=VALID, strideH=2, strideW=2),
    "conv_dilated_same": one("CONV_2D", [PICTURE, WEIGHTS(2, 3, 3, 4), WEIGHTS(2)], [((1, 5, 6, 2), F)], "Conv2DOptions", padding=SAME, strideH=1, strideW=1,
                             dilationHFactor=2, dilationWFactor=2),
    "depthwise_multiplier": one("DEPTHWISE_CONV_2D", [PICTURE, WEIGHTS(1, 3, 3, 8), WEIGHTS(8)], [((1, 3, 3, 8), F)], "DepthwiseConv2DOptions", padding=SAME,
                                strideH=2, strideW=2, depthMultiplier=2),
    "average_pool_same": one("AVERAGE_POOL_2D", [PICTURE], [((1, 3, 3, 4), F)], "Pool2DOptions", padding=SAME, strideH=2, strideW=2, filterHeight=3, filterWidth=3),
    "embedding": one("EMBEDDING_LOOKUP", [((3,), I), WEIGHTS(4, 5)], [((3, 5), F)]),
    **{f"resize_{kind.lower()}_{name}": one(f"RESIZE_{kind}", [PICTURE, i32(7, 13)], [((1, 7, 13, 4), F)], options, **fields)
       for kind, options in (("BILINEAR", "ResizeBilinearOptions"), ("NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"))
       for name, fields in (("corners", {"alignCorners": True}), ("half", {"halfPixelCenters": True}), ("plain", {}))},
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(octavo, tmp_path, name):
    check_equal(octavo, OPERATORS[name].save(tmp_path / "m.tflite"))


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_lstm(octavo, tmp_path, time_major, peepholes):
    batch, time, width, units = 2, 5, 3, 4
    f, rng = File(), np.random.default_rng(1)
    number = lambda *s: f.constant(rng.normal(size=s).astype(F))
    shape = (time, batch) if time_major else (batch, time)
    x = f.tensor("x", (*shape, width))
    inputs = [x, *[number(units, width) for _ in range(4)], *[number(units, units) for _ in range(4)],
              *[number(units) if peepholes else -1 for _ in range(3)], *[number(units) for _ in range(4)], -1, -1,
              f.tensor("h", (batch, units), isVariable=True), f.tensor("c", (batch, units), isVariable=True), -1, -1, -1, -1]
    y = f.tensor("y", (*shape, units))
    f.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], "UnidirectionalSequenceLSTMOptions", fusedActivationFunction=4, cellClip=10.0, timeMajor=time_major)
    f.now.inputs, f.now.outputs = [x], [y]
    assert "LSTM" in {n.op_type for n in check_equal(octavo, f.save(tmp_path / "m.tflite"), 1e-5).graph.node}


def sparse_file(block):
    """y = x w, w [8, 12] compressed by rows (or by rows of blocks of 4 columns), behind DENSIFY."""
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(8, 12)).astype(F)
    width = 4 if block else 1
    keep = rng.uniform(size=(8, 12 // width)) < 0.4
    dense *= np.repeat(keep, width, 1)
    segments = np.concatenate([[0], np.cumsum(keep.sum(1))]).tolist()
    indices = [j for i in range(8) for j in np.flatnonzero(keep[i])]
    stored = np.concatenate([dense[i, j * width:(j + 1) * width] for i in range(8) for j in np.flatnonzero(keep[i])])
    vector = schema("SparseIndexVector").SparseIndexVector
    rows = table("DimensionMetadata", format=0, denseSize=8)
    columns = table("DimensionMetadata", format=1, arraySegmentsType=vector.Int32Vector, arraySegments=table("Int32Vector", values=segments),
                    arrayIndicesType=vector.Uint8Vector, arrayIndices=table("Uint8Vector", values=indices))
    metadata = [rows, columns] + ([table("DimensionMetadata", format=0, denseSize=4)] if block else [])
    sparsity = table("SparsityParameters", traversalOrder=[0, 1] + ([2] if block else []), blockMap=[1] if block else None, dimMetadata=metadata)
    f = File()
    x, w = f.tensor("x", (2, 12)), f.tensor("w", (8, 12), F, stored, sparsity=sparsity)
    d, y = f.tensor("d", (8, 12)), f.tensor("y", (2, 8))
    f.operator("DENSIFY", [w], [d], "DensifyOptions")
    f.operator("FULLY_CONNECTED", [x, d, -1], [y], "FullyConnectedOptions")
    f.now.inputs, f.now.outputs = [x], [y]
    return f, dense


@pytest.mark.parametrize("block", [False, True])
def test_sparse_weights(octavo, tmp_path, block):
    f, dense = sparse_file(block)
    model = check_equal(octavo, f.save(tmp_path / "m.tflite"))
    weights = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
    assert any(w.size == dense.size and np.array_equal(np.sort(w.ravel()), np.sort(dense.ravel())) for w in weights)


def test_sparse_weights_that_do_not_fit(octavo, tmp_path):
    f, _ = sparse_file(False)
    f.now.tensors[1].sparsity.dimMetadata[1].arrayIndices.values[2] = 200
    r = octavo("export", f.save(tmp_path / "m.tflite"), "--to", "onnx", "-o", tmp_path / "m.onnx", code=3)
    assert "sparse" in r.error and "'w'" in r.error


@pytest.mark.parametrize("quantized", [False, True])
def test_variables_are_inputs_and_outputs(octavo, tmp_path, quantized):
    """y = sum of the last three inputs, which a variable remembers; codes of a scale too."""
    f = File()
    kind = dict(dtype=np.int8, scale=0.5, zero=3) if quantized else {}
    x, y = f.tensor("x", (1, 1, 4), **kind), f.tensor("y", (1, 4), **kind)
    handle = f.tensor("handle", (), type=13)
    old, all_, new = f.tensor("old", (1, 2, 4), **kind), f.tensor("all", (1, 3, 4), **kind), f.tensor("new", (1, 2, 4), **kind)
    f.operator("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)
    f.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", container="", sharedName="memory")
    f.operator("READ_VARIABLE", [handle], [old], "ReadVariableOptions")
    f.operator("CONCATENATION", [old, x], [all_], "ConcatenationOptions", axis=1)
    f.operator("STRIDED_SLICE", [all_, f.constant(i32(0, 1, 0)), f.constant(i32(1, 3, 4)), f.constant(i32(1, 1, 1))], [new], "StridedSliceOptions")
    f.operator("ASSIGN_VARIABLE", [handle, new], [], "AssignVariableOptions")
    f.operator("REDUCE_MAX", [all_, f.constant(i32(1))], [y], "ReducerOptions", keepDims=False)
    f.now.inputs, f.now.outputs = [x], [y]
    f.graph("first")
    handle = f.tensor("handle_1", (), type=13)
    zero = f.tensor("zero", (1, 2, 4), data=np.full((1, 2, 4), 3 if quantized else 0), **kind)
    f.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", container="", sharedName="memory")
    f.operator("ASSIGN_VARIABLE", [handle, zero], [], "AssignVariableOptions")
    path, back = f.save(tmp_path / "m.tflite"), tmp_path / "m.onnx"
    octavo("export", path, "--to", "onnx", "-o", back)
    it, s = interpreter(path), load(back)
    assert [i.name for i in s.get_inputs()] == ["x", "memory"] and [o.name for o in s.get_outputs()] == ["y", "memory_next"]
    state, rng = np.zeros((1, 2, 4), F), np.random.default_rng(0)
    for _ in range(5):
        step = rng.integers(-100, 100, (1, 1, 4)).astype(np.int8) if quantized else rng.normal(size=(1, 1, 4)).astype(F)
        want = litert(it, {"x": step})["y"]
        got, state = s.run(None, {"x": step, "memory": state})
        np.testing.assert_array_equal(got, (want.astype(F) - 3) * F(0.5) if quantized else want)


def test_variable_that_does_not_begin_with_zeros(octavo, tmp_path):
    f = File()
    y, handle = f.tensor("y", (2,)), f.tensor("handle", (), type=13)
    f.operator("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)
    f.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName="v")
    f.operator("READ_VARIABLE", [handle], [y], "ReadVariableOptions")
    f.now.outputs = [y]
    f.graph("first")
    handle = f.tensor("handle_1", (), type=13)
    f.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName="v")
    f.operator("ASSIGN_VARIABLE", [handle, f.constant(np.ones(2, F))], [], "AssignVariableOptions")
    r = octavo("export", f.save(tmp_path / "m.tflite"), "--to", "onnx", "-o", tmp_path / "m.onnx", code=4)
    assert "'v'" in r.error and "zeros" in r.error


def branches():
    f = File()
    c, x, y = f.tensor("c", (), B), f.tensor("x", (2, 3)), f.tensor("y", (2, 3))
    f.operator("IF", [c, x], [y], "IfOptions", thenSubgraphIndex=1, elseSubgraphIndex=2)
    f.now.inputs, f.now.outputs = [c, x], [y]
    f.graph("then")
    x = f.tensor("a", (2, 3))
    f.now.inputs, f.now.outputs = [x], [x]
    f.graph("else")
    x, y = f.tensor("a", (2, 3)), f.tensor("b", (2, 3))
    f.operator("MUL", [x, f.constant(np.float32([1, 2, 3]))], [y], "MulOptions", fusedActivationFunction=1)
    f.now.inputs, f.now.outputs = [x], [y]
    return f


def test_branches(octavo, tmp_path):
    path, back = branches().save(tmp_path / "m.tflite"), tmp_path / "m.onnx"
    octavo("export", path, "--to", "onnx", "-o", back)
    it, s = interpreter(path), load(back)
    for c in (True, False):
        feed = {"c": np.array(c), "x": np.random.default_rng(1).normal(size=(2, 3)).astype(F)}
        np.testing.assert_array_equal(s.run(None, feed)[0], litert(it, feed)["y"])


def test_open_dimensions_are_those_of_the_file(octavo, tmp_path):
    f = one("SQUARE", [((1, 4), F)], [((1, 4), F)], "SquareOptions")
    for t in f.now.tensors:
        t.shapeSignature = [-1, 4]
    path = f.save(tmp_path / "m.tflite")
    r = octavo("export", path, "--to", "onnx", "-o", tmp_path / "first.onnx")
    assert "dimensions open" in r.err
    check_equal(octavo, path)


def refused(kind):
    if kind == "loop":
        f = branches()
        f.graphs[0].operators = []
        f.now = f.graphs[0]
        f.operator("WHILE", [1], [2], "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2)
        return f, "WHILE"
    if kind == "branch twice":
        f = branches()
        f.graphs[0].operators[0].builtinOptions.elseSubgraphIndex = 1
        return f, "used twice"
    if kind == "custom":
        f = one("SQUARE", [((1, 4), F)], [((1, 4), F)], "SquareOptions")
        f.codes[0] = table("OperatorCode", builtinCode=32, deprecatedBuiltinCode=32, customCode="TFLite_Detection_PostProcess", version=1)
        return f, "TFLite_Detection_PostProcess"
    if kind == "symmetric":
        return one("MIRROR_PAD", [((2, 4), F), i32([1, 0], [2, 3])], [((3, 9), F)], "MirrorPadOptions", mode=1), "SYMMETRIC"
    if kind == "window":
        return one("MAX_POOL_2D", [PICTURE], [((1, 5, 6, 4), F)], "Pool2DOptions", padding=VALID, strideH=1, strideW=1, filterHeight=3, filterWidth=3), "window"
    assert kind == "computed axis"
    return one("REVERSE_V2", [((2, 3), F), ((1,), I)], [((2, 3), F)], "ReverseV2Options"), "not a constant"


@pytest.mark.parametrize("kind", ["loop", "branch twice", "custom", "symmetric", "window", "computed axis"])
def test_refusals(octavo, tmp_path, kind):
    f, word = refused(kind)
    r = octavo("export", f.save(tmp_path / "m.tflite"), "--to", "onnx", "-o", tmp_path / "m.onnx", code=4)
    assert word in r.error and not (tmp_path / "m.onnx").exists()


def test_hostile_bytes(octavo, tmp_path):
    """Whatever is wrong in a file, it is said: also when its operators become ONNX's."""
    f = one("TRANSPOSE_CONV", [i32(1, 9, 12, 2), WEIGHTS(2, 3, 3, 4), PICTURE], [((1, 9, 12, 2), F)], "TransposeConvOptions", padding=SAME, strideH=2, strideW=2)
    files = [f, sparse_file(True)[0], branches(), *(OPERATORS[n] for n in ("space_to_batch", "strided_shrink", "split_v", "unpack"))]
    rng = np.random.default_rng(0)
    for i in range(42):
        good = files[i % len(files)].save(tmp_path / "m.tflite").read_bytes()
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(8, len(bad))] = rng.integers(0, 256)
        (tmp_path / "m.tflite").write_bytes(bytes(bad))
        r = octavo("export", tmp_path / "m.tflite", "--to", "onnx", "-o", tmp_path / "m.onnx", "--force", code=None)
        assert r.code in (0, 3, 4), (i, r.code, r.err)
