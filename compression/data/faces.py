"""The 2019 homework's data: 48x48 grey faces, one per line of a CSV, in seven facial-expression classes.

    training = load_photos(list_labelled("faces/train.csv", "training"), Preprocessing(48, **GREY))
    training.photos                 # uint8 (N, 48, 48, 1)

`train.csv` has the header `label,feature`, `test.csv` has `id,feature`; a feature is 2,304 grey values from 0
to 255, separated by spaces, row by row from the top left. Every 10th row of a class is used for validation,
unless a `validation.csv` is beside `train.csv`.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from compression.command_line import UserError, tell
from compression.data.classes import match, unnamed, whole_number
from compression.data.decoding import resize_image

FACE_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
SIDE = 48


@dataclass(frozen=True, eq=False)
class FaceListing:
    """Faces uint8 (N, 48, 48) with their labels (-1 = unlabelled) from the CSV `folder`.

    ids: of testing faces, which are in ascending order of them; of the others "face 1" and so on, in the
    order of the file.
    """

    folder: Path
    faces: np.ndarray
    labels: tuple
    class_names: tuple
    digest: str
    ids: tuple
    id_header: ClassVar = "id"
    paths: ClassVar = ()  # faces have no files of their own

    def __len__(self):
        return len(self.faces)

    def part(self, rows):
        """The faces in these rows, to be decoded."""
        labels, ids = (tuple(values[row] for row in rows) for values in (self.labels, self.ids))
        return replace(self, faces=self.faces[rows], labels=labels, ids=ids)

    def fingerprint(self):
        """A short hash of labels and pixels: the same for every copy of the same data."""
        return self.digest


def faces_csv(root, name, folder):
    """`root` if it is a CSV, or the CSV `name` in it if there is no `folder` of photos; None otherwise."""
    root = Path(root)
    if root.suffix.lower() == ".csv" and not os.path.isdir(root):
        return root
    return root / name if os.path.isfile(root / name) and not os.path.isdir(root / folder) else None


def _read(path, key):
    """(column `key` of a CSV as text, indexed by the number of the face from 1; faces uint8 (N, 48, 48))."""
    import pandas as pd  # here, since importing it takes longer than predicting a few photos

    try:
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except ValueError as error:  # no text, no columns, or a row with more columns than the first
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is no CSV of {key},feature ({reason}); name the CSV of the faces") from None
    header = table.iloc[0].tolist()
    if header != [key, "feature"]:
        found = ",".join(header)[:60]
        raise UserError(f"{path} has the header {found}, not {key},feature; name the CSV of the faces")
    if len(table) == 1:
        raise UserError(f"{path} has no rows; name the CSV of the faces")
    table = table[1:]
    faces = np.empty((len(table), SIDE, SIDE), np.uint8)
    for row, feature in enumerate(table[1]):
        values = _numbers(feature)
        if len(values) != SIDE * SIDE or values.min() < 0 or values.max() > 255:
            wanted = f"{SIDE} x {SIDE} whole numbers from 0 to 255"
            raise UserError(f"face {row + 1} of {path} is not {wanted}; correct or remove it")
        faces[row] = values.reshape(SIDE, SIDE)
    return table[0].str.strip(), faces


def _numbers(text):
    """The whole numbers of a text, separated by spaces, as int64; none if there is anything else in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older versions of numpy only warn about other text
            return np.fromstring(text, np.int64, sep=" ")  # 3 times faster than splitting the text
    except (ValueError, DeprecationWarning):
        return np.empty(0, np.int64)


def list_faces(path, split, class_names=None, whose="the training photos", log=tell):
    """The labelled faces of one split, "training" or "validation", where `path` is train.csv.

    The 10th, 20th, ... row of every class is for validation, the others for training. If there is a
    validation.csv beside `path`, it is for validation and all of `path` for training.
    class_names, whose, log: as for `list_labelled`. Raises UserError for a file or row in another format, a
    split without faces, and a class that is missing in `class_names`.
    """
    names, advice = tuple(class_names or FACE_CLASSES), "use a model that was trained on such faces"
    positions = match(FACE_CLASSES, f"the faces in {path}", names, whose, advice, log)
    beside = path.with_name("validation.csv")
    separate = os.path.isfile(beside)
    path = beside if separate and split == "validation" else path
    texts, faces = _read(path, "label")
    labels = texts.map(whole_number)
    wrong = texts[~labels.isin(range(len(FACE_CLASSES)))]
    if len(wrong):
        found = f"face {wrong.index[0]} of {path} has the label {wrong.iloc[0][:40]!r}"
        raise UserError(f"{found}, which is not 0 to {len(FACE_CLASSES) - 1}; correct or remove it")
    if not separate:
        chosen = (labels.groupby(labels).cumcount() % 10 == 9) == (split == "validation")
        labels, faces = labels[chosen], faces[chosen]
    if not len(faces):
        text = "no class with ten faces, and every tenth is for validation; add rows, or a validation.csv"
        raise UserError(f"{path} has {text} beside it")
    ids = tuple(f"face {number}" for number in labels.index)
    labels = labels.astype(int).tolist()
    digest = hashlib.sha256(np.column_stack([np.uint8(labels), faces.reshape(len(faces), -1)]))
    names = FACE_CLASSES if names == unnamed(len(FACE_CLASSES)) else names
    labels = tuple(positions[label] for label in labels)
    return FaceListing(path, faces, labels, names, digest.hexdigest()[:16], ids)


def list_testing_faces(path, by_name=False):
    """The unlabelled faces of test.csv, ascending by id: a whole number, or with `by_name` any text.

    Raises UserError for a file or row in another format, and for two rows with the same id.
    """
    texts, faces = _read(path, "id")
    ids = texts if by_name else texts.map(whole_number)
    wrong = texts[ids.isna() | ids.duplicated() | (ids == "")]
    if len(wrong):
        kind, advice = ("empty", "") if by_name else ("no whole number", ", or predict with --ids names")
        found = f"face {wrong.index[0]} of {path} has the id {wrong.iloc[0][:40]!r}"
        raise UserError(f"{found}, which is {kind} or the id of an earlier face too; correct it{advice}")
    order = ids.argsort()
    ids, faces = tuple(ids.iloc[order].tolist()), faces[order]
    return FaceListing(path, faces, (-1,) * len(ids), (), hashlib.sha256(faces).hexdigest()[:16], ids)


def face_stream(listing, preprocessings, batch_size=64):
    """Yield (rows, uint8 (n, size, size, channels) for each of the Preprocessings), resized like photos."""
    for start in range(0, len(listing), batch_size):
        faces = [Image.fromarray(face) for face in listing.faces[start : start + batch_size]]
        inputs = [np.stack([resize_image(face, one) for face in faces]) for one in preprocessings]
        yield list(range(start, start + len(faces))), *inputs
