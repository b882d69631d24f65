"""What the report's sections say: numbers and conclusions worked out from records, as text ready to be set.

A section is a function of the records it needs; text/NAME.typ holds its words and reads what the function returns as
r.NAME. No number reaches the page on another way. To add one: the function, a line in SECTIONS, the file of text, and
the part of the assignment that it answers in PARTS.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from architectures import DEFAULTS, architecture_table
from conclusions import compare, listed, mean_std, percent, points, sampling_error, seeds_text, together, verdict_text

PUBLISHED = json.loads((Path(__file__).resolve().parent / "published.json").read_text())


@dataclass(frozen=True)
class Section:
    """needs: records as "model.json", experiments as "pruning", folders as "input_size/". figures: functions of figures.py."""

    values: Callable
    needs: tuple
    figures: tuple = ()


# ---------------------------------------------------------------- what records hold


def best_accuracy(record):
    """Validation accuracy of what a record describes: a training's best epoch, a pruning's last round, a stored file."""
    if "best" in record:
        return record["best"]["validation_accuracy"]
    if "rounds" in record:
        return record["rounds"][-1]["after_training"]
    return record["validation_accuracy_after"]


def accuracies(records):
    """Of every seed's record."""
    return [best_accuracy(record) for record in records]


def photos_of(record):
    """Validation photos behind a training's record."""
    return record["photos"]["validation"]


def file_bytes(record):
    """Bytes of a stored file; records of format 1 have another name for it."""
    return record["file_bytes"] if "file_bytes" in record else record["packed_bytes"]


def input_pixels(record):
    """Input size of the network in a record."""
    return record["model"]["preprocessing"]["size"]


def view_pixels(record):
    """Size of the random views that a training saw."""
    return record["settings"].get("view_size") or input_pixels(record)


# ---------------------------------------------------------------- sections


def shipped(records):
    """The model that is handed in."""
    model, training = records["model.json"], records["model_training.json"]
    before, after, photos = model["validation_accuracy_before"], model["validation_accuracy_after"], model["validation_photos"]
    teachers, tuned = training.get("teachers") or [], model.get("fine_tuning")
    loss = compare([after], [before], photos)
    origin = training["model"]["training"]
    told = listed(["a teacher with " + percent(one["validation_accuracy"]) + " %" for one in teachers])
    how = f"by distillation from {told} (temperature {origin['temperature']:g}, weight of its answers {origin['alpha']:g})" if teachers else "from the labels alone"
    return {"network": model["architecture"], "parameters": f"{training['parameters']:,}", "pixels": str(input_pixels(model)), "trained_pixels": str(view_pixels(training)),
            "epochs": str(training["settings"]["epochs"]), "training_photos": f"{training['photos']['training']:,}", "photos": f"{photos:,}", "seed": str(training["seed"]),
            "how": how, "bits": str(model["bits"]), "vectors": str(model["vectors"]), "bytes": f"{file_bytes(model):,}", "raw_bytes": f"{model['raw_bytes']:,}",
            "share": percent(file_bytes(model) / model["raw_bytes"], 1), "spare": f"{300_000 - file_bytes(model):,}", "before": percent(before), "after": percent(after),
            "change": points(after - before), "sampling": percent(sampling_error(after, photos)), "loss": loss.to("the 32-bit network"),
            "tuned": f"{tuned['settings']['epochs']} epochs of training through the rounding" if tuned else "rounding only", "teachers": bool(teachers), "minutes": f"{training['seconds'] / 60:.0f}",
            "processor": training["device"].replace(", 1 threads", ", 1 thread"), "commands": [training["command"], model["command"]],
            "architecture": architecture_table(model["model"]) if model["architecture"] in DEFAULTS else []}


def scratch(records):
    """Our network against the course's student, trained alike."""
    runs = records["scratch"]
    names = {"student": "the course's student", "residual6_narrow": "ours, in no more parameters", "residual6": "ours"}
    first = runs["student"][0]
    count = {name: accuracies(group) for name, group in runs.items()}
    against = {name: compare(count[name], count["student"], photos_of(first)) for name in names if name != "student"}
    conclusion = verdict_text(against["residual6_narrow"], "At equal size the design itself is better", "At equal size and so few epochs the design makes no difference that could be told",
                              "At equal size the design itself is worse")
    return {"rows": [[names[name], name, f"{runs[name][0]['parameters']:,}", mean_std(count[name])] for name in names], "epochs": str(first["settings"]["epochs"]),
            "pixels": str(input_pixels(first)), "seeds": seeds_text(count["student"]), "narrow": against["residual6_narrow"].to("the student"), "wide": against["residual6"].to("it"),
            "conclusion": conclusion, "student": architecture_table(first["model"]), "ours": architecture_table(runs["residual6"][0]["model"])}


