"""README.md's tables of experiments, from the records in this folder; fill_readme.py puts them in their
places.
"""

import json
import statistics
from pathlib import Path

from compression.command_line import UserError

HERE = Path(__file__).resolve().parent


def read(name):
    """A record of this folder."""
    try:
        return json.loads((HERE / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"the record results/{name} cannot be read ({error}); run the script that writes it"
        ) from None


def mean_std(values):
    """Accuracies as "mean ± standard deviation" in per cent (sample deviation; one value stands alone)."""
    if len(values) == 1:
        return f"{100 * values[0]:.2f}"
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def size_of(record):
    """Input size of the network in a record, as text, and that of its training views if it is another."""
    size, views = record["model"]["preprocessing"]["size"], record.get("settings", {}).get("view_size")
    return f"{size} px (views of {views})" if views and views != size else f"{size} px"


def percent(accuracy):
    """0.62245 -> "62.24 %"."""
    return f"{100 * accuracy:.2f} %"


def table(header, rows):
    """A table of Markdown; cells are text, "" for an empty one."""
    first, *others = (
        "".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (header, *rows)
    )
    return "\n".join([first, "|---" * len(header) + "|", *others])


def runs(experiment):
    """{variant: [records of its seeds]} of an experiment; UserError if there are none."""
    groups = {}
    for path in sorted((HERE / experiment).glob("*-seed*.json")):
        groups.setdefault(path.stem.rsplit("-seed", 1)[0], []).append(read(f"{experiment}/{path.name}"))
    if not groups:
        raise UserError(
            f"results/{experiment} holds no records; run `python experiments.py {experiment} DATA`"
        )
    return groups


def source(groups, experiment):
    """The line under a table of {variant: records}: where its numbers come from."""
    records = [record for group in groups.values() for record in group]
    seeds = len({record["seed"] for record in records} - {None})
    commits = sorted({record["commit"] for record in records})
    return (
        f"{records[0]['device']}; {seeds} seed{'s' if seeds > 1 else ''}; "
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}; records in `results/{experiment}/`."
    )


def best_of(records):
    """The accuracies of training runs."""
    return [record["best"]["validation_accuracy"] for record in records]


def comparison(experiment):
    """A row per variant of an experiment, with mean ± std over its seeds."""
    groups = runs(experiment)
    rows = []
    for name, records in groups.items():
        first = records[0]
        rows.append(
            (
                f"`{name}`",
                f"{first['parameters']:,}",
                f"{_data_bytes(first):,} B",
                size_of(first),
                str(first["settings"]["epochs"]),
                str(len(records)),
                mean_std(best_of(records)),
            )
        )
    header = (
        "network",
        "parameters",
        "tensors at 8 bits",
        "size",
        "epochs",
        "seeds",
        "validation accuracy, %",
    )
    first = next(iter(groups.values()))[0]
    return (
        f"{table(header, rows)}\n\n{first['device']}; commit {first['commit']}; records in "
        f"`results/{experiment}/`."
    )


def _data_bytes(record):
    """Bytes of all tensors at 8 bits, BN folded, before entropy coding.

    The container adds some 3,000, by the version of torch that writes it.
    """
    from compression.files.model_file import Description, predicted_data_bytes
    from compression.quantization.grids import Scheme

    model = {**record["model"], "arguments": {**record["model"]["arguments"], "folded": True}}
    return predicted_data_bytes(Description.from_dict(model, "the record"), Scheme(8, "channel", "mse"))


def distillation():
    """Students from scratch, from a weak and from a strong teacher."""
    groups = runs("distillation")
    networks = list(dict.fromkeys(name.rpartition("_")[0] for name in groups))
    first = groups[f"{networks[0]}_scratch"][0]
    weak, strong = (groups[f"{networks[0]}_{kind}"][0]["teachers"][0] for kind in ("weak", "strong"))
    rows = []
    for network in sorted(networks, key=lambda network: -groups[f"{network}_scratch"][0]["parameters"]):
        parameters = groups[f"{network}_scratch"][0]["parameters"]
        cells = (mean_std(best_of(groups[f"{network}_{kind}"])) for kind in ("scratch", "weak", "strong"))
        rows.append((f"`{network}`", f"{parameters:,}", *cells))
    header = (
        "student",
        "parameters",
        "from scratch",
        f"from ResNet-18 from scratch ({percent(weak['validation_accuracy'])})",
        f"from our earlier model ({percent(strong['validation_accuracy'])})",
    )
    note = f"{first['settings']['epochs']} epochs at {size_of(first)}; {source(groups, 'distillation')}"
    return f"{table(header, rows)}\n\n{note}"


