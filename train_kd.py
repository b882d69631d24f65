"""Distil a student: train it on a teacher's outputs for every view of a photo, and on the labels.

    python train_kd.py food-11 --teacher teacher_resnet18.bin --out runs/kd
    python train_kd.py food-11 --teacher teacher.onnx --recipe alpha=0.9 temperature=2 views=8 --epochs 300
    python train_kd.py food-11 --teacher a.bin --teacher runs/b/best.pt --network student
    python train_kd.py food-11 --teacher a.bin --init runs/kd/best.pt --qat-bits 3 --out runs/rounded

The loss is alpha * T^2 * KL(teacher || student at temperature T) + (1 - alpha) * cross-entropy. A teacher is
a ResNet-18 state_dict as the course provides it, an ONNX file, or any checkpoint or model file of this
project (so a student can be the teacher of a smaller one). The probabilities of several teachers are
averaged. A teacher sees the same view as the student. Writes the same files as train_student.py.
"""

import contextlib
import hashlib
from pathlib import Path

from compression.command_line import UserError, be_silent, parser, pick_device, run, tell
from compression.data.faces import FaceListing
from compression.options import add_training, cache_folder, class_names_of, load
from compression.stages.training import prepare, train
from compression.training.distillation import (
    Teaching,
    add_teachers,
    build_distillation,
    check_teaching,
    origin_of_distillation,
)
from compression.training.recipe import read_recipe
from compression.training.teachers import check_teachers, read_teachers
from dataset import join, list_labelled, list_testing, list_testing_beside, load_photos, photo_channels


def contents(listing):
    """The photos of a listing as a set: hashes of readable files, or the pixels of faces."""
    if isinstance(listing, FaceListing):
        return {face.tobytes() for face in listing.faces}
    found = set()
    for path in listing.paths:
        with contextlib.suppress(OSError):  # decoding reports it
            found.add(hashlib.sha256(path.read_bytes()).digest())
    return found


def list_extra(options):
    """(Listing of --unlabeled, whether it holds testing photos); (None, False) without the option.

    Raises UserError if it holds validation photos: the student is measured on those. For faces it only prints
    a note.
    """
    if not options.unlabeled:
        return None, False
    extra = list_testing(options.unlabeled, by_name=True)
    names = list_labelled(options.data, "training").class_names
    # `load` lists them again and prints the notes
    validation = list_labelled(options.data, "validation", names, options.validation_share, log=be_silent)
    shown = contents(extra)
    measured = len(shown & contents(validation))
    # the 2019 homework's test.csv repeats training rows; it is used as it is
    if measured and isinstance(extra, FaceListing):
        which = f"{measured} faces of {options.unlabeled} are validation faces too"
        tell(f"note: {which}, so the validation accuracy is too high")
    elif measured:
        raise UserError(
            f"{options.unlabeled} contains {measured} of the validation photos, which measure the student; "
            "remove them there or name other photos"
        )
    try:
        testing = list_testing_beside(options.data)
    # an empty folder or no photos: there is nothing to predict, so nothing to memorise
    except UserError:
        return extra, False
    transductive = bool(testing and shown & contents(testing))
    if transductive:
        tell("note: --unlabeled holds testing photos, so the model file will say that it is transductive")
    return extra, transductive


def main(argv=None):
    options = parser(__doc__)
    group = options.add_argument_group("distillation")
    add_teachers(group)
    group.add_argument(
        "--unlabeled",
        type=Path,
        metavar="DIR",
        help="more photos (folder or CSV of faces): without labels, the student learns the teacher's outputs",
    )
    # no label smoothing: the teacher's outputs are already soft targets
    add_training(options, "train_kd.py", "runs/kd", Teaching, without=("label_smoothing",))
    options = read_recipe(options, argv)
    check_teaching(options)

    init, arguments = prepare(options)
    device, cache = pick_device(options.device), cache_folder(options)
    teachers = read_teachers(options, class_names_of(options), photo_channels(options.data), device)
    extra, transductive = list_extra(options)
    device, settings, preprocessing, training, validation = load(options, init)
    teachers, records = check_teachers(teachers, options, validation, preprocessing, device)
    unlabelled = {}
    if extra is not None:
        photos = load_photos(extra, preprocessing, cache)
        training = join(training, photos)
        unlabelled = {"unlabelled": photos.fingerprint, "unlabelled_photos": len(photos)}
        unlabelled |= {"transductive": True} if transductive else {}
    origin = origin_of_distillation(options, teachers, records) | unlabelled
    if any(teacher.transductive for teacher in teachers):
        origin["transductive"] = True

    def loss_of():
        return build_distillation(options, teachers, records, preprocessing, settings, training, cache)

    loaded = device, settings, preprocessing, training, validation
    train(options, init, arguments, loaded, origin, loss_of, {"teachers": records, **unlabelled})
    return 0


if __name__ == "__main__":
    run(main)
