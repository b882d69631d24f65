"""Make a trained network smaller: remove channels by their BN gamma, or factorise layers, and fine-tune what
is left.

    python prune.py runs/student/best.pt food-11 --rate 0.9 --rounds 5 --scope 3-6
    python prune.py runs/student/best.pt --target-bytes 200000 --dry-run
    python prune.py runs/kd/best.pt food-11 --rate 0.8 --teacher teacher_resnet18.bin --epochs 30
    python prune.py runs/student/best.pt food-11 --mode lowrank --rank-ratio 0.4

Round k of K keeps int(C * rate^k) of the C channels that a layer had at first. The plan is printed before
anything is done. Every round leaves the files of a training run in OUT/round1, OUT/round2, ...: best.pt is an
ordinary checkpoint, for quantize.py, inference.py or the next pruning. OUT/record.json tells sizes and
accuracies.
"""

import argparse
import hashlib
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.data.preprocessing import Preprocessing
from compression.files.atomic import check_output, locked
from compression.files.loading import load_model
from compression.files.model_file import Description, Model, predicted_file_bytes
from compression.files.records import provenance, write_record
from compression.options import (
    add_cache,
    add_optimisation,
    add_run,
    add_views,
    class_names_of,
    load_splits,
    read_settings,
    validation_accuracy,
)
from compression.pruning.channels import CRITERIA
from compression.pruning.methods import ByGamma, ByRank
from compression.quantization.grids import Scheme
from compression.training.distillation import (
    Distillation,
    add_distillation,
    check_distillation,
    check_teachers,
    read_teachers,
)
from compression.training.loop import evaluate, fit, quantize_command
from compression.training.run_folder import Settings, write_checkpoint
from models import build, check_size, count_macs, count_parameters


@dataclass(frozen=True)
class Task:
    """What is to be done to which network, with what."""

    options: argparse.Namespace
    model: Model
    preprocessing: Preprocessing
    device: torch.device
    settings: Settings

    def describe(self, arguments, index, fraction):
        """The Description of the network with these arguments after round `index`, which keeps a fraction of
        the original.
        """
        before = self.model.description
        origin = {
            "script": "prune.py",
            "mode": self.options.mode,
            "round": index,
            "kept": round(fraction, 6),
            "seed": self.settings.seed,
            "view_size": self.settings.view_size or self.preprocessing.size,
            **({"epochs": self.settings.epochs} if self.options.mode != "none" else {}),
            "before": before.training,
            **{
                key: before.training[key]
                for key in ("transductive", "validation_share")
                if before.training.get(key)
            },
        }
        return Description.of(before.architecture, arguments, before.class_names, self.preprocessing, origin)


def measure(description, keys=("parameters", "bytes", "macs")):
    """Parameters, bytes of a model file at 8 bits per weight before its entropy coding, and MACs of what a
    description describes.
    """
    with torch.device("meta"):
        network = build(description.architecture, **description.arguments)
    folded = replace(description, arguments={**description.arguments, "folded": True})
    sizes = {
        "parameters": lambda: count_parameters(network),
        "bytes": lambda: predicted_file_bytes(folded, Scheme(8, "channel", "mse")),
        "macs": lambda: count_macs(
            description.architecture, description.preprocessing.size, **description.arguments
        ),
    }
    return {key: sizes[key]() for key in keys}


