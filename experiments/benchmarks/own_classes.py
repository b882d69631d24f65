"""A few photos of three own classes, as somebody with a folder of photos has them: train_student.py on a
small part of a data set.

    python -m experiments.benchmarks.own_classes food-11 --init model.bin --size 96 --epochs 10 --out runs/own

Takes the first 60 training photos and all validation photos of three classes, under names that no model
knows, and trains on them with all other options of train_student.py. The photos are links in OUT/photos.
"""

import sys
from pathlib import Path

import train_student
from compression.command_line import UserError, run
from dataset import list_labelled

OWN = {"Egg": "my egg dishes", "Soup": "my soups", "Seafood": "my fish"}
TRAINING_PHOTOS = 60  # of each class


def link_photos(data, root):
    """Make `root` a data directory with a folder of links to photos in `data` for each own class."""
    names = list_labelled(data, "training").class_names
    missing = OWN.keys() - set(names)
    if missing:
        raise UserError(f"{data} has no class {', '.join(sorted(missing))}; name a root of Food-11")
    for split, most in (("training", TRAINING_PHOTOS), ("validation", None)):
        listing = list_labelled(data, split, names)
        for name, own in OWN.items():
            folder = root / split / own
            folder.mkdir(parents=True, exist_ok=True)
            paths = [path for path, label in zip(listing.paths, listing.labels) if names[label] == name]
            for path in paths[:most]:
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) < 3 or "--out" not in argv[:-1]:
        raise UserError("name the data directory first, and --out; see the docstring of this script")
    photos = Path(argv[argv.index("--out") + 1]) / "photos"
    link_photos(Path(argv[0]), photos)
    return train_student.main([str(photos), *argv[1:]])


if __name__ == "__main__":
    run(main)
