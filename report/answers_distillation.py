"""What the report says about distillation: which teacher, which loss, which photos."""

import json
from statistics import mean

from architectures import architecture_table
from conclusions import cell, compare, listed, mean_std, percent, points, seeds_text, sorted_out, verdict_text
from readings import accuracies, input_pixels, of_seeds, photos_of, pixels_text


def teacher_accuracy(records):
    """Accuracy of the teacher behind distilled students, on what the students look at."""
    return records[0]["teachers"][0]["validation_accuracy"]


def distillation(records):
    """Question 2: teachers, students, and what a teacher is worth."""
    runs, weak_teacher, shipped = records["distillation"], records["teachers"]["resnet18"], records["model.json"]
    networks = [variant.removesuffix("_scratch") for variant in runs if variant.endswith("_scratch")]
    networks.sort(key=lambda network: runs[f"{network}_scratch"][0]["parameters"])
    first = runs[f"{networks[0]}_scratch"][0]
    photos, found = photos_of(first), {}
    values = {(network, kind): accuracies(runs[f"{network}_{kind}"]) for network in networks for kind in ("scratch", "weak", "strong")}
    for name, one, other in (("weak", "weak", "scratch"), ("strong", "strong", "scratch"), ("teachers", "strong", "weak")):
        found[name] = {f"`{network}`": compare(values[network, one], values[network, other], photos) for network in networks}
    told = {kind: teacher_accuracy(runs[f"{networks[0]}_{kind}"]) for kind in ("weak", "strong")}
    rows = [["teacher a, `resnet18`", f"{weak_teacher[0]['parameters']:,}", f"a: {mean_std(accuracies(weak_teacher))}", *("–",) * 4],
            ["teacher b, `model.bin`", f"{records['model_training.json']['parameters']:,}", f"b: {percent(told['strong'])}", *("–",) * 4],
            *([f"student, `{network}`", f"{runs[f'{network}_scratch'][0]['parameters']:,}", *(mean_std(values[network, kind]) for kind in ("scratch", "weak", "strong")),
               cell(found["weak"][f"`{network}`"]), cell(found["strong"][f"`{network}`"])] for network in networks)]
    origin = runs[f"{networks[0]}_strong"][0]["model"]["training"]
    verdicts = {name: {one.verdict for one in comparisons.values()} for name, comparisons in found.items()}
    return {"rows": rows, "seeds": seeds_text(values[networks[0], "scratch"]), "pixels": pixels_text(first), "epochs": str(first["settings"]["epochs"]), "teacher_epochs": str(weak_teacher[0]["settings"]["epochs"]),
            "teacher_seeds": seeds_text(weak_teacher), "alpha": f"{origin['alpha']:g}", "temperature": f"{origin['temperature']:g}", "strong_pixels": str(input_pixels(shipped)), "strong_epochs": str(records["model_training.json"]["settings"]["epochs"]),
            "shipped": percent(shipped["validation_accuracy_after"]), "weak_told": percent(told["weak"]), "strong_told": percent(told["strong"]), "students_pixels": str(input_pixels(first)),
            "weak": sorted_out(found["weak"], "training on the labels"), "strong": sorted_out(found["strong"], "training on the labels"), "teachers": sorted_out(found["teachers"], "with a"),
            "weak_teacher": sorted_out({f"`{network}`": compare(values[network, "scratch"], [told["weak"]], photos) for network in networks}, "teacher a itself"),
            "conclusion": "Every student gains from b: its answers hold more than the labels do" if verdicts["strong"] == {1} else "Not every student gains from b beyond the error bars" if 1 in verdicts["strong"]
            else "No student is shown to gain from b in so short a training",
            "source": "and who teaches matters" if verdicts["teachers"] == {1} else "and for some of them it matters who teaches" if 1 in verdicts["teachers"] else "and that it matters who teaches is not shown",
            "slim9": architecture_table(runs["slim9_scratch"][0]["model"]), "resnet18": architecture_table(weak_teacher[0]["model"])}


def alpha_temperature(records):
    """How much of the teacher's answers, and how soft."""
    runs = records["alpha_temperature"]
    first = next(iter(runs.values()))
    base = of_seeds(records["distillation"]["student_strong"], first)
    everything = [base, *runs.values()]

    def settings(group):
        return group[0]["model"]["training"]["alpha"], group[0]["model"]["training"]["temperature"]

    alpha, temperature = settings(base)
    photos = photos_of(base[0])
    by_alpha, by_temperature = (sorted((settings(group)[own], mean_std(accuracies(group))) for group in everything if settings(group)[other] == fixed)
                                for own, other, fixed in ((0, 1, temperature), (1, 0, alpha)))
    def named(group):
        """Its settings; only what differs from ours, if one does."""
        parts = [f"{letter}\N{NO-BREAK SPACE}{value:g}" for letter, value, own in zip("αT", settings(group), (alpha, temperature)) if value != own or group is base]
        return " with ".join(parts)

    found = {named(group): compare(accuracies(group), accuracies(base), photos) for group in runs.values()}
    return {"alphas": [[f"{value:g}", accuracy] for value, accuracy in by_alpha], "temperatures": [[f"{value:g}", accuracy] for value, accuracy in by_temperature], "alpha": f"{alpha:g}",
            "temperature": f"{temperature:g}", "course": mean_std(accuracies(runs["course"])), "course_settings": named(runs["course"]), "seeds": seeds_text(first), "pixels": pixels_text(base[0]),
            "epochs": str(base[0]["settings"]["epochs"]), "found": sorted_out(found, "it"), "ours": named(base),
            "conclusion": "So something better than our setting is among them" if any(one.verdict > 0 for one in found.values()) else "So our setting is not beaten by any of them, and better than some"
            if any(one.verdict < 0 for one in found.values()) else "So none of them is told from our setting"}


