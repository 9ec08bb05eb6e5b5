#!/usr/bin/env python3
"""Two roads from ONNX to IREE: octavo export --to stablehlo, and iree-import-onnx. What each refuses, sizes and times.

    bench/peer_stablehlo.py --octavo build/octavo --models ~/.cache/octavo-deps/models [--only cls,"vit int8"] [--limit 600] [-o table.md]

A road is: text written, compiled by IREE for this machine's CPU, run once to warm up and five times, compared with ONNX Runtime
(unoptimized). Times are processor time, all threads together: other work on the machine hardly changes them. A compilation
beyond --limit seconds of the clock is ended and its row says so.
"""
import argparse
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import stablehlo_tools as tools  # noqa: E402

DIMS = {"cls": ["x:0=1", "x:2=48", "x:3=192"], "det": ["x:0=1", "x:2=320", "x:3=320"], "minilm": ["batch_size=1", "sequence_length=128"], "vit": ["batch_size=1"]}


def random_inputs(path, name):
    rng = np.random.default_rng(0)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fixed = {"x": {"cls": [1, 3, 48, 192], "det": [1, 3, 320, 320]}.get(name, [1, 1024]), "input_image": [1, 3, 224, 224], "input_ids": [1, 128], "attention_mask": [1, 128]}
    arrays = []
    for i in session.get_inputs():
        shape = fixed.get(i.name, i.shape)
        if "int" in i.type:
            arrays.append(np.ones(shape, np.int64) if "mask" in i.name else rng.integers(0, 30000, shape))
        else:
            arrays.append(rng.normal(size=shape).astype(np.float32))
    return [i.name for i in session.get_inputs()], arrays


def matmul(path):
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(1024, 1024)) / 32).astype(np.float32)
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 1024]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:],
                              [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))


def reason(error):
    """The sentence of whoever refused, and the ONNX operator that it is about: what the command printed where there is one."""
    text = getattr(error, "stderr", None) or str(error)
    lines = [l for l in text.splitlines() if "error" in l.lower()] or text.splitlines() or [""]
    sentence = " ".join(lines[0].replace("|", "/").split()).split("error: ")[-1]
    operator = re.search(r'"onnx\.(\w+)"', sentence)
    return f"refused: {operator.group(1)}: {sentence.split(':')[0]}" if operator else "refused: " + sentence[:160]


def compile_vmfb(text, limit):
    vmfb = text.with_suffix(".vmfb")
    subprocess.run([pathlib.Path(sys.executable).with_name("iree-compile"), text, "-o", vmfb, *tools.FLAGS], check=True,
                   capture_output=True, text=True, timeout=limit)
    return vmfb.read_bytes()


def spent(who=resource.RUSAGE_CHILDREN):
    """Seconds of processor time; of children those that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def road(write, text, arrays, want, limit):
    cells = ["", "", "", "", "", ""]
    try:
        start = spent()
        write()
        cells[1:3] = [f"{text.stat().st_size / 1e6:.1f}", f"{spent() - start:.2f}"]
        start = spent()
        vmfb = compile_vmfb(text, limit)
        cells[3:5] = [f"{len(vmfb) / 1e3:.0f}", f"{spent() - start:.1f}"]
        program = tools.Program(vmfb)
        got = program(*arrays)
        times = []
        for _ in range(5):
            start = spent(resource.RUSAGE_SELF)
            program(*arrays)
            times.append(spent(resource.RUSAGE_SELF) - start)
        cells[5] = f"{sorted(times)[2] * 1e3:.1f}"
    except subprocess.TimeoutExpired:
        return ["compilation ended at the limit", *cells[1:]]
    except Exception as error:  # whatever a consumer throws is what it refuses
        return [reason(error), *cells[1:]]
    difference = max(float(np.abs(g.astype(np.float64) - w).max() / max(np.abs(w).max(), 1e-30)) for g, w in zip(got, want))
    return [f"{difference:.1e}", *cells[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octavo", default="build/octavo")
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("-o", type=pathlib.Path)
    options = parser.parse_args()
    rows = ["| model | road | max difference / max reference | text MB | text s | vmfb kB | compile s | run ms |",
            "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        cases = [(name, None) for name in DIMS] + [(name, "int8") for name in DIMS] + [("matmul", p) for p in (None, "q8_0", "q4_k")]
        for name, precision in cases:
            label = name + (f" {precision}" if precision else "")
            if options.only and label not in options.only.split(",") and name not in options.only.split(","):
                continue
            source = options.models / f"{name}.onnx"
            if name == "matmul":
                source = folder / "matmul.onnx"
                matmul(source)
            dims = [part for d in DIMS.get(name, []) for part in ("--dim", d)]
            model = source
            if precision:
                model = folder / "q.onnx"
                subprocess.run([options.octavo, "quantize", source, "-o", model, "-f", "-q", "--precision", precision,
                                "--samples", "8", *dims], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            names, arrays = random_inputs(model, name)
            session_options = ort.SessionOptions()
            session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = ort.InferenceSession(str(model), session_options, providers=["CPUExecutionProvider"])
            want = session.run(None, dict(zip(names, arrays)))
            blocks = precision and precision.startswith("q")  # quantized on the way: blocks stay blocks

            def ours():
                more = ["--precision", precision] if blocks else []
                subprocess.run([options.octavo, "export", source if blocks else model, "--to", "stablehlo", "-o", folder / "m.mlir", "-f",
                                "-q", *([] if model != source and not blocks else dims), *more], check=True, capture_output=True, text=True)

            def theirs():
                fixed = onnx.load(model)
                fixed.graph.name = "main"  # what the importer names the function
                for value, array in zip(fixed.graph.input, arrays):  # the importer takes static shapes from the model
                    for d, size in zip(value.type.tensor_type.shape.dim, array.shape):
                        d.dim_value = size
                onnx.save(fixed, folder / "fixed.onnx")
                subprocess.run([sys.executable, "-m", "iree.compiler.tools.import_onnx", folder / "fixed.onnx", "-o", folder / "i.mlir",
                                "--opset-version", "17"], check=True, capture_output=True, text=True)

            for who, write, text in (("octavo", ours, "m.mlir"), ("iree-import-onnx", theirs, "i.mlir")):
                rows.append("| " + " | ".join([label, who, *road(write, folder / text, arrays, want, options.limit)]) + " |")
                print(rows[-1], flush=True)
                if options.o:
                    options.o.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
