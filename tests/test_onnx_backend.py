"""ONNX's own conformance models, one an operator and attribute: folded and written again, as StableHLO, as Circle.

What can be said must compute what ONNX Runtime (no optimizations) computes; what cannot is refused with one sentence.
"""
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import circle_consumers
import stablehlo_tools

# LiteRT's own limits on files that are right: its XNNPACK delegate fails on f16, its GATHER takes no computed negative index.
LITERT_CANNOT = {"test_max_float16", "test_min_float16", "test_gather_negative_indices"}


@pytest.fixture(scope="module")
def cases():
    """(name, model, inputs by name, ONNX Runtime's outputs) of every model that it runs on plain arrays."""
    from onnx.backend.test.case.node import collect_testcases
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sorted(collect_testcases(None), key=lambda c: c.name)
    assert len(found) > 1000

    def runnable(part):
        for case in found[::part]:
            if not case.data_sets:
                continue
            given = case.data_sets[0][0]
            given = list(given.values()) if isinstance(given, dict) else list(given)
            session = run(case.model.SerializeToString())
            if session is None or not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" and a.dtype.itemsize <= 8 for a in given):
                continue
            names = {i.name for i in session.get_inputs()}
            feed = {i.name: a for i, a in zip(case.model.graph.input, given) if i.name in names}
            try:
                yield case.name, case.model, feed, session.run(None, feed)
            except Exception:  # the runtime has no kernel
                continue

    return runnable


def run(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # a newer operator set than the runtime's, an operator without a kernel
        return None


def tensors(results):
    """With the tensors of a sequence in its place, behind how many they are."""
    for r in results:
        if isinstance(r, list):
            yield np.array(len(r))
            yield from tensors(r)
        else:
            yield np.asarray(r)


def difference(got, want):
    """Largest |difference| / largest |reference|; infinite where shapes, NaNs or integers differ."""
    worst, got, want = 0.0, list(tensors(got)), list(tensors(want))
    if len(got) != len(want):
        return np.inf
    for a, b in zip(got, want):
        if a.shape != b.shape:
            return np.inf
        if b.dtype.kind != "f":
            worst = max(worst, 0 if np.array_equal(a.astype(b.dtype), b) else np.inf)
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not (np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(a[np.isinf(a)], b[np.isinf(b)])):
            return np.inf
        finite = np.isfinite(b)
        if finite.any():
            worst = max(worst, np.abs(a - b)[finite].max() / max(np.abs(b[finite]).max(), 1e-30))
    return worst


def rewritten(path, feed):
    return run(str(path)).run(None, feed)


def interpreted(path, feed):
    return stablehlo_tools.interpret(path, *feed.values())


def in_litert(path, feed):
    return list(circle_consumers.litert(path, [feed])[0].values())


def check(octavo, folder, runnable, part, command, suffix, consume, least, skip=()):
    wrong, done = [], 0
    source, target = folder / "m.onnx", folder / f"o.{suffix}"
    for name, model, feed, want in runnable(part):
        if name in skip:
            continue
        onnx.save(model, source)
        result = octavo(*(a.format(source) for a in command), "-o", target, "-q", "--force", code=None)
        if result.code != 0:
            if result.code not in (3, 4) or "bug in octavo" in result.error:
                wrong.append((name, result.code, result.err))
            continue
        done += 1
        half = any(t.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
                   for t in [*model.graph.input, *model.graph.output, *model.graph.value_info])
        found = difference(consume(target, feed), want)
        if found > (4e-3 if half else 1e-4):
            wrong.append((name, found))
    assert wrong == []
    assert done >= least // part


PARTS = [16, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("part", PARTS)
def test_written_again(octavo, tmp_path, cases, part):
    check(octavo, tmp_path, cases, part, ("quantize", "{}", "--precision", "fp32"), "onnx", rewritten, 900)


@pytest.mark.parametrize("part", PARTS)
def test_stablehlo(octavo, tmp_path, cases, part):
    check(octavo, tmp_path, cases, part, ("export", "{}", "--to", "stablehlo"), "mlir", interpreted, 400)


@pytest.mark.parametrize("part", PARTS)
def test_circle(octavo, tmp_path, cases, part):
    check(octavo, tmp_path, cases, part, ("export", "{}", "--to", "circle"), "circle", in_litert, 160, LITERT_CANNOT)
