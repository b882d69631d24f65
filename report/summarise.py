"""Reduce the records under results/ to what the report, its figures and the pages' tables read (build.py
writes it to report/summary.json).

It holds {experiment: {variant: {fact: value, metric: {mean, std, n, vs: {other variant: difference}}}}}, and
what is measured of the model that is handed in. Accuracies are shares of 1.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np
import pandas as pd
from claims import CLAIMS
from scipy.stats import t

from compression.command_line import UserError
from experiments.comparisons import EXPERIMENTS

STANDIN = "stand-in"
PHOTO_SETS = json.loads((ROOT / "results/photo_sets.json").read_text())  # fingerprint of a split -> its name
TEACHERS = json.loads((HERE / "published.json").read_text())["teachers"]  # by file: name, parameters
TOLERANCE = 0.002  # of an accuracy measured again on the same photos: other batches round otherwise
EVALUATIONS = ("evaluation", "evaluation_before", "evaluation_tta", "evaluation_food11")  # of model.bin
EVALUATED = ("accuracy", "photos", "small_photos", "accuracy_of_small", "accuracy_of_larger")
EVALUATED += ("class_accuracy", "calibration_error", "confusion", "reliability", "bits", "device")
BENCHMARKS = ("hw7_test", "data_path", "fixed_views", "onnx_teacher", "onnx_export")
BENCHMARKS += ("speed_training", "speed_inference", "speed_step", "speed_gpu", "processes")
MODES = ("none", "mistake1", "finetune1", "finetune5", "retrain5")
BASES = {  # experiment: the variants that all its variants are compared with
    "alpha_temperature": ["base"],  # student_strong of `distillation`
    "bits": ["student_4_tensor", "residual6_4_tensor"],
    "compress": ["big", "big_long", "quantized_long", "direct"],
    "distillation": ["student_course"]
    + [f"{name}_{kind}" for name in ("slim9", "student", "residual6", "all") for kind in ("scratch", "weak")],
    "equal_bytes": ["float_251", "stored_251"],
    "families": [f"plain_{width}" for width in (32, 64, 90, 128, 256)],
    "lowrank": ["channels_171606", "channels_114810"],
    "one_megabyte": ["cnn1mb", "one_group", "dw1mb_3", "dw1mb_4"],
    "own_classes": ["scratch"],
    "pruning": [f"{mode}_{rate}" for mode in MODES for rate in (0.95, 0.9)],
    "pruning_wide8": [f"{mode}_{rate}" for mode in MODES[:2] for rate in (0.95, 0.85)],
    "resolution": ["standard_measured"],
    "rewinding": [f"{mode}_{rate}" for mode in ("finetune", "retrain") for rate in (0.6, 0.35)],
    "scratch": ["student"],
    "sizes": ["stored_25", "stored_100"],
    "teachers": [],
    "testing": ["labelled_measured", "labelled_fixed_measured"],
}


class Records:
    """The records under a folder; UserError names one that is missing, damaged or of other photos.

    photos: what the accuracies are said to be measured on.
    """

    def __init__(self, results, photos):
        self.results, self.photos = Path(results), photos
        self.read = defaultdict(dict)  # folder, or name of a record outside one -> {name: record}

    def __call__(self, name, command="the script that writes it", any_photos=False):
        try:
            record = json.loads((self.results / name).read_bytes())
            record["command"], record["data"]
        except FileNotFoundError:
            raise UserError(f"the record results/{name} is missing; run {command}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the record results/{name} is damaged ({error}); run {command} again") from None
        for split, fingerprint in record["data"].items():
            known = fingerprint in PHOTO_SETS
            if not any_photos and split != "training" and known != (self.photos == STANDIN):
                reason = f"is of other {split} photos than {self.photos} (see results/photo_sets.json)"
                raise UserError(f"the record results/{name} {reason}; measure again, or use --photos")
        self.read[name.rpartition("/")[0] or name][name] = record
        return record

    def folder(self, name):
        """All records of a folder."""
        names = sorted(path.name for path in (self.results / name).glob("*.json"))
        if not names:
            raise UserError(f"results/{name} holds no records; run quantize.py --record for each of them")
        return [self(f"{name}/{file}") for file in names]

    def experiment(self, name):
        """Rows (variant, seed, record); every variant has each seed that any has, and the first."""
        command = f"`python -m experiments {name} DATA`"
        there = [path.stem.rsplit("-seed", 1) for path in (self.results / name).glob("*-seed*.json")]
        seeds = {int(seed) for _, seed in there} | {EXPERIMENTS[name].seeds[0]}
        return [
            (variant, seed, self(f"{name}/{variant}-seed{seed}.json", command, EXPERIMENTS[name].subset))
            for variant in EXPERIMENTS[name].variants
            for seed in sorted(seeds)
        ]


def metrics(record):
    """What differs from seed to seed, by name; None where a record does not hold it."""
    agreement, last = record.get("agreement", {}), record.get("rounds", [{}])[-1]
    values = {**record, **record.get("best", {}), **last}
    names = ("after_training", "validation_accuracy", "validation_accuracy_after", "accuracy")
    return {
        "accuracy": next((values[name] for name in names if name in values), None),
        "before": record.get("validation_accuracy_before", record.get("validation_accuracy")),
        "after_cut": last.get("after_cut"),
        "reduced": record.get("accuracy_reduced"),
        **{f"agree_{split}": agreement.get(split) for split in ("validation", "testing")},
        "gap": agreement["testing"] - agreement["validation"] if agreement.get("testing") else None,
        "last": record.get("history", [{}])[-1].get("validation_accuracy"),
        "bytes": record.get("file_bytes", record.get("packed_bytes")),
    }


def facts(record):
    """What all seeds of a variant share."""
    model, last = record["model"], record.get("rounds", [record])[-1]
    settings = record.get("settings") or record.get("pruning", {}).get("settings") or {}
    training, pixels = model.get("training", {}), model["preprocessing"]["size"]
    photos = record.get("photos", record.get("validation_photos"))
    photos = photos if isinstance(photos, dict) else {"validation": photos}
    teacher = (record.get("teachers") or [None])[0]
    found = {
        "network": model["architecture"],
        "arguments": last.get("arguments", model["arguments"]),
        "pixels": pixels,
        "measured_on": PHOTO_SETS.get(record["data"].get("validation")),
        "views": settings.get("view_size") or training.get("view_size") or pixels,
        "settings": settings,
        "epochs": settings.get("epochs", training.get("epochs")),
        "training": training,
        "parameters": last.get("parameters"),
        "macs": last.get("macs"),
        "photos": photos["validation"],
        "training_photos": photos.get("training"),
        "teacher": teacher and {**TEACHERS.get(teacher["file"], {"name": teacher["file"]}), **teacher},
        **{key: record.get(key) for key in ("bits", "raw_bytes", "small_photos", "reduced_to")},
        "qat_epochs": record.get("fine_tuning", {}).get("settings", {}).get("epochs"),
        "scope": record.get("pruning", {}).get("scope"),
    }
    return {name: value for name, value in found.items() if value is not None}


def statistics(values):
    """Mean, sample standard deviation (of several) and number of values."""
    values = pd.Series(values).dropna()
    return {"mean": values.mean(), "std": values.std() if len(values) > 1 else None, "n": len(values)}


def difference(ours, theirs, photos):
    """Mean paired difference of two Series of accuracies by seed, and the bound it must exceed to count.

    With several seeds the bound is half the 95 % confidence interval (Student's t over the pairs); with one,
    two standard errors of the difference of accuracies on so many photos.
    """
    pairs = (ours - theirs).dropna()
    if len(pairs) > 1:
        bound = t.ppf(0.975, len(pairs) - 1) * pairs.std() / np.sqrt(len(pairs))
    else:
        bound = 2 * np.sqrt(sum((one * (1 - one)).mean() for one in (ours, theirs)) / photos)
    mean = pairs.mean()
    return {"mean": mean, "bound": bound, "verdict": int(np.sign(mean)) if abs(mean) > bound + 1e-9 else 0}


def experiment(records, name):
    """{variant: facts, statistics of every metric, differences, accuracy after every round}."""
    rows, found = records.experiment(name), {}
    if name == "alpha_temperature":
        others = records.experiment("distillation")
        rows += [("base", seed, record) for variant, seed, record in others if variant == "student_strong"]
    table = pd.DataFrame([{"variant": variant, "seed": seed, **metrics(one)} for variant, seed, one in rows])
    wide = {key: table.pivot(index="variant", columns="seed", values=key) for key in table.columns[2:]}
    for variant in EXPERIMENTS[name].variants:
        group = [record for one, _, record in rows if one == variant]
        found[variant] = facts(group[0]) | {key: statistics(one.loc[variant]) for key, one in wide.items()}
        found[variant]["best_epochs"] = [one["best"].get("epoch") for one in group if "best" in one]
        found[variant]["rounds"] = [
            {
                "parameters": one[0]["parameters"],
                "accuracy": statistics([each["after_training"] for each in one]),
                "after_cut": statistics([each["after_cut"] for each in one]),
            }
            for one in zip(*(record.get("rounds", []) for record in group))
        ]
    if name == "distillation":  # "all" is a seed's mean over the students
        for kind in ("scratch", "weak", "strong"):
            mean = wide["accuracy"].filter(regex=f"_{kind}$", axis="index").mean()
            wide["accuracy"].loc[f"all_{kind}"] = mean
            found[f"all_{kind}"] = {"photos": group[0]["photos"]["validation"], "accuracy": statistics(mean)}
    # rows of NaN for what has accuracies only
    wide = {key: one.reindex([*{*found, *BASES[name]}]) for key, one in wide.items()}
    for metric in ("accuracy", "reduced", "agree_validation", "agree_testing", "gap"):
        for variant, one in found.items():
            ours = wide[metric].loc[variant]
            others = {base: wide[metric].loc[base] for base in BASES[name] if base != variant}
            if metric == "accuracy":
                others["before"] = wide["before"].loc[variant]
            others = {base: theirs for base, theirs in others.items() if theirs.notna().any()}
            if ours.notna().any():
                photos = one.get("photos", np.nan)
                one[metric]["vs"] = {base: difference(ours, others[base], photos) for base in others}
    return found


def check_current(name, record, model):
    """UserError if a record is of another network than model.json, or an evaluation differs from it."""
    one, other = record["model"], model["model"]
    arguments = {**other["arguments"], **one["arguments"], "folded": other["arguments"]["folded"]}
    current = (one["architecture"], arguments) == (other["architecture"], other["arguments"])
    if name in EVALUATIONS:
        current &= one["preprocessing"] == other["preprocessing"]
    if name == "evaluation":
        current &= abs(record["accuracy"] - model["validation_accuracy_after"]) <= TOLERANCE
    if not current:
        raise UserError(f"the record results/{name}.json is of another model than model.json; measure again")


def handed_in(records):
    """What is measured of model.bin, of its training and of its 32-bit weights."""
    names = ("model_training", "model_qat", *EVALUATIONS)
    model, current = records("model.json"), {name: records(f"{name}.json") for name in names}
    for name, record in current.items():
        check_current(name, record, model)
    trained, tuned, evaluations = current["model_training"], current["model_qat"], {}
    for name in (*EVALUATIONS, "evaluation_earlier", "evaluation_earlier_food11"):
        record = current.get(name) or records(f"{name}.json")
        evaluations[name] = {key: record.get(key) for key in EVALUATED}
        evaluations[name]["measured_on"] = PHOTO_SETS.get(record["data"]["validation"], records.photos)
        certain = sum(count * mean for count, mean, _ in record["reliability"])
        evaluations[name]["confidence"] = certain / record["photos"]
    before, after = evaluations["evaluation_before"]["accuracy"], model["validation_accuracy_after"]
    photos, evaluation = model["validation_photos"], evaluations["evaluation"]

    def single(ours, theirs):
        return difference(pd.Series([ours]), pd.Series([theirs]), photos)

    sizes = [{**metrics(one), **facts(one)} for one in records.folder("input_size")]
    rounded = [{**metrics(one), **facts(one)} for one in records.folder("rounding")]
    repeated = {}
    for name in ("fifth", "fifth_again", "9866"):
        record = records(f"model_{name}.json")
        measured = {"accuracy": record["validation_accuracy_after"], "bytes": record["file_bytes"]}
        repeated[name] = {**facts(record), **measured}
    pairs = pd.DataFrame(evaluation["confusion"], *[list(evaluation["class_accuracy"])] * 2).stack()
    pairs = pairs[[label != taken for label, taken in pairs.index]]
    return {
        **facts(trained),
        **{key: facts(model)[key] for key in ("pixels", "bits", "raw_bytes")},
        "epochs": trained["model"]["training"]["epochs"],
        "qat_epochs": tuned["settings"]["epochs"],
        "bytes": model["file_bytes"],
        "repeated": repeated,
        "before": before,
        "after": after,
        "photos": photos,
        "seed": trained["seed"],
        "measured_on": PHOTO_SETS.get(model["data"]["validation"], records.photos),
        "minutes": [(one["seconds"] / 60, one["device"]) for one in (trained, tuned)],
        "loss": single(after, before),
        "averaging": single(evaluations["evaluation_tta"]["accuracy"], evaluation["accuracy"]),
        "confusions": [[*pair, int(number)] for pair, number in pairs.nlargest(4).items()],
        "input_size": sorted(sizes, key=lambda one: one["pixels"]),
        "rounding": sorted(rounded, key=lambda one: -one["bits"]),
        **evaluations,
    }


def cleaned(value):
    """As JSON takes it, rounded so that every version of numpy gives the same file."""
    if isinstance(value, dict):
        kept = {key: cleaned(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if not (isinstance(one, dict) and one.get("n") == 0)}
    if isinstance(value, list | tuple):
        return [cleaned(one) for one in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), 9)
    return value.item() if isinstance(value, np.generic) else value


def summarise(results=ROOT / "results", photos=STANDIN):
    """The summary as plain values; UserError names a record that is missing, damaged or stale."""
    records = Records(results, photos)
    found = {"photos": photos, "claims": list(CLAIMS), "model": handed_in(records)}
    found |= {name: experiment(records, name) for name in BASES}
    for name in BENCHMARKS:
        record = records(f"{name}.json", any_photos=True)
        found[name] = {key: one for key, one in record.items() if key not in ("command", "date", "versions")}
    found["records"] = {}
    for name, named in records.read.items():
        group = list(named.values())
        found["records"][name] = {
            "number": len(group),
            "seeds": len({one["seed"] for one in group} - {None}),
            "commits": sorted({one["commit"][:7] for one in group}),
            "device": group[0]["device"].replace(", 1 threads", ", 1 thread"),  # as earlier records spell it
        }
    return cleaned(found)
