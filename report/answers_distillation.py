"""What the report says about distillation: which teacher, which loss, which photos."""

import json
import math
from statistics import mean

from architectures import architecture_table
from conclusions import (
    cell,
    compare,
    listed,
    mean_std,
    of_pairs,
    percent,
    points,
    sampling_error,
    seeds_text,
    sorted_out,
    verdict_text,
)
from readings import accuracies, epochs_of, input_pixels, of_seeds, photos_of, pixels_text, view_pixels


def teacher_accuracy(records):
    """Accuracy of the teacher behind distilled students, on what the students look at."""
    return records[0]["teachers"][0]["validation_accuracy"]


def rows_of_students(networks, runs, values, found):
    """Rows of the table: student, parameters, accuracy from scratch, by a and by b, what a and b are worth."""
    rows = []
    for network in networks:
        parameters = runs[f"{network}_scratch"][0]["parameters"]
        rows.append(
            [
                f"`{network}`",
                f"{parameters:,}",
                "–",
                *(mean_std(values[network, kind]) for kind in ("scratch", "weak", "strong")),
                cell(found["weak"][f"`{network}`"]),
                cell(found["strong"][f"`{network}`"]),
            ]
        )
    return rows


def gain_text(gain, teacher):
    """The conclusion from the Comparison of all students of a teacher with training on the labels."""
    return verdict_text(
        gain,
        f"the answers of {teacher} hold more than the labels do",
        f"that the answers of {teacher} hold more than the labels do is not shown",
        f"the answers of {teacher} hold less than the labels do",
    )


def teachers_text(between):
    """The conclusion from the Comparison of all students of b with those of a, b being the better teacher by
    its accuracy.
    """
    return verdict_text(
        between,
        "The better teacher teaches better",
        "That the better teacher teaches better is not shown",
        "The better teacher teaches worse",
    )


def distillation(records):
    """Question 2: teachers, students, and what a teacher is worth."""
    runs, teacher = records["distillation"], records["teachers"]["resnet18"]
    shipped, strong_teacher = records["strong_teacher_file.json"], records["strong_teacher.json"]
    networks = [variant.removesuffix("_scratch") for variant in runs if variant.endswith("_scratch")]
    networks.sort(key=lambda network: runs[f"{network}_scratch"][0]["parameters"])
    first = runs[f"{networks[0]}_scratch"][0]
    taught = runs[f"{networks[0]}_strong"][0]
    photos = photos_of(first)
    kinds = ("scratch", "weak", "strong")
    values = {
        (network, kind): accuracies(runs[f"{network}_{kind}"]) for network in networks for kind in kinds
    }
    # a seed's mean over the students
    of_all = {kind: list(map(mean, zip(*(values[network, kind] for network in networks)))) for kind in kinds}

    def compared(kind, other):
        return {
            f"`{network}`": compare(values[network, kind], values[network, other], photos)
            for network in networks
        }

    found = {kind: compared(kind, "scratch") for kind in ("weak", "strong")}
    together = {
        "weak": compare(of_all["weak"], of_all["scratch"], photos),
        "strong": compare(of_all["strong"], of_all["scratch"], photos),
        "teachers": compare(of_all["strong"], of_all["weak"], photos),
    }
    weak_told, strong_told = (teacher_accuracy(runs[f"{networks[0]}_{kind}"]) for kind in ("weak", "strong"))
    above_a = [
        f"`{network}` ({mean_std(values[network, 'weak'])} %)"
        for network in networks
        if compare(values[network, "weak"], [weak_told] * len(values[network, "weak"]), photos).verdict > 0
    ]
    origin = taught["model"]["training"]
    return {
        "rows": [
            ["teacher a, `resnet18`", f"{teacher[0]['parameters']:,}", percent(weak_told), *("–",) * 5],
            [
                "teacher b, our earlier model",
                f"{strong_teacher['parameters']:,}",
                percent(strong_told),
                *("–",) * 5,
            ],
            *rows_of_students(networks, runs, values, found),
        ],
        "seeds": seeds_text(values[networks[0], "scratch"]),
        "pixels": pixels_text(first),
        "epochs": str(epochs_of(first)),
        "teacher_epochs": str(epochs_of(teacher[0])),
        "teacher_seed": str(teacher[0]["seed"]),
        "alpha": f"{origin['alpha']:g}",
        "temperature": f"{origin['temperature']:g}",
        "smoothing": [f"{one['settings']['label_smoothing']:g}" for one in (first, taught)],
        "strong_pixels": str(input_pixels(shipped)),
        "strong_views": str(view_pixels(strong_teacher)),
        "strong_epochs": str(epochs_of(strong_teacher)),
        "shipped": percent(shipped["validation_accuracy_after"]),
        "strong_told": percent(strong_told),
        "students_pixels": str(input_pixels(first)),
        "students_views": str(view_pixels(first)),
        "weak": sorted_out(found["weak"], "training on the labels"),
        "strong": sorted_out(found["strong"], "training on the labels"),
        "together": {name: cell(one) for name, one in together.items()},
        "above_a": listed(above_a) if above_a else "",
        "gains": f"{gain_text(together['weak'], 'a')}, and {gain_text(together['strong'], 'b')}",
        "source": teachers_text(together["teachers"]),
        "slim9": architecture_table(runs["slim9_scratch"][0]["model"]),
        "resnet18": architecture_table(teacher[0]["model"]),
    }


