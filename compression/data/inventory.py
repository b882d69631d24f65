"""A check of the photos before training: a table per class and split, and warnings about problems.

    check_photos(training_listing, training, validation_listing, validation)

prints the table and warnings on stderr, or raises UserError for a class without training photos.
"""

import hashlib
import sys

import numpy as np
import pandas as pd

from compression.command_line import UserError

SHOWN_CLASSES = 20  # with more classes, only the smallest and the largest are listed


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
    labels, (twins, copies) = training.labels.numpy(), find_copies(training, validation)
    copied = np.flatnonzero(copies >= 0)
    if len(copied):
        log(
            f"warning: {len(copied)} of {len(validation)} validation photos are copies of training "
            "photos, which makes the validation accuracy too high; remove them, e.g. "
            f"{_name(validation_listing, validation, copied[0])}, a copy of "
            f"{_name(training_listing, training, copies[copied[0]])}"
        )
    contradictory = [
        *((training_listing, training, row, twins[row]) for row in np.flatnonzero(labels[twins] != labels)),
        *(
            (validation_listing, validation, row, copies[row])
            for row in copied
            if labels[copies[row]] != validation.labels[row]
        ),
    ]
    if contradictory:
        listing, photos, row, twin = contradictory[0]
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


def find_copies(training, validation):
    """For every training photo the position of the first identical one, for every validation photo that of an
    identical training photo or -1: int64 (N,), (M,).
    """

    def digests(photos):
        return (hashlib.sha1(photos.photos[row].numpy()).digest() for row in photos.rows)

    known = {}
    twins = [known.setdefault(digest, row) for row, digest in enumerate(digests(training))]
    return np.array(twins), np.array([known.get(digest, -1) for digest in digests(validation)])


def _name(listing, photos, position):
    """A photo's folder and file name, or a face's number in its file."""
    row = int(photos.rows[position])
    if not hasattr(listing, "paths"):
        return f"{listing.folder.name}, face {row + 1}"
    return str(listing.paths[row].relative_to(listing.folder.parent))
