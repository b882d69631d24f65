"""What the report says about distillation: which teacher, which loss, which photos."""

import json
from statistics import mean

from architectures import architecture_table
from conclusions import cell, compare, listed, mean_std, percent, points, seeds_text, sorted_out, verdict_text, verdicts
from readings import accuracies, epochs_of, input_pixels, of_seeds, photos_of, pixels_text


def teacher_accuracy(records):
    """Accuracy of the teacher behind distilled students, on what the students look at."""
    return records[0]["teachers"][0]["validation_accuracy"]


def rows_of_students(networks, runs, values, found):
    """Rows of the table: student, parameters, accuracy from scratch, by a and by b, what a and b are worth."""
    rows = []
    for network in networks:
        parameters = runs[f"{network}_scratch"][0]["parameters"]
        rows.append([
            f"student, `{network}`",
            f"{parameters:,}",
            *(mean_std(values[network, kind]) for kind in ("scratch", "weak", "strong")),
            cell(found["weak"][f"`{network}`"]),
            cell(found["strong"][f"`{network}`"]),
        ])
    return rows


def gain_text(found):
    """The conclusion from the set of verdicts on students of teacher b against training on the labels."""
    if found == {1}:
        return "Every student gains from b: its answers hold more than the labels do"
    if 1 in found:
        return "Not every student gains from b beyond the error bars"
    return "No student is shown to gain from b in so short a training"


def teachers_text(found):
    """The conclusion from the set of verdicts on students of teacher b against those of a."""
    if found == {1}:
        return "and who teaches matters"
    if 1 in found:
        return "and for some of them it matters who teaches"
    return "and that it matters who teaches is not shown"


def distillation(records):
    """Question 2: teachers, students, and what a teacher is worth."""
    runs, teacher = records["distillation"], records["teachers"]["resnet18"]
    shipped, strong_teacher = records["model.json"], records["model_training.json"]
    networks = [variant.removesuffix("_scratch") for variant in runs if variant.endswith("_scratch")]
    networks.sort(key=lambda network: runs[f"{network}_scratch"][0]["parameters"])
    first = runs[f"{networks[0]}_scratch"][0]
    photos = photos_of(first)
    kinds = ("scratch", "weak", "strong")
    values = {(network, kind): accuracies(runs[f"{network}_{kind}"]) for network in networks for kind in kinds}

    def compared(kind, other):
        return {f"`{network}`": compare(values[network, kind], values[network, other], photos) for network in networks}

    found = {
        "weak": compared("weak", "scratch"),
        "strong": compared("strong", "scratch"),
        "teachers": compared("strong", "weak"),
    }
    weak_told, strong_told = (teacher_accuracy(runs[f"{networks[0]}_{kind}"]) for kind in ("weak", "strong"))
    above_a = {f"`{network}`": compare(values[network, "scratch"], [weak_told], photos) for network in networks}
    origin = runs[f"{networks[0]}_strong"][0]["model"]["training"]
    return {
        "rows": [
            ["teacher a, `resnet18`", f"{teacher[0]['parameters']:,}", f"a: {mean_std(accuracies(teacher))}", *("–",) * 4],
            ["teacher b, `model.bin`", f"{strong_teacher['parameters']:,}", f"b: {percent(strong_told)}", *("–",) * 4],
            *rows_of_students(networks, runs, values, found),
        ],
        "seeds": seeds_text(values[networks[0], "scratch"]),
        "pixels": pixels_text(first),
        "epochs": str(epochs_of(first)),
        "teacher_epochs": str(epochs_of(teacher[0])),
        "teacher_seeds": seeds_text(teacher),
        "alpha": f"{origin['alpha']:g}",
        "temperature": f"{origin['temperature']:g}",
        "strong_pixels": str(input_pixels(shipped)),
        "strong_epochs": str(epochs_of(strong_teacher)),
        "shipped": percent(shipped["validation_accuracy_after"]),
        "weak_told": percent(weak_told),
        "strong_told": percent(strong_told),
        "students_pixels": str(input_pixels(first)),
        "weak": sorted_out(found["weak"], "training on the labels"),
        "strong": sorted_out(found["strong"], "training on the labels"),
        "teachers": sorted_out(found["teachers"], "with a"),
        "weak_teacher": sorted_out(above_a, "teacher a itself"),
        "conclusion": gain_text(verdicts(found["strong"])),
        "source": teachers_text(verdicts(found["teachers"])),
        "slim9": architecture_table(runs["slim9_scratch"][0]["model"]),
        "resnet18": architecture_table(teacher[0]["model"]),
    }


