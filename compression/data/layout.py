"""Which files of a data directory are photos, and what is said of a folder that is laid out otherwise."""

import os

from compression.command_line import UserError
from compression.data.classes import listed

SUFFIXES = ".jpg .jpeg .jpe .jfif .mpo .png .webp .avif .jp2 .bmp .gif .tif .tiff .ppm .heic .heif".split()
# left by other programs, as are .hidden ones
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx", "@eadir"}


def list_entries(folder):
    """Sorted visible entries of a folder, as (files, subfolders)."""
    try:
        with os.scandir(folder) as found:
            visible = (entry for entry in found if not entry.name.startswith("."))
            entries = [entry for entry in visible if entry.name.lower() not in LITTER]
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}; check the data directory") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file, not a folder of photos; check the data directory") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
    # unlike entry.is_dir(), it takes a link that leads to itself
    folders = sorted(entry.name for entry in entries if os.path.isdir(entry))
    files = sorted({entry.name for entry in entries} - set(folders))
    if not files and not folders:
        raise UserError(f"{folder} is empty; put the photos there")
    return files, folders


def check_photos(folder, files):
    """Raise UserError for files that are no photos by their names."""
    others = [name for name in files if os.path.splitext(name)[1].lower() not in SUFFIXES]
    refuse(others, folder, "file", "without the ending of a photo (.jpg, .png, ...); keep only photos there")


def refuse(names, folder, what, text):
    """Raise UserError if there are any of these names: "<folder> holds 2 files (a, b) <text>"."""
    if names:
        raise UserError(f"{folder} holds {counted(names, what)} {text}")


def counted(names, what, most=3):
    """["a", "b"], "file" -> "2 files (a, b)"; at most so many are named."""
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({listed(names, most)})"


def check_layout(root, split):
    """Raise UserError where `root` is a folder without the folder of a split."""
    files, folders = list_entries(root) if os.path.isdir(root) else ([split], [])
    if split in files + folders:
        return
    holds = counted(folders, "folder") if folders else counted(files, "file")
    above = os.path.dirname(os.path.abspath(root))
    for other in () if "training" in folders else (*(os.path.join(root, one) for one in folders), above):
        if os.path.isdir(os.path.join(other, "training")):
            missing = os.path.join(root, split)
            raise UserError(
                f"there is no folder {missing}; use {other} instead, which has a folder training/"
            )
    advice = (
        "rename its folders to training/ and validation/, or move the photos, in a folder per class, into "
        "training/ and train with --validation-share 0.2"
    )
    if split == "validation" and "training" in folders:
        advice = (
            "put labelled photos there, or train with --validation-share 0.2, which takes them from training/"
        )
    raise UserError(f"there is no folder {os.path.join(root, split)}, but {root} holds {holds}; {advice}")
