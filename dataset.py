"""Photos from disk: the Food-11 layout, and a cache so that every photo is decoded once.

    from dataset import list_labelled, load_photos
    from compression.data.preprocessing import Preprocessing
    training = load_photos(list_labelled("food-11", "training"), Preprocessing(size=128))
    training.photos                 # uint8 (N, 128, 128, 3), memory-mapped
    training.labels                 # int64 (N,)

Food-11: `training/` and `validation/` hold `<class>_<index>.jpg`, `testing/` holds `<id>.jpg`. A tree of
one folder per class (`training/<class name>/*.jpg`) is read as well; class names then are the folders' (or
Food-11's own, where they are its eleven classes). So is the 2019 homework's CSV of grey faces, wherever a
folder is named (see faces.py). How one photo is decoded and resized is in preprocessing.py.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL
import torch

from compression import distributed
from compression.command_line import UserError
from compression.data.classes import (
    FOOD11_CLASSES,
    class_numbers,
    in_class_order,
    is_food11,
    match,
    unnamed,
    whole_number,
)
from compression.data.faces import FaceListing, face_stream, faces_csv, list_faces, list_testing_faces
from compression.data.preprocessing import DECODER_VERSION, DecodeReport, decode_stream
from compression.data.transfer import send
from compression.files.atomic import umask

PHOTO_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".webp",
    ".avif",
    ".jp2",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
}
HEIC_SUFFIXES = {".heic", ".heif"}  # photos where the package pillow-heif is installed
ADVICE = "give the same class the same name on both sides, or remove its photos"
LITTER = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "picasa.ini",
    "icon\r",
    "__macosx",
    "@eadir",
}  # left by other programs, as are .hidden ones
OTHER_NAMES = {
    "training": "training",
    "validation": "validation",
    "testing": "testing",
    "train": "training",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "testing",
}


# ---------------------------------------------------------------- listing


@dataclass(frozen=True)
class Listing:
    """Photo files with their labels (-1 = unlabelled), in a fixed order. `ids`: of testing photos."""

    folder: Path
    paths: tuple
    labels: tuple
    class_names: tuple
    ids: tuple = ()
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
            digest.update(
                os.fsencode(f"{path.relative_to(self.folder).as_posix()} {_size_and_time(path)[0]}\n")
            )
        return digest.hexdigest()[:16]


def _size_and_time(path):
    """Bytes and modification time in ns; a dangling link has neither, and decoding will report it."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _entries(folder):
    """Sorted visible entries of a folder, as (files, subfolders)."""
    try:
        with os.scandir(folder) as found:
            entries = [
                entry
                for entry in found
                if not entry.name.startswith(".") and entry.name.lower() not in LITTER
            ]
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}; check the data directory") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file, not a folder of photos; check the data directory") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
    files = sorted(entry.name for entry in entries if not entry.is_dir())
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if not files and not folders:
        raise UserError(f"{folder} is empty; put the photos there")
    return files, folders


def _photo_stem(name):
    return os.path.splitext(name)[0]


def _check_photos(folder, files):
    """Raise UserError for files that are no photos by their names."""
    others = [name for name in files if os.path.splitext(name)[1].lower() not in PHOTO_SUFFIXES]
    heic = [name for name in others if os.path.splitext(name)[1].lower() in HEIC_SUFFIXES]
    if heic and not reads_heic():
        raise UserError(
            f"{folder} holds {_counted(heic, 'HEIC photo')}, which Pillow cannot read; convert to JPEG, or "
            "pip install pillow-heif"
        )
    others = [name for name in others if name not in heic]
    if others:
        raise UserError(
            f"{folder} holds {_counted(others, 'file')} without the ending of a photo (.jpg, .png, ...); "
            "move them elsewhere"
        )


