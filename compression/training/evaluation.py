"""How good a network is on labelled photos."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from compression import distributed
from compression.data.plausibility import check_logits
from compression.data.preprocessing import photos_at_once


class Evaluation(NamedTuple):
    """What `evaluate` measures."""

    loss: float
    accuracy: float
    balanced_accuracy: float


@torch.no_grad()
def evaluate(network, photos, preprocessing, device, batch_size=None, batches=None, whose=None):
    """The `Evaluation` of a network on a PhotoSet: mean cross-entropy, accuracy, and balanced accuracy, the
    mean over the classes that have photos of the share of each that is right. In eval mode and fp32, without
    drawing a random number; the network's mode is left as it was. Several processes share the batches.

    batches: stop after so many, of `photos_at_once` unless batch_size says otherwise. whose: what the network
    is, for the UserError that logits that are not finite raise; without it the loss tells.
    """
    was_training = network.training
    network.eval()
    loss, classes, seen = torch.zeros((), device=device), len(photos.class_names), 0
    counts, right = torch.zeros(2, classes, device=device)
    parts = torch.arange(len(photos)).split(batch_size or photos_at_once(preprocessing.size))
    for positions in distributed.share(parts[:batches]):
        images, labels = photos.batch(positions, device)
        logits = network(preprocessing.normalise(images)).float()
        if whose:
            check_logits(logits, whose)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        counts += labels.bincount(minlength=classes)
        right += labels[logits.argmax(1) == labels].bincount(minlength=classes)
        seen += len(labels)
    network.train(was_training)
    if distributed.SIZE > 1:
        sums = distributed.total([loss.item(), seen, *right.tolist(), *counts.tolist()])
        loss, seen, (right, counts) = sums[0], sums[1].item(), sums[2:].view(2, classes)
    balanced = (right / counts)[counts > 0].mean().item()
    return Evaluation(loss.item() / seen, right.sum().item() / seen, balanced)