CHOICES = {
    "lr": "`--lr 0.005`, the default",
    "no_ema": "`--ema 0`: no averaged weights",
    "fixed_views": "`--views 2`: two fixed views a photo, cached teacher outputs",
    "dkd": "decoupled distillation (Zhao et al. 2022), β 2",
}


def choices():
    """One thing changed in the distillation of the student from model.bin: accuracy and difference."""
    groups = runs("choices")
    seeds = {record["seed"] for record in next(iter(groups.values()))}
    ours = [record for record in runs("distillation")["student_strong"] if record["seed"] in seeds]

    def accuracy(records):
        return statistics.mean(best_of(records))

    rows = [("`student` from the strong teacher, as above", mean_std(best_of(ours)), "")]
    for name, text in CHOICES.items():
        difference = 100 * (accuracy(groups[name]) - accuracy(ours))
        rows.append((text, mean_std(best_of(groups[name])), f"{difference:+.2f}".replace("-", "−")))
    header = ("in place of it", "validation accuracy, %", "difference")
    return f"{table(header, rows)}\n\n{source(groups, 'choices')}"


RECIPES = {
    "course": "the course's: AdamW at a constant 0.001, batches of 32, crop, flip and rotation, α 0.5, T 20",
    "ours": "the defaults, with `--augment light` for the short schedule",
}


def recipes():
    """The course's recipe of distillation and ours, trained alike."""
    groups = runs("recipes")
    rows = [(text, mean_std(best_of(groups[name]))) for name, text in RECIPES.items()]
    first = groups["ours"][0]
    note = (
        f"`student` from our earlier model, {first['settings']['epochs']} epochs at {size_of(first)}; "
        f"{source(groups, 'recipes')}"
    )
    return f"{table(('recipe', 'validation accuracy, %'), rows)}\n\n{note}"


def alpha_temperature():
    """One weight or temperature changed in the distillation of the student from model.bin, or the course's
    two together.
    """
    groups = runs("alpha_temperature")
    seeds = {record["seed"] for record in next(iter(groups.values()))}
    groups["ours"] = [record for record in runs("distillation")["student_strong"] if record["seed"] in seeds]
    rows = []
    for group in groups.values():
        origin = group[0]["model"]["training"]
        rows.append((origin["alpha"], origin["temperature"], mean_std(best_of(group))))
    lines = [(f"{alpha:g}", f"{temperature:g}", accuracy) for alpha, temperature, accuracy in sorted(rows)]
    return f"{table(('α', 'T', 'validation accuracy, %'), lines)}\n\n{source(groups, 'alpha_temperature')}"


TRAINED_ON = {
    "labelled": ("training", "random"),
    "unlabelled": ("training and testing", "random"),
    "labelled_fixed": ("training", "fixed"),
    "unlabelled_fixed": ("training and testing", "fixed"),
}


def testing():
    """Distillation on the unlabelled testing photos as well: accuracy, and agreement with the teacher on
    either split.
    """
    groups, rows = runs("testing"), []
    for name, words in TRAINED_ON.items():
        group = groups[f"{name}_measured"]
        agreement = (
            mean_std([record["agreement"][split] for record in group]) for split in ("validation", "testing")
        )
        rows.append((*words, mean_std([record["accuracy"] for record in group]), *agreement))
    header = (
        "photos",
        "views",
        "validation accuracy, %",
        "agrees with the teacher on validation, %",
        "on testing, %",
    )
    return f"{table(header, rows)}\n\n{source(groups, 'testing')}"


WAYS = {
    "big": "the network itself",
    "big_long": "the same, trained twice as long",
    "quantized": "the first at 8 bits per weight",
    "quantized_long": "the second at 8 bits per weight",
    "pruned": "the first with channels cut by γ, fine-tuned",
    "factorised": "low rank, equal shares, fine-tuned",
    "factorised_global": "low rank, `--ranking global`, fine-tuned",
    "distilled": "a narrow network distilled from it",
    "direct": "the narrow network, from the labels alone",
}


