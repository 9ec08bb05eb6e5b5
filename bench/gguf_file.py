#!/usr/bin/env python3
"""octavo quantize, GGUF to GGUF, beside what bounds it: the disk and the encoder in memory.

    bench/gguf_file.py [--octavo build/octavo] [--gb 1.6] [--folder /tmp] [--precisions q4_k,q6_k,q8_0] [--runs 3]

Makes a file of f32 weights in FOLDER and removes it. In turn: the run, the same bytes written and flushed by dd, the encoder
on both threads in memory (bench_ggml). Share = time of the slower bound / time of the run; above 1 the disk was luckier.
"""
import argparse
import importlib.metadata
import os
import pathlib
import re
import resource
import statistics
import subprocess
import tempfile
import time

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def library():
    files = importlib.metadata.files("pywhispercpp") or []
    return next(p for p in (pathlib.Path(f.locate()) for f in files if f.name.startswith("libggml-base")) if p.exists())


def make(path, gb):
    writer = gguf.GGUFWriter(str(path), "none")
    base = np.random.default_rng(0).standard_normal(size=(4096, 4096), dtype=np.float32) * np.float32(0.02)
    for i in range(max(1, round(gb * 1e9 / base.nbytes))):
        writer.add_tensor(f"w{i}", base + np.float32(i) * np.float32(1e-4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_seconds(path, size):
    start = time.time()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=4M", "iflag=count_bytes", f"count={size}", "conv=fsync"],
                   check=True, stderr=subprocess.DEVNULL)
    seconds = time.time() - start
    path.unlink()
    return seconds


def encode_gb_s(tool, precision):
    """Of two threads: the thread's own speed times what the second one adds now."""
    out = subprocess.run([tool, library(), "--formats", precision, "--mb", "32", "--runs", "3", "--seconds", "0.5"], check=True,
                         capture_output=True, text=True).stdout
    row = out.splitlines()[2]
    one, _, _, two = re.findall(r"[0-9.]+", row.split(None, 1)[1])[:4]
    return float(one) * float(two)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octavo", type=pathlib.Path, default=os.environ.get("OCTAVO", ROOT / "build" / "octavo"))
    parser.add_argument("--gb", type=float, default=1.6)
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--precisions", default="q4_k,q6_k,q8_0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-memory", default="512M")
    options = parser.parse_args()
    octavo = pathlib.Path(options.octavo).resolve()
    print("| precision | run s | CPU s | peak MB | disk s | encoder s | share of the slower |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = pathlib.Path(folder) / "in.gguf", pathlib.Path(folder) / "out.gguf"
        make(source, options.gb)
        os.sync()
        for precision in options.precisions.split(","):
            rows = []
            for _ in range(options.runs):
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
                text = subprocess.run([octavo, "quantize", source, "-o", out, "--precision", precision, "--max-memory",
                                       options.max_memory], check=True, capture_output=True, text=True).stdout
                seconds, after = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                peak = float(re.search(r"peak memory ([0-9.]+) MB", text)[1])
                size = out.stat().st_size
                out.unlink()
                disk = write_seconds(out, size)
                encoder = source.stat().st_size / 1e9 / encode_gb_s(octavo.parent / "bench_ggml", precision)
                rows.append((seconds, cpu, peak, disk, encoder, max(disk, encoder) / seconds))
            middle = [statistics.median(column) for column in zip(*rows)]
            print(f"| {precision} | " + " | ".join(f"{v:.2f}" for v in middle) + " |", flush=True)


if __name__ == "__main__":
    main()
