#!/usr/bin/env python3
"""How near LiteRT is to ONNX Runtime on a quantized CNN: bench/circle_agreement.py [MODEL:SOURCE ...] [--samples N] [--no-exact].

SOURCE: u8-layer, i8-channel, i16 (profiles), uint8, int8 (`octavo quantize`), ort-uint8, ort-int8 (ONNX Runtime's own tool, int8 per
channel). Every quantized activation becomes an output; ONNX Runtime runs with optimizations off.
First row of a pair, layer for layer: LiteRT's own values are given to ONNX Runtime in front of each layer; how many of the values behind
it are not equal, and how many are more than a step apart. Second row, through the whole model: the share of values within a step of LiteRT
(with XNNPACK), of its built-in kernels alone, and of the exact result (sums in f64, rounded to f32 once), each against ONNX Runtime, then
of LiteRT against the exact result; and the share of samples with the same class (of cls: 32).
"""
import argparse
import os
import pathlib
import sys
import tempfile

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import circle_consumers as consumers  # noqa: E402
from circle import run  # noqa: E402
from conftest import load_samples  # noqa: E402
from test_circle import DIMS, cut, expose, named, quantized_by_onnx_runtime, within_one_step  # noqa: E402

SOURCES = ["u8-layer", "i8-channel", "uint8", "int8", "ort-uint8", "ort-int8"]
# Their results are rounded to f32 once; operators that are not here compute in f32, as ONNX Runtime does.
SUMS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "GlobalAveragePool", "AveragePool", "ReduceMean", "Softmax", "Sigmoid"}


