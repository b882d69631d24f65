"""What the report says about cuts and what follows them."""

import statistics

from conclusions import (
    compare,
    listed,
    mean_std,
    percent,
    points,
    seeds_text,
    sorted_out,
    together,
    unanimous,
    verdicts,
)
from readings import PUBLISHED, accuracies, epochs_of, input_pixels, photos_of, pixels_text

MODES = {
    "none": "cut only",
    "mistake1": "reference code’s mistake, {} a round",
    "finetune1": "fine-tuned, {} a round",
    "finetune5": "fine-tuned, {} a round",
    "finetune20": "fine-tuned, {} a round",
    "retrain5": "from scratch, {} a round",
    "once": "the last shape from scratch, {}",
}
PAIRS = {  # comparison: a mode, the one it is compared with, and how the text calls that
    "tuned_or_mistake": ("finetune1", "mistake1", "the mistake"),
    "long_or_mistake": ("finetune5", "mistake1", "the mistake"),
    "long_or_none": ("finetune5", "none", "no training at all"),
    "mistake_or_none": ("mistake1", "none", "no training at all"),
    "longer": ("finetune5", "finetune1", "one epoch a round"),
    "tuned_or_retrained": ("finetune5", "retrain5", "training from scratch in every round"),
    "retrained_or_mistake": ("retrain5", "mistake1", "the mistake"),
    "once_or_mistake": ("once", "mistake1", "the mistake"),
    "once_or_rounds": ("once", "retrain5", "training from scratch in every round"),
    "once_or_tuned": ("once", "finetune5", "cutting and fine-tuning in rounds"),
}


def rate_text(rate):
    """ "0.9" of a variant's name as "0.90"."""
    return f"{float(rate):.2f}"


def mode_names(runs):
    """{mode: how the report calls it, with the epochs of its records}."""
    names = {}
    for mode, text in MODES.items():
        epochs = [
            epochs_of(group[0]) for variant, group in runs.items() if variant.rpartition("_")[0] == mode
        ]
        if epochs:
            names[mode] = text.format("1 epoch" if epochs[-1] == 1 else f"{epochs[-1]} epochs")
    return names


def pruning_lines(runs):
    """{(mode, rate): [(parameters, accuracies of the seeds) before the cuts and after every round]}."""
    lines = {}
    for variant, group in runs.items():
        if variant == "base":
            continue
        mode, _, rate = variant.rpartition("_")
        line = [(group[0]["plan"][0]["parameters"], [record["validation_accuracy"] for record in group])]
        for rounds in zip(*(record["rounds"] for record in group)):
            line.append((rounds[0]["parameters"], [one["after_training"] for one in rounds]))
        lines[mode, rate] = line
    return lines


def rates_of(lines):
    """Rates in `pruning_lines`, the mildest cut first."""
    return sorted({rate for _, rate in lines}, reverse=True)


def patient_text(runs, over_shorter, over_mistake):
    """What twenty epochs a round bring over five, and over the mistake, as a sentence; "" where they were not
    run.
    """
    if not over_shorter:
        return ""
    group = next(group for variant, group in runs.items() if variant.startswith("finetune20_"))
    return (
        f"{epochs_of(group[0])} epochs a round are {together(over_shorter, 'that')}, and "
        f"{together(over_mistake, 'the mistake')}."
    )


def shown_at(comparisons):
    """At which rates something is better, as text, from {rate: Comparison}."""
    rates = [rate for rate, one in comparisons.items() if one.verdict > 0]
    return f"at rate {listed(rates)}" if rates else "at no rate"


def learning_rate(record):
    """Of the training after a cut."""
    return record["pruning"]["settings"]["lr"]


def steps_text(lines, photos, epochs, mode="finetune5"):
    """The mildest rate's last round against the first round of the strongest rate that is no larger, as a
    sentence.

    epochs: of every round.
    """
    mild, *_, strong = rates_of(lines)
    (size, values), rounds = lines[mode, mild][-1], len(lines[mode, mild]) - 1
    index, (smaller, others) = next(
        (index, point) for index, point in enumerate(lines[mode, strong]) if point[0] <= size
    )
    against = compare(values, others, photos).to(
        f"{smaller:,} in {index} of {rate_text(strong)} and {index * epochs} epochs"
    )
    return (
        f"{size:,} parameters in {rounds} rounds of {rate_text(mild)} and {rounds * epochs} epochs are "
        f"{against}"
    )


