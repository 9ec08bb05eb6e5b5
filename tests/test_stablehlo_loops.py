"""Loop and Scan as StableHLO: run by StableHLO's interpreter and by IREE, compared with ONNX Runtime."""
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import stablehlo_tools as tools
from conftest import session
from test_stablehlo import Cases, relative, save


def value(name, kind=T.FLOAT, shape=None):
    return h.make_tensor_value_info(name, kind, shape)


def body(name, nodes, states, results):
    """A Loop's: its number is i<name>, its condition c<name>, what it goes on with d<name>."""
    first = [value(f"i{name}", T.INT64, []), value(f"c{name}", T.BOOL, [])]
    return h.make_graph(nodes, name, [*first, *states], [value(f"d{name}", T.BOOL, []), *results])


def on(name):
    return h.make_node("Identity", [f"c{name}"], [f"d{name}"])


def rng():
    return np.random.default_rng(11)


def check(octavo, folder, nodes, inputs, results, weights, loops, compile_too=True):
    model = save(folder / "m.onnx", nodes, inputs, results, weights)
    octavo("export", model, "--to", "stablehlo", "-o", folder / "m.mlir", "--force")
    assert (folder / "m.mlir").read_text().count("stablehlo.while") == loops
    want = session(model, optimize=False).run(results, inputs)
    runs = [tools.interpret(folder / "m.mlir", *inputs.values())]
    if compile_too:
        runs.append(tools.program(folder / "m.mlir")(*inputs.values()))
    for got in runs:
        assert len(got) == len(want)
        for name, a, b in zip(results, got, want):
            assert a.shape == b.shape, name
            if b.dtype.kind == "f":
                assert relative(a, b) <= 2e-6, name
            else:
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_loops(octavo, tmp_path):
    """What decides how many steps there are is a constant, follows from a shape, or is computed; loops and choices inside."""
    r = rng()
    x, w, rows = (r.normal(size=s).astype(np.float32) for s in ((2, 3), (3, 3), (7, 4)))
    counted = body("A", [on("A"), h.make_node("MatMul", ["sA", "w"], ["mA"]), h.make_node("Cast", ["iA"], ["fA"], to=T.FLOAT),
                         h.make_node("Tanh", ["mA"], ["tA"]), h.make_node("Add", ["tA", "fA"], ["yA"])], [value("sA")], [value("tA"), value("yA")])
    over_rows = body("B", [h.make_node("Gather", ["rows", "tB"], ["rB"]), h.make_node("Add", ["tB", "one"], ["uB"]),
                           h.make_node("Cast", ["uB"], ["vB"], to=T.FLOAT), h.make_node("Less", ["vB", "length"], ["dB"]),
                           h.make_node("Add", ["sB", "rB"], ["zB"]), h.make_node("Greater", ["zB", "zero"], ["pB"])],
                     [value("tB", T.INT64, []), value("sB")], [value("uB", T.INT64, []), value("zB"), value("pB", T.BOOL)])
    halved = body("C", [h.make_node("Mul", ["sC", "half"], ["tC"]), h.make_node("ReduceMax", ["tC"], ["rC"], keepdims=0),
                        h.make_node("Greater", ["rC", "half"], ["dC"])], [value("sC")], [value("tC")])
    inner = body("E", [on("E"), h.make_node("Mul", ["sE", "half"], ["tE"])], [value("sE")], [value("tE")])
    yes = h.make_graph([h.make_node("Neg", ["nD"], ["aD"])], "yes", [], [value("aD")])
    no = h.make_graph([h.make_node("Add", ["nD", "x"], ["bD"])], "no", [], [value("bD")])
    nested = body("D", [on("D"), h.make_node("Loop", ["iD", "", "sD"], ["nD"], body=inner), h.make_node("Equal", ["iD", "two"], ["eD"]),
                        h.make_node("If", ["eD"], ["tD"], then_branch=yes, else_branch=no)], [value("sD")], [value("tD")])
    grown = body("F", [on("F"), h.make_node("Concat", ["sF", "x"], ["tF"], axis=0)], [value("sF")], [value("tF")])
    nodes = [h.make_node("Loop", ["five", "", "x"], ["a", "as"], body=counted),
             h.make_node("Shape", ["rows"], ["sizes"]), h.make_node("Gather", ["sizes", "zero_index"], ["n"]), h.make_node("Cast", ["n"], ["length"], to=T.FLOAT),
             h.make_node("Loop", ["", "", "zero_index", "start"], ["bt", "b", "bs"], body=over_rows),
             h.make_node("Loop", ["", "go", "x"], ["c"], body=halved), h.make_node("Loop", ["turns", "", "x"], ["e"], body=nested),
             h.make_node("Loop", ["two", "", "x"], ["f"], body=grown)]
    weights = {"w": w, "five": np.array(5), "two": np.array(2), "one": np.array(1), "zero_index": np.array(0), "zero": np.float32(0), "half": np.float32(0.5),
               "start": np.zeros(4, np.float32)}
    results = ["a", "as", "bt", "b", "bs", "c", "e", "f"]
    for go, turns in ((True, 4), (False, 0)):
        inputs = {"x": 8 * np.abs(x), "rows": rows, "go": np.array(go), "turns": np.array(turns)}
        check(octavo, tmp_path, nodes, inputs, results, weights, 5, compile_too=go)


