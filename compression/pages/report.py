"""The page of evaluate.py --html: accuracy with its sampling error, confusion, calibration, mistakes,
training curve, in one file that needs no network and nothing beside it.
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
    mean = sum(shares) / len(shares)
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, intervals))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, intervals))) / len(shares)
    return mean - below, mean + above


def confident_mistakes(probabilities, labels, most=MISTAKES):
    """Positions of the photos that are classified wrongly, the most confident ones first."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()


def training_history(description, model_path):
    """The epochs of the run that trained a model: its `history` in record.json beside the model file; []
    where there is no record, or one of another network.

    description: of the model, as plain values.
    """
    try:
        record = json.loads(model_path.with_name("record.json").read_text(encoding="utf-8"))
        trained, history = record["model"], record["history"]
        same = all(
            _plain(trained[key]) == _plain(description[key])
            for key in ("architecture", "arguments", "class_names")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # no record, no JSON, or a record of something else
    if not same:
        return []
    return [{key: value for key, value in row.items() if value is not None} for row in history]


def _plain(value):
    """A value as JSON has it; BN that was folded into the layers before it makes no other network."""
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if key != "folded"}
    return json.dumps(value, sort_keys=True)


def report_page(model, result, probabilities, photos, listing):
    """HTML text of the report.

    model: a Model. result: what evaluate.py measured. probabilities: float32 (N, classes) of the N photos of
    a PhotoSet, which are those of the listing that can be decoded.
    """
    with torch.device("meta"):  # with BN, which files have folded: as all scripts count
        network = build(model.description.architecture, **model.description.arguments | {"folded": False})
    history = training_history(model.description.to_dict(), model.path)
    classes = [readable(name) for name in model.description.class_names]
    confidence, predicted = probabilities.max(1)
    rows = []
    for label, (name, counts) in enumerate(zip(classes, result["confusion"])):
        if total := sum(counts):
            low, high = wilson(counts[label], total)
            rows.append(
                {"name": name, "total": total, "share": counts[label] / total, "low": low, "high": high}
            )
    mistakes = confident_mistakes(probabilities, photos.labels.cpu())
    pixels = photos.photos[photos.rows[mistakes]].cpu().numpy()
    right = sum(counts[label] for label, counts in enumerate(result["confusion"]))
    return render(
        "report.html",
        model=model,
        path=readable(model.path),
        size=(model.path.stat().st_size, count_parameters(network)),
        result=result,
        classes=classes,
        accuracy_interval=wilson(right, result["photos"]),
        balanced_interval=interval_of_mean(
            [row["share"] for row in rows], [(row["low"], row["high"]) for row in rows]
        ),
        rows=rows,
        mistakes=[
            {
                "src": embedded(photo),
                "name": photo_name(listing, photos.rows[position]),
                "label": classes[photos.labels[position]],
                "predicted": classes[predicted[position]],
                "confidence": confidence[position].item(),
            }
            for position, photo in zip(mistakes, pixels)
        ],
        history=history,
        curves=[
            {"label": label, "style": style, "points": points}
            for key, label, style in CURVES
            if (points := [(index, row[key]) for index, row in enumerate(history) if key in row])
        ],
    )
