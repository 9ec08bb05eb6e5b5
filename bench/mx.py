#!/usr/bin/env python3
"""Speed of the MX formats' kernels, in GB/s of f32 on one thread: `make bench`. Arguments go to bench_mx."""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOL = pathlib.Path(os.environ.get("OCTAVO", ROOT / "build" / "octavo")).parent / "bench_mx"

if __name__ == "__main__":
    if not TOOL.exists():
        sys.exit("bench: needs bench_mx (`make`)")
    sys.exit(subprocess.run([str(TOOL), *sys.argv[1:]]).returncode)
