#!/usr/bin/env python3
"""What each Circle profile is worth in each consumer: bench/circle.py [MODEL ...] [--samples N] [--calibration N].

For a profile's file: SQNR in dB against the float model, of ONNX Runtime (optimizations off) on the file read back as Q/DQ, of LiteRT
as its users run it (XNNPACK) and with its built-in kernels alone, and of onert; held-out samples, pooled over all float outputs.
"steps": the share of all quantized activations that LiteRT has within one step of ONNX Runtime's, and in brackets the share that ONNX
Runtime's own default session has, of the same model. "-": that consumer does not read the profile.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
OCTAVO = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo"))
CACHE = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
sys.path.insert(0, str(ROOT / "tests"))

import circle_consumers as consumers  # noqa: E402
from conftest import load_samples  # noqa: E402
from test_circle import DIMS, expose, named, within_one_step  # noqa: E402

PROFILES = ["float", "u8-layer", "u8-channel", "i8-channel", "i16"]
LITERT = {"float", "u8-layer", "i8-channel", "i16"}
ONERT = {"float", "u8-layer", "u8-channel"}


def run(*args):
    r = subprocess.run([OCTAVO, *map(str, args)], capture_output=True, text=True)
    if r.returncode != 0:
        raise RuntimeError(r.stderr.strip().splitlines()[-1])


def decibels(want, got):
    signal = noise = 0.0
    for w, g in zip(want, got):
        for k in w:
            if w[k].dtype == np.float32:
                a = w[k].astype(np.float64).ravel()
                signal += (a**2).sum()
                noise += ((a - g[k].astype(np.float64).ravel())**2).sum()
    return f"{min(10 * np.log10(signal / max(noise, 1e-300)), 300):.1f}"


def onert(circle, graph_inputs, want, samples, folder):
    keys = list(want[0])
    spec = [(want[0][k].shape, want[0][k].dtype) for k in keys]
    return [dict(zip(keys, consumers.onert(circle, [s[i] for i in graph_inputs], spec, folder))) for s in samples]


def attempt(function):
    try:
        return function()
    except Exception as e:  # a consumer that refuses the file is a row of the table
        print(f"  {str(e).strip().splitlines()[-1][:150]}", file=sys.stderr)
        return "refused"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["cls", "det", "minilm", "vit"])
    parser.add_argument("--profiles", default=",".join(PROFILES))
    parser.add_argument("--samples", type=int, default=16, help="held-out")
    parser.add_argument("--calibration", type=int, default=16)
    args = parser.parse_args()
    print("| model | profile | operators: integer, float | MB | ONNX Runtime | LiteRT | LiteRT, no XNNPACK | onert | steps | top-1 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in args.models:
        model, folder = CACHE / "models" / f"{name}.onnx", CACHE / "data" / name
        samples = load_samples(folder / "held", args.samples)
        exact = named(model, samples)
        for profile in args.profiles.split(","):
            with tempfile.TemporaryDirectory() as t:
                t = pathlib.Path(t)
                circle, back = t / "m.circle", t / "b.onnx"
                run("export", model, "--to", "circle", "-o", circle, "--json", t / "r.json", *DIMS[name], "--profile", profile,
                    *([] if profile == "float" else ["--data", folder / "calib", "--samples", args.calibration]))
                facts = json.loads((t / "r.json").read_text())["facts"]
                run("export", circle, "--to", "onnx", "-o", back)
                law = named(back, samples, optimize=False)
                row = [name, profile, f"{facts['integer']}, {facts['float']}", f"{circle.stat().st_size / 1e6:.2f}", decibels(exact, law)]
                for delegates in (True, False):
                    row.append(attempt(lambda: decibels(exact, consumers.litert(circle, samples, delegates))) if profile in LITERT else "-")
                inputs = graph_inputs(circle)
                row.append(attempt(lambda: decibels(exact, onert(circle, inputs, exact, samples, t))) if profile in ONERT else "-")
                steps = top = "-"
                if profile in LITERT and profile != "float" and name in ("cls", "det"):
                    scales = expose(back, t / "e.onnx")
                    run("export", t / "e.onnx", "--to", "circle", "-o", t / "e.circle", *DIMS[name])
                    few = samples[:4]
                    want = named(t / "e.onnx", few, optimize=False)
                    ours = attempt(lambda: f"{100 * within_one_step(want, consumers.litert(t / 'e.circle', few), scales):.2f} %")
                    theirs = attempt(lambda: f"{100 * within_one_step(want, named(t / 'e.onnx', few), scales):.2f} %")
                    steps = f"{ours} ({theirs})"
                if profile in LITERT and name == "cls":
                    got = consumers.litert(circle, samples)
                    top = f"{np.mean([w[k].argmax() == g[k].argmax() for w, g in zip(law, got) for k in w]):.3f}"
                print("| " + " | ".join([*row, steps, top]) + " |", flush=True)


def graph_inputs(circle):
    _, graph, _, _ = consumers.read(circle)
    return [graph.Tensors(graph.Inputs(i)).Name().decode() for i in range(graph.InputsLength())]


if __name__ == "__main__":
    main()