def find_fractions(method, task):
    """What each round keeps: in the last the most that fits --target-params or --target-bytes, and every
    round the same share till there.

    The first round starts from the fraction that the network is at, below 1 where layers are factorised
    already. Raises UserError where no fraction fits, or the network does as it is.
    """
    options = task.options
    flag, key, target = (
        ("--target-params", "parameters", options.target_params)
        if options.target_params
        else ("--target-bytes", "bytes", options.target_bytes)
    )

    def size(fraction, key=key):
        return measure(task.describe(method.arguments(fraction), options.rounds, fraction), [key])[key]

    def largest(limit, key):
        return steps[max(0, bisect_right(steps, limit, key=lambda fraction: size(fraction, key)) - 1)]

    steps = [
        1e-9,
        *(min(1.0, step + 1e-9) for step in sorted(method.steps())),
    ]  # int(C * (n / C)) alone may be n - 1
    now = measure(replace(task.model.description, preprocessing=task.preprocessing), ["parameters", key])
    present = min(size(steps[-1]), now[key])  # factors are smaller than the whole
    if present <= target:
        raise UserError(
            f"{flag} {target:,} is met already: {options.checkpoint} has {present:,} {key}; lower it"
        )
    if size(steps[0]) > target:
        least = "at rank 1" if options.mode == "lowrank" else f"at --floor {options.floor}"
        ways = [
            "raise it",
            *(["lower --floor"] if options.floor > 1 else []),
            *(["widen --scope"] if options.scope != "all" else []),
        ]
        raise UserError(
            f"{flag} {target:,} is less than the {size(steps[0]):,} {key} that are left with every layer "
            f"{least}; " + " or ".join(ways)
        )
    last = largest(target, key)
    first = max(last, largest(now["parameters"], "parameters"))
    return [first * (last / first) ** (index / options.rounds) for index in range(1, options.rounds)] + [last]


def read_options(argv):
    """The command line, checked for contradictions."""
    command = parser(__doc__)
    command.add_argument("checkpoint", type=Path, help="best.pt of a training script, or a model file")
    command.add_argument(
        "data",
        type=Path,
        nargs="?",
        help="root that holds training/ and validation/; not needed for --dry-run",
    )
    group = command.add_argument_group("pruning")
    size = group.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--rate",
        type=number(float, 0, 1, open_low=True),
        metavar="R",
        help="share of the channels that a round keeps",
    )
    size.add_argument(
        "--rank-ratio",
        type=number(float, 0, 1, open_low=True),
        metavar="R",
        help="share of the full rank that a round keeps, with --mode lowrank",
    )
    size.add_argument(
        "--target-params",
        type=number(int, 1),
        metavar="N",
        help="find the largest share with at most N parameters after the last round",
    )
    size.add_argument(
        "--target-bytes",
        type=number(int, 1),
        metavar="N",
        help="find the largest share that fits a model file of N bytes at 8 bits",
    )
    group.add_argument(
        "--rounds",
        type=number(int, 1, 100),
        default=1,
        metavar="K",
        help="cuts, each by the same share, with training after each",
    )
    group.add_argument(
        "--mode",
        choices=("none", "finetune", "retrain", "lowrank"),
        default="finetune",
        help="after a cut: nothing, train on, or train again from --seed; "
        "lowrank: factorise layers in place of cutting channels, then train on",
    )
    group.add_argument(
        "--criterion",
        choices=CRITERIA,
        default=CRITERIA[0],
        help="what ranks channels: |gamma|, gamma as in the course, or chance",
    )
    group.add_argument(
        "--ranking",
        choices=("layer", "global"),
        default="layer",
        help="the share holds in every layer, or over all of them by one threshold: "
        "on gamma, or on what a rank is worth",
    )
    group.add_argument(
        "--scope", default="all", metavar="STAGES", help="stages of the plan, e.g. 3-6 as in the course"
    )
    group.add_argument(
        "--floor", type=number(int, 1), default=1, metavar="N", help="least channels of a layer"
    )
    add_distillation(command, required=False)
    group = add_normalisation(command.add_argument_group("data"))
    group.add_argument(
        "--size",
        type=number(int, 16, 4096),
        metavar="PIXELS",
        help="input size (default: the checkpoint's); views are no larger, unless --view-size says so",
    )
    add_views(group)
    add_cache(group)
    add_optimisation(command, epochs=20)
    add_run(
        command,
        out="runs/pruned",
        dry_run="print the plan, then exit; no photo is read and nothing is written",
    )
    command.set_defaults(label_smoothing=None)
    options = command.parse_args(argv)
    check_distillation(command, options)
    if (options.rank_ratio is not None and options.mode != "lowrank") or (
        options.rate is not None and options.mode == "lowrank"
    ):
        raise UserError(
            "--rank-ratio goes with --mode lowrank and --rate with the other modes; use the one that fits "
            "--mode"
        )
    if options.mode == "lowrank" and (options.scope, options.criterion, options.floor) != (
        "all",
        CRITERIA[0],
        1,
    ):
        raise UserError(
            "--scope, --criterion and --floor are about channels and --mode lowrank removes none; leave "
            "them out"
        )
    if options.ranking == "global" and options.rounds > 1 and not options.rate and options.mode != "lowrank":
        raise UserError(
            "--ranking global finds the widths of a round only after the training of the one before, so no "
            "target "
            "can be planned; use --rounds 1 or --ranking layer"
        )
    if options.teacher and options.mode == "none":
        raise UserError("--teacher is for training and --mode none trains nothing; leave one of them out")
    if options.teacher and options.label_smoothing:
        raise UserError(
            "--label-smoothing is for labels, and the teacher's outputs are soft already; leave it out"
        )
    if not options.data and not options.dry_run:
        raise UserError("name the data directory after the checkpoint; only --dry-run works without photos")
    if options.label_smoothing is None:
        options.label_smoothing = 0.0 if options.teacher else Settings().label_smoothing
    return options


