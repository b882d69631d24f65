"""What the report says about the model that is handed in."""

import math
from statistics import mean

from architectures import DEFAULTS, architecture_table
from conclusions import (
    cell,
    compare,
    listed,
    mean_std,
    percent,
    points,
    sampling_error,
    seeds_text,
    verdict_text,
)
from readings import epochs_of, file_bytes, input_pixels, measured_on, pixels_text, view_pixels


def how_trained(training):
    """Where the weights come from, as text."""
    origin = training["model"]["training"]
    teachers = [
        f"`{told['file']}` ({percent(told['validation_accuracy'])} % on the student’s input)"
        for told in training["teachers"]
    ]
    return (
        f"by distillation from {listed(teachers)}, temperature {origin['temperature']:g}, weight of the "
        f"teacher {origin['alpha']:g}"
    )


def bits_text(model):
    """What a file's weights are stored with; see Scheme.bits_of in quantization.py."""
    bits, vectors = model["bits"], model["vectors"]
    more = (
        f"8 in the first and the last layer, {bits + 2} in depthwise ones, {vectors} for biases"
        if bits < 6
        else f"{vectors} for biases"
    )
    return f"{bits} bits per weight ({more})"


def qat_teacher(model, training):
    """Which teacher the quantization-aware training of a file had, as text; training: the record of the
    training before.
    """
    origin = model["model"]["training"]
    taught = origin.get("teachers")
    if not taught:
        return ""
    if taught == [origin.get("started_from")]:
        return " with the 32-bit network as teacher"
    return (
        " with the same teacher"
        if taught == [told["sha256"] for told in training["teachers"]]
        else " with another teacher"
    )


def shipped(records):
    """The model that is handed in."""
    model, training, sharp = (
        records[f"{name}.json"] for name in ("model", "model_training", "evaluation_food11")
    )
    before, after = model["validation_accuracy_before"], model["validation_accuracy_after"]
    averaged = records["evaluation_tta.json"]["accuracy"]
    photos, size, tuned = model["validation_photos"], file_bytes(model), model["fine_tuning"]
    return {
        "averaged": percent(averaged),
        "averaging": compare([averaged], [after], photos).to("one look at every photo"),
        "measured_on": measured_on(model),
        "sharp_on": measured_on(sharp),
        "sharp": percent(sharp["accuracy"]),
        "detail": str(model["model"]["preprocessing"].get("detail", "")),
        "network": model["architecture"],
        "parameters": f"{training['parameters']:,}",
        "pixels": str(input_pixels(model)),
        "trained_pixels": str(view_pixels(training)),
        "epochs": str(epochs_of(training)),
        "training_photos": f"{training['photos']['training']:,}",
        "photos": f"{photos:,}",
        "seed": str(training["seed"]),
        "how": how_trained(training),
        "teacher": percent(training["teachers"][0]["validation_accuracy"]),
        "bits": str(model["bits"]),
        "bits_text": bits_text(model),
        "bytes": f"{size:,}",
        "raw_bytes": f"{model['raw_bytes']:,}",
        "share": percent(size / model["raw_bytes"], 1),
        "spare": f"{300_000 - size:,}",
        "before": percent(before),
        "after": percent(after),
        "change": points(after - before),
        "sampling": percent(sampling_error(after, photos)),
        "loss": compare([after], [before], photos).to("the 32-bit network"),
        "tuned_epochs": str(epochs_of(tuned)),
        "tuned_teacher": qat_teacher(model, training),
        "minutes": f"{(training['seconds'] + tuned['seconds']) / 60:.0f}",
        "processor": training["device"].replace(", 1 threads", ", 1 thread"),
        "architecture": architecture_table(model["model"]) if model["architecture"] in DEFAULTS else [],
    }


def input_sizes(records):
    """[(pixels, accuracy at 32 bits, accuracy as stored, bits)] by rising size."""
    keys = ("validation_accuracy_before", "validation_accuracy_after", "bits")
    return sorted(
        (input_pixels(record), *(record[key] for key in keys)) for record in records["input_size/"].values()
    )


