"""Block formats against ggml's own library and against the gguf package."""
import importlib.metadata
import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest

from conftest import OCTAVO

FORMATS = ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
           "tq1_0", "tq2_0", "mxfp4_gg", "nvfp4"]


def library():
    """libggml-base of the pywhispercpp wheel."""
    for file in importlib.metadata.files("pywhispercpp"):
        if file.name.startswith("libggml-base") and ".so" in file.name:
            path = pathlib.Path(file.locate())
            if path.exists():
                return path
    raise AssertionError("pywhispercpp has no libggml-base")


def check(formats, values):
    tool = OCTAVO.parent / "bench_ggml"
    assert tool.exists(), f"{tool} is missing: build with OCTAVO_TESTS"
    run = subprocess.run([str(tool), str(library()), "--formats", ",".join(formats), "--check", str(values)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("values identical") == len(formats), run.stdout


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_ggmls(name):
    """Encoders with and without importance, decoders: a million values each, edge cases among them."""
    check([name], 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_ggmls_ten_million(name):
    check([name], 10_000_000)
