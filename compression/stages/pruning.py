"""Pruning in rounds: the plan of all rounds, the pruning itself, and the training after it."""

import argparse
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace

import torch

from compression import distributed
from compression.command_line import UserError, number
from compression.data.plausibility import CHOICES, HELP
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import Model, predicted_file_bytes
from compression.files.records import file_hash, provenance, write_record
from compression.networks.registry import build, count_macs, count_parameters
from compression.options import load_splits
from compression.pruning.channels import CRITERIA
from compression.quantization.grids import Scheme
from compression.training.distillation import Distillation
from compression.training.evaluation import evaluate
from compression.training.loop import fit, quantize_command
from compression.training.losses import class_weights_of
from compression.training.recipe import Settings, one_of, setting
from compression.training.run_folder import check_same, write_checkpoint
from compression.training.teachers import check_teachers


@dataclass(frozen=True)
class Pruning:
    """What is pruned first: keys of a recipe."""

    criterion: str = setting(
        CRITERIA[0], one_of(*CRITERIA), "ranks channels by |gamma|, by gamma as in the course, or randomly"
    )
    ranking: str = setting(
        "layer",
        one_of("layer", "global"),
        "layer: every layer keeps the same share; global: one threshold for all layers, on gamma, or with "
        "--mode lowrank on the energy per parameter of a rank",
    )
    floor: int = setting(1, number(int, 1), "every layer keeps at least this many channels")
    normalisation: str = setting("auto", one_of(*CHOICES), f"of photos for the network, {HELP}")