def input_size(records):
    """Accuracy of one trained network by the input size it is stored with."""
    sizes = input_sizes(records)
    trained = view_pixels(records["model_training.json"])
    photos = next(iter(records["input_size/"].values()))["validation_photos"]
    at = {pixels: before for pixels, before, _, _ in sizes}
    best = max(at, key=at.get)
    alike = [
        f"{pixels} px"
        for pixels, accuracy in at.items()
        if pixels != best and not compare([at[best]], [accuracy], photos).verdict
    ]
    return {
        "measured_on": measured_on(records["model.json"]),
        "trained": str(trained),
        "best": str(best),
        "bits": str(sizes[0][3]),
        "gain": (
            "the size of training"
            if best == trained
            else compare([at[best]], [at[trained]], photos).to(f"the {trained} px of training")
        ),
        "alike": listed(alike) if alike else "",
        "photos": f"{photos:,}",
    }


def confusions(record, count=4):
    """The pairs of classes most often confused: [(label, taken for, photos, share of the label's photos)]."""
    names, pairs = list(record["class_accuracy"]), []
    for label, row in zip(names, record["confusion"]):
        photos = max(sum(row), 1)
        pairs += [
            (number, label, taken, number / photos) for taken, number in zip(names, row) if taken != label
        ]
    return [
        (label, taken, number, share) for number, label, taken, share in sorted(pairs, reverse=True)[:count]
    ]


def confusion_shares(record):
    """The confusion matrix in shares of each label's photos, a row per label."""
    return [[number / max(sum(row), 1) for number in row] for row in record["confusion"]]


def moved_text(before, after, photos):
    """How far compression moves a share of so many photos, as text."""
    bar = 2 * math.sqrt(2) * sampling_error((before + after) / 2, photos)
    beyond = "beyond" if abs(after - before) > bar else "within"
    return (
        f"by {points(after - before)} points on its {photos:,} photos, which is {beyond} the sampling error"
    )


def most_moved_confusion(before, after):
    """The cell off the diagonal that compression moves most, as text."""
    names, totals, cells = list(after["class_accuracy"]), class_photos(after), []
    for label, old, new in zip(names, confusion_shares(before), confusion_shares(after)):
        cells += [
            (share, moved, label, taken) for taken, share, moved in zip(names, old, new) if taken != label
        ]
    share, moved, label, taken = max(cells, key=lambda cell: abs(cell[1] - cell[0]))
    return f"{label} taken for {taken}, {moved_text(share, moved, totals[label])}"


def small_photos_text(record):
    """Accuracy on photos smaller than the input and on the others, and on photos scaled down; "" where it was
    not measured.
    """
    text, small, larger = "", record["accuracy_of_small"], record["accuracy_of_larger"]
    if small is not None and larger is not None:
        few, others = record["small_photos"], record["photos"] - record["small_photos"]
        bar = 2 * math.hypot(sampling_error(small, few), sampling_error(larger, others))
        difference = "a difference" if abs(larger - small) > bar else "no difference"
        text = (
            f"The {few:,} photos whose shorter side is below {input_pixels(record)} px are recognised in "
            f"{percent(small)} % "
            f"of cases, the {others:,} larger ones in {percent(larger)} %: {difference} beyond the sampling "
            "error."
        )
    if "accuracy_reduced" in record:
        reduced = percent(record["accuracy_reduced"])
        text += f" With every photo first scaled down to {record['reduced_to']} px, accuracy is {reduced} %."
    return text


def mean_confidence(record):
    """Over all photos, from the bins of the reliability diagram."""
    return sum(count * confidence for count, confidence, _ in record["reliability"]) / record["photos"]


def leaning(record):
    """Whether confidence and accuracy differ by more than two standard errors, as text."""
    confidence, accuracy = mean_confidence(record), record["accuracy"]
    bar = 2 * sampling_error(accuracy, record["photos"])
    if confidence > accuracy + bar:
        return "over-confident"
    if confidence < accuracy - bar:
        return "under-confident"
    return "neither over- nor under-confident on the whole"


def class_photos(record):
    """{class: photos with that label}."""
    return {name: sum(row) for name, row in zip(record["class_accuracy"], record["confusion"])}


def most_moved(before, after):
    """The class whose accuracy compression changes most, as text."""
    change = {name: share - before["class_accuracy"][name] for name, share in after["class_accuracy"].items()}
    moved = max(change, key=lambda name: abs(change[name]))
    return (
        f"{moved} most, "
        f"{moved_text(before['class_accuracy'][moved], after['class_accuracy'][moved], class_photos(after)[moved])}"
    )


