"""Volumes and edges on an NPU: a U-Net over volumes, Resizes by scales, Pads of a model that is quantized already. The
oracle is ONNX Runtime on the quantized form."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import manifest
from test_devices import lost_on_device, needs_qnn, normals, qnn_env

SHAPE = (1, 1, 8, 8, 8)


def unet(path, resize):
    """Two levels: convolutions with InstanceNormalization and LeakyRelu, a way down and one up by `resize`."""
    rng, nodes, init = np.random.default_rng(4), [], []

    def constant(name, array):
        init.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def block(name, x, c_in, c_out, stride=1):
        w = constant(name + "_w", rng.normal(0, (c_in * 27) ** -0.5, (c_out, c_in, 3, 3, 3)).astype(np.float32))
        one, zero = constant(name + "_s", np.ones(c_out, np.float32)), constant(name + "_o", np.zeros(c_out, np.float32))
        nodes.extend([helper.make_node("Conv", [x, w], [name + "_c"], pads=[1] * 6, strides=[stride] * 3),
                      helper.make_node("InstanceNormalization", [name + "_c", one, zero], [name + "_n"]),
                      helper.make_node("LeakyRelu", [name + "_n"], [name], alpha=0.01)])
        return name

    high = block("high", "x", 1, 8)
    low = block("low", high, 8, 16, stride=2)
    if resize == "deconv":
        w = constant("up_w", rng.normal(0, 0.25, (16, 16, 2, 2, 2)).astype(np.float32))
        nodes.append(helper.make_node("ConvTranspose", [low, w], ["up"], strides=[2, 2, 2]))
    else:
        twice = constant("twice", np.array([1, 1, 2, 2, 2], np.float32))
        nodes.append(helper.make_node("Resize", [low, "", twice], ["up"], **resize))
    nodes.append(helper.make_node("Concat", ["up", high], ["both"], axis=1))
    last = block("last", "both", 24, 8)
    nodes.append(helper.make_node("Conv", [last, constant("out_w", rng.normal(0, 0.35, (3, 8, 1, 1, 1)).astype(np.float32))], ["y"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 8, 8, 8))], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@needs_qnn
@pytest.mark.parametrize("precision", ["uint8", "w8a16", "fp16"])
@pytest.mark.parametrize("resize", [{"mode": "linear"}, {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
                                    {"mode": "nearest"}, "deconv"], ids=["trilinear", "corners", "nearest", "deconv"])
def test_a_unet_over_volumes_is_one_context(octavo, tmp_path, resize, precision):
    """The device's own trilinear Resize gave 2 dB, its Concat of 8 bits in other parameters 8."""
    unet(tmp_path / "m.onnx", resize)
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(9)
    for i in range(16):
        smooth = rng.normal(size=(1, 1, 4, 4, 4)).repeat(2, 2).repeat(2, 3).repeat(2, 4)
        np.savez(tmp_path / "data" / f"{i:02}.npz", x=(smooth + 0.3 * rng.normal(size=SHAPE)).astype(np.float32))
    octavo("build", "--onnx", tmp_path / "m.onnx", "--device", "qnn", "--precision", precision, "--data", tmp_path / "data",
           "-o", tmp_path / "out", "--samples", "8", "--validate-samples", "8", env=qnn_env())
    m = manifest(tmp_path / "out")
    assert m["compile"]["ep_context_nodes"] == 1 and m["compile"]["cpu_fallback_nodes"] == []
    assert m["validate"]["pooled_sqnr_db"] > max(20, min(m["validate"]["quantized_on_cpu_pooled_sqnr_db"], 50) - 1.5)


