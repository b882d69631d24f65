"""A check of the photos before training: a table per class and split, and warnings about problems."""

import hashlib

import numpy as np
import pandas as pd

from compression.command_line import UserError, tell
from compression.data.classes import listed
from compression.data.faces import FaceListing

SHOWN_CLASSES = 20  # with more classes, only the smallest and the largest are listed


def check_photos(training_listing, training, validation_listing, validation, log=tell):
    """Print a table of the photos per class and split; warn about copies and contradictory labels.

    The table counts photos that were read, those of them that are truncated, and those left out. training,
    validation: PhotoSets of the two Listings. Raises UserError for a training class without a readable photo.
    """
    names, labels = training.class_names, training.labels.numpy()
    tables = (_counts(training_listing, training, names), _counts(validation_listing, validation, names))
    table = pd.concat(tables, axis=1, keys=["training", "validation"])
    for line in _text(table, names):
        log(line)
    if empty := _missing(training_listing, table["training"], names):
        advice = "add photos of them, or use folders for the other classes only (training/<class name>/*.jpg)"
        raise UserError(f"{empty}; {advice}")
    if missing := _missing(validation_listing, table["validation"], names):
        log(f"warning: {missing}: the validation accuracy does not cover them")
    twins, copies = find_copies(training, validation)
    copied = np.flatnonzero(copies >= 0)
    if len(copied):
        log(
            f"warning: {len(copied)} of {len(validation)} validation photos are copies of training "
            "photos, which makes the validation accuracy too high; remove them, e.g. "
            f"{_name(validation_listing, validation, copied[0])}, a copy of "
            f"{_name(training_listing, training, copies[copied[0]])}"
        )
    relabelled = np.flatnonzero(labels[twins] != labels)
    pairs = [(_name(training_listing, training, row), twins[row]) for row in relabelled]
    relabelled = copied[labels[copies[copied]] != validation.labels.numpy()[copied]]
    pairs += [(_name(validation_listing, validation, row), copies[row]) for row in relabelled]
    if pairs:
        name, twin = pairs[0]
        log(
            f"warning: {len(pairs)} photos also appear with another label; keep one of each, e.g. "
            f"{name} or {_name(training_listing, training, twin)}"
        )


def _counts(listing, photos, names):
    """A row per class: photos that were read, how many of these are truncated, and photos left out."""

    def count(labels):
        return np.bincount(labels, minlength=len(names))

    truncated = np.isin(photos.rows.numpy(), photos.truncated)
    counts = {"read": count(photos.labels), "truncated": count(photos.labels.numpy()[truncated])}
    return pd.DataFrame(counts | {"left out": count(listing.labels) - counts["read"]})


def _missing(listing, table, names):
    """The classes without a readable photo, as text; empty if there are none."""
    missing = [names[label] for label in np.flatnonzero(table["read"] == 0)]
    shown = f"{len(missing)} of {len(names)} classes ({listed(missing, 5)})"
    found = f"{listing.folder} has no readable photo of {shown}"
    return found if missing else ""


def _text(table, names):
    """The lines of the table, with the sums; of many classes only the smallest and the largest."""
    table = table.set_axis(list(map(str, names)))
    smallest = table["training", "read"].sort_values(kind="stable").index
    shown = table if len(table) <= SHOWN_CLASSES else table.loc[[*smallest[:3], *smallest[-3:]]]
    sums = table.sum().to_frame(f"all {len(names)} classes").T
    return pd.concat([shown, sums]).to_string().splitlines()


def find_copies(training, validation):
    """Positions of the first identical training photo: int64 (N,) for the training photos themselves, (M,)
    for the validation photos, -1 where there is none.
    """

    def digests(photos):
        return (hashlib.sha1(photos.photos[row].numpy()).digest() for row in photos.rows)

    known = {}
    twins = [known.setdefault(digest, row) for row, digest in enumerate(digests(training))]
    return np.array(twins), np.array([known.get(digest, -1) for digest in digests(validation)])


def _name(listing, photos, position):
    """A photo's folder and file name, or a face's file and number in it."""
    row = int(photos.rows[position])
    if isinstance(listing, FaceListing):
        return f"{listing.folder.name}, {listing.ids[row]}"
    return str(listing.paths[row].relative_to(listing.folder.parent))