def reads_heic():
    """Whether Pillow reads HEIC from here on: with the package pillow-heif it does."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _counted(names, what, most=3):
    """["a", "b"], "file" -> "2 files (a, b)"; at most so many are named."""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def _check_layout(root, split):
    """Raise UserError, with the layout that is expected, where `root` is a folder without the folder of a
    split.
    """
    root = Path(root)
    if not root.is_dir() or (root / split).exists():
        return
    folders = sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in LITTER
    )
    renamed = [
        f"{name}/ to {ours}/" for name in folders if (ours := OTHER_NAMES.get(name.lower(), name)) != name
    ]
    if renamed:
        advice = f"rename {', '.join(renamed)}"
    elif split == "validation" and (root / "training").is_dir():
        advice = (
            "put photos there in the layout of training/, or train with --validation-share 0.2, which "
            "takes them from training/"
        )
    elif folders:
        advice = (
            f"it holds {_counted(folders, 'folder')}: if these are the classes, move them into "
            f"{root / 'training'}, "
            "and train with --validation-share 0.2 if there are no others for validation/"
        )
    else:
        advice = (
            "a data directory holds training/ and validation/, each with <class>_<index>.jpg or one "
            "folder per class"
        )
    raise UserError(f"there is no folder {root / split}; {advice}")


def photo_channels(root):
    """Channels of the labelled photos at `root`: 1 for a CSV of grey faces, 3 for folders."""
    return 1 if faces_csv(root, "train.csv", "training") else 3


def split_off(listing, share):
    """{"training": Listing, "validation": Listing}: a share of every class's photos, in a seeded order, is
    for validation.

    The seed is fixed, so that every run and script splits alike. A class of two photos or more keeps one on
    either side.
    """
    labels, taken = np.array(listing.labels), np.zeros(len(listing), bool)
    for label in np.unique(labels):
        rows = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
        taken[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return {
        split: replace(
            listing, paths=tuple(listing.paths[row] for row in rows), labels=tuple(labels[rows].tolist())
        )
        for split, rows in (("training", np.flatnonzero(~taken)), ("validation", np.flatnonzero(taken)))
    }


def list_labelled(root, split, class_names=None, validation_share=0.0, whose="the training photos", log=None):
    """The photos of `root/split` with labels, in either layout; or the split's faces of a CSV, or of
    `root/train.csv`.

    class_names: of the model that the photos are for, or of the training photos, so that label i is
    class_names[i]; None for training itself. The photos' classes are found among them by name, see
    `classes.match`; where they are unnamed, the listing has the photos' own names. whose: what has the
    class_names; log: as for `match`.
    validation_share: share of the training photos that is the validation split, where there is no
    `root/validation`. Raises UserError for a wrong name, a class that class_names lack, a missing or empty
    folder, two files with one id.
    """
    csv = faces_csv(root, "train.csv", "training")
    if validation_share and (csv or (Path(root) / "validation").exists()):
        raise UserError(
            f"{csv or root} has validation photos of its own, so no share of the training photos can take "
            "their place; "
            "leave out --validation-share, or use a model that was trained without it"
        )
    if validation_share:
        return split_off(
            list_labelled(root, "training", class_names, whose=whose, log=log), validation_share
        )[split]
    if csv:
        return list_faces(csv, split, class_names, whose, log)
    _check_layout(root, split)
    folder = Path(root) / split
    files, folders = _entries(folder)
    if files and folders:
        raise UserError(
            f"{folder} holds both photos ({files[0]}) and folders ({folders[0]}); "
            "use either <class>_<index>.jpg files or one folder per class"
        )
    paths, labels = [], []
    if folders:
        names, label_of = _folder_classes(folders, root, class_names, whose, log)
        if len(names) < 2:
            raise UserError(
                f"{folder} has a single class folder ({folders[0]}); add one of another class: a classifier "
                "needs at least two"
            )
        inside, nested = {}, []
        for name in folders:
            inside[name], deeper = _entries(folder / name)
            nested += [f"{name}/{one}" for one in deeper]
        if nested:
            raise UserError(
                f"{folder} holds {_counted(nested, 'folder')} inside class folders; put the photos directly "
                "into the class folders"
            )
        _check_photos(folder, [f"{name}/{file}" for name, files in inside.items() for file in files])
        for name, files in inside.items():
            paths += [folder / name / file for file in files]
            labels += [label_of[name]] * len(files)
        return Listing(folder, tuple(paths), tuple(labels), names)

    names = tuple(class_names or FOOD11_CLASSES)
    _check_photos(folder, files)
    found, stems = (
        {},
        {file: tuple(map(whole_number, _photo_stem(file).partition("_")[::2])) for file in files},
    )
    unnumbered = [file for file, stem in stems.items() if None in stem]
    if unnumbered:
        raise UserError(
            f"{folder} holds {_counted(unnumbered, 'file')} not named <class>_<index>.jpg; "
            "rename or move them, or use one folder per class"
        )
    food = not class_numbers(names) or is_food11(
        names
    )  # else the files' numbers are the ones that these names are
    count = len(FOOD11_CLASSES if food else names)
    unknown = [file for file, (label, _) in stems.items() if label >= count]
    if unknown:
        raise UserError(
            f"{folder} holds {_counted(unknown, 'file')} with a class number that is not 0 to {count - 1}; "
            "rename them or use one folder per class"
        )
    for file, (label, index) in stems.items():
        if (label, index) in found:
            raise UserError(
                f"{folder / found[label, index]} and {folder / file} have the same class and index; "
                "rename one"
            )
        found[label, index] = file
    ordered, numbers = sorted(found), sorted({label for label, _ in found})
    used = [FOOD11_CLASSES[number] if food else str(number) for number in numbers]
    positions = match(
        used, f"the photos in {root}, named <class>_<index>.jpg as Food-11's,", names, whose, ADVICE, log
    )
    position = dict(zip(numbers, positions))
    return Listing(
        folder,
        tuple(folder / found[key] for key in ordered),
        tuple(position[label] for label, _ in ordered),
        names,
    )


def _folder_classes(folders, root, class_names, whose, log):
    """(class names, {folder: label}) of class folders; arguments: as of `list_labelled`."""
    place = f"the class folders of {root}"
    ordered = in_class_order(folders, place)
    if not class_names:
        return tuple(FOOD11_CLASSES if is_food11(ordered) else ordered), {
            name: label for label, name in enumerate(ordered)
        }
    labels = match(ordered, place, class_names, whose, ADVICE, log)
    own = len(ordered) == len(class_names) and tuple(class_names) == unnamed(len(class_names))
    names = [name for _, name in sorted(zip(labels, ordered))] if own else class_names
    return tuple(names), dict(zip(ordered, labels))


def list_testing(folder, by_name=False):
    """The unlabelled photos to predict, ascending by id. `folder` holds them itself, in `testing/` or in
    `test.csv`, or is a CSV of faces.

    The id is the integer file stem; with `by_name` it is the file name and any name will do. A CSV has its
    own ids. Raises UserError for a name that is no integer, two files with one id, a missing or empty folder.
    """
    if csv := faces_csv(folder, "test.csv", "testing"):
        return list_testing_faces(csv, by_name)
    folder = Path(folder)
    if (folder / "testing").is_dir():
        folder = folder / "testing"
    files, folders = _entries(folder)
    if not files:
        raise UserError(
            f"{folder} holds no photos and no testing/ folder, only {_counted(folders, 'folder')}; "
            "name the folder that holds testing/, or one that holds photos directly"
        )
    if folders:
        raise UserError(
            f"{folder} holds photos and {_counted(folders, 'folder')}, whose photos would not be predicted; "
            "move the folders elsewhere, or their photos out of them"
        )
    _check_photos(folder, files)
    found, unnumbered = (
        {},
        [] if by_name else [file for file in files if whole_number(_photo_stem(file)) is None],
    )
    if unnumbered:
        raise UserError(
            f"{folder} holds {_counted(unnumbered, 'photo')} not named <id>.jpg with a whole number as id; "
            "rename them, or predict with --ids names"
        )
    for file in files:
        key = file if by_name else whole_number(_photo_stem(file))
        if key in found:
            raise UserError(f"{folder / found[key]} and {folder / file} have the same id {key}; rename one")
        found[key] = file
    ids = tuple(sorted(found))
    return Listing(folder, tuple(folder / found[key] for key in ids), (-1,) * len(ids), (), ids)


def list_unlabelled(folder):
    """All photos directly in a folder, whatever their names, or all faces of a CSV, without labels. Raises
    UserError if there are none.
    """
    return replace(list_testing(folder, by_name=True), ids=())


def list_testing_beside(root):
    """The photos to predict that belong to the labelled ones at `root`; None if there are none."""
    csv = faces_csv(root, "train.csv", "training")
    place = csv.with_name("test.csv") if csv else Path(root) / "testing"
    return list_testing(place, by_name=True) if (place.is_file() if csv else place.is_dir()) else None


def photo_stream(listing, preprocessings, report, batch_size=64):
    """Yield (rows, uint8 (n, size, size, channels) for each of the Preprocessings) until all photos of a
    listing were there.

    report: see `decode_stream`.
    """
    if isinstance(listing, FaceListing):
        return face_stream(listing, preprocessings, batch_size)
    return decode_stream(
        listing.paths, preprocessings, report, batch_size, label=f"decoding {listing.folder.name}"
    )


# ---------------------------------------------------------------- the cache


@dataclass(frozen=True)
class PhotoSet:
    """Decoded photos: `photos` uint8 (M, size, size, channels), of which `rows` (N,) are usable, with
    `labels` (N,).
    """

    photos: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    class_names: tuple
    fingerprint: str
    truncated: tuple = ()  # those of the M that were decoded as far as they go

    def __len__(self):
        return len(self.rows)

    def sample(self, count):
        """So many of the photos (or all), chosen with a fixed seed."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count].to(
            self.rows.device
        )
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def to(self, device):
        """On a GPU with room for them, the photos live there; otherwise batches travel one by one."""
        if device.type == "cuda" and self.photos.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            return replace(
                self, photos=self.photos.to(device), rows=self.rows.to(device), labels=self.labels.to(device)
            )
        return self

    def batch(self, positions, device):
        """The photos and labels at `positions` (int64 tensor on the CPU), on `device`."""
        positions = send(positions, self.rows.device)
        return send(self.photos[self.rows[positions]], device), send(self.labels[positions], device)


