"""What `evaluate.py` measures: accuracy by class and resolution, confusions, calibration, agreement."""

import torch
import torch.nn.functional as F
from PIL import Image

from compression import distributed
from compression.command_line import be_silent, tell
from compression.data.faces import FaceListing
from compression.data.preprocessing import photos_at_once
from compression.data.tta import inputs_of, mean_probabilities
from compression.training.teachers import SeenBy
from dataset import load_photos

BINS = 10  # of the reliability diagram


@torch.inference_mode()
def class_probabilities(network, photos, preprocessing, device, tta=False, whose="the model"):
    """Class probabilities float32 (N, classes) on the CPU; photos: a PhotoSet for each of `inputs_of`."""
    probabilities, largest = [], max(each.size for each in inputs_of(preprocessing, tta))
    for positions in distributed.share(torch.arange(len(photos[0])).split(photos_at_once(largest))):
        inputs = [part.batch(positions, device)[0] for part in photos]
        probabilities.append(mean_probabilities(network, inputs, preprocessing, tta, whose).cpu())
    return torch.cat(distributed.unshare(probabilities))


def confusion(predicted, labels, num_classes):
    """Counts int64 (classes, classes): row = label, column = prediction."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def calibration(probability, labels):
    """(expected calibration error, [photos, mean confidence, accuracy] for every bin), by Guo et al. 2017.

    The bins divide the confidences in [0, 1] evenly; the error is the mean of |accuracy - confidence| over
    the bins, weighted by their photos.
    """
    confidence, predicted = probability.double().max(1)
    right, rows, error = (predicted == labels).double(), [], 0.0
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    for inside in (bins == index for index in range(BINS)):
        count = int(inside.sum())
        # the mean of no values is NaN
        mean, accuracy = (values[inside].mean().nan_to_num().item() for values in (confidence, right))
        rows.append([count, mean, accuracy])
        error += count / len(labels) * abs(accuracy - mean)
    return error, rows


def load_sizes(listing, preprocessing, tta, cache, silent=False):
    """A PhotoSet for each of `inputs_of`. Problems with the photos are printed once, or not if `silent`."""
    photos = []
    for one in inputs_of(preprocessing, tta):
        photos.append(load_photos(listing, one, cache, be_silent if silent or photos else tell))
    return photos


def shorter_sides(listing):
    """Pixels of every photo's shorter side, from the files' headers; 0 where the header is unreadable."""
    if isinstance(listing, FaceListing):
        return torch.full((len(listing),), listing.faces.shape[1])
    sides = []
    for path in listing.paths:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        # Pillow raises almost any exception for a damaged file; such photos are not in the PhotoSet
        except Exception:
            sides.append(0)
    return torch.tensor(sides)


def agreement(probabilities, teacher, photos, preprocessing, device, tta=False):
    """Share of photos for which a Teacher predicts, from a network's input, the class that the network does.

    probabilities: the network's, float32 (N, classes); photos: a PhotoSet for each of `inputs_of`.
    """
    seen = SeenBy(teacher, preprocessing).eval()
    other = class_probabilities(seen, photos, preprocessing, device, tta, whose=teacher)
    return (probabilities.argmax(1) == other.argmax(1)).double().mean().item()


def measure(model, listing, photos, device, tta=False, reduced=None):
    """(metrics as plain values, class probabilities float32 (N, classes)) of a Model on a Listing's photos.

    photos: a PhotoSet for each of `inputs_of`; reduced: the same for photos scaled down first.
    """
    preprocessing, names = model.description.preprocessing, model.description.class_names
    network = model.build().to(device, memory_format=torch.channels_last)
    probabilities = class_probabilities(network, photos, preprocessing, device, tta)
    labels = photos[0].labels.cpu()
    predicted = probabilities.argmax(1)
    right = predicted == labels
    small = shorter_sides(listing)[photos[0].rows.cpu()] < preprocessing.size
    table = confusion(predicted, labels, len(names))
    error, reliability = calibration(probabilities, labels)
    result = {
        "photos": len(labels),
        "tta": tta,
        "accuracy": right.double().mean().item(),
        "cross_entropy": F.nll_loss(probabilities.clamp(min=1e-12).log(), labels).item(),
        "small_photos": int(small.sum()),
    }
    for name, part in (("accuracy_of_small", right[small]), ("accuracy_of_larger", right[~small])):
        result[name] = part.double().mean().item() if len(part) else None
    if reduced:
        blurred = class_probabilities(network, reduced, preprocessing, device, tta).argmax(1)
        result["accuracy_reduced"] = (blurred == labels).double().mean().item()
    counts = zip(table.diag().tolist(), table.sum(1).tolist())
    by_class = [recognised / total if total else None for recognised, total in counts]
    shares = [share for share in by_class if share is not None]
    result |= {
        "balanced_accuracy": sum(shares) / len(shares),
        "class_accuracy": dict(zip(names, by_class)),
        "calibration_error": error,
        "reliability": reliability,
        "confusion": table.tolist(),
    }
    return result, probabilities