def test_weights_stand_once(octavo, tmp_path):
    """What a loop multiplies with in every step, from outside or handed on, is written once."""
    w = rng().normal(size=(64, 64)).astype(np.float32)
    states = [value("sA"), value("kA")]
    steps = body("A", [on("A"), h.make_node("MatMul", ["sA", "w"], ["mA"]), h.make_node("MatMul", ["mA", "kA"], ["tA"]),
                       h.make_node("Identity", ["kA"], ["lA"])], states, [value("tA"), value("lA")])
    check(octavo, tmp_path, [h.make_node("Loop", ["n", "", "x", "k"], ["y", "unused"], body=steps)], {"x": np.ones((1, 64), np.float32)}, ["y"],
          {"n": np.array(3), "w": w / 8, "k": w.T / 8}, 1, compile_too=False)
    assert 4 * 64 * 64 * 4 < (tmp_path / "m.mlir").stat().st_size < 5 * 64 * 64 * 4


def test_scan(octavo, tmp_path):
    r = rng()
    steps = h.make_graph([h.make_node("Add", ["s", "p"], ["t"]), h.make_node("Mul", ["t", "q"], ["u"]), h.make_node("Unsqueeze", ["u", "first"], ["v"])],
                         "steps", [value("s"), value("p"), value("q")], [value("t"), value("u"), value("v")])
    node = h.make_node("Scan", ["start", "a", "b"], ["end", "o", "e"], body=steps, num_scan_inputs=2, scan_input_axes=[1, -1],
                       scan_input_directions=[0, 1], scan_output_axes=[1, -1], scan_output_directions=[1, 0])
    inputs = {"start": np.zeros(3, np.float32), "a": r.normal(size=(3, 6)).astype(np.float32), "b": r.normal(size=(3, 6)).astype(np.float32)}
    check(octavo, tmp_path, [node], inputs, ["end", "o", "e"], {"first": np.array([0])}, 1)


@pytest.mark.parametrize("steps,collected,sentence", [
    ("n", True, "it collects results of its steps, and their number is computed"), ("zero", True, "it collects the results of no steps"),
    ("hundred", False, "its state changes its type in 100 steps"), ("n", False, "its state changes its type from tensor<1x2xf32> to tensor<2x2xf32>")])
def test_refusals(octavo, tmp_path, steps, collected, sentence):
    grown = body("A", [on("A"), h.make_node("Concat", ["sA", "x"], ["tA"], axis=0), h.make_node("Abs", ["x"], ["yA"])], [value("sA")],
                 [value("tA"), value("yA")])
    node = h.make_node("Loop", [steps, "", "x"], ["y", "ys"], "turns", body=grown)
    model = save(tmp_path / "m.onnx", [node], {"x": np.ones((1, 2), np.float32), "n": np.array(3)}, ["y"] + ["ys"] * collected,
                 {"zero": np.array(0), "hundred": np.array(100)})
    error = octavo("export", model, "--to", "stablehlo", "-o", tmp_path / "m.mlir", code=4).error
    assert sentence in error and "node Loop 'turns'" in error
    assert not (tmp_path / "m.mlir").exists()


def test_operators_that_came_later(octavo, tmp_path):
    c, r = Cases(), rng()

    def data(array):
        name = f"x{len(c.inputs)}"
        c.inputs[name] = array
        return name

    x = data(r.uniform(-3, 3, (2, 3, 4)).astype(np.float32))
    odd = data(np.array([np.inf, -np.inf, np.nan, 0], np.float32))
    for op in ("Atan", "Tan", "Sinh", "Cosh", "Celu", "ThresholdedRelu", "Shrink"):
        c.add(op, x)
    c.add("Celu", x, alpha=0.7), c.add("ThresholdedRelu", x, alpha=-0.5), c.add("Shrink", x, lambd=1.0, bias=0.25)
    c.add("IsInf", odd), c.add("IsInf", odd, detect_negative=0), c.add("IsInf", odd, detect_positive=0)
    i, j = (data(r.integers(-9, 9, s).astype(np.int32)) for s in ((2, 5), (5,)))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        c.add(op, i, j)
    c.add("BitwiseNot", i)
    c.add("ReverseSequence", x, c.ints(2, 0, 1))
    c.add("ReverseSequence", x, data(np.array([3, 1])), batch_axis=0, time_axis=1)
    c.check(octavo, tmp_path, 18, interpreter=True)
