"""The page of evaluate.py --html: accuracy with its error, confusion, calibration, mistakes, training curve.

It is one file that needs no network and nothing beside it.
"""

import json
import math

import torch

from compression.networks.registry import build, count_parameters
from compression.pages.rendering import embedded, photo_name, readable, render

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
MISTAKES = 24  # photos shown: a screen or two, and less than 200 kB
CURVES = (
    ("train_accuracy", "training", "dashed"),
    ("validation_accuracy", "validation", "solid"),
    ("validation_balanced_accuracy", "validation, balanced", "dotted"),
)


def wilson(right, count):
    """The 95 % interval (low, high) of a share of `right` among `count` > 0 photos (Wilson 1927).

    It is also right near 0 and 1 and for few photos, where p ± 1.96 sqrt(p (1 - p) / n) is not.
    """
    share, spread = right / count, Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval_of_mean(shares, intervals):
    """The 95 % interval of the mean of independent shares, from the interval of each (Zou and Donner 2008):
    the distances between a share and its limits are added as squares.
    """
    mean, count = sum(shares) / len(shares), len(shares)
    below, above = (math.dist(shares, limits) / count for limits in zip(*intervals))
    return mean - below, mean + above


def confident_mistakes(probabilities, labels, most=MISTAKES):
    """Positions of the photos that are classified wrongly, the most confident ones first."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()


def training_history(description, model_path):
    """The epochs of the run that trained a model, from record.json beside it; [] without a record of it.

    description: of the model, as plain values.
    """
    try:
        record = json.loads(model_path.with_name("record.json").read_text(encoding="utf-8"))
        for key in ("architecture", "arguments", "class_names"):
            if _plain(record["model"][key]) != _plain(description[key]):
                return []  # a record of another network
        history = record["history"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # no record, no JSON, or a record of something else
    return [{key: value for key, value in row.items() if value is not None} for row in history]


def _plain(value):
    """A value as JSON text; BN that was folded into the layers before it makes no other network."""
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if key != "folded"}
    return json.dumps(value, sort_keys=True)


def report_page(model, result, probabilities, photos, listing):
    """HTML text of the report.

    model: a Model. result: what evaluate.py measured. probabilities: float32 (N, classes) of the N photos of
    a PhotoSet, which are those of the listing that can be decoded.
    """
    description = model.description
    with torch.device("meta"):  # with BN, which files have folded: as all scripts count
        network = build(description.architecture, **description.arguments | {"folded": False})
    history = training_history(description.to_dict(), model.path)
    classes = [readable(name) for name in description.class_names]
    rows, right = [], 0
    for label, (name, counts) in enumerate(zip(classes, result["confusion"])):
        right += counts[label]
        if total := sum(counts):
            low, high = wilson(counts[label], total)
            share = counts[label] / total
            rows.append({"name": name, "total": total, "share": share, "low": low, "high": high})
    shares, intervals = [row["share"] for row in rows], [(row["low"], row["high"]) for row in rows]
    confidence, predicted = probabilities.max(1)
    mistakes = []
    for position in confident_mistakes(probabilities, photos.labels.cpu()):
        row, label = photos.rows[position], photos.labels[position]
        mistake = {"src": embedded(photos.photos[row].cpu().numpy()), "name": photo_name(listing, row)}
        mistake |= {"label": classes[label], "predicted": classes[predicted[position]]}
        mistakes.append(mistake | {"confidence": confidence[position].item()})
    curves = []
    for key, label, style in CURVES:
        points = [(index, row[key]) for index, row in enumerate(history) if key in row]
        if points:
            curves.append({"label": label, "style": style, "points": points})
    return render(
        "report.html",
        model=model,
        path=readable(model.path),
        size=(model.path.stat().st_size, count_parameters(network)),
        result=result,
        classes=classes,
        accuracy_interval=wilson(right, result["photos"]),
        balanced_interval=interval_of_mean(shares, intervals),
        rows=rows,
        mistakes=mistakes,
        history=history,
        curves=curves,
    )
