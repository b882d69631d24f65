"""Pruning in rounds: the plan of all rounds, the pruning itself, and the training after it."""

import argparse
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace

import torch

from compression import distributed
from compression.command_line import UserError, number, tell
from compression.data.plausibility import CHOICES, HELP
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import Model, predicted_file_bytes
from compression.files.records import file_hash, provenance, write_record
from compression.networks.registry import build, count_macs, count_parameters
from compression.options import load_splits
from compression.quantization.grids import Scheme
from compression.training.distillation import build_distillation
from compression.training.evaluation import evaluate
from compression.training.loop import fit, quantize_command
from compression.training.recipe import Settings, one_of, setting
from compression.training.run_folder import check_same, write_checkpoint
from compression.training.teachers import check_teachers


@dataclass(frozen=True)
class Pruning:
    """What is pruned first: keys of a recipe."""

    criterion: str = setting(
        "abs-gamma",
        one_of("abs-gamma", "signed-gamma", "random"),
        "ranks channels by |gamma|, by gamma as in the course, or randomly",
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
    """An argparse type: "bytes=200000" -> ("bytes", 200000), or "parameters=N"."""
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
        """The Description after round `index`, which keeps this fraction of the original network."""
        before = self.model.description
        origin = {
            "script": "prune.py",
            "mode": self.options.mode,
            "round": index,
            "kept": round(fraction, 6),
            "seed": self.settings.seed,
            "view_size": self.settings.view_size or self.preprocessing.size,
        }
        if self.options.mode != "none":
            origin["epochs"] = self.settings.epochs
        origin["before"] = before.training
        for key in ("transductive", "validation_share"):
            if before.training.get(key):
                origin[key] = before.training[key]
        return Description.of(before.architecture, arguments, before.class_names, self.preprocessing, origin)


def size_of(description, key):
    """Parameters, MACs, or bytes of a model file at 8 bits per weight before entropy coding."""
    if key == "bytes":
        return predicted_file_bytes(description, Scheme(8, "channel", "mse"))
    name, arguments = description.architecture, description.arguments
    if key == "macs":
        return count_macs(name, description.preprocessing.size, **arguments)
    with torch.device("meta"):
        return count_parameters(build(name, **arguments))


def measure(description):
    """All sizes of a described network."""
    return {key: size_of(description, key) for key in ("parameters", "bytes", "macs")}


def find_fractions(method, task):
    """The fraction after each round: every round keeps the same share, and the last is the largest that fits.

    The start is the network's current fraction, below 1 where layers are already factorised. Raises UserError
    where no fraction fits, or the unpruned network already fits.
    """
    options = task.options
    key, target = options.target
    flag = f"--target {key}={target}"

    def size(fraction, key):
        return size_of(task.describe(method.arguments(fraction), options.rounds, fraction), key)

    def largest(limit, key):
        return steps[max(0, bisect_right(steps, limit, key=lambda step: size(step, key)) - 1)]

    # int(C * (n / C)) alone may be n - 1
    steps = [1e-9, *(min(1.0, step + 1e-9) for step in sorted(method.steps()))]
    described = replace(task.model.description, preprocessing=task.preprocessing)
    present = min(size(steps[-1], key), size_of(described, key))  # factors are smaller than the whole
    if present <= target:
        raise UserError(f"{flag} is already met: {options.checkpoint} has {present:,} {key}; lower it")
    least = size(steps[0], key)
    if least > target:
        kept = "at rank 1" if options.mode == "lowrank" else f"at floor={options.floor}"
        advice = "raise it"
        if options.floor > 1:
            advice += " or lower floor"
        if options.scope != "all":
            advice += " or widen --scope"
        raise UserError(f"{flag} is less than the {least:,} {key} with every layer {kept}; {advice}")
    last = largest(target, key)
    first = max(last, largest(size_of(described, "parameters"), "parameters"))
    return [first * (last / first) ** (index / options.rounds) for index in range(1, options.rounds)] + [last]


def read_record(path, resume):
    """The record of the rounds that earlier calls finished; None where there is none."""
    if not path.exists():
        if (path.parent / "last.pt").exists():
            raise UserError(f"{path.parent} holds a training run (last.pt); choose another --out")
        return None
    try:
        record = json.loads(path.read_text())
        _ = dict(record["pruning"]), float(record["validation_accuracy"])
        _ = [(done["round"], done["after_training"]) for done in record["rounds"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or no record of prune.py; choose another --out") from None
    if not resume:
        raise UserError(
            f"{path.parent} already holds a run ({path.name}); add --resume to continue it or choose "
            "another --out"
        )
    return record


def make_plan(method, task):
    """(fraction of the original that each round keeps, rows for the unpruned network and for each round).

    Also prints them.
    """
    options, source = task.options, task.model.description
    if options.rate:
        fractions = [options.rate**index for index in range(1, options.rounds + 1)]
    else:
        fractions = find_fractions(method, task)
    plan = [{"round": 0, "kept": 1.0, **measure(replace(source, preprocessing=task.preprocessing))}]
    for index, fraction in enumerate(fractions, 1):
        arguments = method.arguments(fraction)
        sizes = measure(task.describe(arguments, index, fraction))
        changed = {name: value for name, value in arguments.items() if value != source.arguments.get(name)}
        plan.append({"round": index, "kept": fraction, **sizes, "arguments": changed})
    before, after = plan[0]["parameters"], plan[1]["parameters"]
    if after > before:
        raise UserError(
            f"{options.checkpoint} already has low-rank layers, and {fractions[0]:.3g} of the full ranks "
            f"would enlarge it from {before:,} to {after:,} parameters; use a smaller --rate"
        )
    if after == before:
        way = "lower --rate"
        if options.target:
            way = "use fewer --rounds"
        elif options.floor > 1 and options.rate < 1:
            way = "lower floor in --recipe"
        tell(f"note: the first round removes nothing; {way} if it is to")
    print(f"{options.checkpoint}: {source.architecture}, {task.preprocessing.size} px")
    print(*method.table(fractions), sep="\n")
    print(f"{'round':>5}{'kept':>8}{'parameters':>13}{'bytes, 8 bits':>15}{'MACs':>16}")
    for row in plan:
        print(f"{row['round']:>5}{row['kept']:>8.4f}{row['parameters']:>13,}", end="")
        print(f"{row['bytes']:>15,}{row['macs']:>16,}")
    return fractions, plan


def prune(method, task, fractions, plan, record, teachers, early=None):
    """Prune and train, round by round; OUT/record.json is updated after every round.

    record: that of earlier calls, or None. early: the Model whose weights every round starts from, instead of
    those of the round before.
    """
    options, settings, model, preprocessing = task.options, task.settings, task.model, task.preprocessing
    device, path = task.device, options.out / "record.json"
    training, validation = load_splits(options, preprocessing, f"{settings.precision} on {device}", model)
    data = {"training": training.fingerprint, "validation": validation.fingerprint}
    teachers, teacher_records = check_teachers(teachers, options, validation, preprocessing, device)
    chosen = describe_choices(options, fractions, teacher_records)
    begun = {**chosen, "preprocessing": preprocessing.to_dict(), "settings": asdict(settings), "data": data}
    begun = json.loads(json.dumps(begun))
    loss = None
    if teachers:
        loss = build_distillation(
            options, teachers, teacher_records, preprocessing, settings, training, cache=False
        )

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
            "teachers": teacher_records,
            "plan": plan,
            "validation_accuracy": accuracy(model.build()),
            "rounds": [],
        }
        write_record(path, record)
    print(f"validation accuracy {record['validation_accuracy']:.4f} before pruning")
    before = record["validation_accuracy"]
    for index, fraction in enumerate(fractions, 1):
        folder = options.out / f"round{index}"
        if index <= len(record["rounds"]):
            print(f"round {index} is already finished")
            model, early = load_model(folder / "best.pt"), early and load_model(folder / "early.pt")
            before = record["rounds"][index - 1]["after_training"]
            continue
        arguments, network = method.cut(model, fraction, index, early)
        description = task.describe(arguments, index, fraction)
        if any(one.get("transductive") for one in teacher_records):
            description.training["transductive"] = True
        row = {"round": index, "kept": fraction, **measure(description)}
        row["arguments"] = description.to_dict()["arguments"]
        row["before_cut"], row["after_cut"] = before, accuracy(network)
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
            network.requires_grad_(True)
            run = settings, folder, device, loss, options.resume
            details = {"pruning": {**chosen, **row}, "teachers": teacher_records}
            trained = fit(network, description, training, validation, *run, details=details)
            row["after_training"] = trained["best"]["validation_accuracy"]
            row |= {key: trained[key] for key in ("seconds", "history")}
        before = row["after_training"]
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
        compared = ("sha256", "size", "normalisation")
        teacher_records = [{key: one[key] for key in compared if key in one} for one in teachers]
        chosen |= {"teachers": teacher_records, "alpha": options.alpha, "temperature": options.temperature}
    return chosen
