"""A toy Food-11: eleven classes of coloured shapes and textures in the real layout, no food in it.

For `make demo` (see demo.py) and for the tests: it shows that the pipeline works, and says nothing about real
photos. The pictures are the same every time.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

CLASSES = 11
TESTING_LABELS = "testing_labels.csv"  # beside the folders, as only a toy can have them


def _texture(kind, height, width, random):
    """Grey texture in [0, 1], (height, width): what distinguishes classes 6 to 10."""
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    frequency, phase = random.uniform(5, 8), random.uniform(0, 2 * math.pi)
    if kind == 0:
        return 0.5 + 0.5 * np.sin(2 * math.pi * frequency * x + phase)  # upright stripes
    if kind == 1:
        return 0.5 + 0.5 * np.sin(2 * math.pi * frequency * y + phase)  # level stripes
    if kind == 2:
        return (np.floor(frequency * x + phase) + np.floor(frequency * y)) % 2  # checks
    if kind == 3:
        return 0.5 + 0.5 * np.sin(2 * math.pi * frequency * np.hypot(x - 0.5, y - 0.5) + phase)  # rings
    return random.random((height, width))  # noise


def draw_picture(label, random, size=None, clutter=0.0):
    """One RGB picture of class `label` (0-10) as a PIL image; `size`: (width, height), random by default.

    clutter: 0 to 1, how much weak contrast, noise and lines in front hide the class.
    """
    width, height = size or (int(random.integers(48, 120)), int(random.integers(48, 120)))
    background, ink = random.integers(0, 110, 3), random.integers(146, 256, 3)
    ink = ink + clutter * random.uniform(0, 0.9) * (background - ink)
    if label >= 6:
        grain = _texture(label - 6, height, width, random)[..., None]
        pixels = background + grain * (ink - background)
    else:
        image = Image.new("RGB", (width, height), tuple(map(int, background)))
        draw, colour = ImageDraw.Draw(image), tuple(map(int, ink))
        radius = min(width, height) * random.uniform(0.25, 0.4)
        x, y = width / 2 + random.uniform(-0.1, 0.1) * width, height / 2 + random.uniform(-0.1, 0.1) * height
        box = (x - radius, y - radius, x + radius, y + radius)
        if label == 0:
            draw.ellipse(box, fill=colour)
        elif label == 1:
            draw.rectangle(box, fill=colour)
        elif label == 2:
            draw.regular_polygon((x, y, radius), 3, rotation=int(random.integers(0, 120)), fill=colour)
        elif label == 3:
            draw.ellipse(box, outline=colour, width=max(2, int(radius / 3)))
        elif label == 4:
            draw.line((x - radius, y, x + radius, y), fill=colour, width=max(3, int(radius / 2)))
            draw.line((x, y - radius, x, y + radius), fill=colour, width=max(3, int(radius / 2)))
        else:
            for right, down in itertools.product((-0.8, 0, 0.8), repeat=2):
                draw.circle((x + right * radius, y + down * radius), 0.22 * radius, fill=colour)
        pixels = np.asarray(image, dtype=np.float64)
    noisy = pixels + random.normal(0, 12 + 30 * clutter, pixels.shape)
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    for _ in range(round(8 * clutter)):
        ends = random.uniform(0, 1, 4) * (width, height, width, height)
        ImageDraw.Draw(picture).line(tuple(ends), tuple(map(int, random.integers(0, 256, 3))), 4)
    return picture


def draw_data(root, training=1100, validation=220, testing=110, clutter=0.0):
    """Draw the three folders below `root` in Food-11's layout, and the testing labels beside them."""
    random = np.random.default_rng(0)
    for split, count in (("training", training), ("validation", validation), ("testing", testing)):
        folder = Path(root) / split
        folder.mkdir(parents=True)
        labels = random.permutation(np.arange(count) % CLASSES)
        for index, label in enumerate(labels):
            name = f"{index:04d}.jpg" if split == "testing" else f"{label}_{index}.jpg"
            draw_picture(int(label), random, clutter=clutter).save(folder / name, quality=90)
        if split == "testing":
            table = pd.DataFrame({"Id": range(count), "label": labels})
            table.to_csv(Path(root) / TESTING_LABELS, index=False, lineterminator="\n")


def score(root, prediction):
    """(accuracy of a prediction CSV on the toy's testing photos, their number)."""
    truth = pd.read_csv(Path(root) / TESTING_LABELS, index_col="Id")["label"]
    predicted = pd.read_csv(prediction, index_col="Id")["label"].reindex(truth.index)
    return (truth == predicted).mean(), len(truth)
