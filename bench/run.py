#!/usr/bin/env python3
"""The ratios that Octavo is measured by, in one run on this machine: `make bench`.

Both sides get the same samples. Timings are whole processes, the two sides in turn (A B A B ...); a ratio is the median
of the pairs' ratios, followed by its smallest and largest. Memory is the process's high-water mark (VmHWM), read every 5 ms.

  ours/peer    octavo quantize against onnxruntime.quantization (quant_pre_process where it works, quantize_static QDQ, MinMax)
  ours/bare    octavo quantize against a bare float session that runs the same samples
  memory       the high-water marks with 8 and with all samples of the data (highest of the runs), which should not differ
  SQNR         held-out samples, pooled over all outputs, against the float model: optimizations off / default session
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OCTAVO = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo"))
CACHE = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
sys.path.insert(0, str(ROOT / "tests"))

BARE = """
import sys, pathlib, numpy as np, onnxruntime as ort
files = sorted(pathlib.Path(sys.argv[2]).glob('*.npz'))[:int(sys.argv[3])]
s = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
for f in files: s.run(None, dict(np.load(f)))
"""

PEER = """
import sys, pathlib, tempfile, os, numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
model, data, count, kind, target = sys.argv[1:6]
os.chdir(pathlib.Path(target).parent)  # the preprocessing leaves files behind where it runs
class Reader(CalibrationDataReader):
    def __init__(self):
        self.it = iter(sorted(pathlib.Path(data).glob('*.npz'))[:int(count)])
    def get_next(self):
        f = next(self.it, None)
        return None if f is None else dict(np.load(f))
source = target + '.pre.onnx'
try:
    quant_pre_process(model, source)
    import onnxruntime; onnxruntime.InferenceSession(source, providers=['CPUExecutionProvider'])
except BaseException as e:
    print('preprocessing failed:', type(e).__name__, file=sys.stderr)
    source = model
quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QUInt8 if kind == 'u8u8' else QuantType.QInt8, per_channel=kind == 'u8s8c')
"""


def process(args, folder=None):
    """(seconds, peak bytes) of one process, run in `folder`; exits with its error if it fails."""
    with tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        p = subprocess.Popen([str(a) for a in args], stdout=subprocess.DEVNULL, stderr=err, cwd=folder)
        # The kernel's own high-water mark of the new program; ru_maxrss would count this Python process's memory, from
        # which the child was started.
        peak = 0
        while p.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{p.pid}/status").read_text()
                peak = max(peak, int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024)
            except (OSError, AttributeError):
                pass  # between fork and exec, or gone
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        if p.returncode:
            err.seek(0)
            sys.exit(f"bench: {args[0]} failed ({p.returncode}): {err.read().decode()[-2000:]}")
    return seconds, peak


def paired(a, b, runs):
    pairs = [(process(a), process(b)) for _ in range(runs)]
    out = {}
    for k, name in ((0, "time"), (1, "memory")):
        ratios = sorted(x[k] / y[k] for x, y in pairs)
        out[name] = (statistics.median(ratios), ratios[0], ratios[-1])
        out[name + "_a"] = statistics.median(x[k] for x, _ in pairs)
        out[name + "_b"] = statistics.median(y[k] for _, y in pairs)
    return out


def show(label, r):
    print(f"  {label:34} time {r['time_a']:7.2f} s / {r['time_b']:7.2f} s = {r['time'][0]:5.2f} [{r['time'][1]:.2f} .. {r['time'][2]:.2f}]"
          f"   memory {r['memory_a'] / 1e6:6.0f} / {r['memory_b'] / 1e6:6.0f} MB = {r['memory'][0]:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cls,det,minilm,vit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--held", type=int, default=32, help="held-out samples for the SQNR")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    from conftest import load_samples, outputs, sqnr
    results = {}
    for name in options.models.split(","):
        model, data = CACHE / "models" / f"{name}.onnx", CACHE / "data" / name / "all"
        calib = CACHE / "data" / name / "calib"
        print(f"{name}: {model.stat().st_size / 1e6:.1f} MB, 32 calibration samples, {options.held} held-out samples", flush=True)
        with tempfile.TemporaryDirectory() as tmp:
            tmp = pathlib.Path(tmp)
            ours = lambda precision, *more, data=calib, count=32: [OCTAVO, "quantize", model, "-o", tmp / f"{precision}.onnx", "--precision",
                                                                   precision, "--data", data, "--samples", count, "--force", "--quiet", *more]
            peer = lambda kind: [sys.executable, "-c", PEER, model, calib, 32, kind, tmp / f"{kind}.onnx"]
            bare = [sys.executable, "-c", BARE, model, calib, 32]
            results[name] = r = {"peer": paired(ours("uint8"), peer("u8u8"), options.runs),
                                 "bare": paired(ours("uint8"), bare, options.runs),
                                 "bare_histogram": paired(ours("uint8", "--calibration", "mse"), bare, options.runs)}
            show("quantize uint8 : peer u8u8", r["peer"])
            show("quantize uint8 minmax : bare float", r["bare"])
            show("quantize uint8 mse : bare float", r["bare_histogram"])
            r["few_many"] = [max(process(ours("uint8", data=data, count=count))[1] for _ in range(options.runs))
                             for count in (8, len(list(data.iterdir())))]
            print(f"  memory with 8 / all {len(list(data.iterdir()))} samples: {r['few_many'][0] / 1e6:.0f} / {r['few_many'][1] / 1e6:.0f} MB",
                  flush=True)
            process(ours("uint8"))
            process(ours("int8"))
            process([OCTAVO, "quantize", model, "-o", tmp / "fp16.onnx", "--precision", "fp16", "--force", "--quiet"])
            process(peer("u8s8"))
            process(peer("u8s8c"))
            held = load_samples(data)[32:32 + options.held]
            reference = outputs(model, held)
            for kind in ("uint8", "int8", "fp16", "u8u8", "u8s8", "u8s8c"):
                path = tmp / f"{kind}.onnx"
                r[kind] = [sqnr(reference, outputs(path, held, optimize)) for optimize in (False, True)]
                print(f"  SQNR {('onnxruntime ' if kind.startswith('u8') else 'octavo ') + kind:22} {r[kind][0]:6.2f} / {r[kind][1]:6.2f} dB"
                      f"   {path.stat().st_size / 1e6:6.2f} MB", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
