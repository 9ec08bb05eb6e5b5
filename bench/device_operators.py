#!/usr/bin/env python3
"""What the device's arithmetic adds: bench/device_operators.py OUT --data D [--model M.onnx] [--samples N] [--only TEXT] [--above R].

OUT: what `octavo build --device qnn` made. Every quantized activation of OUT/quantized.onnx becomes an output, Octavo compiles that, and the
emulator runs it. A line an operator: what it gave against what ONNX Runtime computes in f32 from the very values that the emulator gave to it,
in steps of its codes: mean, root of the mean square (.289 is the rounding alone) and largest, and the same for the CPU's kernels; operators
whose root is above R times that of the CPU.
With --model (the float model), a line a sample in front: dB of the artifact, of quantized.onnx on the CPU (optimizations off), and of the CPU
where each input moves by 1e-4 of its range: what ties of rounding make of a model, whoever computes it.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPS = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
sys.path[:0] = [str(ROOT / "tests")]

from conftest import load_samples, session  # noqa: E402

MOVES = {"QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Gather"}


def on_device(artifact, library):
    o = onnxruntime.SessionOptions()
    o.log_severity_level = 4
    o.add_provider_for_devices([d for d in onnxruntime.get_ep_devices() if d.ep_name == "QNNExecutionProvider"][:1],
                               {"backend_path": str(library.parent / "libQnnHtp.so"), "htp_arch": "73", "soc_model": "60"})
    return onnxruntime.InferenceSession(str(artifact), o)


def db(signal, noise):
    return 10 * np.log10(signal / max(noise, 1e-300))


def lines_of_samples(args, samples, library):
    """dB of the first output; the last line is of all samples together."""
    float_model, quantized, device = session(args.model, False), session(args.out / "quantized.onnx", False), on_device(args.out / "model.onnx", library)
    random, sums = np.random.default_rng(0), np.zeros(6)
    for i, sample in enumerate(samples):
        wanted = float_model.run(None, sample)[0].astype(float)
        moved = [{k: (v + random.standard_normal(v.shape) * 1e-4 * np.ptp(v)).astype(v.dtype) if v.dtype == np.float32 else v
                  for k, v in sample.items()} for _ in range(3)]
        given = [device.run(None, sample)[0], *(quantized.run(None, s)[0] for s in [sample, *moved])]
        row = np.array([(wanted ** 2).sum(), *(((g - wanted) ** 2).sum() for g in given)])
        sums += row
        for name, r in ((f"sample {i}", row),) + ((("all", sums),) if i + 1 == len(samples) else ()):
            dbs = [f"{db(r[0], n):.1f}" for n in r[1:]]
            print(f"{name}: device {dbs[0]}, CPU {dbs[1]}, CPU with inputs moved {' '.join(dbs[2:])}", flush=True)


class Quantized:
    """quantized.onnx with what its Q/DQ pairs say."""

    def __init__(self, path):
        self.model = onnx.load(str(path))
        nodes = self.model.graph.node
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.makers = {o: n for n in nodes for o in n.output}
        self.quantize = {n.input[0]: n for n in nodes if n.op_type == "QuantizeLinear"}

    def array(self, name):
        return numpy_helper.to_array(self.constants[name])

    def codes_behind(self, name):
        """The codes of a computed tensor behind a DequantizeLinear; None for others."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] in self.constants or len(maker.input) < 3:
            return None
        return maker.input[0], self.array(maker.input[1]), self.array(maker.input[2])

    def operators(self, only):
        for n in self.model.graph.node:
            if n.op_type in MOVES or only not in n.output[0] or n.output[0] not in self.quantize:
                continue
            computed = [i for i in n.input if i and i not in self.constants and not (
                self.makers.get(i) is not None and self.makers[i].op_type == "DequantizeLinear" and self.makers[i].input[0] in self.constants)]
            if all(self.codes_behind(i) for i in computed):
                q = self.quantize[n.output[0]]
                yield n, computed, (q.output[0], self.array(q.input[1]), self.array(q.input[2]))

    def alone(self, node, computed, folder):
        weights = [self.makers[i] for i in node.input if i in self.makers and i not in computed]
        used = {k for w in weights for k in w.input} | set(node.input)
        graph = helper.make_graph([*weights, node], "one", [helper.make_tensor_value_info(i, 1, None) for i in dict.fromkeys(computed)],
                                  [helper.make_tensor_value_info(node.output[0], 1, None)], [t for k, t in self.constants.items() if k in used])
        onnx.save(helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version), str(folder / "one.onnx"))
        return session(folder / "one.onnx", False)


def lines_of_operators(args, samples, library, folder):
    form = Quantized(args.out / "quantized.onnx")
    operators = list(form.operators(args.only))
    exposed = {}
    for _, computed, made in operators:
        for codes, scale, zero in [*map(form.codes_behind, computed), made]:
            exposed[codes] = (scale, zero)
    outputs = {o.name for o in form.model.graph.output}
    for codes, (_, zero) in exposed.items():
        if codes not in outputs:
            form.model.graph.output.append(helper.make_tensor_value_info(codes, helper.np_dtype_to_tensor_dtype(zero.dtype), None))
    onnx.save(form.model, str(folder / "exposed.onnx"))
    done = subprocess.run([args.octavo, "compile", folder / "exposed.onnx", "--device", "qnn", "-o", folder / "out", "-q"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    sessions, names = (session(folder / "exposed.onnx", False), on_device(folder / "out" / "model.onnx", library)), list(exposed)
    runs = [[dict(zip(names, s.run(names, sample))) for sample in samples] for s in sessions]
    values = lambda codes, run: (run[codes].astype(np.float32) - np.float32(exposed[codes][1])) * exposed[codes][0]
    for node, computed, (made, scale, zero) in operators:
        one, info, told = form.alone(node, computed, folder), np.iinfo(zero.dtype), []
        for run_of in runs:
            errors = []
            for run in run_of:
                exact = one.run(None, {i: values(form.codes_behind(i)[0], run) for i in computed})[0].astype(float)
                exact = np.clip(exact, (info.min - float(zero)) * scale, (info.max - float(zero)) * scale)
                errors.append(((values(made, run).reshape(exact.shape) - exact) / scale).ravel())
            e = np.concatenate(errors)
            told.append((e.mean(), np.sqrt((e ** 2).mean()), np.abs(e).max()))
        if told[1][1] > args.above * told[0][1]:
            cpu, device = ("mean {:+.3f} root {:.3f} most {:.1f}".format(*t) for t in told)
            print(f"{node.op_type} {zero.dtype} {node.output[0]}: device {device}; CPU {cpu}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the name of an operator's output")
    parser.add_argument("--above", type=float, default=1.25)
    parser.add_argument("--octavo", default=os.environ.get("OCTAVO", str(ROOT / "build" / "octavo")))
    args = parser.parse_args()
    library = pathlib.Path(os.environ.get("OCTAVO_QNN_LIBRARY", DEPS / "qnn-2.7.0/onnxruntime_qnn/libonnxruntime_providers_qnn.so"))
    onnxruntime.register_execution_provider_library("QNNExecutionProvider", str(library))
    samples = load_samples(args.data)[:args.samples]
    if args.model:
        lines_of_samples(args, samples, library)
        return
    with tempfile.TemporaryDirectory() as folder:
        lines_of_operators(args, samples, library, pathlib.Path(folder))


if __name__ == "__main__":
    main()