def evaluation(records):
    """Classes, confusion and calibration of the model, before and after compression."""
    after, before = records["evaluation.json"], records["evaluation_before.json"]
    by_class = [
        f"{name} ({percent(share, 1)} %)"
        for name, share in sorted(after["class_accuracy"].items(), key=lambda pair: pair[1])
    ]
    totals, top = class_photos(after), confusions(after)
    wrong = after["photos"] - sum(row[index] for index, row in enumerate(after["confusion"]))
    rows = []
    for name, share in after["class_accuracy"].items():
        share_before = before["class_accuracy"][name]
        rows.append(
            [
                name,
                f"{totals[name]:,}",
                percent(share_before, 1),
                percent(share, 1),
                points(share - share_before),
            ]
        )
    return {
        "measured_on": measured_on(after),
        "photos": f"{after['photos']:,}",
        "pixels": str(input_pixels(after)),
        "accuracy": percent(after["accuracy"]),
        "accuracy_before": percent(before["accuracy"]),
        "bits": str(after["bits"]),
        "best": by_class[::-1][:2],
        "worst": by_class[:2],
        "moved": most_moved(before, after),
        "confusions": listed(
            [
                f"{label} taken for {taken} ({number} photos, {percent(share, 0)} % of {label})"
                for label, taken, number, share in top
            ]
        ),
        "moved_confusion": most_moved_confusion(before, after),
        "top_share": percent(sum(number for _, _, number, _ in top) / max(wrong, 1), 0),
        "wrong": f"{wrong:,}",
        "resolution": small_photos_text(after),
        "ece": percent(after["calibration_error"]),
        "ece_before": percent(before["calibration_error"]),
        "confidence": percent(mean_confidence(after)),
        "leaning": leaning(after),
        "rows": rows,
    }


def speed(records):
    """How long the hand-in takes on a CPU, and what the data path costs."""
    record, path = records["hw7_test.json"], records["data_path.json"]
    seconds, photos = record["seconds"], record["photos"]
    total = next(iter(seconds.values()))
    overhead = [f"{100 * (result['ratio'] - 1):.0f} % for {name}" for name, result in path["results"].items()]
    return {
        "photos": f"{photos:,}",
        "processor": record["device"],
        "rows": [[name, f"{value:.1f}"] for name, value in seconds.items()],
        "total": f"{total:.1f}",
        "share": percent(total / 600, 1),
        "per_photo": f"{1000 * seconds['the network'] / photos:.2f}",
        "path_pixels": str(path["size"]),
        "overhead": listed(overhead),
    }


KINDS = {  # of photos, by the name of their accuracy in a record
    "accuracy": "all",
    "accuracy_of_small": "small",
    "accuracy_of_larger": "the others",
    "accuracy_reduced": "all, reduced",
}


def resolution(records):
    """Whether views at many resolutions make a network less dependent on sharpness."""
    runs = records["resolution"]
    trained, measured = runs["standard"], {name: runs[f"{name}_measured"] for name in ("standard", "blurred")}
    first, evaluated = trained[0], measured["standard"][0]
    photos, small = evaluated["photos"], evaluated["small_photos"]
    counts = {"accuracy_of_small": small, "accuracy_of_larger": photos - small}
    everything = [record for group in measured.values() for record in group]
    kinds = {
        key: text for key, text in KINDS.items() if all(record.get(key) is not None for record in everything)
    }
    values = {
        (name, key): [record[key] for record in group] for name, group in measured.items() for key in kinds
    }
    found = {
        text: compare(values["blurred", key], values["standard", key], counts.get(key, photos))
        for key, text in kinds.items()
    }
    lost = {
        name: mean(record["accuracy"] - record["accuracy_reduced"] for record in group)
        for name, group in measured.items()
    }
    return {
        "header": list(kinds.values()),
        "rows": [[name, *(mean_std(values[name, key]) for key in kinds)] for name in measured],
        "difference": [cell(one) for one in found.values()],
        "network": first["model"]["architecture"],
        "epochs": str(epochs_of(first)),
        "pixels": pixels_text(first),
        "input": str(input_pixels(first)),
        "seeds": seeds_text(trained),
        "reduced": str(evaluated["reduced_to"]),
        "small": f"{small:,}",
        "photos": f"{photos:,}",
        "lost": listed([f"{points(-loss)} points ({name} views)" for name, loss in lost.items()]),
        "all": found["all"].to("the other"),
        "blind": found["all, reduced"].to("the other"),
        "conclusion": verdict_text(
            found["all, reduced"],
            "So blurred views help on blurry photos",
            "Blurred views did not measurably help on blurry photos",
            "So blurred views do not even help on blurry photos",
        ),
    }
