"""Every rule of `octavo rewrite --list`: random graphs that it takes, a proof that is a test, conditions that are tested."""
import re

import numpy as np
import onnx
import pytest
from conftest import ROOT, session
from onnx import TensorProto, helper, numpy_helper
from test_rewrite import applied, check_random, check_random_blocks, qdq, rewrite


class Graph:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.init, self.inputs, self.outs = [], [], [], []

    def scale(self):
        return float(np.float32(2.0 ** self.rng.uniform(-7, -3)))

    def constant(self, name, value):
        self.init.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def pair(self, x, scale, zero, dtype=np.uint8):
        """QuantizeLinear and DequantizeLinear behind x."""
        n = f"{x}_p"
        self.constant(n + "_s", np.float32(scale))
        self.constant(n + "_z", np.asarray(zero, dtype))
        self.node("QuantizeLinear", [x, n + "_s", n + "_z"], n + "_q")
        return self.node("DequantizeLinear", [n + "_q", n + "_s", n + "_z"], n)

    def input(self, name, shape):
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def activations(self, name, shape):
        self.x_scale = self.scale()
        return self.pair(self.input(name, shape), self.x_scale, int(self.rng.integers(0, 256)))

    def weight(self, name, shape, axis=None):
        scales = np.float32(self.scale() if axis is None else [self.scale() for _ in range(shape[axis])])
        zero = np.full(scales.shape, 128)
        self.w_scale = float(np.max(scales))
        return qdq(self.nodes, self.init, name, self.rng.integers(0, 256, shape).astype(np.uint8), scales, zero, axis)

    def output(self, name):
        self.outs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def model(self):
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outs, self.init)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        del model.graph.output[:]
        for o in self.outs:
            model.graph.output.append(helper.make_empty_tensor_value_info(o.name))
        return model


# Each builds one small graph that its rule takes. It gives the largest difference that the rule's class allows, beside
# which float sums may differ by a millionth; and the rules that must help it.

def drop_requantize(g):
    s, z = g.scale(), int(g.rng.integers(0, 256))
    g.output(g.pair(g.pair(g.input("x", [300]), s, z), s, z))
    return 0, []


def drop_finer_requantize(g):
    s, m = 2.0 ** int(g.rng.integers(-10, -5)), int(g.rng.integers(1, 9))
    g.output(g.pair(g.pair(g.input("x", [300]), m * s, int(g.rng.integers(0, 256))), s, int(g.rng.integers(20000, 40000)), np.uint16))
    return 0, []


def quantize_once(g):
    s, m = 2.0 ** int(g.rng.integers(-13, -9)) * 1.25, 2 * int(g.rng.integers(1, 9)) + 1  # m * s is an f32 number
    g.output(g.pair(g.pair(g.input("x", [300]), s, 32768, np.uint16), s * m, int(g.rng.integers(64, 192))))
    return 1.001 * s * m, []


def absorb_requantize(g):
    c = g.node("Conv", [g.activations("x", [1, 4, 6, 6]), g.weight("w", (8, 4, 3, 3), 0)], "c")
    first = g.x_scale * g.w_scale * 500
    second = first * float(g.rng.uniform(0.2, 0.9))  # inside the first range
    g.output(g.pair(g.pair(c, first, 128), second, int(g.rng.integers(120, 136))))
    return 1.001 * (first + second), []


def float_weight(g):
    if g.rng.integers(2):
        g.output(g.node("Conv", [g.activations("x", [1, 4, 6, 6]), g.weight("w", (4, 4, 3, 3), 1)], "y"))
    else:
        g.output(g.node("MatMul", [g.activations("x", [5, 8]), g.weight("w", (8, 8), 0)], "y"))
    return 0, []


def scale_into_weight(g):
    c = g.node("Conv", [g.activations("x", [1, 4, 6, 6]), g.weight("w", (8, 4, 3, 3), 0)], "c")
    shape = () if g.rng.integers(2) else (8, 1, 1)
    y = g.node("Mul", [c, g.constant("k", g.rng.uniform(0.1, 4, shape).astype(np.float32))], "y")
    if g.rng.integers(2):
        g.output(y)
        return 0, []
    step = g.x_scale * g.w_scale * 500
    g.output(g.pair(y, step, 128))
    return 1.001 * step, []