def lesson_text(tuned, tuned_or_mistake, short):
    """What becomes of the finding that fine-tuning is useless.

    tuned: fine-tuning compared with no training; tuned_or_mistake: the same with the mistake; short: an epoch
    of it with the mistake. All {rate: Comparison}.
    """
    lesson = unanimous(
        tuned,
        "So the students’ finding that fine-tuning is useless does not hold here; ",
        "That fine-tuning is of use, where the students found none, these records do not show at every "
        "rate; ",
        "The students’ finding that fine-tuning is useless is not contradicted here; ",
    )
    lesson += f"that so many beat the mistake is shown {shown_at(tuned_or_mistake)}"
    if -1 in verdicts(short):
        lesson += ". A single epoch may be too short to repair what its first steps disturb"
    return lesson


def anew_text(found):
    """Why a student report may have found that training anew beats fine-tuning, from {comparison: {rate:
    Comparison}}.
    """
    text = unanimous(
        found["tuned_or_retrained"],
        "So with an optimiser that holds the right tensors, training on is worth more than starting again "
        "in every round",
        "So the records do not decide between the two at every rate",
        "So starting again is worth more, as one student report found",
    )
    if verdicts(found["tuned_or_retrained"]) == {-1}:
        return text
    text += ". A student report that found the opposite compared with the mistake"
    if verdicts(found["retrained_or_mistake"]) != {1}:
        text += (
            f", which alone does not explain it: here, starting again in every round is "
            f"{together(found['retrained_or_mistake'], 'the mistake')}. How long the new weights are "
            "trained may"
        )
    return text


def pruning(records):
    """Question 3: rates and modes of pruning, and what the reference code's mistake does."""
    runs = records["pruning"]
    lines, base = pruning_lines(runs), runs["base"]
    rates, photos, base_values = rates_of(lines), photos_of(base[0]), accuracies(base)

    def end(mode, rate):
        """Accuracies after the last round."""
        return lines[mode, rate][-1][1]

    def change(mode, rate):
        """From the un-pruned network to the last round, in points."""
        return points(statistics.mean(end(mode, rate)) - statistics.mean(base_values))

    def compared(one, other, rates=rates):
        return {rate_text(rate): compare(end(one, rate), end(other, rate), photos) for rate in rates}

    rows = []
    for mode, text in mode_names(runs).items():
        row = [text]
        for rate in rates:
            row += [mean_std(end(mode, rate)), change(mode, rate)] if (mode, rate) in lines else ["–", "–"]
        rows.append(row)
    patient_rates = [rate for rate in rates if ("finetune20", rate) in lines]
    found = {name: compared(one, other) for name, (one, other, _) in PAIRS.items()}

    def total_epochs(mode):
        """Over all rounds."""
        group = runs[f"{mode}_{rates[0]}"]
        return str(len(group[0]["rounds"]) * epochs_of(group[0]))

    (whole, _), (cut_parameters, cut), *_ = lines["finetune5", rates[0]]
    mistaken = [statistics.mean(values) for _, values in lines["mistake1", rates[-1]]]
    tuned = [statistics.mean(values) for _, values in lines["finetune5", rates[-1]]]
    published = PUBLISHED["pruning"]
    return {
        "rates": [rate_text(rate) for rate in rates],
        "rows": rows,
        "patient": patient_text(
            runs, *(compared("finetune20", other, patient_rates) for other in ("finetune5", "mistake1"))
        ),
        "base": mean_std(base_values),
        "base_parameters": f"{base[0]['parameters']:,}",
        "base_epochs": str(epochs_of(base[0])),
        "pixels": str(input_pixels(base[0])),
        "seeds": seeds_text(base),
        "rounds": str(len(lines["none", rates[0]]) - 1),
        "parameters": [f"{lines['none', rate][-1][0]:,}" for rate in rates],
        "found": {name: together(found[name], other) for name, (_, _, other) in PAIRS.items()},
        "lesson": lesson_text(found["long_or_none"], found["long_or_mistake"], found["tuned_or_mistake"]),
        "anew": anew_text(found),
        "worth": unanimous(
            found["once_or_tuned"],
            "So training a shape directly is worth more than cutting towards it",
            "So that cutting towards a shape is worth more than training it directly is not shown",
            "So cutting towards a shape is worth more than training it directly",
        ),
        "mistake_change": points(mistaken[-1] - mistaken[1]),
        "tuned_change": points(tuned[-1] - tuned[1]),
        "cut_only": listed([f"{change('none', rate)} points at {rate_text(rate)}" for rate in rates]),
        "steps": steps_text(lines, photos, epochs_of(runs[f"finetune5_{rates[0]}"][0])),
        "learning_rates": [
            f"{learning_rate(runs[f'{mode}_{rates[0]}'][0]):g}" for mode in ("finetune5", "retrain5")
        ],
        "scope": runs[f"none_{rates[0]}"][0]["pruning"]["scope"].replace("-", " to "),
        "tuned_epochs": str(epochs_of(runs[f"finetune5_{rates[0]}"][0])),
        "anew_epochs": total_epochs("retrain5"),
        "once_epochs": total_epochs("once"),
        "first_cut": compare(cut, base_values, photos).to("the un-pruned network"),
        "first_cut_parameters": f"{cut_parameters:,}",
        "first_cut_share": percent(1 - cut_parameters / whole, 0),
        "published": {
            rate_text(rate): [percent(value, 1) for value in values] for rate, values in published.items()
        },
        "published_fall": points(published[rates[-1]][-1] - published[rates[-1]][0]),
    }


