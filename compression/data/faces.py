"""The 2019 homework's data: 48x48 grey faces, one per line of a CSV, with seven expressions as classes.

    from dataset import list_labelled, load_photos
    from compression.data.preprocessing import GREY, Preprocessing
    training = load_photos(list_labelled("faces/train.csv", "training"), Preprocessing(size=48, **GREY))
    training.photos                 # uint8 (N, 48, 48, 1)

`train.csv` has the header `label,feature`, `test.csv` has `id,feature`; a feature is 2,304 grey values from 0
to 255, separated by spaces, row by row from the top left. There is no validation part: every 10th row of a
class is set apart for it, unless a `validation.csv` lies beside `train.csv`.
"""

import collections
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from compression.command_line import UserError
from compression.data.classes import match, unnamed, whole_number
from compression.data.preprocessing import resize_image

FACE_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
SIDE = 48


@dataclass(frozen=True, eq=False)
class FaceListing:
    """Faces uint8 (N, 48, 48) with their labels (-1 = unlabelled), in the order of the file. `ids`: of
    testing faces, ascending.
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

    def fingerprint(self):
        """A short hash of labels and pixels: the same for every copy of the same data."""
        return self.digest


def faces_csv(root, name, folder):
    """The CSV that `root` is, or that it holds as `name` and no `folder` of photos beside it; None if it is
    no such data.
    """
    root = Path(root)
    if root.suffix.lower() == ".csv" and not root.is_dir():
        return root
    return root / name if (root / name).is_file() and not (root / folder).is_dir() else None


def _rows(path, key):
    """Yield (where, value of the column `key`, feature) for every line but the header, blank ones left out.

    Neither column can hold a comma, so a line is split at its first one: 8 times faster than csv.reader.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().strip().replace('"', "")
            if header != f"{key},feature":
                raise UserError(
                    f"{path} has the header {header[:40]!r} and {key},feature is needed; name the CSV of "
                    "the faces"
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
            warnings.simplefilter("error")  # older versions of numpy only warn of what is no number
            values = np.fromstring(feature, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise UserError(f"{where} has a pixel that is no whole number; correct or remove it") from None
    if len(values) != SIDE * SIDE:
        raise UserError(
            f"{where} has {len(values):,} pixels and a face has {SIDE} x {SIDE} = {SIDE * SIDE:,}; correct "
            "or remove it"
        )
    if values.min() < 0 or values.max() > 255:
        raise UserError(
            f"{where} has a pixel of {values.min() if values.min() < 0 else values.max()} "
            "and grey values are 0 to 255; correct or remove it"
        )
    return values.astype(np.uint8).reshape(SIDE, SIDE)


def list_faces(path, split, class_names=None, whose="the training photos", log=None):
    """The labelled faces of one split, "training" or "validation", where `path` is train.csv.

    The 10th, 20th, ... row of every class is validation and the others are training; with a validation.csv
    beside `path`, that file is validation and all of `path` training.
    class_names, whose, log: as for `list_labelled`.
    Raises UserError for a file or row that is not as described above, for a split without faces, and where
    `class_names` lack one of the faces' classes.
    """
    names = tuple(class_names or FACE_CLASSES)
    positions = match(
        FACE_CLASSES, f"the faces in {path}", names, whose, "use a model that was trained on such faces", log
    )
    beside = path.with_name("validation.csv")
    separate = beside.is_file()
    if separate and split == "training" and path == beside:
        raise UserError(
            f"{path} would be training and validation data at once; name train.csv, validation.csv is "
            "looked for beside it"
        )
    if separate and split == "validation":
        path = beside
    faces, labels, digest, seen = [], [], hashlib.sha256(), collections.Counter()
    for where, value, feature in _rows(path, "label"):
        label = whole_number(value)
        if label is None or label >= len(FACE_CLASSES):
            raise UserError(
                f"{where} has the label {value[:40]!r} and the classes are 0 to {len(FACE_CLASSES) - 1}; "
                "correct or remove it"
            )
        seen[label] += 1
        if separate or (seen[label] % 10 == 0) == (split == "validation"):
            faces.append(_pixels(where, feature))
            labels.append(positions[label])
            digest.update(bytes([label]) + faces[-1].tobytes())
    if not seen:
        raise UserError(f"{path} has a header and no faces; name a CSV with rows of label,feature")
    if not faces:
        raise UserError(
            f"{path} has no class with ten faces, of which the tenth is for validation; "
            "add rows, or a validation.csv beside it"
        )
    names = FACE_CLASSES if names == unnamed(len(FACE_CLASSES)) else names
    return FaceListing(path, np.stack(faces), tuple(labels), names, digest.hexdigest()[:16])


def list_testing_faces(path, by_name=False):
    """The unlabelled faces of test.csv, ascending by id: a whole number, or with `by_name` any text.

    Raises UserError for a file or row that is not as described above, and for two rows with one id.
    """
    found = {}
    for where, value, feature in _rows(path, "id"):
        identity = value if by_name else whole_number(value)
        if identity is None or identity == "":
            fault = (
                "empty; write one" if by_name else "no whole number; correct it or predict with --ids names"
            )
            raise UserError(f"{where} has the id {value[:40]!r}, which is {fault}")
        if identity in found:
            raise UserError(
                f"{where} has the id {value[:40]}, which an earlier line has too; change one of them"
            )
        found[identity] = _pixels(where, feature)
    if not found:
        raise UserError(f"{path} has a header and no faces; name a CSV with rows of id,feature")
    ids = tuple(sorted(found))
    faces = np.stack([found[identity] for identity in ids])
    return FaceListing(path, faces, (-1,) * len(ids), (), hashlib.sha256(faces).hexdigest()[:16], ids)


def face_stream(listing, preprocessings, batch_size=64):
    """Yield (rows, uint8 (n, size, size, channels) for each of the Preprocessings), resized by the same rules
    as photos.
    """

    def resized(faces, preprocessing):
        if (
            preprocessing.size == SIDE
        ):  # where every rule leaves a face as it is: spares a third of the loading
            return np.repeat(faces[..., None], preprocessing.channels, axis=3)
        return np.stack([resize_image(Image.fromarray(face), preprocessing) for face in faces])

    for start in range(0, len(listing), batch_size):
        faces = listing.faces[start : start + batch_size]
        yield (
            list(range(start, start + len(faces))),
            *(resized(faces, preprocessing) for preprocessing in preprocessings),
        )
