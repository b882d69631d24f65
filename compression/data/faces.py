"""The 2019 homework's data: 48x48 grey faces, one per line of a CSV, in seven facial-expression classes.

    from dataset import list_labelled, load_photos
    from compression.data.preprocessing import GREY, Preprocessing
    training = load_photos(list_labelled("faces/train.csv", "training"), Preprocessing(size=48, **GREY))
    training.photos                 # uint8 (N, 48, 48, 1)

`train.csv` has the header `label,feature`, `test.csv` has `id,feature`; a feature is 2,304 grey values from 0
to 255, separated by spaces, row by row from the top left. Every 10th row of a class is used for validation,
unless a `validation.csv` is beside `train.csv`.
"""

import collections
import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from compression.command_line import UserError
from compression.data.classes import match, unnamed, whole_number
from compression.data.decoding import resize_image

FACE_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
SIDE = 48


@dataclass(frozen=True, eq=False)
class FaceListing:
    """Faces uint8 (N, 48, 48) with their labels (-1 = unlabelled), in the order of the file. Testing faces
    are in ascending order of their `ids`.
    """

    path: Path
    faces: np.ndarray
    labels: tuple
    class_names: tuple
    digest: str
    ids: tuple = ()
    id_header: ClassVar = "id"

    def __len__(self):
        return len(self.faces)

    def part(self, rows):
        """The faces in these rows, to be decoded."""
        return replace(self, faces=self.faces[rows], labels=tuple(self.labels[row] for row in rows))

    def fingerprint(self):
        """A short hash of labels and pixels: the same for every copy of the same data."""
        return self.digest


def faces_csv(root, name, folder):
    """`root` if it is a CSV, or the CSV `name` in it if there is no `folder` of photos; None otherwise."""
    root = Path(root)
    if root.suffix.lower() == ".csv" and not root.is_dir():
        return root
    return root / name if (root / name).is_file() and not (root / folder).is_dir() else None


def _rows(path, key):
    """Yield (where, value of the column `key`, feature) for every line after the header, without blank lines.

    No column can contain a comma, so a line is split at its first comma: 8 times faster than csv.reader.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().strip().replace('"', "")
            if header != f"{key},feature":
                raise UserError(
                    f"{path} has the header {header[:40]!r} instead of {key},feature; name the CSV of the "
                    "faces"
                    if header
                    else f"{path} has no header in its first line; write {key},feature there"
                )
            for number, line in enumerate(file, start=2):
                if line.strip():
                    value, comma, feature = line.partition(",")
                    if not comma:
                        raise UserError(
                            f"{path}, line {number}, is not {key},feature but {line.strip()[:40]!r}; "
                            "correct or remove it"
                        )
                    yield f"{path}, line {number},", value.strip(' "'), feature.strip(' "\n')
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a CSV of text in UTF-8; name the CSV of the faces") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from None


def _pixels(where, feature):
    """One face as uint8 (48, 48)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older versions of numpy only warn about invalid numbers
            values = np.fromstring(feature, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise UserError(f"{where} has a pixel that is not a whole number; correct or remove it") from None
    if len(values) != SIDE * SIDE:
        raise UserError(
            f"{where} has {len(values):,} pixels instead of {SIDE} x {SIDE} = {SIDE * SIDE:,}; correct or "
            "remove it"
        )
    if values.min() < 0 or values.max() > 255:
        raise UserError(
            f"{where} has the grey value {values.min() if values.min() < 0 else values.max()}, which is not "
            "between 0 and 255; correct or remove it"
        )
    return values.astype(np.uint8).reshape(SIDE, SIDE)


def list_faces(path, split, class_names=None, whose="the training photos", log=None):
    """The labelled faces of one split, "training" or "validation", where `path` is train.csv.

    The 10th, 20th, ... row of every class is for validation, the others for training. If there is a
    validation.csv beside `path`, it is for validation and all of `path` for training.
    class_names, whose, log: as for `list_labelled`.
    Raises UserError for a file or row in another format, for a split without faces, and if one of the faces'
    classes is missing in `class_names`.
    """
    names = tuple(class_names or FACE_CLASSES)
    positions = match(
        FACE_CLASSES, f"the faces in {path}", names, whose, "use a model that was trained on such faces", log
    )
    beside = path.with_name("validation.csv")
    separate = beside.is_file()
    if separate and split == "training" and path == beside:
        raise UserError(
            f"{path} would be both training and validation data; name train.csv, and validation.csv beside "
            "it is used for validation"
        )
    if separate and split == "validation":
        path = beside
    faces, labels, digest, seen = [], [], hashlib.sha256(), collections.Counter()
    for where, value, feature in _rows(path, "label"):
        label = whole_number(value)
        if label is None or label >= len(FACE_CLASSES):
            raise UserError(
                f"{where} has the label {value[:40]!r}, which is not 0 to {len(FACE_CLASSES) - 1}; correct "
                "or remove it"
            )
        seen[label] += 1
        if separate or (seen[label] % 10 == 0) == (split == "validation"):
            faces.append(_pixels(where, feature))
            labels.append(positions[label])
            digest.update(bytes([label]) + faces[-1].tobytes())
    if not seen:
        raise UserError(f"{path} has a header but no faces; name a CSV with rows of label,feature")
    if not faces:
        raise UserError(
            f"{path} has no class with ten faces, and every tenth face is for validation; "
            "add rows, or a validation.csv beside it"
        )
    names = FACE_CLASSES if names == unnamed(len(FACE_CLASSES)) else names
    return FaceListing(path, np.stack(faces), tuple(labels), names, digest.hexdigest()[:16])


def list_testing_faces(path, by_name=False):
    """The unlabelled faces of test.csv, ascending by id: a whole number, or with `by_name` any text.

    Raises UserError for a file or row in another format, and for two rows with the same id.
    """
    found = {}
    for where, value, feature in _rows(path, "id"):
        identity = value if by_name else whole_number(value)
        if identity is None or identity == "":
            fault = (
                "empty; write one"
                if by_name
                else "not a whole number; correct it or predict with --ids names"
            )
            raise UserError(f"{where} has the id {value[:40]!r}, which is {fault}")
        if identity in found:
            raise UserError(
                f"{where} has the id {value[:40]}, which an earlier line also has; change one of them"
            )
        found[identity] = _pixels(where, feature)
    if not found:
        raise UserError(f"{path} has a header but no faces; name a CSV with rows of id,feature")
    ids = tuple(sorted(found))
    faces = np.stack([found[identity] for identity in ids])
    return FaceListing(path, faces, (-1,) * len(ids), (), hashlib.sha256(faces).hexdigest()[:16], ids)


def face_stream(listing, preprocessings, batch_size=64):
    """Yield (rows, uint8 (n, size, size, channels) for each of the Preprocessings), resized like photos."""

    def resized(faces, preprocessing):
        if preprocessing.size == SIDE:  # no resizing needed; saves a third of the loading time
            return np.repeat(faces[..., None], preprocessing.channels, axis=3)
        return np.stack([resize_image(Image.fromarray(face), preprocessing) for face in faces])

    for start in range(0, len(listing), batch_size):
        faces = listing.faces[start : start + batch_size]
        yield (
            list(range(start, start + len(faces))),
            *(resized(faces, preprocessing) for preprocessing in preprocessings),
        )
