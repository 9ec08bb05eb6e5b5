"""Memory that does not grow with the number of samples, of the process itself (its high-water mark, VmHWM)."""
import pathlib
import re
import subprocess
import time

import pytest

from conftest import OCTAVO


def peak_bytes(environment, *args):
    process = subprocess.Popen([str(OCTAVO), *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=environment)
    peak = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024)
        except (OSError, AttributeError):
            pass  # between fork and exec, or gone
        time.sleep(0.003)
    assert process.returncode == 0, process.stderr.read()
    return peak


@pytest.mark.parametrize("model", ["minilm", "det", "cls"])
def test_many_samples_need_no_more_memory_than_few(environment, models, data, tmp_path, model):
    """96 samples against 8: an embedding table of which every sample reads other rows, activations of two runs at once,
    the samples that are kept."""
    def peak(samples):
        return peak_bytes(environment, "quantize", models[model], "-o", tmp_path / "q.onnx", "--precision", "uint8", "--data",
                          data[model], "--samples", samples, "--threads", 2, "--force", "--quiet")

    few, many = max(peak(8) for _ in range(2)), min(peak(96) for _ in range(2))
    assert many - few < 5e6, f"{few / 1e6:.1f} MB with 8 samples, {many / 1e6:.1f} MB with 96"
