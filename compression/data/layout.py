"""Which files of a data directory are photos, and what is said of a folder that is laid out otherwise."""

import os
from pathlib import Path

from compression.command_line import UserError

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


def list_entries(folder):
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


def photo_stem(name):
    return os.path.splitext(name)[0]


def check_photos(folder, files):
    """Raise UserError for files that are no photos by their names."""
    others = [name for name in files if os.path.splitext(name)[1].lower() not in PHOTO_SUFFIXES]
    heic = [name for name in others if os.path.splitext(name)[1].lower() in HEIC_SUFFIXES]
    if heic and not reads_heic():
        raise UserError(
            f"{folder} holds {counted(heic, 'HEIC photo')}, which Pillow cannot read; convert to JPEG, or "
            "pip install pillow-heif"
        )
    others = [name for name in others if name not in heic]
    if others:
        raise UserError(
            f"{folder} holds {counted(others, 'file')} without the ending of a photo (.jpg, .png, ...); "
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


def counted(names, what, most=3):
    """["a", "b"], "file" -> "2 files (a, b)"; at most so many are named."""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def check_layout(root, split):
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
            f"it holds {counted(folders, 'folder')}: if these are the classes, move them into "
            f"{root / 'training'}, "
            "and train with --validation-share 0.2 if there are no others for validation/"
        )
    else:
        advice = (
            "a data directory holds training/ and validation/, each with <class>_<index>.jpg or one "
            "folder per class"
        )
    raise UserError(f"there is no folder {root / split}; {advice}")