def pruned_or_small(records):
    """Question 1: a wider network pruned to the student's size against the student trained directly."""
    runs = records["pruned_or_small"]
    direct, wide, pruned = runs["direct"], runs["wide"], runs["pruned"]
    last = [record["rounds"][-1] for record in pruned]
    against = compare(accuracies(pruned), accuracies(direct), photos_of(direct[0]))
    conclusion = verdict_text(
        against, "pruning pays: what the wide network has learned survives the cut",
        "pruning buys nothing that could be told here, and the wide network costs more in every epoch before the cut",
        "pruning loses: the epochs are better spent on the small network itself")
    return {"wide_parameters": f"{wide[0]['parameters']:,}", "wide": mean_std(accuracies(wide)), "wide_epochs": str(wide[0]["settings"]["epochs"]),
            "cut": mean_std([one["after_cut"] for one in last]), "pruned": mean_std(accuracies(pruned)), "pruned_parameters": f"{last[0]['parameters']:,}",
            "pruned_epochs": str(pruned[0]["pruning"]["settings"]["epochs"]), "direct": mean_std(accuracies(direct)), "direct_parameters": f"{direct[0]['parameters']:,}",
            "direct_epochs": str(direct[0]["settings"]["epochs"]), "pixels": str(input_pixels(direct[0])), "seeds": seeds_text(direct), "kept": percent(last[0]["kept"], 0),
            "against": against.to("the one trained directly"), "conclusion": conclusion}


MODES = {"none": "cut only", "mistake1": "reference code's mistake, {} a round", "finetune1": "fine-tuned, {} a round", "finetune5": "fine-tuned, {} a round",
         "retrain5": "trained anew, {} a round", "once": "cut once, trained anew, {}"}


def mode_names(runs):
    """{mode: how the report calls it, with the epochs of its records}."""
    epochs = {variant.rpartition("_")[0]: group[0]["pruning"]["settings"]["epochs"] for variant, group in runs.items() if variant != "base"}
    return {mode: text.format("1 epoch" if epochs[mode] == 1 else f"{epochs[mode]} epochs") for mode, text in MODES.items()}


def pruning_lines(runs):
    """{(mode, rate): [(parameters, accuracies of the seeds) before the cuts and after every round]}."""
    lines = {}
    for variant, group in runs.items():
        if variant != "base":
            mode, _, rate = variant.rpartition("_")
            rounds = range(len(group[0]["rounds"]))
            lines[mode, rate] = [(group[0]["plan"][0]["parameters"], [record["validation_accuracy"] for record in group]),
                                 *((group[0]["rounds"][index]["parameters"], [record["rounds"][index]["after_training"] for record in group]) for index in rounds)]
    return lines


