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
TOY, OUT = Path("toy_food11"), Path("runs/demo")
TRAIN = "--cache none --recipe ema=0.98 augment=light batch_size=32"
STUDENT = f"--network student --set widths=8,8,16,16,24,24,24,24 --size 64 --epochs 14 {TRAIN} lr=0.01"
TEACHER, KD = f"--teacher {OUT}/teacher/best.pt", f"{OUT}/kd/best.pt"
STAGES = (  # (what the table says, "" for no row; name of what the stage leaves; its command)
    ("teacher: residual6", "teacher", f"train_student.py {TOY} --size 64 --epochs 10 {TRAIN}"),
    ("small student from scratch", "scratch", f"train_student.py {TOY} {STUDENT}"),
    ("the same, distilled from the teacher", "kd", f"train_kd.py {TOY} {TEACHER} {STUDENT}"),
    ("that, pruned to 60 % and fine-tuned", "pruned", f"prune.py {KD} {TOY} --rate 0.6 --epochs 8 {TRAIN}"),
    ("the distilled one at 8 bits", "8bits", f"quantize.py {KD} --bits 8"),
    ("at 2 bits, rounded", "2bits", f"quantize.py {KD} --bits 2"),
    ("", "qat", f"train_kd.py {TOY} {TEACHER} --init {KD} --qat-bits 2 --epochs 10 {TRAIN}"),
    ("at 2 bits, by quantization-aware training", "model", f"quantize.py {OUT}/qat/best.pt"),
)


def with_output(name, command):
    """A stage's command, which leaves OUT/NAME/, or OUT/NAME.bin and its record."""
    if command.startswith("quantize.py"):
        return f"{command} {OUT}/{name}.bin --data {TOY} --cache none --record {OUT}/{name}.json"
    return f"{command} --out {OUT}/{name}"


def perform(command):
    """Print and run a command, `python` or `bash` with a script; SystemExit with its status if it fails."""
    print(f"\n$ {command}", flush=True)
    program, script, *words = shlex.split(command)
    program = sys.executable if program == "python" else program
    done = subprocess.run([program, ROOT / script, *words], env={**os.environ, "PYTHON": sys.executable})
    if done.returncode:
        raise SystemExit(done.returncode)


def measured(name):
    """(bytes, validation accuracy) of what a stage has left; 4 bytes for each parameter of a training."""
    path = OUT / name / "record.json"
    record = json.loads((path if path.exists() else OUT / f"{name}.json").read_text())
    if "file_bytes" in record:
        return record["file_bytes"], record["validation_accuracy_after"]
    if "rounds" in record:
        return 4 * record["rounds"][-1]["parameters"], record["rounds"][-1]["after_training"]
    return 4 * record["parameters"], record["best"]["validation_accuracy"]


def main(argv=None):
    parser(__doc__).parse_args(argv)
    for folder in (TOY, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        draw_data(TOY, clutter=0.6)
    except OSError as error:
        raise UserError(f"cannot draw into {TOY}: {error}; start this in another folder") from None
    for _, name, command in STAGES:
        perform(f"python {with_output(name, command)}")
    prediction = OUT / "prediction.csv"
    perform(f"bash hw7_test.sh {TOY} {prediction} --model {OUT}/model.bin")
    title = f"toy pictures, chance {1 / CLASSES:.1%}"
    print(f"\n{title:52}{'bytes':>10}{'validation accuracy':>21}")
    for label, name, _ in STAGES:
        if label:
            size, accuracy = measured(name)
            print(f"{label:52}{size:>10,}{accuracy:>21.1%}")
    accuracy, count = score(TOY, prediction)
    print(f"the last one on {count} testing pictures, by hw7_test.sh: {accuracy:.1%}")
    return 0


if __name__ == "__main__":
    run(main)
