#!/usr/bin/env python3
"""TFLite files read by Octavo and run by ONNX Runtime, beside LiteRT: bench/tflite_files.py FILE_OR_FOLDER ... [--runs N] [--seed S].

A folder stands for every .tflite and .task file in it and below (a .task is a zip of .tflite files), and for those in its wheels. Every file
gets the same random inputs in both, N runs one after the other, with variables handed on. "difference": the largest one of a value, in parts
of the largest value of its output (which follows); in steps for an output of integers. The last line counts.
"""
import argparse
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parent.parent
OCTAVO = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo"))


def unpack(data, name):
    """(name, bytes) of every TFLite file in a zip, and in the zips in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        for entry in sorted(z.namelist()):
            if entry.endswith((".tflite", ".task")):
                yield from members(z.read(entry), f"{name.split('-')[0]}/{pathlib.PurePosixPath(entry).name}")


def members(data, name):
    if data[4:8] == b"TFL3":
        yield name, data
    elif data[:2] == b"PK":
        yield from unpack(data, name)


def found(paths):
    for path in map(pathlib.Path, paths):
        files = sorted(p for p in path.rglob("*") if p.suffix in (".tflite", ".task", ".whl")) if path.is_dir() else [path]
        for file in files:
            yield from members(file.read_bytes(), file.name)


def random(rng, shape, dtype):
    if np.dtype(dtype).kind == "f":
        return rng.uniform(0, 1, shape).astype(dtype)
    if np.dtype(dtype).itemsize == 1:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    return np.zeros(shape, dtype)


def compare(data, onnx_path, runs, seed):
    from ai_edge_litert.interpreter import Interpreter
    it = Interpreter(model_content=data)
    it.allocate_tensors()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
    inputs, outputs = it.get_input_details(), it.get_output_details()
    ours, results = session.get_inputs(), [o.name for o in session.get_outputs()]
    types = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    state = {i.name: np.zeros(i.shape, types[i.type]) for i in ours[len(inputs):]}
    rng, parts, of, steps = np.random.default_rng(seed), 0.0, 0.0, 0
    for _ in range(runs):
        feed = dict(state)
        for d, i in zip(inputs, ours):
            x = random(rng, d["shape"], d["dtype"])
            it.set_tensor(d["index"], x)
            feed[i.name] = x
        it.invoke()
        got = dict(zip(results, session.run(None, feed)))
        for d, name in zip(outputs, results):
            want = it.get_tensor(d["index"]).astype(np.float64).ravel()
            difference = np.abs(want - got[name].astype(np.float64).ravel()).max(initial=0)
            if np.dtype(d["dtype"]).kind == "f":
                largest = np.abs(want).max(initial=0)
                parts, of = max((parts, of), (difference / max(largest, 1e-30), largest))
            else:
                steps = max(steps, int(difference))
        state = {name: got[name + "_next"] for name in state}
    return parts, of, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    read = files = 0
    print("| file | MB | difference |\n|---|---|---|")
    for name, data in found(args.paths):
        files += 1
        with tempfile.TemporaryDirectory() as folder:
            source, target = pathlib.Path(folder) / "m.tflite", pathlib.Path(folder) / "m.onnx"
            source.write_bytes(data)
            r = subprocess.run([OCTAVO, "export", source, "--to", "onnx", "-o", target], capture_output=True, text=True)
            if r.returncode != 0:
                result = "refused: " + r.stderr.strip().splitlines()[-1].replace("octavo: error: ", "")
            else:
                read += 1
                parts, of, steps = compare(data, target, args.runs, args.seed)
                result = f"{parts:.1e} of {of:.1e}" + (f", {steps} steps" if steps else "")
        print(f"| {name} | {len(data) / 1e6:.2f} | {result} |", flush=True)
    print(f"\n{read} of {files} files are read")
    return 0 if files else "no TFLite file found"


if __name__ == "__main__":
    sys.exit(main())