def answers_settings(group):
    """(weight of the teacher's answers, temperature) of a group of records."""
    training = group[0]["model"]["training"]
    return training["alpha"], training["temperature"]


def our_setting(found):
    """The conclusion from {setting: Comparison with ours}."""
    better, worse = ([name for name, one in found.items() if one.verdict == verdict] for verdict in (1, -1))
    if better:
        return f"So {listed(better)} would have been the better choice"
    if worse:
        verb = "is" if len(worse) == 1 else "are"
        return (
            f"So only {listed(worse)} {verb} shown to be a mistake; among the rest these records do not "
            "choose"
        )
    return "So these records do not choose among them"


def alpha_temperature(records):
    """How much of the teacher's answers, and how soft."""
    runs = records["alpha_temperature"]
    first = next(iter(runs.values()))
    base = of_seeds(records["distillation"]["student_strong"], first)
    ours = alpha, temperature = answers_settings(base)
    photos = photos_of(base[0])

    def settings_text(group):
        """Its settings; only what differs from ours, if one does."""
        shown = [
            (letter, value)
            for letter, value, own in zip("αT", answers_settings(group), ours)
            if value != own or group is base
        ]
        return " with ".join(f"{letter}\N{NO-BREAK SPACE}{value:g}" for letter, value in shown)

    measured = [(*answers_settings(group), mean_std(accuracies(group))) for group in (base, *runs.values())]
    by_alpha = sorted((one, accuracy) for one, other, accuracy in measured if other == temperature)
    by_temperature = sorted((other, accuracy) for one, other, accuracy in measured if one == alpha)
    found = {
        settings_text(group): compare(accuracies(group), accuracies(base), photos) for group in runs.values()
    }
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
        "found": sorted_out(found, settings_text(base)),
        "ours": settings_text(base),
        "conclusion": our_setting(found),
    }


CHOICES = {
    "lr": "learning rate 0.005",
    "no_ema": "no averaged weights",
    "fixed_views": "fixed views, cached outputs",
    "dkd": "decoupled loss",
}


OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}


def recipe(record):
    """What a distillation was trained with, in few words."""
    settings, origin = record["settings"], record["model"]["training"]
    schedule = (
        "constant"
        if settings["schedule"] == "constant"
        else f"warmed up and brought to 0 by a {settings['schedule']}"
    )
    return ", ".join(
        (
            f"{OPTIMIZERS.get(settings['optimizer'], settings['optimizer'])} with a learning rate of "
            f"{settings['lr']:g} ({schedule}) "
            f"and weight decay of {settings['weight_decay']:g}",
            f"batches of {settings['batch_size']}",
            f"the augmentation `{settings['augment']}`",
            f"α {origin['alpha']:g} and T {origin['temperature']:g}",
            "averaged weights" if settings["ema"] else "no averaged weights",
        )
    )


def choices(records):
    """The course's recipe and other choices against ours, one at a time."""
    runs, recipes, fixed_views = records["choices"], records["recipes"], records["fixed_views.json"]
    first, ours, course = next(iter(runs.values())), recipes["ours"], recipes["course"]
    base = of_seeds(records["distillation"]["student_strong"], first)
    found = {name: compare(accuracies(runs[name]), accuracies(base), photos_of(base[0])) for name in CHOICES}
    headline = compare(accuracies(ours), accuracies(course), photos_of(base[0]))
    rows = [["baseline", mean_std(accuracies(base)), "–"]]
    rows += [[text, mean_std(accuracies(runs[name])), cell(found[name])] for name, text in CHOICES.items()]
    times = [
        f"about {round(20 * one['ratio']) * 5} % of the time with {text}"
        for text, one in fixed_views["results"].items()
    ]
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
        "times": listed(times),
        "times_pixels": str(fixed_views["size"]),
        "headline": headline.to("the course’s"),
        "others": sorted_out({CHOICES[name]: one for name, one in found.items()}, "the baseline"),
        "views_verdict": verdict_text(
            found["fixed_views"],
            "In accuracy, they gain",
            "A loss of accuracy is not shown in so short a training",
            "In accuracy, they lose",
        ),
    }