def add_into_bias(g):
    c = g.node("Conv", [g.activations("x", [1, 4, 6, 6]), g.weight("w", (8, 4, 3, 3), 0)], "c")
    y = g.node("Add", [c, g.constant("k", g.rng.normal(size=(8, 1, 1)).astype(np.float32))], "y")
    step = g.x_scale * g.w_scale * 500
    g.output(g.pair(y, step, 128))
    return 1.001 * step, []


def raise_weight_scale(g):
    x, w = g.activations("x", [1, 4, 6, 6]), g.weight("w", (8, 4, 3, 3), 0)
    bias = g.rng.uniform(-1, 1, 8) * 2.0 ** 31 * g.x_scale * g.w_scale
    bias[int(g.rng.integers(8))] = 2.0 ** 33 * g.x_scale * g.w_scale
    step = float(np.float32(np.abs(bias).max() / 100))
    g.output(g.pair(g.node("Conv", [x, w, g.constant("b", bias.astype(np.float32))], "c"), step, 128))
    return 1.001 * step, ["integer-bias", "qlinear-conv"]


def quantize_before_move(g):
    c = g.node("MatMul", [g.activations("x", [6, 8]), g.weight("w", (8, 5), 1)], "c")
    step = g.x_scale * g.w_scale * 300
    moved = (g.node("Reshape", [c, g.constant("shape", np.array([5, 6]))], "m") if g.rng.integers(2) else
             g.node("Transpose", [c], "m", perm=[1, 0]))
    g.output(g.pair(moved, step, 128))
    return 0, []


def join_codes(g):
    s, z = g.scale(), int(g.rng.integers(0, 256))
    parts = [g.pair(g.input(n, [2, 3, 4]), s, z) for n in "xyz"[:int(g.rng.integers(2, 4))]]
    g.output(g.pair(g.node("Concat", parts, "c", axis=int(g.rng.integers(3))), s, z))
    return 0, []


