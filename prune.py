"""Prune a trained network: remove channels by their BN gamma, or factorise layers, then fine-tune.

    python prune.py runs/student/best.pt food-11 --rate 0.9 --rounds 5 --scope 3-6
    python prune.py runs/student/best.pt --target bytes=200000 --dry-run
    python prune.py runs/kd/best.pt food-11 --rate 0.8 --teacher teacher_resnet18.bin --epochs 30
    python prune.py runs/student/best.pt food-11 --mode lowrank --rate 0.4
    python prune.py runs/student/best.pt food-11 --rate 0.8 --mode rewind --rewind-to runs/student/epoch3.pt

Round k of K keeps int(C * rate^k) of a layer's C original channels; --target finds the largest rate for so
many parameters, or bytes at 8 bits per weight. The plan is printed first. Every round writes the files of a
training run to OUT/round1, OUT/round2, ...: best.pt is an ordinary checkpoint, for quantize.py, inference.py
or another pruning. OUT/record.json stores sizes and accuracies.

After pruning, --mode finetune continues training; with the --epochs and lr of the original training this is
learning-rate rewinding (Renda et al. 2020). --mode rewind resets the weights to those of an early epoch
(Frankle et al. 2020), which a training script saves with --recipe keep_epoch=N. --mode retrain starts from a
new initialisation (--seed).
"""

from dataclasses import fields, replace
from pathlib import Path

from compression.command_line import UserError, number, parser, pick_device, run, tell
from compression.data.plausibility import settle_normalisation
from compression.files.atomic import check_output, locked
from compression.files.loading import load_model
from compression.networks.registry import check_size
from compression.options import (
    add_cache,
    add_length,
    add_run,
    class_names_of,
    read_settings,
    validation_accuracy,
)
from compression.pruning.methods import ByGamma, ByRank
from compression.stages.pruning import Pruning, Task, make_plan, parse_target, prune, read_record
from compression.training.distillation import Teaching, add_teachers, check_teaching
from compression.training.recipe import PIXELS, add_recipe, read_recipe
from compression.training.teachers import read_teachers


def read_options(argv):
    """The parsed command line, checked for contradictions."""
    command = parser(__doc__)
    text = "best.pt of a training script, or a model file (its BN is folded, so only --mode lowrank)"
    command.add_argument("checkpoint", type=Path, help=text)
    command.add_argument(
        "data", type=Path, nargs="?", help="folder with training/ and validation/; not needed for --dry-run"
    )
    group = command.add_argument_group("pruning")
    size = group.add_mutually_exclusive_group(required=True)
    share = number(float, 0, 1, open_low=True)
    size.add_argument("--rate", type=share, metavar="R", help="share of channels or ranks a round keeps")
    size.add_argument(
        "--target", type=parse_target, metavar="WHAT=N", help="limit at the end: parameters=N or bytes=N"
    )
    group.add_argument(
        "--rounds", type=number(int, 1, 100), default=1, metavar="K", help="rounds of pruning and training"
    )
    group.add_argument(
        "--mode",
        choices=("none", "finetune", "retrain", "rewind", "lowrank"),
        default="finetune",
        help="after pruning: no training, fine-tuning, training from a new initialisation, or training from "
        "the weights of --rewind-to; lowrank: factorise layers instead of removing channels, then fine-tune",
    )
    group.add_argument("--rewind-to", type=Path, metavar="FILE", help="epochN.pt for --mode rewind")
    group.add_argument(
        "--scope",
        default="all",
        metavar="STAGES",
        help="stages to prune, e.g. 3-6, as --dry-run numbers them",
    )
    group = command.add_argument_group("training")
    add_teachers(group)
    add_length(group, "prune.py")
    without = ("views", "qat_granularity", "keep_epoch", "stop_epoch")
    add_recipe(group, "prune.py", Teaching, Pruning, without=without)
    group.add_argument("--size", type=PIXELS, help="input size in pixels (default: the checkpoint's)")
    add_cache(group)
    add_run(command, "runs/pruned", dry_run="print the plan, then exit; no photo is read, nothing is written")
    options = read_recipe(command, argv)
    options.views = 0
    check_teaching(options)
    if (options.mode == "rewind") != bool(options.rewind_to):
        raise UserError("--mode rewind and --rewind-to epochN.pt need each other; give both or neither")
    lowrank = options.mode == "lowrank"
    for name in ("scope", "criterion", "floor"):
        if lowrank and (name in options.chosen or (name == "scope" and options.scope != "all")):
            raise UserError(f"{name} is for channels, and --mode lowrank removes none; leave it out")
    if options.ranking == "global" and options.rounds > 1 and options.target and not lowrank:
        raise UserError(
            "with ranking=global a round's widths depend on the training before it, which --target cannot "
            "foresee; use --rounds 1 or ranking=layer"
        )
    if options.teacher and options.mode == "none":
        raise UserError("--teacher is for training and --mode none trains nothing; leave one of them out")
    if options.teacher and options.chosen.get("label_smoothing"):
        raise UserError("with --teacher, whose outputs are soft already, label_smoothing must be left out")
    if not options.data and not options.dry_run:
        raise UserError("name the data directory after the checkpoint; only --dry-run needs no photos")
    options.label_smoothing = 0.0 if options.teacher else options.label_smoothing
    return options


def read_early(options, model):
    """The Model of --rewind-to, or None; UserError unless it is the network to be pruned."""
    if not options.rewind_to:
        return None
    if not options.rewind_to.exists():
        raise UserError(
            f"there is no {options.rewind_to}; train with --recipe keep_epoch=N to save epochN.pt"
        )
    early = load_model(options.rewind_to)
    early.build()
    if early.description.arguments != model.description.arguments:
        raise UserError(
            f"{options.rewind_to} holds another network than {options.checkpoint}; name an epochN.pt of its "
            "training"
        )
    return early


def main(argv=None):
    options = read_options(argv)
    device = pick_device(options.device)
    model, teachers = load_model(options.checkpoint), []
    early = read_early(options, model)
    if options.data:
        names, channels = class_names_of(options, model), model.description.preprocessing.channels
        teachers = read_teachers(options, names, channels, device)
    accuracy_of = validation_accuracy(options, device) if options.data else None
    model = settle_normalisation(model, options.normalisation, accuracy_of, "--recipe normalisation=")
    preprocessing = model.description.preprocessing
    preprocessing = replace(preprocessing, size=options.size or preprocessing.size)
    network = model.build()
    check_size(network, preprocessing.size)
    task = Task(options, model, preprocessing, device, read_settings(options, device, model.description))
    method = (ByRank if options.mode == "lowrank" else ByGamma)(model, network, options)
    fractions, plan = make_plan(method, task)
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    record = read_record(options.out / "record.json", options.resume)
    check_output(options.out / "record.json")
    used = {"view_size", "augment", *(field.name for field in fields(Pruning))}
    unused = sorted(options.chosen.keys() - used)
    if options.mode == "none" and unused:
        tell(f"note: --mode none trains nothing, so these are not used: {', '.join(unused)}")
    with locked(options.out):
        prune(method, task, fractions, plan, record, teachers, early)
    return 0


if __name__ == "__main__":
    run(main)