def pruning_wide8(records):
    """Question 3 once more, on a network of a student report: two rates, fine-tuned, with the mistake, or
    left alone.
    """
    runs = records["pruning_wide8"]
    lines, base = pruning_lines(runs), runs["base"]
    rates, photos = rates_of(lines), photos_of(base[0])
    ends = {key: line[-1][1] for key, line in lines.items()}
    rows = []
    for rate in rates:
        _, *rounds = lines["none", rate]
        parameters, _ = rounds[-1]
        cells = (mean_std(ends[mode, rate]) for mode in ("none", "mistake1", "finetune1"))
        rows.append([rate_text(rate), str(len(rounds)), f"{parameters:,}", *cells])

    def compared(one, other):
        return {rate_text(rate): compare(ends[one, rate], ends[other, rate], photos) for rate in rates}

    return {
        "rows": rows,
        "base": mean_std(accuracies(base)),
        "parameters": f"{base[0]['parameters']:,}",
        "epochs": str(epochs_of(base[0])),
        "pixels": pixels_text(base[0]),
        "seeds": seeds_text(base),
        "or_mistake": together(compared("finetune1", "mistake1"), "the mistake"),
        "or_none": together(compared("finetune1", "none"), "no training at all"),
        "mistake_or_none": together(compared("mistake1", "none"), "no training at all"),
    }


LOW_RANK = {  # way: how the table calls it
    "factors": "factors, equal shares",
    "factors_global": "factors, by worth",
    "channels": "fewer channels",
}
FACTORS = {
    "factors": "factors of equal shares",
    "factors_global": "factors by worth",
}  # as the conclusion calls them


def lowrank(records):
    """Question 1, one way against another: two factors a layer or fewer channels, at equal parameters and
    training.
    """
    runs = records["lowrank"]
    first = next(iter(runs.values()))
    sizes = sorted({int(variant.rpartition("_")[2]) for variant in runs}, reverse=True)
    photos, rows, found, more_macs = photos_of(records["pruning"]["base"][0]), [], {}, []
    for size in sizes:
        last = {name: [record["rounds"][-1] for record in runs[f"{name}_{size}"]] for name in LOW_RANK}
        trained = {name: [one["after_training"] for one in group] for name, group in last.items()}
        for name, text in LOW_RANK.items():
            one = last[name][0]
            cut = [one["after_cut"] for one in last[name]]
            costs = f"{one['parameters']:,}", f"{one['macs'] / 1e6:.2f} M"
            rows.append([text, *costs, mean_std(cut), mean_std(trained[name])])
        more_macs.append(last["factors_global"][0]["macs"] / last["channels"][0]["macs"] - 1)
        for name, text in FACTORS.items():
            against = compare(trained[name], trained["channels"], photos)
            found[f"{text} at {last[name][0]['parameters']:,}"] = against
    return {
        "rows": rows,
        "start": mean_std([record["validation_accuracy"] for record in first]),
        "parameters": f"{first[0]['plan'][0]['parameters']:,}",
        "pixels": f"{input_pixels(first[0])} px",
        "epochs": str(epochs_of(first[0])),
        "seeds": seeds_text(first),
        "found": sorted_out(found, "fewer channels"),
        "macs": listed([f"{points(more, 0)} %" for more in more_macs]),
    }
