"""What the report says about the model that is handed in."""

import math
from statistics import mean

from architectures import DEFAULTS, architecture_table
from conclusions import cell, compare, listed, mean_std, percent, points, sampling_error, seeds_text, verdict_text
from readings import file_bytes, input_pixels, pixels_text, view_pixels


def shipped(records):
    """The model that is handed in."""
    model, training = records["model.json"], records["model_training.json"]
    before, after, photos = model["validation_accuracy_before"], model["validation_accuracy_after"], model["validation_photos"]
    teachers, tuned = training.get("teachers") or [], model.get("fine_tuning")
    loss = compare([after], [before], photos)
    origin = training["model"]["training"]
    told = listed(["a teacher with " + percent(one["validation_accuracy"]) + " %" for one in teachers])
    how = f"by distillation from {told} (temperature {origin['temperature']:g}, weight of its answers {origin['alpha']:g})" if teachers else "from the labels alone"
    averaged = records["evaluation_tta.json"]["accuracy"]
    return {"averaged": percent(averaged), "averaging": compare([averaged], [after], photos).to("one look at every photo"), "network": model["architecture"], "parameters": f"{training['parameters']:,}", "pixels": str(input_pixels(model)), "trained_pixels": str(view_pixels(training)),
            "epochs": str(training["settings"]["epochs"]), "training_photos": f"{training['photos']['training']:,}", "photos": f"{photos:,}", "seed": str(training["seed"]),
            "how": how, "bits": str(model["bits"]), "vectors": str(model["vectors"]), "bytes": f"{file_bytes(model):,}", "raw_bytes": f"{model['raw_bytes']:,}",
            "share": percent(file_bytes(model) / model["raw_bytes"], 1), "spare": f"{300_000 - file_bytes(model):,}", "before": percent(before), "after": percent(after),
            "change": points(after - before), "sampling": percent(sampling_error(after, photos)), "loss": loss.to("the 32-bit network"),
            "tuned": f"{tuned['settings']['epochs']} epochs of training through the rounding" if tuned else "rounding only", "teachers": bool(teachers), "minutes": f"{training['seconds'] / 60:.0f}",
            "processor": training["device"].replace(", 1 threads", ", 1 thread"), "commands": [training["command"], model["command"]],
            "architecture": architecture_table(model["model"]) if model["architecture"] in DEFAULTS else []}


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


def resolution(records):
    """Whether views at many resolutions make a network less dependent on sharpness."""
    runs = records["resolution"]
    trained, measured = ({name: runs[f"{name}{suffix}"] for name in ("standard", "blurred")} for suffix in ("", "_measured"))
    photos, first = measured["standard"][0]["photos"], trained["standard"][0]
    kinds = {"accuracy": "all", "accuracy_of_small": "small", "accuracy_of_larger": "the others", "accuracy_reduced": "all, reduced"}
    kinds = {key: text for key, text in kinds.items() if all(record.get(key) is not None for group in measured.values() for record in group)}
    counts = {"accuracy_of_small": measured["standard"][0]["small_photos"]} | {"accuracy_of_larger": photos - measured["standard"][0]["small_photos"]}
    values = {(name, key): [record[key] for record in measured[name]] for name in measured for key in kinds}
    found = {text: compare(values["blurred", key], values["standard", key], counts.get(key, photos)) for key, text in kinds.items()}
    lost = {name: [record["accuracy"] - record["accuracy_reduced"] for record in group] for name, group in measured.items()}
    return {"header": list(kinds.values()), "rows": [[name, *(mean_std(values[name, key]) for key in kinds)] for name in measured], "difference": [cell(one) for one in found.values()],
            "network": trained["standard"][0]["model"]["architecture"], "epochs": str(first["settings"]["epochs"]), "pixels": pixels_text(first), "input": str(input_pixels(first)),
            "seeds": seeds_text(trained["standard"]), "reduced": str(measured["standard"][0]["reduced_to"]), "small": f"{counts['accuracy_of_small']:,}", "photos": f"{photos:,}",
            "lost": listed([f"{points(-mean(group))} points ({name} views)" for name, group in lost.items()]), "all": found["all"].to("the other"), "blind": found["all, reduced"].to("the other"),
            "conclusion": verdict_text(found["all, reduced"], "So blurred views help where sharpness is missing", "That blurred views help where sharpness is missing is not shown",
                                       "So blurred views do not even help where sharpness is missing")}
