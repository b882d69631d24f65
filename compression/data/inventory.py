"""A check of the photos before training: a table per class and split, and warnings about problems.

    check_photos(training_listing, training, validation_listing, validation)

prints the table and warnings on stderr, or raises UserError for a class without training photos.
"""

import sys

import numpy as np
import pandas as pd

from compression.command_line import UserError

SHOWN_CLASSES = 20  # with more classes, only the smallest and the largest are listed
STEP = 8  # every STEP-th pixel is compared first when looking for copies


def check_photos(training_listing, training, validation_listing, validation, log=None):
    """Print the photos per class and split: read, truncated (also counted as read), and left out; warn about
    copies and contradictory labels.

    training, validation: the PhotoSets of the two Listings. Raises UserError for a training class without a
    readable photo.
    """
    log = log or (lambda text: print(text, file=sys.stderr))
    names = training.class_names
    table = pd.concat(
        {
            split: _counts(listing, photos, names)
            for split, listing, photos in (
                ("training", training_listing, training),
                ("validation", validation_listing, validation),
            )
        },
        axis=1,
    )
    for line in _text(table, names):
        log(line)
    empty = [names[label] for label in np.flatnonzero(table["training", "read"] == 0)]
    if empty:
        raise UserError(
            f"{training_listing.folder} has no readable photo of {len(empty)} of {len(names)} classes "
            f"({', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}); add photos of them, or "
            "use folders for the other classes only (training/<class name>/*.jpg)"
        )
    missing = [names[label] for label in np.flatnonzero(table["validation", "read"] == 0)]
    if missing:
        log(
            f"warning: {validation_listing.folder} has no readable photo of {len(missing)} of {len(names)} "
            f"classes ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}): the validation accuracy does not cover them"
        )
    copies = find_copies(training, validation)
    if (copies >= 0).any():
        row = int(np.flatnonzero(copies >= 0)[0])
        log(
            f"warning: {(copies >= 0).sum()} of {len(validation)} validation photos are copies of training "
            "photos, which makes the validation accuracy too high; remove them, e.g. "
            f"{_name(validation_listing, validation, row)}, a copy of "
            f"{_name(training_listing, training, copies[row])}"
        )
    labels, twins = training.labels.numpy(), find_copies(training, training)
    pairs = [
        (int(row), training_listing, training, labels[row], twins[row]) for row in np.flatnonzero(twins >= 0)
    ]
    pairs += [
        (int(row), validation_listing, validation, int(validation.labels[row]), copies[row])
        for row in np.flatnonzero(copies >= 0)
    ]
    contradictory = [
        (row, listing, photos, twin) for row, listing, photos, label, twin in pairs if label != labels[twin]
    ]
    if contradictory:
        row, listing, photos, twin = contradictory[0]
        log(
            f"warning: {len(contradictory)} photos also appear with another label; keep one of each, e.g. "
            f"{_name(listing, photos, row)} or {_name(training_listing, training, twin)}"
        )


def _counts(listing, photos, names):
    """A row per class: photos that were read, how many of these are truncated, and photos left out."""
    read, rows = np.bincount(photos.labels, minlength=len(names)), photos.rows.numpy()
    truncated = np.bincount(photos.labels.numpy()[np.isin(rows, photos.truncated)], minlength=len(names))
    return pd.DataFrame(
        {
            "read": read,
            "truncated": truncated,
            "left out": np.bincount(listing.labels, minlength=len(names)) - read,
        }
    )


def _text(table, names):
    """The lines of the table, with the sums; of many classes only the smallest and the largest."""
    table = table.set_axis(list(map(str, names)))
    smallest = table["training", "read"].sort_values(kind="stable").index
    shown = table if len(table) <= SHOWN_CLASSES else table.loc[[*smallest[:3], *smallest[-3:]]]
    sums = table.sum().to_frame(f"all {len(names)} classes").T
    return pd.concat([shown, sums]).to_string().splitlines()


def find_copies(first, second):
    """For every photo of the PhotoSet `second`, the position of an identical photo in `first`, or -1: int64
    (N,).

    If both are the same PhotoSet, the position of an earlier identical photo.
    """
    known, found = {}, np.full(len(second), -1)

    def keys(photos):
        """Bytes of every STEP-th pixel, without copying all photos."""
        small = photos.photos.numpy()[:, ::STEP, ::STEP][photos.rows.numpy()]
        return map(bytes, small.reshape(len(small), -1))

    def same(row, other):
        return np.array_equal(
            second.photos[second.rows[row]].numpy(), first.photos[first.rows[other]].numpy()
        )

    if first is not second:
        for row, key in enumerate(keys(first)):
            known.setdefault(key, []).append(row)
    for row, key in enumerate(keys(second)):
        others = known.setdefault(key, [])
        found[row] = next((other for other in others if same(row, other)), -1)
        if first is second and found[row] < 0:
            others.append(row)
    return found


def _name(listing, photos, position):
    """A photo's folder and file name, or a face's number in its file."""
    row = int(photos.rows[position])
    if not hasattr(listing, "paths"):
        return f"{listing.folder.name}, face {row + 1}"
    return str(listing.paths[row].relative_to(listing.folder.parent))