def parse_target(text):
    """An argparse type: "bytes=200000" -> ("bytes", 200000), "parameters=68363" -> ("parameters", 68363)."""
    key, _, value = text.partition("=")
    if key not in ("bytes", "parameters"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither parameters=N nor bytes=N")
    return key, number(int, 1)(value)


@dataclass(frozen=True)
class Task:
    """A network to prune, with the options and settings."""

    options: argparse.Namespace
    model: Model
    preprocessing: Preprocessing
    device: torch.device
    settings: Settings

    def describe(self, arguments, index, fraction):
        """The Description of the network with these arguments after round `index`, which keeps this fraction
        of the original.
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
    """Parameters, bytes of a model file at 8 bits per weight before entropy coding, and MACs of a described
    network.
    """
    with torch.device("meta"):
        network = build(description.architecture, **description.arguments)
    sizes = {
        "parameters": lambda: count_parameters(network),
        "bytes": lambda: predicted_file_bytes(description, Scheme(8, "channel", "mse")),
        "macs": lambda: count_macs(
            description.architecture, description.preprocessing.size, **description.arguments
        ),
    }
    return {key: sizes[key]() for key in keys}


def find_fractions(method, task):
    """The fraction that each round keeps: the last is the largest that fits --target, and every round keeps
    the same share of the one before.

    The start is the network's current fraction, below 1 where layers are already factorised. Raises UserError
    where no fraction fits, or the unpruned network already fits.
    """
    options = task.options
    key, target = options.target
    flag = f"--target {key}={target}"

    def size(fraction, key=key):
        return measure(task.describe(method.arguments(fraction), options.rounds, fraction), [key])[key]

    def largest(limit, key):
        return steps[max(0, bisect_right(steps, limit, key=lambda fraction: size(fraction, key)) - 1)]

    # int(C * (n / C)) alone may be n - 1
    steps = [1e-9, *(min(1.0, step + 1e-9) for step in sorted(method.steps()))]
    now = measure(replace(task.model.description, preprocessing=task.preprocessing), ["parameters", key])
    present = min(size(steps[-1]), now[key])  # factors are smaller than the whole
    if present <= target:
        raise UserError(f"{flag} is already met: {options.checkpoint} has {present:,} {key}; lower it")
    if size(steps[0]) > target:
        least = "at rank 1" if options.mode == "lowrank" else f"at floor={options.floor}"
        ways = [
            "raise it",
            *(["lower floor"] if options.floor > 1 else []),
            *(["widen --scope"] if options.scope != "all" else []),
        ]
        raise UserError(
            f"{flag} is less than the {size(steps[0]):,} {key} of the network with every layer "
            f"{least}; " + " or ".join(ways)
        )
    last = largest(target, key)
    first = max(last, largest(now["parameters"], "parameters"))
    return [first * (last / first) ** (index / options.rounds) for index in range(1, options.rounds)] + [last]


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
        raise UserError(f"{path} is damaged or no record of prune.py; choose another --out") from None
    return record


def make_plan(method, task):
    """(fraction of the original that each round keeps, a row for the unpruned network and for each round);
    also prints them.
    """
    options, source = task.options, task.model.description
    rate = options.rate
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
            f"{options.checkpoint} already has low-rank layers, and {fractions[0]:.3g} of the full ranks "
            f"would enlarge it from {plan[0]['parameters']:,} to {plan[1]['parameters']:,} parameters; use "
            "a smaller --rate"
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


def prune(method, task, fractions, plan, record, teachers, early=None):
    """Prune and train, round by round, with the Teachers if there are any; OUT/record.json is updated after
    every round.

    record: that of earlier calls, or None. early: the Model whose weights every round starts from, instead of
    those of the round before.
    """
    options, settings, model, preprocessing = task.options, task.settings, task.model, task.preprocessing
    device, path = task.device, options.out / "record.json"
    training, validation = load_splits(options, preprocessing, f"{settings.precision} on {device}", model)
    data = {"training": training.fingerprint, "validation": validation.fingerprint}
    teachers, told = check_teachers(teachers, options, validation, preprocessing, device)
    chosen = describe_choices(options, fractions, told)
    begun = {**chosen, "preprocessing": preprocessing.to_dict(), "settings": asdict(settings), "data": data}
    begun = json.loads(json.dumps(begun))

    def accuracy(network):
        network = network.to(device, memory_format=torch.channels_last)
        return evaluate(network, validation.to(device), preprocessing, device, whose="the network").accuracy

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
    print(f"validation accuracy {record['validation_accuracy']:.4f} before pruning")
    for index, fraction in enumerate(fractions, 1):
        folder = options.out / f"round{index}"
        if index <= len(record["rounds"]):
            print(f"round {index} is already finished")
            model, early = load_model(folder / "best.pt"), early and load_model(folder / "early.pt")
            continue
        before = record["rounds"][-1]["after_training"] if record["rounds"] else record["validation_accuracy"]
        arguments, network = method.cut(model, fraction, index, early)
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
            f"by pruning to {row['parameters']:,} parameters",
            flush=True,
        )
        if early:
            write_checkpoint(folder / "early.pt", description, network.state_dict())
            distributed.wait()
            early = load_model(folder / "early.pt")
        if options.mode == "none":
            write_checkpoint(folder / "best.pt", description, network.state_dict())
            row["after_training"] = row["after_cut"]
            distributed.wait()
        else:
            torch.manual_seed(settings.seed)
            if options.mode == "retrain":
                network = build(description.architecture, **description.arguments)
            teaching = preprocessing, options.alpha, options.temperature, settings.precision
            weights = class_weights_of(settings, training)
            trained = fit(
                network.requires_grad_(True),
                description,
                training,
                validation,
                settings,
                folder,
                device,
                Distillation(teachers, *teaching, class_weights=weights) if teachers else None,
                resume=options.resume,
                details={"pruning": {**chosen, **row}, "teachers": told},
            )
            row["after_training"] = trained["best"]["validation_accuracy"]
            row |= {key: trained[key] for key in ("seconds", "history")}
        record["rounds"].append(row)
        write_record(path, record)
        model = load_model(folder / "best.pt")
    print(f"{'round':>5}{'parameters':>13}{'before':>9}{'pruned':>9}{'trained':>9}")
    for row in record["rounds"]:
        accuracies = (row[key] for key in ("before_cut", "after_cut", "after_training"))
        print(f"{row['round']:>5}{row['parameters']:>13,}" + "".join(f"{one:>9.4f}" for one in accuracies))
    print(f"wrote {path} and {folder / 'best.pt'}; next: {quantize_command(folder)}")


def describe_choices(options, fractions, teachers):
    """The options of the pruning, as its record stores them; teachers: their records."""
    chosen = {
        "checkpoint": file_hash(options.checkpoint),
        "mode": options.mode,
        "ranking": options.ranking,
        "kept": fractions,
    }
    if options.mode != "lowrank":
        chosen |= {"criterion": options.criterion, "scope": options.scope, "floor": options.floor}
    if options.rewind_to:
        chosen["rewind_to"] = file_hash(options.rewind_to)
    if teachers:
        told = [{key: one[key] for key in ("sha256", "size")} for one in teachers]
        chosen |= {"teachers": told, "alpha": options.alpha, "temperature": options.temperature}
    return chosen