CHOICES = {"lr": "learning rate 0.005", "no_ema": "no averaged weights", "fixed_views": "fixed views, answers kept", "dkd": "decoupled loss"}


def recipe(record):
    """What a distillation was trained with, in few words."""
    settings, origin = record["settings"], record["model"]["training"]
    steps = f"{settings['optimizer']}, step {settings['lr']:g}{' constant' if settings.get('schedule') == 'constant' else ''}, batches of {settings['batch_size']}"
    return f"{steps}, “{settings['augment']}” augmentation, α {origin['alpha']:g}, T {origin['temperature']:g}, {'weights averaged' if settings['ema'] else 'no averaged weights'}"


def choices(records):
    """The course's recipe and other choices against ours, one at a time."""
    runs, recipes = records["choices"], records["recipes"]
    first, ours, course = next(iter(runs.values())), recipes["ours"], recipes["course"]
    base = of_seeds(records["distillation"]["student_strong"], first)
    photos = photos_of(base[0])
    found = {name: compare(accuracies(runs[name]), accuracies(base), photos) for name in CHOICES}
    seconds = {name: mean(record["seconds"] for record in group) for name, group in (("base", base), ("fixed_views", runs["fixed_views"]))}
    return {"rows": [["baseline", mean_std(accuracies(base)), "–"], *([text, mean_std(accuracies(runs[name])), cell(found[name])] for name, text in CHOICES.items())],
            "seeds": seeds_text(first), "epochs": str(base[0]["settings"]["epochs"]), "pixels": pixels_text(base[0]), "ours": recipe(ours[0]), "course": recipe(course[0]),
            "ours_accuracy": mean_std(accuracies(ours)), "course_accuracy": mean_std(accuracies(course)), "recipe_epochs": str(ours[0]["settings"]["epochs"]), "recipe_pixels": pixels_text(ours[0]), "views": str(runs["fixed_views"][0]["settings"]["views"]), "time": f"{100 * seconds['fixed_views'] / seconds['base']:.0f}",
            "headline": compare(accuracies(ours), accuracies(course), photos).to("the course's"),
            "others": sorted_out({CHOICES[name]: found[name] for name in CHOICES}, "the baseline"),
            "views_verdict": verdict_text(found["fixed_views"], "they gain accuracy", "they lose no accuracy that could be told in so short a training", "they lose accuracy")}


TRAINED_ON = {"labelled": ("training", "random"), "unlabelled": ("training + testing", "random"), "labelled_fixed": ("training", "fixed"), "unlabelled_fixed": ("training + testing", "fixed")}


def testing(records):
    """What soft labels on the unlabelled testing photos teach, and what they only make a student repeat."""
    runs, base = records["testing"], records["distillation"]["student_strong"]
    measured = {name: runs[f"{name}_measured"] for name in TRAINED_ON}
    photos = measured["labelled"][0]["photos"]  # of validation; there are about as many testing photos, and no record counts them
    shares = {(name, split): [record["agreement"][split] for record in measured[name]] for name in TRAINED_ON for split in ("validation", "testing")}
    rows = [[*TRAINED_ON[name], mean_std(accuracies(measured[name])), *(mean_std(shares[name, split]) for split in ("validation", "testing")),
             points(mean(shares[name, "testing"]) - mean(shares[name, "validation"]))] for name in TRAINED_ON]
    found = {views: {split: compare(shares[f"unlabelled{views}", split], shares[f"labelled{views}", split], photos) for split in ("testing", "validation")} for views in ("", "_fixed")}
    accuracy = {views: compare(accuracies(measured[f"unlabelled{views}"]), accuracies(measured[f"labelled{views}"]), photos) for views in found}
    memorised = [views for views, one in found.items() if one["testing"].verdict > 0 and one["validation"].verdict <= 0 and accuracy[views].verdict <= 0]
    bars = "sampling error" if found[""]["testing"].seeds == 1 else "error bars"
    words = {"": "with random views", "_fixed": "with fixed views"}
    return {"rows": rows, "seeds": seeds_text(measured["labelled"]), "epochs": str(base[0]["settings"]["epochs"]), "pixels": f"{input_pixels(base[0])} px", "photos": f"{photos:,}",
            "change": {split: listed([f"{points(found[views][split].difference)} points {words[views]} ({'beyond' if found[views][split].verdict else 'within'} the {bars})" for views in words]) for split in ("testing", "validation")},
            "accuracy": sorted_out({words[views].removeprefix("with "): one for views, one in accuracy.items()}, "the same without testing photos"), "clean": "transductive" not in json.dumps(records["model.json"]["model"]["training"]),
            "conclusion": f"That is memorised, not learned ({listed([words[views] for views in memorised])}): on photos that nobody was trained on, nothing that could be told is gained" if memorised else
            "Memorising does not show in a training of this length" if all(one["testing"].verdict <= 0 for one in found.values()) else "What rises on testing photos rises on others too, so that it is learned, not only memorised"}
