"""Test-time augmentation: class probabilities averaged over a photo and its mirror image, each at two sizes.

inputs = inputs_of(preprocessing, tta=True)         # a Preprocessing for every size
mean_probabilities(network, [photos at each size], preprocessing, tta=True)
"""

import argparse
from dataclasses import replace

import torch

from compression.data.plausibility import check_logits

FACTOR = 7 / 6  # second input size: larger, since random crops enlarged the objects in training
STEP = 8  # pixels that the second size is rounded to


def add_tta(parser):
    """`--tta` and `--no-tta`."""
    text = "average over the photo and its mirror image, each at the input size and at 7/6 of it"
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=False, help=text)


def inputs_of(preprocessing, tta):
    """The Preprocessings of a prediction, ascending by size; only the model's own without `tta`.

    With the resize rule "course" another size would change the crop, and grey faces of 48 px gain no detail
    at a larger size: for these, TTA only adds the mirror image.
    """
    if not tta or preprocessing.resize == "course" or preprocessing.channels == 1:
        return [preprocessing]
    larger = min(round(FACTOR * preprocessing.size / STEP) * STEP, 4096)
    return [replace(preprocessing, size=size) for size in sorted({larger, preprocessing.size})]


def mean_probabilities(network, inputs, preprocessing, tta, whose="the model"):
    """Class probabilities float32 (N, classes): the mean over `inputs` and with `tta` their mirror images.

    inputs: uint8 (N, size, size, channels) for each of `inputs_of`. whose: names the network in the UserError
    for logits that are not finite.
    """
    views = [preprocessing.normalise(photos) for photos in inputs]
    if tta:
        views += [view.flip(3) for view in views]
    logits = torch.stack([network(view).float() for view in views])
    check_logits(logits, whose)
    return logits.softmax(2).mean(0)
