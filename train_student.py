"""Train a network from scratch: a student, or a ResNet-18 to use as its teacher.

    python train_student.py food-11 --out runs/student
    python train_student.py food-11 --network resnet18 --out runs/teacher --epochs 100
    python train_student.py food-11 --recipe augment=medium lr=0.005 view_size=96 --out runs/other
    python train_student.py my-photos --init model.bin --epochs 20 --out runs/mine
    python train_student.py food-11 --init runs/student/best.pt --qat-bits 4 --out runs/rounded

Writes best.pt (for quantize.py or as a teacher), last.pt (to resume), log.csv and record.json. The data is
any tree of training/<class name>/*.jpg and validation/<class name>/*.jpg, or the 2019 homework's CSV of
faces.
"""

from compression.command_line import parser, run
from compression.options import add_training, load
from compression.stages.training import prepare, train
from compression.training.recipe import read_recipe


def main(argv=None):
    options = parser(__doc__)
    add_training(options, "train_student.py", out="runs/student")
    options = read_recipe(options, argv)
    init, arguments = prepare(options)
    train(options, init, arguments, load(options, init), origin={})
    return 0


if __name__ == "__main__":
    run(main)