def answers_settings(group):
    """(weight of the teacher's answers, temperature) of a group of records."""
    training = group[0]["model"]["training"]
    return training["alpha"], training["temperature"]


def our_setting(found):
    """The conclusion from the set of verdicts on other settings against ours."""
    if 1 in found:
        return "So something better than our setting is among them"
    if -1 in found:
        return "So our setting is not beaten by any of them, and better than some"
    return "So none of them is told from our setting"


def alpha_temperature(records):
    """How much of the teacher's answers, and how soft."""
    runs = records["alpha_temperature"]
    first = next(iter(runs.values()))
    base = of_seeds(records["distillation"]["student_strong"], first)
    ours = alpha, temperature = answers_settings(base)
    photos = photos_of(base[0])

    def settings_text(group):
        """Its settings; only what differs from ours, if one does."""
        shown = [(letter, value) for letter, value, own in zip("αT", answers_settings(group), ours)
                 if value != own or group is base]
        return " with ".join(f"{letter}\N{NO-BREAK SPACE}{value:g}" for letter, value in shown)

    measured = [(*answers_settings(group), mean_std(accuracies(group))) for group in (base, *runs.values())]
    by_alpha = sorted((one, accuracy) for one, other, accuracy in measured if other == temperature)
    by_temperature = sorted((other, accuracy) for one, other, accuracy in measured if one == alpha)
    found = {settings_text(group): compare(accuracies(group), accuracies(base), photos) for group in runs.values()}
    return {
        "alphas": [[f"{value:g}", accuracy] for value, accuracy in by_alpha],
        "temperatures": [[f"{value:g}", accuracy] for value, accuracy in by_temperature],
        "alpha": f"{alpha:g}",
        "temperature": f"{temperature:g}",
        "course": mean_std(accuracies(runs["course"])),
        "course_settings": settings_text(runs["course"]),
        "seeds": seeds_text(first),
        "pixels": pixels_text(base[0]),
        "epochs": str(epochs_of(base[0])),
        "found": sorted_out(found, "it"),
        "ours": settings_text(base),
        "conclusion": our_setting(verdicts(found)),
    }


CHOICES = {
    "lr": "learning rate 0.005",
    "no_ema": "no averaged weights",
    "fixed_views": "fixed views, answers kept",
    "dkd": "decoupled loss",
}


def recipe(record):
    """What a distillation was trained with, in few words."""
    settings, origin = record["settings"], record["model"]["training"]
    constant = " constant" if settings.get("schedule") == "constant" else ""
    return ", ".join((
        settings["optimizer"],
        f"step {settings['lr']:g}{constant}",
        f"batches of {settings['batch_size']}",
        f"“{settings['augment']}” augmentation",
        f"α {origin['alpha']:g}",
        f"T {origin['temperature']:g}",
        "weights averaged" if settings["ema"] else "no averaged weights",
    ))


def mean_seconds(group):
    """Duration of a training."""
    return mean(record["seconds"] for record in group)


