"""What the scripts' records hold, read alike by text and figures."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PUBLISHED = json.loads((HERE / "published.json").read_text())
PHOTO_SETS = json.loads(
    (HERE.parent / "results/photo_sets.json").read_text()
)  # fingerprint of a split -> name of our photos


def measured_on(record):
    """Name of the validation photos behind a record; their fingerprint where they have none."""
    fingerprint = record["data"]["validation"]
    return PHOTO_SETS.get(fingerprint, fingerprint)


def best_accuracy(record):
    """Validation accuracy of what a record describes: a training's best epoch, a pruning's last round, a
    stored file, a measurement.
    """
    if "best" in record:
        return record["best"]["validation_accuracy"]
    if "rounds" in record:
        return record["rounds"][-1]["after_training"]
    return record["accuracy"] if "accuracy" in record else record["validation_accuracy_after"]


def accuracies(records):
    """Of every seed's record."""
    return [best_accuracy(record) for record in records]


def photos_of(record):
    """Validation photos behind a training's record."""
    return record["photos"]["validation"]


def file_bytes(record):
    """Bytes of a stored file; records of format 1 have another name for it."""
    return record["file_bytes"] if "file_bytes" in record else record["packed_bytes"]


def epochs_of(record):
    """Epochs of a training, or of one round of a pruning."""
    return record.get("settings", record.get("pruning", {}).get("settings"))["epochs"]


def mean_bytes(records):
    """Bytes of a stored file, averaged over seeds: what entropy coding leaves depends on the weights."""
    return round(sum(map(file_bytes, records)) / len(records))


def input_pixels(record):
    """Input size of the network in a record."""
    return record["model"]["preprocessing"]["size"]


def view_pixels(record):
    """Size of the random views that a training saw."""
    return record["settings"].get("view_size") or input_pixels(record)


def pixels_text(record):
    """Of a training's record: "64 px", or "views of 48 px, measured at 56 px"."""
    views, measured = view_pixels(record), input_pixels(record)
    return f"{measured} px" if views == measured else f"views of {views} px, measured at {measured} px"


def of_seeds(records, others):
    """Those of the records whose seeds OTHERS have too, so that like is compared with like; all of them where
    there are none.
    """
    seeds = {record["seed"] for record in others}
    return [record for record in records if record["seed"] in seeds] or records
