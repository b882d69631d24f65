"""What the report says about cuts and what follows them."""

import statistics

from conclusions import compare, mean_std, percent, points, seeds_text, sorted_out, together
from readings import PUBLISHED, accuracies, input_pixels, photos_of, pixels_text

MODES = {"none": "cut only", "mistake1": "reference code's mistake, {} a round", "finetune1": "fine-tuned, {} a round", "finetune5": "fine-tuned, {} a round",
         "finetune20": "fine-tuned, {} a round", "retrain5": "trained anew, {} a round", "once": "cut once, trained anew, {}"}


def mode_names(runs):
    """{mode: how the report calls it, with the epochs of its records}."""
    epochs = {variant.rpartition("_")[0]: group[0]["pruning"]["settings"]["epochs"] for variant, group in runs.items() if variant != "base"}
    return {mode: text.format("1 epoch" if epochs[mode] == 1 else f"{epochs[mode]} epochs") for mode, text in MODES.items() if mode in epochs}


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


def patient_text(runs, comparisons):
    """What twenty epochs a round bring over five, as a sentence; "" where they were not run."""
    if not comparisons:
        return ""
    epochs = next(group for variant, group in runs.items() if variant.startswith("finetune20_"))[0]["pruning"]["settings"]["epochs"]
    return f"{epochs} epochs a round are {together(comparisons, 'that')}."


def pruning(records):
    """Question 3: rates and modes of pruning, and what the reference code's mistake does."""
    runs = records["pruning"]
    lines, base = pruning_lines(runs), runs["base"]
    rates, photos = sorted({rate for _, rate in lines}, reverse=True), photos_of(base[0])

    def end(mode, rate):
        return lines[mode, rate][-1][1]

    names = mode_names(runs)
    rows = [[names[mode], *(text for rate in rates for text in ((mean_std(end(mode, rate)), points(statistics.mean(end(mode, rate)) - statistics.mean(accuracies(base))))
                                                                if (mode, rate) in lines else ("–", "–")))] for mode in names]
    pairs = {"tuned_or_mistake": ("finetune1", "mistake1", "the mistake"), "long_or_mistake": ("finetune5", "mistake1", "the mistake"), "mistake_or_none": ("mistake1", "none", "no training at all"), "longer": ("finetune5", "finetune1", "one epoch a round"),
             "tuned_or_retrained": ("finetune5", "retrain5", "training anew"), "once_or_rounds": ("once", "retrain5", "training anew in rounds"), "once_or_tuned": ("once", "finetune5", "fine-tuning in rounds")}
    found = {name: {rate: compare(end(first, rate), end(second, rate), photos) for rate in rates} for name, (first, second, _) in pairs.items()}

    def agreed(name, better, mixed, worse):
        """The sentence for a comparison that comes out alike at all rates, or the one for anything else."""
        verdicts = {found[name][rate].verdict for rate in rates}
        return better if verdicts == {1} else worse if verdicts == {-1} else mixed

    patient = {f"{float(rate):.2f}": compare(end("finetune20", rate), end("finetune5", rate), photos) for rate in rates if ("finetune20", rate) in lines}
    epochs = {mode: sum(1 for _ in lines[mode, rates[0]][1:]) * runs[f"{mode}_{rates[0]}"][0]["pruning"]["settings"]["epochs"] for mode in ("retrain5", "once")}
    whole, (cut_parameters, cut) = lines["finetune5", rates[0]][:2]
    return {"rates": [f"{float(rate):.2f}" for rate in rates], "rows": rows, "patient": patient_text(runs, patient), "base": mean_std(accuracies(base)), "base_parameters": f"{base[0]['parameters']:,}",
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


def pruning_wide8(records):
    """Question 3 once more, on a network of a student report: two rates, fine-tuned, with the mistake, or left alone."""
    runs = records["pruning_wide8"]
    lines, base = pruning_lines(runs), runs["base"]
    rates, photos = sorted({rate for _, rate in lines}, reverse=True), photos_of(base[0])
    ends = {key: line[-1][1] for key, line in lines.items()}
    rows = [[f"{float(rate):.2f}", str(len(lines["none", rate]) - 1), f"{lines['none', rate][-1][0]:,}", *(mean_std(ends[mode, rate]) for mode in ("none", "mistake1", "finetune1"))] for rate in rates]
    against = {other: {f"{float(rate):.2f}": compare(ends["finetune1", rate], ends[other, rate], photos) for rate in rates} for other in ("mistake1", "none")}
    mistake = {f"{float(rate):.2f}": compare(ends["mistake1", rate], ends["none", rate], photos) for rate in rates}
    return {"rows": rows, "base": mean_std(accuracies(base)), "parameters": f"{base[0]['parameters']:,}", "epochs": str(base[0]["settings"]["epochs"]), "pixels": pixels_text(base[0]),
            "seeds": seeds_text(base), "or_mistake": together(against["mistake1"], "the mistake"), "or_none": together(against["none"], "no training at all"),
            "mistake_or_none": together(mistake, "no training at all")}


def lowrank(records):
    """Question 1, one way against another: two factors a layer or fewer channels, at equal parameters and training."""
    runs = records["lowrank"]
    first = next(iter(runs.values()))
    sizes = sorted({int(variant.rpartition("_")[2]) for variant in runs}, reverse=True)
    photos, rows, found = photos_of(records["pruning"]["base"][0]), [], {}
    for size in sizes:
        ways = {name: [record["rounds"][-1] for record in runs[f"{name}_{size}"]] for name in ("factors", "factors_global", "channels")}
        rows += [[text, f"{ways[name][0]['parameters']:,}", f"{ways[name][0]['macs'] / 1e6:.2f} M", mean_std([one["after_cut"] for one in ways[name]]), mean_std([one["after_training"] for one in ways[name]])]
                 for name, text in (("factors", "factors, equal shares"), ("factors_global", "factors, by worth"), ("channels", "fewer channels"))]
        for name, text in (("factors", "factors of equal shares"), ("factors_global", "factors by worth")):
            found[f"{text} at {ways[name][0]['parameters']:,}"] = compare(*([one["after_training"] for one in ways[key]] for key in (name, "channels")), photos)
    return {"rows": rows, "start": mean_std([record["validation_accuracy"] for record in first]), "parameters": f"{first[0]['plan'][0]['parameters']:,}", "pixels": f"{input_pixels(first[0])} px",
            "epochs": str(first[0]["pruning"]["settings"]["epochs"]), "seeds": seeds_text(first), "found": sorted_out(found, "fewer channels")}
