#!/usr/bin/env python3
"""Makes calibration and held-out samples for the four test models from data that installed packages carry.

Photographs: scikit-image and scikit-learn; text lines: rendered with Pillow's own font; sentences: the documentation
strings of Python's standard library. Calibration and held-out samples come from disjoint sources (other photographs,
other modules). Deterministic. Usage: make_data.py --cache DIR; samples land in DIR/data/<model>/{calib,held}/NNN.npz.
"""
import argparse
import importlib
import pathlib
import re
import shutil
import unicodedata

import numpy as np

CALIB, HELD = 32, 64
VERSION = "2"


def photographs():
    """(calibration, held-out): two disjoint lists of RGB uint8 arrays."""
    from skimage import data as sk
    from sklearn.datasets import load_sample_images
    names = ["astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "text", "immunohistochemistry",
             "hubble_deep_field", "retina", "moon", "colorwheel", "cat", "brick", "grass", "gravel", "clock"]
    images = []
    for name in names:
        try:
            image = getattr(sk, name)()
        except Exception:  # an image that this version fetches from elsewhere instead of shipping
            continue
        if image.ndim == 2:
            image = np.stack([image] * 3, -1)
        images.append(np.ascontiguousarray(image[..., :3]).astype(np.uint8))
    images += [np.asarray(i) for i in load_sample_images().images]
    return images[0::2], images[1::2]


def crop(rng, image, height, width):
    from PIL import Image
    h, w = image.shape[:2]
    scale = max(height / h, width / w) * rng.uniform(1.0, 2.0)
    scale = max(scale, height / h, width / w)
    resized = Image.fromarray(image).resize((int(np.ceil(w * scale)), int(np.ceil(h * scale))), Image.BILINEAR)
    array = np.asarray(resized)
    y = rng.integers(0, array.shape[0] - height + 1)
    x = rng.integers(0, array.shape[1] - width + 1)
    return array[y:y + height, x:x + width]


def chw(image, mean, std):
    x = (image.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None]).astype(np.float32)


def text_line(rng, words, background, height, width, upside_down):
    from PIL import Image, ImageDraw, ImageFont
    canvas = Image.fromarray(crop(rng, background, height, width))
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, tuple(int(v) for v in rng.integers(120, 256, 3))),
                         float(rng.uniform(0.5, 1.0)))
    font = ImageFont.load_default(size=int(rng.integers(height // 2, int(height * 0.8))))
    text = " ".join(rng.choice(words, size=3))
    ink = tuple(int(v) for v in rng.integers(0, 110, 3))
    ImageDraw.Draw(canvas).text((4, 2), text, font=font, fill=ink)
    return np.asarray(canvas.rotate(180) if upside_down else canvas)


def page(rng, words, background, size):
    """A photograph with text lines of several sizes on it: what a text detector sees."""
    from PIL import Image, ImageDraw, ImageFont
    canvas = Image.fromarray(crop(rng, background, size, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 7))):
        font = ImageFont.load_default(size=int(rng.integers(12, 40)))
        x, y = int(rng.integers(0, size // 2)), int(rng.integers(0, size - 40))
        draw.text((x, y), " ".join(rng.choice(words, size=int(rng.integers(1, 4)))), font=font,
                  fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return np.asarray(canvas)


def sentences(modules):
    found = []
    for name in modules:
        module = importlib.import_module(name)
        for item in [module] + [getattr(module, n) for n in sorted(dir(module))]:
            doc = getattr(item, "__doc__", None)
            if isinstance(doc, str):
                for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", doc):
                    part = " ".join(part.split())
                    if 20 < len(part) < 600 and part not in found:
                        found.append(part)
    return found


class WordPiece:
    """BERT's uncased tokenizer (greedy longest match first)."""

    def __init__(self, vocab):
        self.ids = {t: i for i, t in enumerate(vocab.read_text(encoding="utf-8").splitlines())}

    def __call__(self, text, length):
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        out = [self.ids["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", text):
            start, pieces = 0, []
            while start < len(word):
                end = len(word)
                while end > start and ("##" if start else "") + word[start:end] not in self.ids:
                    end -= 1
                if end == start:
                    pieces = [self.ids["[UNK]"]]
                    break
                pieces.append(self.ids[("##" if start else "") + word[start:end]])
                start = end
            out += pieces
        out = out[:length - 1] + [self.ids["[SEP]"]]
        ids = np.zeros((1, length), np.int64)
        mask = np.zeros((1, length), np.int64)
        ids[0, :len(out)], mask[0, :len(out)] = out, 1
        return {"input_ids": ids, "attention_mask": mask}


def make(cache):
    target = cache / "data"
    stamp = target / "version"
    if stamp.exists() and stamp.read_text() == VERSION:
        return
    shutil.rmtree(target, ignore_errors=True)
    photos = photographs()
    tokenizer = WordPiece(cache / "models" / "vocab.txt")
    prose = (sentences(["argparse", "asyncio", "collections", "datetime", "decimal", "email", "functools"]),
             sentences(["json", "logging", "os", "pathlib", "random", "re", "shutil", "socket", "statistics", "textwrap"]))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for split, (part, count) in enumerate((("calib", CALIB), ("held", HELD))):
        rng = np.random.default_rng(split)
        images, lines = photos[split], prose[split]
        words = sorted({w for s in lines for w in re.findall(r"[A-Za-z]{3,12}", s)})
        pick = rng.permutation(len(lines))
        for i in range(count):
            image = images[i % len(images)]
            if i % 4 == 3:
                line = crop(rng, image, 48, 192)
            else:
                line = text_line(rng, words, image, 48, 192, i % 2 == 1)
            samples = {
                "cls": {"x": chw(line, 0.5, 0.5)},
                "det": {"x": chw(page(rng, words, image, 320), mean, std)},
                "vit": {"input_image": chw(crop(rng, image, 224, 224), mean, std)},
                "minilm": tokenizer(" ".join(lines[pick[(i * 3 + k) % len(lines)]] for k in range(1 + i % 3)), 128),
            }
            for model, arrays in samples.items():
                folder = target / model / part
                folder.mkdir(parents=True, exist_ok=True)
                np.savez(folder / f"{i:03d}.npz", **arrays)
    for model in ("cls", "det", "vit", "minilm"):  # calibration first, held-out after: one --data directory
        both = target / model / "all"
        both.mkdir()
        for k, part in enumerate(("calib", "held")):
            for f in sorted((target / model / part).iterdir()):
                (both / f"{k}_{f.name}").hardlink_to(f)
    stamp.write_text(VERSION)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True, type=pathlib.Path)
    make(parser.parse_args().cache)
