#!/usr/bin/env python3
"""What `octavo rewrite` does to whole quantized models, in one run on this machine: `python bench/rewrite.py [--models cls det]`.

Each model is quantized by Octavo (Q/DQ form) and by onnxruntime.quantization (MinMax), from the same samples.
SQNR is that of held-out samples against the float model, before -> after: in default sessions, then with optimizations off,
where the Q/DQ form sums in float. Beside the latter stand the 95 % interval of the change that a bootstrap over the samples gives,
the top-1 agreement with the float model (argmax over the last axis of every output) before -> after, the SQNR of the Q/DQ model itself for inputs times 1 + 1e-5 noise (the
spread that its own rounding makes of nothing: deep models amplify a code that falls to the other side of a tie), and the mean of
the samples' differences in dB with its standard error. The latency ratio is rewritten over Q/DQ, both in default sessions,
run in turn on the same sample (octavo perf --against): the median of the pairs, then their 10th and 90th percentile. Beside them the layers that integer kernels take, and their share of the multiply-accumulates (a
dash where the model's shapes are not fixed).
"""
import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np
from run import CACHE, OCTAVO, PEER, process

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from conftest import MODELS, load_samples, outputs, sqnr  # noqa: E402


PEERS = ("u8u8", "u8s8", "u8s8c")


def nudged(sample, seed):
    """Floats times 1 + 1e-5 noise."""
    rng = np.random.default_rng(seed)
    return {n: (v * (1 + 1e-5 * rng.standard_normal(v.shape))).astype(v.dtype) if v.dtype.kind == "f" else v
            for n, v in sample.items()}


def energies(reference, got):
    """Signal and noise of each output."""
    return [(float((a.astype(np.float64) ** 2).sum()), float(((b.astype(np.float64) - a) ** 2).sum()))
            for a, b in zip(reference, got) if a.dtype.kind == "f"]


def interval(reference, before, after, draws=2000):
    """Of the change in pooled SQNR (dB), 95 %, over samples drawn with replacement."""
    e = [np.array([energies(r, g) for r, g in zip(reference, side)]) for side in (before, after)]  # [samples, outputs, 2]
    at = np.random.default_rng(0).integers(0, len(reference), (draws, len(reference)))
    pooled = [x[at].sum(axis=(1, 2)) for x in e]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = 10 * np.log10(pooled[0][:, 1] / pooled[1][:, 1])
    return np.percentile(change[np.isfinite(change)], (2.5, 97.5)) if np.isfinite(change).any() else (0.0, 0.0)


def top1(reference, got):
    same = [(np.argmax(a, -1) == np.argmax(b, -1)).ravel() for r, g in zip(reference, got) for a, b in zip(r, g)
            if a.dtype.kind == "f" and a.ndim > 1]
    return float(np.concatenate(same).mean()) if same else float("nan")


def measure(name, source, label, folder, samples, iterations):
    rewritten, report = folder / "r.onnx", folder / "r.json"
    process([OCTAVO, "rewrite", source, "-o", rewritten, "--json", report, "--force"])
    r = json.loads(report.read_text())
    process([OCTAVO, "perf", rewritten, "--against", source, "--data", CACHE / "data" / name / "held", "--iterations",
             iterations, "--json", report])
    ratio = json.loads(report.read_text())["against"]
    reference = outputs(CACHE / "models" / f"{name}.onnx", samples, optimize=False)
    default = [sqnr(reference, outputs(m, samples)) for m in (source, rewritten)]
    plain = [outputs(m, samples, optimize=False) for m in (source, rewritten)]
    before, after = (sqnr(reference, p) for p in plain)
    low, high = interval(reference, *plain)
    agree = [top1(reference, p) for p in plain]
    spread = sqnr(reference, outputs(source, [nudged(s, i) for i, s in enumerate(samples)], optimize=False))
    change = np.array([sqnr([r], [a]) - sqnr([r], [b]) for r, b, a in zip(reference, *plain)])
    change = change[np.isfinite(change)]
    error = change.std() / max(len(change), 1) ** 0.5
    macs = r["multiply_accumulates"]
    share = f"{100 * macs['integer'] / macs['total']:.1f} %" if macs["total"] else "-"
    applied = sum(rule["applied"] for rule in r["rewrite"])
    print(f"{name:8} {label:13} {default[0]:6.2f} -> {default[1]:6.2f}   {before:6.2f} -> {after:6.2f} ({spread:6.2f}) [{low:+.2f} .. {high:+.2f}] top-1 {agree[0]:.3f} -> {agree[1]:.3f} "
          f"{change.mean():+5.2f} +- {error:.2f}  {ratio['ratio']:5.2f} ({ratio['ratio_p10']:.2f}-{ratio['ratio_p90']:.2f})  "
          f"{r['layers']['integer']:4} of {r['layers']['total']:<4} {share:>7}  {r['nodes_before']:5} -> {r['nodes_after']:<5} {applied:5}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kinds", nargs="+", choices=["uint8", "int8", "w8a16", *PEERS], default=["uint8", "u8u8"],
                        help="precisions of Octavo, and onnxruntime.quantization with weights u8, s8, s8 per channel")
    parser.add_argument("--calibration", type=int, default=32, help="samples that calibrate")
    parser.add_argument("--held-out", type=int, default=64, help="samples that the SQNR is of")
    parser.add_argument("--iterations", type=int, default=30, help="pairs of runs")
    args = parser.parse_args()
    print(f"{'model':8} {'quantizer':13} {'SQNR dB, default':18} {'optimizations off (nudged) [95 %] top-1, mean change':78}  time (p10-p90)    in integers     of MACs  nodes          applied")
    for name in args.models:
        calib = CACHE / "data" / name / "calib"
        samples = load_samples(CACHE / "data" / name / "held", args.held_out)
        with tempfile.TemporaryDirectory() as text:
            folder = pathlib.Path(text)
            model = CACHE / "models" / f"{name}.onnx"
            for kind in args.kinds:
                quantized = folder / f"{kind}.onnx"
                if kind in PEERS:
                    process([sys.executable, "-c", PEER, model.resolve(), calib.resolve(), args.calibration, kind, quantized],
                            folder)  # its preprocessing leaves files behind
                else:
                    process([OCTAVO, "quantize", model, "-o", quantized, "--precision", kind, "--data", calib, "--samples",
                             args.calibration])
                measure(name, quantized, f"{'peer' if kind in PEERS else 'octavo'} {kind}", folder, samples, args.iterations)


if __name__ == "__main__":
    main()
