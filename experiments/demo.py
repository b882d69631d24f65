"""All stages of the pipeline on toy pictures, in under three minutes, and a table of what each one changes.

    python -m experiments.demo            # or: make demo

The commands are printed as they are run. The toy photos are drawn into toy_food11/ and the runs into
runs/demo/, both of which are removed first.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from compression.command_line import UserError, parser, run
from experiments.toy_food11 import CLASSES, draw_data, score

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--network student --set widths=8,8,16,16,24,24,24,24 --size 64"
TOY, OUT = Path("toy_food11"), Path("runs/demo")
TRAIN = "--cache none --recipe ema=0.98 augment=light batch_size=32"
STUDENT = f"{SMALL} --epochs 14 {TRAIN} lr=0.01"
STAGES = (  # (what the table says, command, what it leaves, or None for a command without a row)
    (
        "teacher: residual6",
        f"train_student.py {TOY} --size 64 --epochs 10 --out {OUT}/teacher {TRAIN}",
        "teacher",
    ),
    ("small student from scratch", f"train_student.py {TOY} --out {OUT}/scratch {STUDENT}", "scratch"),
    (
        "the same, distilled from the teacher",
        f"train_kd.py {TOY} --teacher {OUT}/teacher/best.pt --out {OUT}/kd {STUDENT}",
        "kd",
    ),
    (
        "that, pruned to 60 % of its channels and fine-tuned",
        f"prune.py {OUT}/kd/best.pt {TOY} --rate 0.6 --epochs 8 --out {OUT}/pruned {TRAIN}",
        "pruned",
    ),
    ("the distilled one at 8 bits", f"quantize.py {OUT}/kd/best.pt {OUT}/8bits.bin --bits 8", "8bits"),
    ("at 2 bits, rounded", f"quantize.py {OUT}/kd/best.pt {OUT}/2bits.bin --bits 2", "2bits"),
    (
        None,
        f"train_kd.py {TOY} --teacher {OUT}/teacher/best.pt --init {OUT}/kd/best.pt --qat-bits 2 --epochs 10 "
        f"--out {OUT}/qat {TRAIN}",
        None,
    ),
    ("at 2 bits, by quantization-aware training", f"quantize.py {OUT}/qat/best.pt {OUT}/model.bin", "model"),
)


def perform(command):
    """Run a script of the project; SystemExit with its status where it fails."""
    print(f"\n$ python {command}", flush=True)
    script, *arguments = shlex.split(command)
    status = subprocess.run([sys.executable, str(ROOT / script), *arguments]).returncode
    if status:
        raise SystemExit(status)


def row(label, name):
    """(label, parameters, bytes, validation accuracy) of what a stage has left."""
    if (OUT / name / "record.json").exists():
        record = json.loads((OUT / name / "record.json").read_text())
        last = record["rounds"][-1] if "rounds" in record else None
        parameters = last["parameters"] if last else record["parameters"]
        accuracy = last["after_training"] if last else record["best"]["validation_accuracy"]
        return label, 4 * parameters, accuracy
    record = json.loads((OUT / f"{name}.json").read_text())
    return label, record["file_bytes"], record["validation_accuracy_after"]


def main(argv=None):
    parser(__doc__).parse_args(argv)
    for folder in (TOY, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        draw_data(TOY, clutter=0.6)
    except OSError as error:
        raise UserError(f"cannot draw into {TOY}: {error.strerror or error}; choose another folder") from None
    for _, command, name in STAGES:
        measured = (
            f" --data {TOY} --cache none --record {OUT}/{name}.json" if command.startswith("quantize") else ""
        )
        perform(command + measured)
    prediction, model = OUT / "prediction.csv", OUT / "model.bin"
    print(f"\n$ bash hw7_test.sh {TOY} {prediction} --model {model}", flush=True)
    command = ["bash", ROOT / "hw7_test.sh", TOY, prediction, "--model", model]
    if status := subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}).returncode:
        raise SystemExit(status)
    print(
        f"\n{'toy pictures, chance ' + format(1 / CLASSES, '.1%'):52}{'bytes':>10}{'validation accuracy':>21}"
    )
    for label, size, accuracy in (row(label, name) for label, _, name in STAGES if label):
        print(f"{label:52}{size:>10,}{accuracy:>21.1%}")
    accuracy, count = score(TOY, prediction)
    print(f"the last one on {count} testing pictures, by hw7_test.sh: {accuracy:.1%}")
    return 0


if __name__ == "__main__":
    run(main)