def join(photos, extra):
    """Two PhotoSets of one size as one, copied into memory; the classes are those of the first."""
    return PhotoSet(
        torch.cat([photos.photos, extra.photos]),
        torch.cat([photos.rows, extra.rows + len(photos.photos)]),
        torch.cat([photos.labels, extra.labels]),
        photos.class_names,
        f"{photos.fingerprint}+{extra.fingerprint}",
    )


def default_cache():
    """Where decoded photos are kept unless the caller says otherwise; raises OSError for a user without a
    home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "food11-photos"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None


def _cache_name(listing, preprocessing):
    """Of the folder in the cache: other or changed photos and other rules of decoding have other names."""
    rule = f"{DECODER_VERSION} {preprocessing.size} {preprocessing.resize}" + " grey" * (
        preprocessing.channels == 1
    )
    rule += f" detail {preprocessing.detail}" if preprocessing.detail else ""
    digest = hashlib.sha256(f"{rule} {PIL.__version__}".encode())
    for path in listing.paths:
        digest.update(os.fsencode(f"{path.relative_to(listing.folder)} {_size_and_time(path)}\n"))
    source = hashlib.sha256(os.fsencode(f"{listing.folder.resolve()} {rule}")).hexdigest()[:12]
    return f"{listing.folder.name}-{preprocessing.size}-{source}-{digest.hexdigest()[:16]}"


def _open_cache(place, count, preprocessing):
    """The memory-mapped photos and the DecodeReport, or None if the cache is missing or damaged."""
    try:
        notes = json.loads((place / "notes.json").read_text())
        photos = np.load(place / "photos.npy", mmap_mode="c", allow_pickle=False)
        if photos.shape != (count, *preprocessing.shape) or photos.dtype != np.uint8:
            return None
        reasons = [
            {int(row): str(reason) for row, reason in notes[kind].items()}
            for kind in ("truncated", "unreadable")
        ]
        return (
            (photos, DecodeReport(*reasons))
            if all(0 <= row < count for rows in reasons for row in rows)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _build_cache(cache, place, listing, preprocessing):
    """Decode into a folder beside `place` and rename it: whoever is first wins, nobody sees half a cache."""
    cache.mkdir(parents=True, exist_ok=True)
    for leftover in cache.glob(".building-*"):  # of runs that were killed
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > 24 * 3600:
                shutil.rmtree(leftover, ignore_errors=True)
    building = Path(tempfile.mkdtemp(dir=cache, prefix=".building-"))
    try:
        report, count = DecodeReport(), len(listing)
        with open(
            building / "photos.npy", "wb"
        ) as file:  # plain writes: a full disk is an OSError, in a memory map it kills
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (count, *preprocessing.shape)}
            )
            start, step = file.tell(), math.prod(preprocessing.shape)

            for rows, photos in photo_stream(listing, [preprocessing], report):
                for row, photo in zip(rows, photos):
                    file.seek(start + row * step)
                    file.write(photo.tobytes())
            file.truncate(start + count * step)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave black photos behind a valid header
        (building / "notes.json").write_text(
            json.dumps({"truncated": report.truncated, "unreadable": report.unreadable})
        )
        os.chmod(building, 0o777 & ~umask())  # mkdtemp makes it private, and a cache may be shared
        with contextlib.suppress(OSError):
            os.rename(building, place)
        if _open_cache(place, count, preprocessing) is None:  # a damaged one stands there
            shutil.rmtree(place, ignore_errors=True)
            os.rename(building, place)
        for stale in cache.glob(glob.escape(place.name.rsplit("-", 1)[0]) + "-*"):
            if stale != place:
                shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_photos(listing, preprocessing, cache=None, log=None):
    """Decoded photos of a listing, from the cache or decoded now.

    cache: folder of the cache (None: the default one), or False to decode into memory. A cache that
    cannot be written is passed over with a warning. A truncated photo counts as it is decoded, an
    undecodable one is left out; both are reported through `log` (stderr by default). Faces need no cache.
    Raises UserError if no photo can be decoded.
    """
    log = log or (lambda text: print(text, file=sys.stderr))
    cached = None
    if cache is not False and not isinstance(listing, FaceListing):
        try:
            cache = Path(cache) if cache else default_cache()
            place = cache / _cache_name(listing, preprocessing)
            with distributed.first_on_node():
                cached = _open_cache(place, len(listing), preprocessing)
                if cached is None:
                    _build_cache(cache, place, listing, preprocessing)
                    cached = _open_cache(place, len(listing), preprocessing)
        except OSError as error:
            log(
                f"warning: the photo cache {cache or ''} cannot be written ({error.strerror or error}); "
                "decoding into memory"
            )
    if cached is None:
        report = DecodeReport()
        photos = np.zeros((len(listing), *preprocessing.shape), np.uint8)
        for rows, decoded in photo_stream(listing, [preprocessing], report):
            photos[rows] = decoded
        cached = photos, report

    photos, report = cached
    for rows, what in (
        (report.truncated, "truncated: decoded as far as they go"),
        (report.unreadable, "undecodable: left out"),
    ):
        if rows:
            log(
                f"warning: {len(rows)} of {len(photos)} photos in {listing.folder} are {what}: "
                f"{report.name(listing, rows)}"
            )
    rows = torch.tensor(
        [row for row in range(len(photos)) if row not in report.unreadable], dtype=torch.int64
    )
    if not len(rows):
        raise UserError(
            f"none of the {len(photos)} files in {listing.folder} can be decoded as a photo; check the data"
        )
    labels = torch.tensor(listing.labels, dtype=torch.int64)[rows]
    return PhotoSet(
        torch.from_numpy(photos),
        rows,
        labels,
        listing.class_names,
        listing.fingerprint(),
        tuple(report.truncated),
    )