def part_parameters(g):
    """Weights with scales along an axis or 4-bit blocks, split and put together again along any axis; activations too."""
    along, axis, x = int(g.rng.integers(2)), int(g.rng.integers(2)), g.input("x", [1])
    if g.rng.integers(2):
        block = int(g.rng.choice([16, 32]))
        shape = [4, 6]
        shape[axis] = 2 * block * int(g.rng.integers(1, 3))
        scales = [n // block if i == axis else n for i, n in enumerate(shape)]
        g.init.append(helper.make_tensor("w", TensorProto.INT4, shape, g.rng.integers(-8, 8, shape).ravel()))
        g.constant("w_s", g.rng.uniform(0.01, 1, scales).astype(np.float32))
        w = g.node("DequantizeLinear", ["w", "w_s"], "w_d", axis=axis, block_size=block)
    else:
        shape = [int(2 * g.rng.integers(2, 6)), int(2 * g.rng.integers(2, 6))]
        w = g.weight("w", shape, axis)
    g.nodes.append(helper.make_node("Split", [w], ["a", "b"], axis=along, **({"num_outputs": 2} if g.rng.integers(2) else {})))
    if "num_outputs" not in [a.name for a in g.nodes[-1].attribute]:
        g.nodes[-1].input.append(g.constant("sizes", np.array([shape[along] // 2] * 2)))
    c = g.node("Concat", ["b", "a"], "c", axis=int(g.rng.integers(2)) if axis == along else along)
    g.output(g.node("Mul", [c, x], "y"))
    return 0, []


def qlinear_softmax(g):
    x = g.pair(g.input("x", [4, 32]), float(g.rng.uniform(0.02, 0.1)), 128)
    g.output(g.pair(g.node("Softmax", [x], "c", axis=-1), 1 / 256, 0))
    return 3.01 / 256, []  # lossy: what the kernel was seen to do


ALONE = {f.__name__.replace("_", "-"): f for f in
         (drop_requantize, drop_finer_requantize, quantize_once, absorb_requantize, float_weight, scale_into_weight, add_into_bias,
          raise_weight_scale, quantize_before_move, part_parameters, join_codes, qlinear_softmax)}


def check_alone(octavo, tmp_path, rule, seed):
    g = Graph(seed)
    most, helpers = ALONE[rule](g)
    q, r = tmp_path / f"{rule}{seed}.onnx", tmp_path / f"{rule}{seed}r.onnx"
    onnx.save(g.model(), str(q))
    report = rewrite(octavo, q, r, "--class", "lossy", "--rules", ",".join([rule, *helpers]))
    assert applied(report).get(rule, 0) > 0, (rule, seed, report["trace"])
    rng = np.random.default_rng(seed)
    feeds = {i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32) * 2 for i in g.inputs}
    before, after = (session(p, optimize=False).run(None, feeds)[0] for p in (q, r))
    session(r).run(None, feeds)
    worst = np.abs(before.astype(np.float64) - after).max()
    exact = next(x["class"] for x in report["rewrite"] if x["rule"] == rule) == "exact"
    assert worst == 0 if exact else worst <= most + 1e-6 * np.abs(before).max(), (rule, seed, worst, most)


def catalogue(octavo):
    """{rule: {field: text}} of --list."""
    rules, last = {}, None
    for line in octavo("rewrite", "--list").out.splitlines():
        if line and not line.startswith(" "):
            name, rule_class = re.fullmatch(r"([a-z0-9-]+) \((\w+)\)", line).groups()
            last = rules[name] = {"class": rule_class}
        elif line.strip():
            field = re.match(r"  (before|after|proof|needs)  +(.*)", line)
            last.update({field[1]: field[2]} if field else {"summary": line.strip()})
    return rules


def test_every_rule_is_proven_and_tested(octavo, tmp_path):
    """Fails for a rule without random graphs that it takes, without a proof that names its tests, or without a condition
    whose counterexample the tests hold (Mutation.EveryConditionHasACounterexample refuses it with a sentence, and shows
    what goes wrong without the condition)."""
    rules = catalogue(octavo)
    taken = set()
    for seed in range(4):
        taken |= set(applied(check_random(octavo, tmp_path, seed, 40)))
        taken |= set(check_random_blocks(octavo, tmp_path, seed))
    for rule in ALONE:
        for seed in range(3):
            check_alone(octavo, tmp_path, rule, seed)
        taken.add(rule)
    assert set(rules) - taken == set(), "rules that no random graph reaches"
    assert set(ALONE) <= set(rules)
    sources = "".join(p.read_text() for p in (ROOT / "octavo" / "rewrite").glob("*_test.cc"))
    python = "".join(p.read_text() for p in (ROOT / "tests").glob("test_rewrite*.py"))
    for name, rule in rules.items():
        assert all(rule.get(field) for field in ("summary", "before", "after", "proof", "needs")), f"{name} lacks a field: {rule}"
        for suite, test in re.findall(r"\b([A-Z]\w*)\.([A-Z]\w*)", rule["proof"]):
            assert re.search(rf"TEST(_P|_F)?\({suite}, {test}\)", sources), f"{name}: no test is called {suite}.{test}"
        for test in re.findall(r"\btest_\w+", rule["proof"]):
            assert f"def {test}(" in python, f"{name}: no test is called {test}"
        assert rule["class"] == "lossy" or re.search(r"[A-Z]\w*\.[A-Z]\w*|Z3", rule["proof"]), f"{name} is not proven"
        for condition in rule["needs"].split(", "):
            # As it is written in the table of mutations, whole or for several rules at once.
            assert f'"{name}/{condition}"' in sources or f'"/{condition}"' in sources, f"{name}/{condition} has no counterexample"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALONE)
def test_many_random_graphs(octavo, tmp_path, rule):
    for seed in range(100, 200):
        check_alone(octavo, tmp_path, rule, seed)
