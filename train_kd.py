"""Train a student on what a teacher says about every view of a photo, as well as on the labels.

    python train_kd.py food-11 --teacher teacher_resnet18.bin --out runs/kd
    python train_kd.py food-11 --teacher runs/teacher/best.pt --alpha 1 --temperature 2 --epochs 300 --mixup
    0.5 python train_kd.py food-11 --teacher a.bin --teacher runs/b/best.pt --network student

The loss is alpha * T^2 * KL(teacher || student at temperature T) + (1 - alpha) * cross-entropy. A teacher is
a ResNet-18 state_dict as the course provides it, or any checkpoint or model file of this project (so a
student can assist: train one from the teacher, then a smaller one from it); several are averaged. It sees
the very view that the student sees. Out come the same files as from train_student.py.
"""

import contextlib
import hashlib
import sys
from pathlib import Path

import torch

from compression.command_line import UserError, parser, pick_device, run
from compression.data.faces import FaceListing
from compression.files.model_file import Description
from compression.options import add_training, cache_folder, class_names_of, load, network_arguments, share_of
from compression.training.distillation import (
    add_distillation,
    add_fixed_views,
    build_distillation,
    check_fixed_views,
    check_teachers,
    origin_of_distillation,
    read_teachers,
)
from compression.training.initialisation import origin_of_init, read_init, take_weights
from compression.training.loop import check_run_folder, fit
from dataset import join, list_labelled, list_testing_beside, list_unlabelled, load_photos, photo_channels
from models import build


def count_shared(first, second):
    """How many photos of one listing are in another too, by their bytes and whatever their names; of faces,
    by their pixels.
    """
    if isinstance(first, FaceListing) and isinstance(second, FaceListing):
        return len(
            set.intersection(*({face.tobytes() for face in listing.faces} for listing in (first, second)))
        )
    if isinstance(first, FaceListing) or isinstance(second, FaceListing):
        return 0
    sizes = set.intersection(*({_size(path) for path in listing.paths} for listing in (first, second))) - {-1}
    return len(set.intersection(*(_digests(listing, sizes) for listing in (first, second))))


def _size(path):
    """Bytes of a file; -1 for a link to none, which decoding will report."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digests(listing, sizes):
    """Hashes of the photos that have one of so many bytes; what cannot be read is left to decoding, which
    reports it.
    """
    digests = set()
    for path in listing.paths:
        if _size(path) in sizes:
            with contextlib.suppress(OSError):
                digests.add(hashlib.sha256(path.read_bytes()).digest())
    return digests


def list_extra(options):
    """(Listing of --unlabeled, whether photos to be predicted are among them); (None, False) without the
    option.

    Raises UserError if validation photos are among them: the student is measured on those. Of faces it only
    tells.
    """
    if not options.unlabeled:
        return None, False
    extra = list_unlabelled(options.unlabeled)
    names = list_labelled(options.data, "training").class_names
    quiet = {"log": lambda text: None}  # `load` will list them again, and print what there is to be noted
    validation = list_labelled(options.data, "validation", names, options.validation_share, **quiet)
    measured = count_shared(extra, validation)
    if measured and isinstance(
        extra, FaceListing
    ):  # the 2019 homework's test.csv has twins of training rows, and stays whole
        print(
            f"note: {measured} faces of {options.unlabeled} are validation faces too, whose accuracy that "
            "flatters",
            file=sys.stderr,
        )
    elif measured:
        raise UserError(
            f"{options.unlabeled} holds {measured} of the validation photos, on which the student is "
            "measured; "
            "remove them there or name other photos"
        )
    try:
        testing = list_testing_beside(options.data)
    # an empty folder, or what is no photo: nothing to be predicted, so nothing that could be learned by heart
    except UserError:
        testing = None
    transductive = bool(testing and count_shared(extra, testing))
    if transductive:
        print(
            "note: --unlabeled holds testing photos: the result is transductive, and the model file will "
            "say so",
            file=sys.stderr,
        )
    return extra, transductive


def add_extra(training, extra, transductive, preprocessing, cache):
    """(training with the photos of the Listing `extra` behind it, what the record says of them)."""
    if extra is None:
        return training, {}
    photos = load_photos(extra, preprocessing, cache)
    return join(training, photos), {
        "unlabelled": photos.fingerprint,
        "unlabelled_photos": len(photos),
        **({"transductive": True} if transductive else {}),
    }


def main(argv=None):
    options = parser(__doc__)
    group = add_fixed_views(add_distillation(options, required=True))
    group.add_argument(
        "--unlabeled",
        type=Path,
        metavar="DIR",
        help="folder (or CSV of faces) of further photos without labels, any names, for the teacher to label",
    )
    # no label smoothing: the teacher's answers are soft already
    add_training(options, out="runs/kd", epochs=120, lr=5e-3, label_smoothing=False)
    options = options.parse_args(argv)
    check_fixed_views(options)

    init = read_init(options)
    arguments = network_arguments(options, init)
    if not options.dry_run:
        check_run_folder(options.out, options.resume)
    teachers = read_teachers(
        options, class_names_of(options), photo_channels(options.data), pick_device(options.device)
    )
    extra, transductive = list_extra(options)
    device, settings, preprocessing, training, validation = load(options, init)
    teachers, records = check_teachers(teachers, options, validation, preprocessing, device)
    training, unlabelled = add_extra(training, extra, transductive, preprocessing, cache_folder(options))
    origin = {
        "script": "train_kd.py",
        "epochs": settings.epochs,
        "seed": settings.seed,
        "data": training.fingerprint,
        "view_size": settings.view_size or options.size,
        **share_of(options),
        **origin_of_init(options, init),
        **origin_of_distillation(options, teachers, records),
        **unlabelled,
        **({"transductive": True} if any(teacher.transductive for teacher in teachers) else {}),
    }
    description = Description.of(options.network, arguments, training.class_names, preprocessing, origin)
    torch.manual_seed(
        settings.seed
    )  # again: building a teacher may have drawn random numbers, by the kind of its file
    network = build(options.network, **description.arguments)
    if init:
        take_weights(network, init, training, preprocessing)
    loss = build_distillation(
        options, teachers, records, preprocessing, settings, training, cache_folder(options)
    )
    fit(
        network,
        description,
        training,
        validation,
        settings,
        options.out,
        device,
        loss,
        resume=options.resume,
        dry_run=options.dry_run,
        details={"teachers": records, **unlabelled},
    )
    return 0


if __name__ == "__main__":
    run(main)