def pruning(records):
    """Question 3: rates and modes of pruning, and what the reference code's mistake does."""
    runs = records["pruning"]
    lines, base = pruning_lines(runs), runs["base"]
    rates, photos = sorted({rate for _, rate in lines}, reverse=True), photos_of(base[0])

    def end(mode, rate):
        return lines[mode, rate][-1][1]

    names = mode_names(runs)
    rows = [[names[mode], *(cell for rate in rates for cell in (mean_std(end(mode, rate)), points(statistics.mean(end(mode, rate)) - statistics.mean(accuracies(base)))))]
            for mode in MODES]
    pairs = {"tuned_or_mistake": ("finetune1", "mistake1", "the mistake"), "long_or_mistake": ("finetune5", "mistake1", "the mistake"), "mistake_or_none": ("mistake1", "none", "no training at all"), "longer": ("finetune5", "finetune1", "one epoch a round"),
             "tuned_or_retrained": ("finetune5", "retrain5", "training anew"), "once_or_rounds": ("once", "retrain5", "training anew in rounds"), "once_or_tuned": ("once", "finetune5", "fine-tuning in rounds")}
    found = {name: {rate: compare(end(first, rate), end(second, rate), photos) for rate in rates} for name, (first, second, _) in pairs.items()}

    def agreed(name, better, mixed, worse):
        """The sentence for a comparison that comes out alike at all rates, or the one for anything else."""
        verdicts = {found[name][rate].verdict for rate in rates}
        return better if verdicts == {1} else worse if verdicts == {-1} else mixed

    epochs = {mode: sum(1 for _ in lines[mode, rates[0]][1:]) * runs[f"{mode}_{rates[0]}"][0]["pruning"]["settings"]["epochs"] for mode in ("retrain5", "once")}
    whole, (cut_parameters, cut) = lines["finetune5", rates[0]][:2]
    return {"rates": [f"{float(rate):.2f}" for rate in rates], "rows": rows, "base": mean_std(accuracies(base)), "base_parameters": f"{base[0]['parameters']:,}",
            "base_epochs": str(base[0]["settings"]["epochs"]), "pixels": str(input_pixels(base[0])), "seeds": seeds_text(base), "rounds": str(len(lines["none", rates[0]]) - 1),
            "parameters": [f"{lines['none', rate][-1][0]:,}" for rate in rates],
            "found": {name: together({f"{float(rate):.2f}": found[name][rate] for rate in rates}, other) for name, (_, _, other) in pairs.items()},
            "lesson": agreed("tuned_or_mistake", "The students' finding that fine-tuning is useless is contradicted: it is the mistake that is useless", agreed(
                "long_or_mistake", "So the students' finding that fine-tuning is useless is one about the mistake, and about training too short to repair what it disturbs; given its epochs, fine-tuning works",
                "So whether fine-tuning is useless, as the students found, these records do not decide at every rate", "So the students' finding that fine-tuning is useless is not contradicted here"),
                "So the students' finding that fine-tuning is useless is not contradicted by training as short as theirs: one epoch does more harm than leaving the weights where they were"),
            "anew": agreed("tuned_or_retrained", "So with an optimiser that holds the right tensors, training on is worth more than starting again; a student report that found the opposite compared with the mistake",
                           "So the records do not decide between the two at every rate", "So starting again is worth more, as one student report found"),
            "mistake_change": points(statistics.mean(end("mistake1", rates[-1])) - statistics.mean(accuracies(base))),
            "tuned_change": points(statistics.mean(end("finetune5", rates[-1])) - statistics.mean(accuracies(base))),
            "scope": runs[f"none_{rates[0]}"][0]["pruning"]["scope"].replace("-", " to "), "tuned_epochs": str(runs[f"finetune5_{rates[0]}"][0]["pruning"]["settings"]["epochs"]),
            "anew_epochs": str(epochs["retrain5"]), "once_epochs": str(epochs["once"]), "first_cut": compare(cut, accuracies(base), photos).to("the un-pruned network"),
            "first_cut_parameters": f"{cut_parameters:,}", "first_cut_share": percent(1 - cut_parameters / whole[0], 0), "published": {f"{float(rate):.2f}": [percent(value, 1) for value in values] for rate, values in PUBLISHED["pruning"].items()},
            "published_fall": points(PUBLISHED["pruning"][rates[-1]][-1] - PUBLISHED["pruning"][rates[-1]][0])}


def bits_curves(runs):
    """{(network, granularity, trained): [(bits, bytes, accuracies of the seeds)] by falling bits}, and the accuracy of 32 bits by network."""
    curves, whole = {}, {}
    for variant, group in runs.items():
        network, *grid = variant.split("_")
        if grid:
            key = network, grid[1], len(grid) == 3
            curves.setdefault(key, []).append((int(grid[0]), round(statistics.mean(map(file_bytes, group))), accuracies(group)))
            whole.setdefault(network, [record["validation_accuracy_before"] for record in group])
    return {key: sorted(curve, reverse=True) for key, curve in curves.items()}, whole