def way(name, groups):
    """(parameters, bytes, epochs, accuracies) of one way of compressing."""
    group, first, big = groups[name], groups[name][0], groups["big"][0]
    if name.startswith("quantized"):
        trained = groups[name.replace("quantized", "big")][0]
        size = round(statistics.mean(record["file_bytes"] for record in group))
        accuracies = [record["validation_accuracy_after"] for record in group]
        return trained["parameters"], size, str(trained["settings"]["epochs"]), accuracies
    if "rounds" in first:
        parameters, settings = first["rounds"][-1]["parameters"], first["pruning"]["settings"]
        accuracies = [record["rounds"][-1]["after_training"] for record in group]
    else:
        parameters, settings = first["parameters"], first["settings"]
        accuracies = best_of(group)
    alone = name in ("big", "big_long", "direct")
    epochs = f"{settings['epochs']}" if alone else f"{big['settings']['epochs']} + {settings['epochs']}"
    return parameters, 4 * parameters, epochs, accuracies


def compress():
    """One network at a quarter of its bytes, in several ways."""
    groups, rows = runs("compress"), []
    big = groups["big"][0]
    for name, text in WAYS.items():
        parameters, size, epochs, accuracies = way(name, groups)
        rows.append((text, f"{parameters:,}", f"{size:,}", epochs, mean_std(accuracies)))
    header = ("`student`", "parameters", "bytes", "epochs", "validation accuracy, %")
    return f"{table(header, rows)}\n\n{size_of(big)}; {source(groups, 'compress')}"


def equal_bytes():
    """Networks of four sizes, each at the bits that bring it to 300,000 bytes."""
    groups, rows = runs("equal_bytes"), []
    names = [name for name in groups if name.startswith("float")]
    for name in sorted(names, key=lambda name: groups[name][0]["parameters"]):
        trained, stored = groups[name], groups[name.replace("float", "stored")]
        rows.append(
            (
                f"{trained[0]['parameters']:,}",
                str(stored[0]["bits"]),
                f"{statistics.mean(record['file_bytes'] for record in stored):,.0f} B",
                mean_std(best_of(trained)),
                mean_std([record["validation_accuracy_after"] for record in stored]),
            )
        )
    header = ("parameters", "bits", "file", "32-bit weights", "in the file")
    epochs, tuned = trained[0]["settings"]["epochs"], stored[0]["fine_tuning"]["settings"]["epochs"]
    note = (
        f"{epochs} epochs at {size_of(trained[0])} and {tuned} through the rounding; "
        f"{source(groups, 'equal_bytes')}"
    )
    return f"{table(header, rows)}\n\n{note}"


PRUNING = {
    "none": "no training",
    "mistake1": "the reference mistake, 1 epoch",
    "finetune1": "fine-tuned, 1 epoch",
    "finetune5": "fine-tuned, 5 epochs",
    "finetune20": "fine-tuned, 20 epochs",
    "retrain5": "trained anew, 5 epochs",
}


def pruning_table(groups, rate):
    """The table of `pruning` for one rate."""
    shown = [name for name in PRUNING if f"{name}_{rate}" in groups]
    first = groups[f"{shown[0]}_{rate}"]
    before = mean_std([record["validation_accuracy"] for record in first])
    rows = [("before", f"{first[0]['plan'][0]['parameters']:,}", *[before] * len(shown))]
    for index, row in enumerate(first[0]["rounds"]):
        lines = (
            [record["rounds"][index]["after_training"] for record in groups[f"{name}_{rate}"]]
            for name in shown
        )
        rows.append((str(index + 1), f"{row['parameters']:,}", *map(mean_std, lines)))
    if f"once_{rate}" in groups:
        group = groups[f"once_{rate}"]
        once, epochs = [record["rounds"][0] for record in group], group[0]["pruning"]["settings"]["epochs"]
        accuracy = mean_std([row["after_training"] for row in once])
        text = f"trained anew, {epochs} epochs: {accuracy}"
        rows.append(("all at once", f"{once[0]['parameters']:,}", text, *[""] * (len(shown) - 1)))
    return table((f"rate {rate}: round", "parameters", *(PRUNING[name] for name in shown)), rows)


def pruning():
    """Accuracy after each of five cuts, by what was done after each of them; then what training anew once at
    the end gives.
    """
    groups = runs("pruning")
    return "\n\n".join(
        [*(pruning_table(groups, rate) for rate in ("0.95", "0.9")), source(groups, "pruning")]
    )
