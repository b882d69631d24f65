"""Train a student on what a teacher says about every view of a photo, as well as on the labels.

    python train_kd.py food-11 --teacher teacher_resnet18.bin --out runs/kd
    python train_kd.py food-11 --teacher runs/teacher/best.pt --alpha 1 --temperature 2 --epochs 300 --mixup 0.5
    python train_kd.py food-11 --teacher a.bin --teacher runs/b/best.pt --network student

The loss is alpha * T^2 * KL(teacher || student at temperature T) + (1 - alpha) * cross-entropy. A teacher is
a ResNet-18 state_dict as the course provides it, or any checkpoint or model file of this project (so a
student can assist: train one from the teacher, then a smaller one from it); several are averaged. It sees
the very view that the student sees. Out come the same files as from train_student.py.
"""

import sys
from pathlib import Path

from command_line import UserError, number, parser, run
from dataset import join, list_testing_beside, list_unlabelled, load_photos
from distillation import Distillation, add_distillation, read_teachers
from model_file import Description
from models import build
from options import add_training, cache_folder, load, network_arguments
from training import fit


def add_unlabelled(training, options, preprocessing):
    """(training with the photos of --unlabeled behind it, what the record says of them)."""
    if not options.unlabeled:
        return training, {}
    extra = load_photos(list_unlabelled(options.unlabeled), preprocessing, cache_folder(options))
    origin = {"unlabelled": extra.fingerprint, "unlabelled_photos": len(extra)}
    testing = list_testing_beside(options.data)
    if testing and testing.fingerprint() == extra.fingerprint:
        origin["transductive"] = True  # the photos to be predicted were trained on
        print("note: --unlabeled holds the testing photos: the result is transductive, and the model file will say so", file=sys.stderr)
    return join(training, extra), origin


def main(argv=None):
    options = parser(__doc__)
    group = add_distillation(options, required=True)
    group.add_argument("--unlabeled", type=Path, metavar="DIR",
                       help="folder (or CSV of faces) of further photos without labels, any names, for the teacher to label")
    group.add_argument("--views", type=number(int, 0, 1000), default=0, metavar="K",
                       help="K fixed views per photo, asking the teacher about each once; 0 = new views every epoch")
    add_training(options, out="runs/kd", epochs=120, lr=5e-3)
    options.set_defaults(label_smoothing=0.0)
    options = options.parse_args(argv)
    if options.views and options.mixup:
        raise UserError("--views keeps what the teacher said of a view and --mixup makes new views every time; leave one of them out")
    if options.label_smoothing:
        raise UserError("--label-smoothing smooths what the teacher is to tell; leave it out, the teacher's answers are soft already")
    if options.views and options.augment == "none":
        raise UserError("--views needs random views; leave it out or choose another --augment than none")

    arguments = network_arguments(options)
    device, settings, preprocessing, training, validation = load(options)
    teachers, told = read_teachers(options, validation, preprocessing, device)
    training, unlabelled = add_unlabelled(training, options, preprocessing)
    origin = {"script": "train_kd.py", "epochs": settings.epochs, "seed": settings.seed, "data": training.fingerprint,
              "view_size": settings.view_size or options.size, "alpha": options.alpha, "temperature": options.temperature,
              "teachers": [one["sha256"] for one in told], **unlabelled,
              **({"transductive": True} if any(one.get("transductive") for one in told) else {})}
    description = Description.of(options.network, arguments, training.class_names, preprocessing, origin)
    network = build(options.network, **description.arguments)
    loss = Distillation(teachers, preprocessing, options.alpha, options.temperature, settings.precision,
                        len(training), len(training.class_names), settings.views)
    fit(network, description, training, validation, settings, options.out, device, loss, resume=options.resume, dry_run=options.dry_run,
        details={"teachers": told, **unlabelled})
    return 0


if __name__ == "__main__":
    run(main)
