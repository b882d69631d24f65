"""What a training is about to use: photos per class and split, and what is wrong with them.

    check_photos(training_listing, training, validation_listing, validation)

prints one table and warnings on stderr, or raises UserError for a class that cannot be trained.
"""

import sys

import numpy as np
import pandas as pd

from compression.command_line import UserError

SHOWN_CLASSES = 20  # of more classes only the smallest and the largest are listed
STEP = 8  # pixels between those by which equal photos are looked for


def check_photos(training_listing, training, validation_listing, validation, log=None):
    """Print photos per class and split: read, of these truncated, and left out; warn of copies and of
    contradictory labels.

    training, validation: the PhotoSets of the two Listings. Raises UserError for a training class without a
    photo that can be read.
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
            "use one folder per "
            "class that there is (training/<class name>/*.jpg)"
        )
    missing = [names[label] for label in np.flatnonzero(table["validation", "read"] == 0)]
    if missing:
        log(
            f"warning: {validation_listing.folder} has no readable photo of {len(missing)} of {len(names)} "
            f"classes ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}): the validation accuracy says nothing about them"
        )
    copies = find_copies(training, validation)
    if (copies >= 0).any():
        row = int(np.flatnonzero(copies >= 0)[0])
        log(
            f"warning: {(copies >= 0).sum()} of {len(validation)} validation photos are copies of training "
            "photos, which makes the validation "
            f"accuracy too high; remove them, e.g. {_name(validation_listing, validation, row)}, "
            f"which is {_name(training_listing, training, copies[row])}"
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
            f"warning: {len(contradictory)} photos are also there under another label; keep one of each, "
            "e.g. "
            f"{_name(listing, photos, row)} or {_name(training_listing, training, twin)}"
        )


def _counts(listing, photos, names):
    """A row per class: photos that are read, those of them that are truncated, and those left out."""
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
    """The lines of the table; of many classes the smallest and the largest, of all the sums."""
    table = table.set_axis(list(map(str, names)))
    smallest = table["training", "read"].sort_values(kind="stable").index
    shown = table if len(table) <= SHOWN_CLASSES else table.loc[[*smallest[:3], *smallest[-3:]]]
    sums = table.sum().to_frame(f"all {len(names)} classes").T
    return pd.concat([shown, sums]).to_string().splitlines()


def find_copies(first, second):
    """For every photo of the PhotoSet `second` the position of an identical one in `first`, or -1: int64
    (N,).

    Where both are the same PhotoSet, that of an earlier identical photo.
    """
    known, found = {}, np.full(len(second), -1)

    def keys(photos):
        """Bytes of every STEP-th pixel, without a copy of all photos."""
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
    """A photo by its folder and file name, a face by its place in the file."""
    row = int(photos.rows[position])
    if not hasattr(listing, "paths"):
        return f"{listing.folder.name}, face {row + 1}"
    return str(listing.paths[row].relative_to(listing.folder.parent))