def check_same(before, now, path):
    """UserError if a record was begun with other settings."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                check_same(old, new, path)
            raise UserError(
                f"{path} was begun with {key} = {old} and this command means {new}; "
                "repeat the first command with --resume, or choose another --out"
            )


def read_record(path, resume):
    """The record of the rounds that earlier calls finished; None where there is none."""
    if not path.exists() and (path.parent / "last.pt").exists():
        raise UserError(
            f"{path.parent} holds a training run (last.pt), whose record would be overwritten; choose "
            "another --out"
        )
    if not path.exists():
        return None
    if not resume:
        raise UserError(
            f"{path.parent} already holds a run ({path.name}); add --resume to continue it or choose "
            "another --out"
        )
    try:
        record = json.loads(path.read_text())
        _ = dict(record["pruning"]), float(record["validation_accuracy"])
        _ = [(done["round"], done["after_training"]) for done in record["rounds"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or no record of a pruning; choose another --out") from None
    return record


def make_plan(method, task):
    """(fraction of the original that each round keeps, a row for the network of now and for each round);
    printed as well.
    """
    options, source = task.options, task.model.description
    rate = options.rate or options.rank_ratio
    fractions = (
        [rate**index for index in range(1, options.rounds + 1)] if rate else find_fractions(method, task)
    )
    plan = [{"round": 0, "kept": 1.0, **measure(replace(source, preprocessing=task.preprocessing))}]
    for index, fraction in enumerate(fractions, 1):
        arguments = method.arguments(fraction)
        changed = {name: value for name, value in arguments.items() if value != source.arguments.get(name)}
        plan.append(
            {
                "round": index,
                "kept": fraction,
                **measure(task.describe(arguments, index, fraction)),
                "arguments": changed,
            }
        )
    if plan[1]["parameters"] > plan[0]["parameters"]:
        raise UserError(
            f"{options.checkpoint} has low-rank layers already, and {fractions[0]:.3g} of the full ranks "
            "would "
            f"enlarge it from {plan[0]['parameters']:,} to {plan[1]['parameters']:,} parameters; use a "
            "smaller --rank-ratio"
        )
    print(
        f"{options.checkpoint}: {source.architecture}, {task.preprocessing.size} px",
        *method.table(fractions),
        sep="\n",
    )
    print(f"{'round':>5}{'kept':>8}{'parameters':>13}{'bytes, 8 bits':>15}{'MACs':>16}")
    for row in plan:
        print(
            f"{row['round']:>5}{row['kept']:>8.4f}{row['parameters']:>13,}{row['bytes']:>15,}{row['macs']:>16,}"
        )
    return fractions, plan


def prune(method, task, fractions, plan, record, teachers):
    """Cut and train, round by round, with the Teachers if there are any; the record (of earlier calls, or
    None) is kept up to date in OUT/record.json.
    """
    options, settings, model, preprocessing, device = (
        task.options,
        task.settings,
        task.model,
        task.preprocessing,
        task.device,
    )
    path = options.out / "record.json"
    training, validation = load_splits(options, preprocessing, f"{settings.precision} on {device}", model)
    data = {"training": training.fingerprint, "validation": validation.fingerprint}
    teachers, told = check_teachers(teachers, options, validation, preprocessing, device)
    chosen = {
        "checkpoint": hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()[:16],
        "mode": options.mode,
        "ranking": options.ranking,
        "kept": fractions,
    }
    if options.mode != "lowrank":
        chosen |= {"criterion": options.criterion, "scope": options.scope, "floor": options.floor}
    if teachers:
        chosen |= {
            "teachers": [{key: one[key] for key in ("sha256", "size")} for one in told],
            "alpha": options.alpha,
            "temperature": options.temperature,
        }
    begun = json.loads(
        json.dumps(
            {**chosen, "preprocessing": preprocessing.to_dict(), "settings": asdict(settings), "data": data}
        )
    )

    def accuracy(network):
        return evaluate(
            network.to(device, memory_format=torch.channels_last),
            validation.to(device),
            preprocessing,
            device,
            whose="the network",
        )[1]

    if record:
        check_same(record["pruning"], begun, path)
    else:
        record = {
            **provenance(device, settings.seed, data),
            "model": model.description.to_dict(),
            "pruning": begun,
            "teachers": told,
            "plan": plan,
            "validation_accuracy": accuracy(model.build()),
            "rounds": [],
        }
        write_record(path, record)
    print(f"validation accuracy {record['validation_accuracy']:.4f} before the first cut")
    for index, fraction in enumerate(fractions, 1):
        folder = options.out / f"round{index}"
        if index <= len(record["rounds"]):
            print(f"round {index} is finished already")
            model = load_model(folder / "best.pt")
            continue
        before = record["rounds"][-1]["after_training"] if record["rounds"] else record["validation_accuracy"]
        arguments, network = method.cut(model, fraction, index)
        description = task.describe(arguments, index, fraction)
        if any(one.get("transductive") for one in told):
            description.training["transductive"] = True
        row = {
            "round": index,
            "kept": fraction,
            **measure(description),
            "arguments": description.to_dict()["arguments"],
            "before_cut": before,
            "after_cut": accuracy(network),
        }
        print(
            f"round {index}: validation accuracy {before:.4f} -> {row['after_cut']:.4f} "
            f"by the cut to {row['parameters']:,} parameters",
            flush=True,
        )
        if options.mode == "none":
            write_checkpoint(folder / "best.pt", description, network.state_dict())
            row["after_training"] = row["after_cut"]
        else:
            torch.manual_seed(settings.seed)
            if options.mode == "retrain":
                network = build(description.architecture, **description.arguments)
            loss = (
                Distillation(teachers, preprocessing, options.alpha, options.temperature, settings.precision)
                if teachers
                else None
            )
            trained = fit(
                network.requires_grad_(True),
                description,
                training,
                validation,
                settings,
                folder,
                device,
                loss,
                resume=options.resume,
                details={"pruning": {**chosen, **row}, "teachers": told},
            )
            row |= {
                "after_training": trained["best"]["validation_accuracy"],
                "seconds": trained["seconds"],
                "history": trained["history"],
            }
        record["rounds"].append(row)
        write_record(path, record)
        model = load_model(folder / "best.pt")
    print(f"{'round':>5}{'parameters':>13}{'before':>9}{'cut':>9}{'after':>9}")
    for row in record["rounds"]:
        print(
            f"{row['round']:>5}{row['parameters']:>13,}{row['before_cut']:>9.4f}{row['after_cut']:>9.4f}{row['after_training']:>9.4f}"
        )
    print(f"wrote {path} and {folder / 'best.pt'}; next: {quantize_command(folder)}")


def main(argv=None):
    options = read_options(argv)
    device = pick_device(options.device)
    model = load_model(options.checkpoint)
    teachers = []
    if options.teacher:
        teachers = read_teachers(
            options, class_names_of(options, model), model.description.preprocessing.channels, device
        )
    model = settle_normalisation(
        model, options.normalisation, validation_accuracy(options, device) if options.data else None
    )
    preprocessing = replace(
        model.description.preprocessing, size=options.size or model.description.preprocessing.size
    )
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
    with locked(options.out):
        prune(method, task, fractions, plan, record, teachers)
    return 0


if __name__ == "__main__":
    run(main)
