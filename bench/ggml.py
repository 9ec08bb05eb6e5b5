#!/usr/bin/env python3
"""Octavo's block formats beside ggml's: speeds in turn on the same data, one table. Arguments go to bench_ggml."""
import importlib.metadata
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo")).parent


def main():
    files = importlib.metadata.files("pywhispercpp") or []
    libraries = [pathlib.Path(f.locate()) for f in files if f.name.startswith("libggml-base") and ".so" in f.name]
    library = next((p for p in libraries if p.exists()), None)
    tool = BUILD / "bench_ggml"
    if library is None or not tool.exists():
        sys.exit("bench: needs the pywhispercpp package (requirements-test.txt) and bench_ggml (`make`)")
    sys.exit(subprocess.run([str(tool), str(library), *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    main()