def padding(x, kernel, a):
    strides, dilations, pads = a.get("strides", [1, 1]), a.get("dilations", [1, 1]), a.get("pads", [0, 0, 0, 0])
    if a.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max((-(-x.shape[2 + i] // strides[i]) - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - x.shape[2 + i], 0) for i in (0, 1)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if a["auto_pad"] == b"SAME_UPPER" else large + small
    return strides, dilations, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))


def convolution(x, w, bias, a):
    strides, dilations, pads = padding(x, w.shape[2:], a)
    x, group = np.pad(x, pads), a.get("group", 1)
    size = [(x.shape[2 + i] - (w.shape[2 + i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in (0, 1)]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            at = [slice(o * dilations[k], o * dilations[k] + (size[k] - 1) * strides[k] + 1, strides[k]) for k, o in enumerate((i, j))]
            parts = x[:, :, at[0], at[1]].reshape(x.shape[0], group, -1, *size)
            weights = w[:, :, i, j].reshape(group, -1, w.shape[1])
            y += np.einsum("ngchw,gmc->ngmhw", parts, weights, optimize=True).reshape(y.shape)
    return y if bias is None else y + bias[None, :, None, None]


def transposed(x, w, bias, a):
    strides, pads = a.get("strides", [1, 1]), a.get("pads", [0, 0, 0, 0])
    size = [(x.shape[2 + i] - 1) * strides[i] + w.shape[2 + i] for i in (0, 1)]
    y = np.zeros((x.shape[0], w.shape[1], *size))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            at = [slice(o, o + (x.shape[2 + k] - 1) * strides[k] + 1, strides[k]) for k, o in enumerate((i, j))]
            y[:, :, at[0], at[1]] += np.einsum("nchw,cm->nmhw", x, w[:, :, i, j], optimize=True)
    y = y[:, :, pads[0]:size[0] - pads[2], pads[1]:size[1] - pads[3]]
    return y if bias is None else y + bias[None, :, None, None]


def exact(path, sample):
    """A Q/DQ model in NumPy: {output: f32}."""
    model = onnx.load(str(path))
    v = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer} | dict(sample)
    for n in model.graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in n.attribute}
        x = [None if not i else v[i].astype(np.float64) if n.op_type in SUMS and v[i].dtype.kind == "f" else v[i] for i in n.input]
        x += [None] * (4 - len(x))

        def channels(p, rank):
            return p.reshape([-1 if i == a.get("axis", 1) % rank else 1 for i in range(rank)]) if p.ndim == 1 and p.size > 1 else p

        def bounds(low, high):
            return a.get("min", low if x[1] is None else x[1]), a.get("max", high if x[2] is None else x[2])

        if n.op_type == "QuantizeLinear":
            limits, zero = np.iinfo(x[2].dtype), channels(x[2], x[0].ndim).astype(np.int64)
            y = np.clip(np.rint(x[0] / channels(x[1], x[0].ndim)) + zero, limits.min, limits.max).astype(x[2].dtype)
        elif n.op_type == "DequantizeLinear":
            zero = np.int64(0) if x[2] is None else channels(x[2], x[0].ndim).astype(np.int64)
            y = (x[0].astype(np.int64) - zero).astype(np.float32) * channels(x[1], x[0].ndim)
        elif n.op_type in ("Identity", "Cast"):
            y = x[0] if n.op_type == "Identity" else x[0].astype(helper.tensor_dtype_to_np_dtype(a["to"]))
        elif n.op_type in ("Reshape", "Flatten"):
            y = x[0].reshape(x[0].shape[0], -1) if x[1] is None else x[0].reshape([x[0].shape[i] if d == 0 else int(d) for i, d in enumerate(x[1].ravel())])
        elif n.op_type in ("AveragePool", "MaxPool"):
            strides, _, pads = padding(x[0], a["kernel_shape"], a)
            full = np.pad(x[0], pads, constant_values=-np.inf if n.op_type == "MaxPool" else 0)
            windows = np.lib.stride_tricks.sliding_window_view(full, a["kernel_shape"], (2, 3))[:, :, ::strides[0], ::strides[1]]
            y = (np.max if n.op_type == "MaxPool" else np.mean)(windows, (-1, -2))
        elif n.op_type == "Pad":
            half = x[1].size // 2
            y = np.pad(x[0], [(int(x[1][i]), int(x[1][i + half])) for i in range(half)], constant_values=0 if x[2] is None else x[2].item())
        elif n.op_type == "Resize":
            ratio = x[2][2:] if x[2] is not None and x[2].size else x[3][2:] / np.array(x[0].shape[2:])
            y = x[0].repeat(int(ratio[0]), 2).repeat(int(ratio[1]), 3)
        else:
            y = {"Conv": lambda: convolution(x[0], x[1], x[2], a), "ConvTranspose": lambda: transposed(x[0], x[1], x[2], a),
                 "Add": lambda: x[0] + x[1], "Sub": lambda: x[0] - x[1], "Mul": lambda: x[0] * x[1], "Div": lambda: x[0] / x[1],
                 "Min": lambda: np.minimum(x[0], x[1]), "Max": lambda: np.maximum(x[0], x[1]),
                 "Relu": lambda: np.maximum(x[0], 0), "Clip": lambda: np.clip(x[0], *bounds(-np.inf, np.inf)),
                 "HardSigmoid": lambda: np.clip(x[0] * np.float32(a.get("alpha", 0.2)) + np.float32(a.get("beta", 0.5)), 0, 1),
                 "HardSwish": lambda: x[0] * np.clip(x[0] * np.float32(1 / 6) + np.float32(0.5), 0, 1),
                 "Sigmoid": lambda: 1 / (1 + np.exp(-x[0])), "MatMul": lambda: x[0] @ x[1],
                 "Gemm": lambda: x[0] @ (x[1].T if a.get("transB") else x[1]) + (0 if x[2] is None else x[2]),
                 "GlobalAveragePool": lambda: x[0].mean((2, 3), keepdims=True),
                 "ReduceMean": lambda: x[0].mean(tuple(a["axes"] if "axes" in a else x[1]), keepdims=bool(a.get("keepdims", 1))),
                 "Softmax": lambda: np.exp(x[0] - x[0].max(-1, keepdims=True)) / np.exp(x[0] - x[0].max(-1, keepdims=True)).sum(-1, keepdims=True),
                 "Transpose": lambda: x[0].transpose(a["perm"]), "Concat": lambda: np.concatenate([v[i] for i in n.input], a["axis"]),
                 "Shape": lambda: np.array(x[0].shape), "Constant": lambda: numpy_helper.to_array(a["value"]),
                 "Gather": lambda: np.take(x[0], x[1], a.get("axis", 0)), "Slice": lambda: x[0][int(x[1][0]):int(x[2][0])],
                 "Squeeze": lambda: np.squeeze(x[0], tuple(a["axes"] if "axes" in a else x[1])),
                 "Unsqueeze": lambda: np.expand_dims(x[0], tuple(a["axes"] if "axes" in a else x[1]))}[n.op_type]()
        v[n.output[0]] = np.asarray(y, np.float32) if np.asarray(y).dtype == np.float64 else np.asarray(y)
    return {o.name: v[o.name] for o in model.graph.output}


def quantized(model, source, data, folder):
    """The Q/DQ model of a source, of 16 calibration samples."""
    path, q = CACHE / "models" / f"{model}.onnx", folder / "q.onnx"
    if source.startswith("ort-"):
        run("quantize", path, "-o", folder / "f.onnx", "--precision", "fp32")
        onnx.save(version_converter.convert_version(onnx.load(str(folder / "f.onnx")), 13), str(folder / "f.onnx"))
        return quantized_by_onnx_runtime(folder / "f.onnx", folder, load_samples(data, 16), source == "ort-int8")
    if source in ("uint8", "int8"):
        run("quantize", path, "-o", q, "--precision", source, "--data", data, "--samples", 16)
        return q
    run("export", path, "--to", "circle", "-o", folder / "p.circle", *DIMS[model], "--profile", source, "--data", data, "--samples", 16)
    run("export", folder / "p.circle", "--to", "onnx", "-o", q)
    return q


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[f"cls:{s}" for s in SOURCES])
    parser.add_argument("--samples", type=int, default=4, help="held-out")
    parser.add_argument("--no-exact", action="store_true", help="leave the exact result out, which takes longest")
    args = parser.parse_args()
    for what in args.what:
        model, source = what.split(":")
        data = CACHE / "data" / model / "all"
        few = load_samples(data, 32 + args.samples)[32:]
        with tempfile.TemporaryDirectory() as t:
            t = pathlib.Path(t)
            q = quantized(model, source, data, t)
            scales = expose(q, t / "e.onnx")
            run("export", t / "e.onnx", "--to", "circle", "-o", t / "e.circle", *DIMS[model])
            run("export", q, "--to", "circle", "-o", t / "q.circle", *DIMS[model])
            want, got = named(t / "e.onnx", few, optimize=False), consumers.litert(t / "e.circle", few)
            plain = consumers.litert(t / "e.circle", few, delegates=False)
            cut(t / "e.onnx", scales, t / "cut.onnx")
            layers = named(t / "cut.onnx", [{**s, **{f"given_{k}": g[k].reshape(w[k].shape) for k in scales}} for s, g, w in zip(few, got, want)],
                           optimize=False)
            steps = np.concatenate([np.rint(np.abs(w[k].ravel().astype(np.float64) - g[k].ravel()) / s)
                                    for w, g in zip(layers, got) for k, s in scales.items()])
            print(f"{what}: {steps.size} values, {int((steps > 0).sum())} not equal, {int((steps > 1).sum())} beyond a step", flush=True)
            text = f"LiteRT {100 * within_one_step(want, got, scales):.3f} %, without XNNPACK {100 * within_one_step(want, plain, scales):.3f} %"
            if not args.no_exact:
                law = [exact(t / "e.onnx", s) for s in few]
                text += f", exact {100 * within_one_step(want, law, scales):.3f} %, LiteRT and exact {100 * within_one_step(law, got, scales):.3f} %"
            if model == "cls":
                many = load_samples(data, 64)[32:]
                same = [a[k].argmax() == b[k].argmax() for a, b in zip(named(q, many, optimize=False), consumers.litert(t / "q.circle", many)) for k in a]
                text += f", same class {sum(same)} of {len(same)}"
            print(f"{what}: {text}", flush=True)


if __name__ == "__main__":
    main()
