#!/usr/bin/env python3
"""What `octavo rewrite` does to whole quantized models, in one run on this machine: `python bench/rewrite.py [--models cls det]`.

Each model is quantized by Octavo (uint8, Q/DQ form) and by onnxruntime.quantization (u8/u8, MinMax), from the same samples.
SQNR is that of held-out samples against the float model, optimizations off, before -> after. The latency ratio is rewritten
over Q/DQ, both in default sessions, run in turn on the same sample (octavo perf --against): the median of the pairs, then their
10th and 90th percentile. Beside them the layers that integer kernels take, and their share of the multiply-accumulates (a
dash where the model's shapes are not fixed).
"""
import argparse
import json
import pathlib
import sys
import tempfile

from run import CACHE, OCTAVO, PEER, process

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from conftest import MODELS, load_samples, outputs, sqnr  # noqa: E402


def measure(name, source, label, folder, samples, iterations):
    rewritten, report = folder / "r.onnx", folder / "r.json"
    process([OCTAVO, "rewrite", source, "-o", rewritten, "--json", report, "--force"])
    r = json.loads(report.read_text())
    process([OCTAVO, "perf", rewritten, "--against", source, "--data", CACHE / "data" / name / "held", "--iterations",
             iterations, "--json", report])
    ratio = json.loads(report.read_text())["against"]
    reference = outputs(CACHE / "models" / f"{name}.onnx", samples, optimize=False)
    before, after = (sqnr(reference, outputs(m, samples, optimize=False)) for m in (source, rewritten))
    macs = r["multiply_accumulates"]
    share = f"{100 * macs['integer'] / macs['total']:.1f} %" if macs["total"] else "-"
    applied = sum(rule["applied"] for rule in r["rewrite"])
    print(f"{name:8} {label:12} {before:7.2f} -> {after:7.2f}  {ratio['ratio']:5.2f} ({ratio['ratio_p10']:.2f}-{ratio['ratio_p90']:.2f})  "
          f"{r['layers']['integer']:4} of {r['layers']['total']:<4} {share:>7}  {r['nodes_before']:5} -> {r['nodes_after']:<5} {applied:5}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--calibration", type=int, default=32, help="samples that calibrate")
    parser.add_argument("--held-out", type=int, default=16, help="samples that the SQNR is of")
    parser.add_argument("--iterations", type=int, default=30, help="pairs of runs")
    args = parser.parse_args()
    print(f"{'model':8} {'quantizer':12} {'SQNR dB, before -> after':18}  time (p10-p90)    in integers     of MACs  nodes          applied")
    for name in args.models:
        calib = CACHE / "data" / name / "calib"
        samples = load_samples(CACHE / "data" / name / "held", args.held_out)
        with tempfile.TemporaryDirectory() as text:
            folder = pathlib.Path(text)
            quantized = folder / "octavo.onnx"
            process([OCTAVO, "quantize", CACHE / "models" / f"{name}.onnx", "-o", quantized, "--data", calib, "--samples", args.calibration])
            measure(name, quantized, "octavo", folder, samples, args.iterations)
            quantized = folder / "peer.onnx"
            process([sys.executable, "-c", PEER, CACHE / "models" / f"{name}.onnx", calib, args.calibration, "u8u8", quantized])
            measure(name, quantized, "onnxruntime", folder, samples, args.iterations)


if __name__ == "__main__":
    main()