def bits(records):
    """Bytes against accuracy down to 2 bits per weight."""
    runs = records["bits"]
    curves, whole = bits_curves(runs)
    networks = tuple(whole)
    first = runs[f"{networks[0]}_8_channel"][0]
    photos = first["validation_photos"]
    rows = []
    for key, curve in curves.items():
        by_bits = {number: (size, mean_std(values)) for number, size, values in curve}
        rows.append([key[0], f"per {key[1]}", "trained" if key[2] else "rounded", *(f"{by_bits[number][1]}" if number in by_bits else "–" for number in (8, 6, 5, 4, 3, 2))])

    def at(network, number, granularity="channel", trained=False):
        return next(values for found, _, values in curves[network, granularity, trained] if found == number)

    eight = {network: compare(at(network, 8), whole[network], photos) for network in networks}

    def down_to(network, trained):
        """The fewest bits down to which no loss can be told, as text."""
        fine = []
        for number, _, values in curves[network, "channel", trained]:
            if compare(values, whole[network], photos).verdict < 0:
                break
            fine.append(number)
        return f"{fine[-1]} bits for {network}" if fine else f"none of these numbers of bits for {network}"

    trained = [f"{points(statistics.mean(at(network, number, trained=True)) - statistics.mean(at(network, number)))} at {number} bits" for network in networks[:1] for number in (4, 3, 2)]
    sizes = {network: {number: size for number, size, _ in curves[network, "channel", False]} for network in networks}
    published = PUBLISHED["eight_bits"]
    return {"rows": rows, "networks": list(networks), "whole": {network: mean_std(whole[network]) for network in networks}, "seeds": seeds_text(whole[networks[0]]),
            "epochs": str(first["model"]["training"]["epochs"]), "pixels": str(input_pixels(first)),
            "more_epochs": str(runs[f"{networks[0]}_4_channel_qat"][0]["fine_tuning"]["settings"]["epochs"]),
            "eight": [f"At 8 bits per channel `{network}` is {eight[network].to('the network at 32 bits')}." for network in networks],
            "holds": "holds here and can be carried further" if all(one.verdict >= 0 for one in eight.values()) else "does not hold for every network here",
            "harmless": listed([down_to(network, False) for network in networks]), "smallest": listed([down_to(network, True) for network in networks]),
            "trained": listed(trained), "first": networks[0], "granularity": [f"for `{network}` a grid per channel is {compare(at(network, 4), at(network, 4, 'tensor'), photos).to('one per tensor')}" for network in networks],
            "sizes": listed([f"{sizes[network][8] / 1000:.0f} kB at 8 bits to {sizes[network][2] / 1000:.0f} kB at 2 ({network})" for network in networks]),
            "published": listed([f"{percent(before)} to {percent(after)} % ({name})" for name, (before, after) in published.items()])}


def input_sizes(records):
    """[(pixels, accuracy at 32 bits, accuracy as stored, bits)] by rising size."""
    return sorted((input_pixels(record), record["validation_accuracy_before"], record["validation_accuracy_after"], record["bits"]) for record in records["input_size/"].values())


def input_size(records):
    """Accuracy of one trained network by the input size it is stored with."""
    sizes = input_sizes(records)
    trained = view_pixels(records["model_training.json"])
    photos = next(iter(records["input_size/"].values()))["validation_photos"]
    at = {pixels: before for pixels, before, _, _ in sizes}
    best = max(at, key=at.get)
    gain = compare([at[best]], [at[trained]], photos)
    return {"trained": str(trained), "best": str(best), "bits": str(sizes[0][3]), "gain": points(at[best] - at[trained]), "photos": f"{photos:,}",
            "conclusion": "The size of training is the best here." if best == trained else verdict_text(
                gain, "That is beyond the sampling error of one network.", "That is within the sampling error of two independent samples; that both see the same photos "
                "is left unused, but it is one network.", "")}


def confusions(record, count=6):
    """The pairs of classes most often confused: [(label, taken for, photos, share of the label's photos)]."""
    names, table = list(record["class_accuracy"]), record["confusion"]
    pairs = [(row[column], names[index], names[column], row[column] / max(sum(row), 1)) for index, row in enumerate(table) for column in range(len(names)) if column != index]
    return [(label, taken, number, share) for number, label, taken, share in sorted(pairs, reverse=True)[:count]]