def choices(records):
    """The course's recipe and other choices against ours, one at a time."""
    runs, recipes = records["choices"], records["recipes"]
    first, ours, course = next(iter(runs.values())), recipes["ours"], recipes["course"]
    base = of_seeds(records["distillation"]["student_strong"], first)
    found = {name: compare(accuracies(runs[name]), accuracies(base), photos_of(base[0])) for name in CHOICES}
    headline = compare(accuracies(ours), accuracies(course), photos_of(base[0]))
    rows = [["baseline", mean_std(accuracies(base)), "–"]]
    rows += [[text, mean_std(accuracies(runs[name])), cell(found[name])] for name, text in CHOICES.items()]
    return {
        "rows": rows,
        "seeds": seeds_text(first),
        "epochs": str(epochs_of(base[0])),
        "pixels": pixels_text(base[0]),
        "ours": recipe(ours[0]),
        "course": recipe(course[0]),
        "ours_accuracy": mean_std(accuracies(ours)),
        "course_accuracy": mean_std(accuracies(course)),
        "recipe_epochs": str(epochs_of(ours[0])),
        "recipe_pixels": pixels_text(ours[0]),
        "views": str(runs["fixed_views"][0]["settings"]["views"]),
        "time": f"{100 * mean_seconds(runs['fixed_views']) / mean_seconds(base):.0f}",
        "headline": headline.to("the course's"),
        "others": sorted_out({CHOICES[name]: one for name, one in found.items()}, "the baseline"),
        "views_verdict": verdict_text(
            found["fixed_views"],
            "they gain accuracy",
            "they lose no accuracy that could be told in so short a training",
            "they lose accuracy"),
    }


TRAINED_ON = {  # variant of `testing`: photos, views
    "labelled": ("training", "random"),
    "unlabelled": ("training + testing", "random"),
    "labelled_fixed": ("training", "fixed"),
    "unlabelled_fixed": ("training + testing", "fixed"),
}
VIEWS = {"": "with random views", "_fixed": "with fixed views"}


def change_text(found, split):
    """What testing photos among those trained on change in the agreement with the teacher on SPLIT."""
    bars = "sampling error" if found["", "testing"].seeds == 1 else "error bars"
    parts = []
    for views, text in VIEWS.items():
        one = found[views, split]
        parts.append(f"{points(one.difference)} points {text} ({'beyond' if one.verdict else 'within'} the {bars})")
    return listed(parts)


def memory_text(found, accuracy):
    """The conclusion from comparisons of agreement, {(views, split): Comparison}, and of accuracy, {views: Comparison}."""
    def gained(views):
        """Whether something rises on photos that nobody was trained on."""
        return found[views, "validation"].verdict > 0 or accuracy[views].verdict > 0

    memorised = [text for views, text in VIEWS.items() if found[views, "testing"].verdict > 0 and not gained(views)]
    if memorised:
        return (f"That is memorised, not learned ({listed(memorised)}): "
                "on photos that nobody was trained on, nothing that could be told is gained")
    if all(found[views, "testing"].verdict <= 0 for views in VIEWS):
        return "Memorising does not show in a training of this length"
    return "What rises on testing photos rises on others too, so that it is learned, not only memorised"


def testing(records):
    """What soft labels on the unlabelled testing photos teach, and what they only make a student repeat."""
    runs, base = records["testing"], records["distillation"]["student_strong"]
    measured = {name: runs[f"{name}_measured"] for name in TRAINED_ON}
    # of validation; there are about as many testing photos, and no record counts them
    photos = measured["labelled"][0]["photos"]
    values = {name: accuracies(group) for name, group in measured.items()}
    splits = ("validation", "testing")
    agreement = {(name, split): [record["agreement"][split] for record in group]
                 for name, group in measured.items() for split in splits}
    rows = []
    for name, trained_on in TRAINED_ON.items():
        on_validation, on_testing = (agreement[name, split] for split in splits)
        rows.append([
            *trained_on,
            mean_std(values[name]),
            mean_std(on_validation),
            mean_std(on_testing),
            points(mean(on_testing) - mean(on_validation)),
        ])
    found = {(views, split): compare(agreement[f"unlabelled{views}", split], agreement[f"labelled{views}", split], photos)
             for views in VIEWS for split in splits}
    accuracy = {views: compare(values[f"unlabelled{views}"], values[f"labelled{views}"], photos) for views in VIEWS}
    by_views = {VIEWS[views].removeprefix("with "): one for views, one in accuracy.items()}
    return {
        "rows": rows,
        "seeds": seeds_text(measured["labelled"]),
        "epochs": str(epochs_of(base[0])),
        "pixels": f"{input_pixels(base[0])} px",
        "photos": f"{photos:,}",
        "change": {split: change_text(found, split) for split in ("testing", "validation")},
        "accuracy": sorted_out(by_views, "the same without testing photos"),
        "clean": "transductive" not in json.dumps(records["model.json"]["model"]["training"]),
        "conclusion": memory_text(found, accuracy),
    }
