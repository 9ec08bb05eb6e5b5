"""What an NPU gathers: rows, planes and the greatest of quantized tensors. The oracle is ONNX Runtime on the same model."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import manifest
from test_devices import needs_qnn, qnn_env

STEP = np.float32(0.01)


@needs_qnn
@pytest.mark.parametrize("bits", [8, 16])
def test_gathered_rows_planes_and_greatest_are_those_of_the_cpu(octavo, tmp_path, bits):
    """In rows of 8 to 32 bytes the last, or three of four planes, were others; the greatest were a step of 8 bits off; of planes most were wrong."""
    storage, most = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    step, rng = STEP * 255 / most, np.random.default_rng(3)
    init = [numpy_helper.from_array(np.float32(step), "s"), numpy_helper.from_array(storage(0), "z"),
            numpy_helper.from_array(np.array([8]), "eight"), numpy_helper.from_array(np.array([[1, 7]] * 20), "known"), numpy_helper.from_array(rng.integers(0, 64, 40), "lines_at")]
    shapes = {"rows": (128, 32), "planes": (64, 2, 24), "scores": (1, 100), "lines": (4, 64, 8), "halves": (1, 4, 64, 16)}
    operators = {"rows": ("Gather", ["rows", "i"], (1, 32, 8, 32)), "known_rows": ("Gather", ["rows", "known"], (20, 2, 32)),
                 "planes": ("GatherND", ["planes", "j"], (64, 2, 24)), "scores": ("TopK", ["scores", "eight"], (1, 8)),
                 "lines": ("Gather", ["lines", "lines_at"], (4, 40, 8)), "halves": ("Gather", ["halves", "j"], (1, 4, 64, 1, 16))}
    nodes, outs = [], []
    for x in shapes:
        nodes += [helper.make_node("QuantizeLinear", [x, "s", "z"], [x + "_q"]), helper.make_node("DequantizeLinear", [x + "_q", "s", "z"], [x + "_d"])]
    for name, (op, inputs, shape) in operators.items():
        results = [name + "_y"] + (["places"] if op == "TopK" else [])
        axis = {"axis": {"lines": 1, "halves": 2}.get(name, 0)} if op == "Gather" else {}
        nodes += [helper.make_node(op, [inputs[0] + "_d", inputs[1]], results, **axis), helper.make_node("QuantizeLinear", [name + "_y", "s", "z"], [name + "_c"]),
                  helper.make_node("DequantizeLinear", [name + "_c", "s", "z"], [name + "_o"])]
        outs.append(helper.make_tensor_value_info(name + "_o", TensorProto.FLOAT, shape))
    ins = [helper.make_tensor_value_info(x, TensorProto.FLOAT, s) for x, s in shapes.items()]
    ins += [helper.make_tensor_value_info("i", TensorProto.INT64, (1, 32, 8)), helper.make_tensor_value_info("j", TensorProto.INT64, (64, 1))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ins, outs, init), opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
              str(tmp_path / "m.onnx"))
    (tmp_path / "data").mkdir()
    for k in range(4):
        i, j = rng.integers(0, 128, (1, 32, 8)), rng.integers(0, 64, (64, 1))
        i[0, 0, 0] = i[0, -1, -1] = 127
        values = {x: (rng.integers(0, 256, s) * STEP).astype(np.float32) for x, s in shapes.items()}
        np.savez(tmp_path / "data" / f"{k}.npz", i=i, j=j, **values)
    octavo("compile", tmp_path / "m.onnx", "--device", "qnn", "--data", tmp_path / "data", "-o", tmp_path / "c", env=qnn_env())
    m = manifest(tmp_path / "c")
    assert m["compile"]["ep_context_nodes"] == 1 and m["compile"]["cpu_fallback_nodes"] == []
    worst = {o["name"]: o["max_abs"] for o in m["validate"]["outputs"]}
    fp16 = 2.55 / 2048  # in which the device compares for a TopK
    assert {n: e for n, e in worst.items() if e > (fp16 if n == "scores_o" and bits == 16 else 1e-5)} == {}