def evaluation(records):
    """Classes, confusion and calibration of the model, before and after compression."""
    after, before = records["evaluation.json"], records["evaluation_before.json"]
    by_class = sorted(after["class_accuracy"].items(), key=lambda pair: pair[1])
    change = {name: after["class_accuracy"][name] - before["class_accuracy"][name] for name in after["class_accuracy"]}
    totals = {name: sum(row) for name, row in zip(after["class_accuracy"], after["confusion"])}
    moved = max(change, key=lambda name: abs(change[name]))
    bound = 2 * math.sqrt(2) * sampling_error(after["class_accuracy"][moved], totals[moved])
    confidence = sum(count * mean for count, mean, _ in after["reliability"]) / after["photos"]
    mutual = [f"{label} for {taken} ({number}, {percent(share, 0)} % of {label})" for label, taken, number, share in confusions(after)]
    wrong = after["photos"] - sum(row[index] for index, row in enumerate(after["confusion"]))
    top = sum(number for _, _, number, _ in confusions(after))
    resolution = ""
    if after["accuracy_of_small"] is not None and after["accuracy_of_larger"] is not None:
        small, larger = after["small_photos"], after["photos"] - after["small_photos"]
        gap = after["accuracy_of_larger"] - after["accuracy_of_small"]
        bar = 2 * math.hypot(sampling_error(after["accuracy_of_small"], small), sampling_error(after["accuracy_of_larger"], larger))
        resolution = (f"The {small:,} photos whose shorter side is below {input_pixels(after)} px are recognised in {percent(after['accuracy_of_small'])} % of cases, the {larger:,} larger ones in "
                      f"{percent(after['accuracy_of_larger'])} %: {'a difference beyond' if abs(gap) > bar else 'no difference beyond'} the sampling error.")
    if "accuracy_reduced" in after:
        resolution += f" All of them first scaled down to {after['reduced_to']} px, it is {percent(after['accuracy_reduced'])} %."
    leaning = "over-confident" if confidence > after["accuracy"] + 2 * sampling_error(after["accuracy"], after["photos"]) else \
        "under-confident" if confidence < after["accuracy"] - 2 * sampling_error(after["accuracy"], after["photos"]) else "neither over- nor under-confident on the whole"
    return {"photos": f"{after['photos']:,}", "pixels": str(input_pixels(after)), "accuracy": percent(after["accuracy"]), "accuracy_before": percent(before["accuracy"]), "bits": str(after["bits"]),
            "best": [f"{name} ({percent(share, 1)} %)" for name, share in by_class[::-1][:2]], "worst": [f"{name} ({percent(share, 1)} %)" for name, share in by_class[:2]],
            "moved": f"{moved} most, by {points(change[moved])} points on its {totals[moved]:,} photos, which is {'beyond' if abs(change[moved]) > bound else 'within'} the sampling error",
            "confusions": listed(mutual), "top_share": percent(top / max(wrong, 1), 0), "wrong": f"{wrong:,}", "resolution": resolution,
            "ece": percent(after["calibration_error"]), "ece_before": percent(before["calibration_error"]), "confidence": percent(confidence), "leaning": leaning,
            "rows": [[name, f"{totals[name]:,}", percent(before["class_accuracy"][name], 1), percent(share, 1), points(change[name])] for name, share in after["class_accuracy"].items()]}


def speed(records):
    """How long the hand-in takes on a CPU, and what the data path costs."""
    record, path = records["hw7_test.json"], records["data_path.json"]
    seconds = record["seconds"]
    total, network = next(iter(seconds.values())), seconds["the network"]
    return {"photos": f"{record['photos']:,}", "processor": record["device"], "rows": [[name, f"{value:.1f}"] for name, value in seconds.items()], "total": f"{total:.1f}",
            "share": percent(total / 600, 1), "per_photo": f"{1000 * network / record['photos']:.2f}", "path_pixels": str(path["size"]),
            "overhead": listed([f"{100 * (result['ratio'] - 1):.0f} % for {name}" for name, result in path["results"].items()])}


SECTIONS = {
    "shipped": Section(shipped, ("model.json", "model_training.json")),
    "pruned_or_small": Section(pruned_or_small, ("pruned_or_small",)),
    "pruning": Section(pruning, ("pruning",), ("pruning", "pruning_epochs")),
    "scratch": Section(scratch, ("scratch",)),
    "bits": Section(bits, ("bits",), ("bits",)),
    "input_size": Section(input_size, ("model.json", "model_training.json", "input_size/"), ("input_size",)),
    "evaluation": Section(evaluation, ("model.json", "evaluation.json", "evaluation_before.json"), ("confusion", "reliability", "classes")),
    "speed": Section(speed, ("hw7_test.json", "data_path.json")),
}

# Sections whose experiments have not been run: left out, and named under "Not measured yet". Take one off when its records are there.
PENDING = ("pruned_or_small", "bits")

PARTS = (  # what is asked, and the section that answers it, if there is one
    ("question 1", "a wide network pruned to the student's size against the student trained directly", "pruned_or_small"),
    ("question 1", "the same big network by distillation and by low rank, and a ResNet-18 teacher at 32, 16 and 8 bits", None),
    ("question 2", "distillation from a teacher trained from scratch and from a fine-tuned one (a to e)", None),
    ("question 3", "the pruning chart, and what the reference code's mistake does", "pruning"),
    ("question 4", "ordinary, depthwise and grouped convolutions at about 1 MB", None),
    ("question 5", "the compressed network against the big CNN", None),
    ("question 6", "parameters against accuracy of the MobileNet and the plain CNN family", None),
    ("beyond the questions", "bytes against accuracy from 8 to 2 bits per weight", "bits"),
    ("beyond the questions", "classes, confusions and calibration before and after compression", "evaluation"),
)


def not_measured(pending):
    """The parts without measurements, as (question, what)."""
    return [[question, what] for question, what, section in PARTS if section is None or section in pending]
