"""Train a network from scratch: a student, or a ResNet-18 that is to become its teacher.

    python train_student.py food-11 --out runs/student
    python train_student.py food-11 --network resnet18 --out runs/teacher --epochs 100
    python train_student.py food-11 --network student --set widths=16,32,64,96,192,192,192,256 --out
    runs/narrow python train_student.py my-photos --init model.bin --epochs 20 --out runs/mine python
    train_student.py faces/train.csv --network fer_cnn --size 48 --out runs/fer_cnn

Out come best.pt (for quantize.py or as a teacher), last.pt (to resume), log.csv and record.json. Any tree of
training/<class name>/*.jpg and validation/<class name>/*.jpg will do as data, or the 2019 homework's CSV of
faces.
"""

from compression.command_line import parser, run
from compression.files.model_file import Description
from compression.options import add_training, load, network_arguments, share_of
from compression.training.initialisation import origin_of_init, read_init, take_weights
from compression.training.loop import check_run_folder, fit
from models import build


def main(argv=None):
    options = parser(__doc__)
    add_training(options, out="runs/student", epochs=60)
    options = options.parse_args(argv)

    init = read_init(options)
    arguments = network_arguments(options, init)
    if not options.dry_run:
        check_run_folder(options.out, options.resume)
    device, settings, preprocessing, training, validation = load(options, init)
    origin = {
        "script": "train_student.py",
        "epochs": settings.epochs,
        "seed": settings.seed,
        "data": training.fingerprint,
        "view_size": settings.view_size or options.size,
        **share_of(options),
        **origin_of_init(options, init),
    }
    description = Description.of(options.network, arguments, training.class_names, preprocessing, origin)
    network = build(options.network, **description.arguments)
    if init:
        take_weights(network, init, training, preprocessing)
    fit(
        network,
        description,
        training,
        validation,
        settings,
        options.out,
        device,
        resume=options.resume,
        dry_run=options.dry_run,
    )
    return 0


if __name__ == "__main__":
    run(main)