# Nodes from i : [1, 8, 9, 7] and v : [1, 4, 3, 5, 7] to an output of that name.
RESIZES = {
    "half": 'half = Resize<mode="linear">(i, , half_of)', "more": 'more = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(i, , more_of)',
    "volume": 'volume = Resize<mode="linear">(v, , volume_of)', "sizes": 'sizes = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(v, , , to)',
    "twice": 'twice = Resize<mode="nearest">(v, , twice_of)', "rows": 'r1 = Relu(v)\n rows = Resize<mode="linear">(r1, , rows_of)',
}
SCALES = """float[4] half_of = {1.0, 1.0, 0.5, 0.5}, float[4] more_of = {1.0, 1.0, 1.0, 1.5}, float[5] volume_of = {1.0, 1.0, 2.0, 1.5, 1.5},
 int64[5] to = {1, 4, 7, 3, 9}, float[5] twice_of = {1.0, 1.0, 2.0, 2.0, 2.0}, float[5] rows_of = {1.0, 1.0, 3.0, 1.0, 1.0}"""


@needs_qnn
@pytest.mark.parametrize("precision", ["uint8", "w8a16", "fp16"])
def test_resizes_by_scales_and_of_volumes_are_one_context(octavo, tmp_path, precision):
    """The device makes its coordinates of sizes: 2 to 12 dB where a scale does not make a whole length."""
    shapes = {"i": (1, 8, 9, 7), "v": (1, 4, 3, 5, 7)}
    lost = 4.5 if precision == "uint8" else 1.5  # ties are rounded up at each of a volume's steps
    assert lost_on_device(octavo, tmp_path, precision, RESIZES, SCALES, shapes, normals, lost) == {}


@needs_qnn
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("form", ["conv", "add", "other"])
def test_a_pad_at_the_right_of_a_quantized_model_is_no_garbage(octavo, tmp_path, bits, form):
    """As ZeroPadding2D and a convolution of stride 2, 21 dB before: into the convolution, or with a column that a Gather leaves out, where something
    else reads it too or its codes have other parameters."""
    rng, nodes, init = np.random.default_rng(7), [], []
    storage, most = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)

    def constant(name, array):
        init.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def coded(x, name, low, high):
        step = np.float32((high - low) / most)
        parameters = [constant(name + "_s", step), constant(name + "_z", storage(round(-low / step)))]
        nodes.extend([helper.make_node("QuantizeLinear", [x, *parameters], [name + "_q"]),
                      helper.make_node("DequantizeLinear", [name + "_q", *parameters], [name])])
        return name

    weights = rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    nodes.append(helper.make_node("DequantizeLinear", [constant("w_q", weights), constant("w_s", np.float32(0.001)), constant("w_z", np.int8(0))], ["w"]))
    x = coded("x", "xd", -3.0, 3.4)
    nodes.append(helper.make_node("Relu", [x], ["relu"]))
    x = coded("relu", "rd", -0.7, 3.4)  # a zero point that is not 0
    nodes.append(helper.make_node("Pad", [x, constant("pads", np.array([0, 0, 0, 0, 0, 0, 1, 1])), constant("zero", np.float32(0))], ["padded"]))
    padded = coded("padded", "pd", *((-0.7, 3.4) if form != "other" else (-1.0, 3.6)))
    nodes.append(helper.make_node("Conv", [padded, "w"], ["conv"], strides=[2, 2], kernel_shape=[3, 3]))
    y = coded("conv", "y", -4.0, 4.0)
    results = [(y, (1, 16, 14, 14))]
    if form == "add":
        nodes.append(helper.make_node("Add", [padded, padded], ["sum"]))
        results.append((coded("sum", "z", -1.4, 6.8), (1, 16, 29, 29)))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 16, 28, 28))],
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in results], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(tmp_path / "m.onnx"))
    (tmp_path / "data").mkdir()
    for k in range(4):
        np.savez(tmp_path / "data" / f"{k}.npz", x=rng.uniform(-3, 3.4, (1, 16, 28, 28)).astype(np.float32))
    octavo("compile", tmp_path / "m.onnx", "--device", "qnn", "--data", tmp_path / "data", "-o", tmp_path / "c", env=qnn_env())
    m = manifest(tmp_path / "c")
    assert m["compile"]["ep_context_nodes"] == 1 and m["compile"]["cpu_fallback_nodes"] == []
    step = [8.0 / most, 8.2 / most]
    for output, s in zip(m["validate"]["outputs"], step):
        assert output["sqnr_db"] > (40 if bits == 8 else 70), output
        assert output["max_abs"] < 2.5 * s, output  # it was 30 steps of 8 bits
