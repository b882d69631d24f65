"""Photos from disk: which files of a data directory are which photos, with which labels.

    from dataset import list_labelled, load_photos
    from compression.data.preprocessing import Preprocessing
    training = load_photos(list_labelled("food-11", "training"), Preprocessing(size=128))
    training.photos                 # uint8 (N, 128, 128, 3), memory-mapped
    training.labels                 # int64 (N,)

Food-11: `training/` and `validation/` hold `<class>_<index>.jpg`, `testing/` holds `<id>.jpg`. A tree of
one folder per class (`training/<class name>/*.jpg`) is read as well; class names then are the folders' (or
Food-11's own, where they are its eleven classes). So is the 2019 homework's CSV of grey faces, wherever a
folder is named (see faces.py). Decoding and resizing are in decoding.py, the cache in photo_cache.py.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from compression.command_line import UserError, tell
from compression.data import classes
from compression.data.classes import FOOD11_CLASSES
from compression.data.faces import faces_csv, list_faces, list_testing_faces
from compression.data.layout import check_layout, check_photos, list_entries, refuse
from compression.files.photo_cache import PhotoSet, default_cache, join, load_photos, size_and_time

ADVICE = "give the same class the same name on both sides, or remove its photos"


@dataclass(frozen=True)
class Listing:
    """Photo files with their labels (-1 = unlabelled), in a fixed order.

    ids: of testing photos. piece: which piece of the folder `split_off` made, since each has its own cache.
    """

    folder: Path
    paths: tuple
    labels: tuple
    class_names: tuple
    ids: tuple = ()
    piece: str = ""
    id_header: ClassVar = "Id"

    def __len__(self):
        return len(self.paths)

    def part(self, rows):
        """The photos in these rows, to be decoded."""
        paths, labels = (tuple(values[row] for row in rows) for values in (self.paths, self.labels))
        return replace(self, paths=paths, labels=labels)

    def fingerprint(self):
        """A short hash of names and sizes: the same for every copy of the same data."""
        digest = hashlib.sha256()
        for path in self.paths:
            name, (size, _) = path.relative_to(self.folder).as_posix(), size_and_time(path)
            digest.update(os.fsencode(f"{name} {size}\n"))
        return digest.hexdigest()[:16]


def photo_channels(root):
    """Channels of the labelled photos at `root`: 1 for a CSV of grey faces, 3 for folders."""
    return 1 if faces_csv(root, "train.csv", "training") else 3


def split_off(listing, share):
    """{"training": Listing, "validation": Listing} with this share of every class's photos for validation.

    They are drawn with a fixed seed, so that every run and script splits alike. A class of two photos or more
    keeps one on either side.
    """
    labels, taken = np.array(listing.labels), np.zeros(len(listing), bool)
    for label in np.unique(labels):
        rows = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
        taken[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    parts = {"training": ~taken, "validation": taken}
    return {split: replace(listing.part(np.flatnonzero(rows)), piece=split) for split, rows in parts.items()}


def list_labelled(root, split, class_names=None, validation_share=0.0, whose="the training photos", log=tell):
    """The labelled photos of `root/split`, in either layout, or faces of the CSV `root` or `root/train.csv`.

    class_names: of the model that the photos are for, or of the training photos, so that label i is
    class_names[i]; None for training itself. The photos' classes are found among them by name, see
    `classes.match`; where they are unnamed, the listing has the photos' own names. whose: what has the
    class_names; log: as for `match`. validation_share: share of the training photos that is the validation
    split, where there is no `root/validation`. Raises UserError for a wrong name, a class that class_names
    lack, a missing or empty folder.
    """
    csv = faces_csv(root, "train.csv", "training")
    if validation_share:
        if csv or os.path.exists(Path(root) / "validation"):
            raise UserError(
                f"{csv or root} has validation photos of its own; leave --validation-share out, or use a "
                "model that was trained without it"
            )
        listing = list_labelled(root, "training", class_names, whose=whose, log=log)
        return split_off(listing, validation_share)[split]
    if csv:
        return list_faces(csv, split, class_names, whose, log)
    check_layout(root, split)
    folder = Path(root) / split
    files, folders = list_entries(folder)
    text = "beside folders; use either <class>_<index>.jpg files or one folder per class"
    refuse(folders and files, folder, "file", text)
    if folders:
        paths, labels, names = _in_folders(folder, folders, class_names, whose, log)
    else:
        paths, labels, names = _in_files(folder, files, tuple(class_names or FOOD11_CLASSES), whose, log)
    return Listing(folder, tuple(paths), tuple(labels), names)


def _in_files(folder, files, names, whose, log):
    """(paths, labels, class names) of photos named <class>_<index>.jpg; arguments: as of `list_labelled`."""
    check_photos(folder, files)
    stems = {file: tuple(map(classes.whole_number, Path(file).stem.partition("_")[::2])) for file in files}
    unnumbered = [file for file, stem in stems.items() if None in stem]
    advice = "rename them or use one folder per class"
    refuse(unnumbered, folder, "file", f"not named <class>_<index>.jpg; {advice}")
    # else the files' numbers are the ones that these names are
    food = not classes.class_numbers(names) or classes.is_food11(names)
    count = len(FOOD11_CLASSES if food else names)
    unknown = [file for file, (label, _) in stems.items() if label >= count]
    refuse(unknown, folder, "file", f"with a class number that is not 0 to {count - 1}; {advice}")
    numbers = sorted({label for label, _ in stems.values()})
    used = [FOOD11_CLASSES[number] if food else str(number) for number in numbers]
    place = f"the photos in {folder.parent}, named <class>_<index>.jpg as Food-11's,"
    position = dict(zip(numbers, classes.match(used, place, names, whose, ADVICE, log)))
    files = sorted(files, key=stems.get)
    return [folder / file for file in files], [position[stems[file][0]] for file in files], names


def _in_folders(folder, folders, class_names, whose, log):
    """(paths, labels, class names) of photos in a folder per class; arguments: as of `list_labelled`."""
    place = f"the class folders of {folder.parent}"
    ordered = classes.in_class_order(folders, place)
    if class_names:
        labels = classes.match(ordered, place, class_names, whose, ADVICE, log)
        own = len(ordered) == len(class_names) and tuple(class_names) == classes.unnamed(len(class_names))
        names = [name for _, name in sorted(zip(labels, ordered))] if own else class_names
    else:
        labels, names = range(len(ordered)), FOOD11_CLASSES if classes.is_food11(ordered) else ordered
    if len(names) < 2:
        raise UserError(f"{folder} has a single class folder ({folders[0]}); add one of another class")
    label_of = dict(zip(ordered, labels))
    paths, labels = [], []
    for name in folders:
        files, nested = list_entries(folder / name)
        refuse(nested, folder / name, "folder", f"in a class folder; put the photos directly into {name}/")
        check_photos(folder / name, files)
        paths += [folder / name / file for file in files]
        labels += [label_of[name]] * len(files)
    return paths, labels, tuple(names)


def list_testing(folder, by_name=False):
    """The photos to predict, ascending by id, in a folder, its `testing/` or `test.csv`, or a CSV of faces.

    The id is the integer file stem; with `by_name` it is the file name and any name will do. A CSV has its
    own ids. Raises UserError for a name that is no integer, two files with one id, a missing or empty folder.
    """
    if csv := faces_csv(folder, "test.csv", "testing"):
        return list_testing_faces(csv, by_name)
    folder = Path(folder)
    if os.path.isdir(folder / "testing"):
        folder = folder / "testing"
    files, folders = list_entries(folder)
    text = "beside its files; photos in folders are not predicted: move them out, or the folders away"
    if not files:
        text = "and no photos; name a folder that holds photos directly"
    if holding := [one for one in folders if os.path.isdir(folder / one / "testing")]:
        text = f"and no testing/; use {folder / holding[0]} instead, which has one"
    refuse(folders, folder, "folder", text)
    check_photos(folder, files)
    found, unnumbered = {}, []
    for file in files:
        key = file if by_name else classes.whole_number(Path(file).stem)
        if key is None:
            unnumbered.append(file)
        elif found.setdefault(key, file) != file:
            raise UserError(f"{folder / found[key]} and {folder / file} have the same id {key}; rename one")
    text = "not named <id>.jpg with a whole number as id; rename them, or predict with --ids names"
    refuse(unnumbered, folder, "photo", text)
    ids = tuple(sorted(found))
    return Listing(folder, tuple(folder / found[key] for key in ids), (-1,) * len(ids), (), ids)


def list_testing_beside(root):
    """The photos to predict that belong to the labelled ones at `root`; None if there are none."""
    csv = faces_csv(root, "train.csv", "training")
    place = csv.with_name("test.csv") if csv else Path(root) / "testing"
    found = os.path.isfile(place) if csv else os.path.isdir(place)
    return list_testing(place, by_name=True) if found else None