TRAINED_ON = {  # variant of `testing`: photos, views
    "labelled": ("training", "random"),
    "unlabelled": ("training + testing", "random"),
    "labelled_fixed": ("training", "none"),
    "unlabelled_fixed": ("training + testing", "none"),
}
VIEWS = {"": "with random views", "_fixed": "without views"}


def change_text(found, split):
    """What testing photos among those trained on change in the agreement with the teacher on SPLIT."""
    parts = [
        f"{points(found[views, split].difference)} points {text} "
        f"({'shown' if found[views, split].verdict else 'open'})"
        for views, text in VIEWS.items()
    ]
    return listed(parts)


def beyond_validation(agreement, views, photos):
    """How much more the agreement rises on testing photos than on validation photos, as a Comparison.

    agreement: {(variant, split): one per seed}
    """
    groups = [
        agreement[f"{kind}{views}", split]
        for split in ("testing", "validation")
        for kind in ("unlabelled", "labelled")
    ]
    differences = [
        (with_testing - without) - (validation_with - validation_without)
        for with_testing, without, validation_with, validation_without in zip(*groups)
    ]
    return of_pairs(differences, math.hypot(*(sampling_error(group[0], photos) for group in groups)))


def memory_text(apart):
    """The conclusion from {views: how much more agreement rises on testing photos than on validation photos,
    a Comparison}.
    """
    memorised = [text for views, text in VIEWS.items() if apart[views].verdict > 0]
    if memorised:
        return (
            f"What is gained on the testing photos beyond that, {listed(memorised)}, is memorised, not "
            "learned"
        )
    return "That anything is memorised does not show in a training of this length"


def testing(records):
    """What soft labels on the unlabelled testing photos teach, and what they only make a student repeat."""
    runs, base = records["testing"], records["distillation"]["student_strong"]
    measured = {name: runs[f"{name}_measured"] for name in TRAINED_ON}
    # of validation; there are about as many testing photos, and no record counts them
    photos = measured["labelled"][0]["photos"]
    values = {name: accuracies(group) for name, group in measured.items()}
    splits = ("validation", "testing")
    agreement = {
        (name, split): [record["agreement"][split] for record in group]
        for name, group in measured.items()
        for split in splits
    }
    rows = []
    for name, trained_on in TRAINED_ON.items():
        on_validation, on_testing = (agreement[name, split] for split in splits)
        rows.append(
            [
                *trained_on,
                mean_std(values[name]),
                mean_std(on_validation),
                mean_std(on_testing),
                points(mean(on_testing) - mean(on_validation)),
            ]
        )
    found = {
        (views, split): compare(
            agreement[f"unlabelled{views}", split], agreement[f"labelled{views}", split], photos
        )
        for views in VIEWS
        for split in splits
    }
    apart = {views: beyond_validation(agreement, views, photos) for views in VIEWS}
    accuracy = {
        views: compare(values[f"unlabelled{views}"], values[f"labelled{views}"], photos) for views in VIEWS
    }
    by_views = {f"learning {VIEWS[views]}": one for views, one in accuracy.items()}
    return {
        "rows": rows,
        "seeds": seeds_text(measured["labelled"]),
        "epochs": str(epochs_of(base[0])),
        "pixels": str(input_pixels(base[0])),
        "views": str(view_pixels(base[0])),
        "photos": f"{photos:,}",
        "trained_on": [
            f"{runs[name][0]['photos']['training']:,}" for name in ("labelled_fixed", "unlabelled_fixed")
        ],
        "change": {split: change_text(found, split) for split in splits},
        "apart": listed([f"{points(one.difference)} points {VIEWS[views]}" for views, one in apart.items()]),
        "accuracy": sorted_out(by_views, "the same without testing photos"),
        "clean": "transductive" not in json.dumps(records["model.json"]["model"]["training"]),
        "conclusion": memory_text(apart),
    }
