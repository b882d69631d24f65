"""Test-time augmentation: class probabilities averaged over a photo and its mirror image, each at two input
sizes.

inputs = inputs_of(preprocessing, tta=True)         # a Preprocessing for every size
mean_probabilities(network, [photos at each size], preprocessing, tta=True)
"""

from dataclasses import replace

import torch

from compression.data.plausibility import check_logits

FACTOR = 7 / 6  # of the input size is the second one: training on random crops has shown everything enlarged
STEP = 8  # pixels to which it is rounded


def inputs_of(preprocessing, tta):
    """The Preprocessings of all inputs that a prediction looks at, ascending by size: without `tta` the
    model's own alone.

    At other sizes the rule "course" does not scale but cut differently, and the grey faces of 48 px have
    nothing more to show: they are mirrored only.
    """
    if not tta or preprocessing.resize == "course" or preprocessing.channels == 1:
        return [preprocessing]
    larger = min(round(FACTOR * preprocessing.size / STEP) * STEP, 4096)
    return [replace(preprocessing, size=size) for size in sorted({larger, preprocessing.size})]


def mean_probabilities(network, inputs, preprocessing, tta, whose="the model"):
    """Class probabilities float32 (N, classes): the mean over `inputs`, each uint8 (N, size, size, channels),
    and with `tta` their mirror images. whose: what the network is, for the UserError that logits that are not
    finite raise.
    """
    views = [preprocessing.normalise(photos) for photos in inputs]
    if tta:
        views += [view.flip(3) for view in views]
    logits = [network(view).float() for view in views]
    for one, view in zip(logits, views):
        check_logits(one, network, view, whose)
    return torch.stack([one.softmax(1) for one in logits]).mean(0)
