"""The report: numbers come from records, conclusions follow from numbers, and what is missing or stale is named."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "report"))

import build  # noqa: E402
import conclusions  # noqa: E402
import sections  # noqa: E402
from command_line import UserError  # noqa: E402
from experiments import EXPERIMENTS, plan  # noqa: E402

CLASSES = ["Bread", "Dairy product", "Dessert", "Egg", "Fried food", "Meat", "Noodles/Pasta", "Rice", "Seafood", "Soup", "Vegetable/Fruit"]
PHOTOS = 3430


# ---------------------------------------------------------------- invented records, of the shape that the scripts write


def base_record(command, seed, accuracy, network="student", pixels=64, epochs=15, parameters=256_779):
    history = [{"epoch": epoch, "train_loss": 2.3 - epoch / epochs, "train_accuracy": accuracy * epoch / epochs, "validation_loss": 2.2 - 0.8 * epoch / epochs,
                "validation_accuracy": accuracy * epoch / epochs} for epoch in range(1, epochs + 1)]
    arguments = {"num_classes": 11, "in_channels": 3}
    if network == "residual6":
        arguments |= {"stem": [16, 32], "widths": [64, 64], "hidden": [96, 160], "pools": [1, 0], "head": 256}
    return {"command": command, "seed": seed, "commit": "0123456789ab", "data": {"training": "e2ae8e356b852a3d", "validation": "965cdff64ff21bca"}, "device": "A Processor, 2 threads",
            "versions": {"python": "3.11", "torch": "2.15"}, "settings": {"epochs": epochs}, "parameters": parameters, "photos": {"training": 9866, "validation": PHOTOS},
            "model": {"architecture": network, "arguments": arguments, "class_names": CLASSES, "preprocessing": {"size": pixels}, "training": {}},
            "best": {**history[-1]}, "history": history, "seconds": 600.0}


def pruned_record(command, seed, start, fall, rounds, epochs):
    sizes = [256_779, *(round(256_779 * 0.9**index) for index in range(1, rounds + 1))]
    rows = [{"round": index, "kept": 0.9**index, "parameters": sizes[index], "before_cut": start - fall * (index - 1), "after_cut": start - fall * index - 0.05,
             "after_training": start - fall * index, "history": base_record("", 0, start - fall * index, epochs=max(epochs, 1))["history"]} for index in range(1, rounds + 1)]
    return {**{key: value for key, value in base_record(command, seed, start).items() if key not in ("best", "history", "settings", "parameters", "photos")},
            "pruning": {"settings": {"epochs": epochs}}, "plan": [{"round": 0, "parameters": sizes[0]}, *rows], "validation_accuracy": start, "rounds": rows}


def stored_record(command, seed, accuracy, bits, before, size, pixels=64, network="student", trained=False):
    record = base_record(command, seed, accuracy, network, pixels)
    kept = {key: record[key] for key in ("command", "seed", "commit", "data", "device", "versions", "model")}
    return {**kept, "architecture": network, "bits": bits, "vectors": 16, "raw_bytes": 1_100_000, "file_bytes": size, "validation_accuracy_before": before, "validation_accuracy_after": accuracy,
            "validation_photos": PHOTOS, **({"fine_tuning": {"settings": {"epochs": 2}}} if trained else {})}


def evaluated_record(accuracy, bits):
    right = round(accuracy * 300)
    confusion = [[right if row == column else (300 - right) // 10 for column in range(11)] for row in range(11)]
    confusion[0][2] += 20
    confusion[0][3] -= 20
    total = sum(map(sum, confusion))
    measured = sum(confusion[index][index] for index in range(11)) / total
    return {**stored_record("evaluate.py", None, 0, bits, 0, 0, 128, "residual6"), "photos": total, "accuracy": measured, "small_photos": total // 2, "accuracy_of_small": measured - 0.01,
            "accuracy_of_larger": measured + 0.01, "class_accuracy": {name: row[index] / sum(row) for index, (name, row) in enumerate(zip(CLASSES, confusion))}, "calibration_error": 0.0456,
            "reliability": [[total // 10, index / 10 + 0.05, index / 10 + 0.03] for index in range(10)], "confusion": confusion}


def of_variant(name, variant, command, seed):
    """The invented record of one variant of an experiment."""
    noise = 0.003 * (seed - 1)
    if command.startswith("quantize.py"):
        network, bits, granularity, *trained = variant.split("_")
        loss = {8: 0, 6: 0.002, 5: 0.006, 4: 0.03, 3: 0.12, 2: 0.3}[int(bits)] * (0.3 if trained else 1) * (1.5 if granularity == "tensor" else 1)
        return stored_record(command, seed, 0.5 - loss + noise, int(bits), 0.5 + noise, 35_000 * int(bits), network=network, trained=trained)
    if "prune.py" in command or "reference_mistake.py" in command:
        if name == "pruned_or_small":
            return pruned_record(command, seed, 0.5 + noise, 0.02, 1, 10)
        fall = {"none": 0.06, "mistake1": 0.05, "finetune1": 0.02, "finetune5": 0.005, "retrain5": 0.025, "once": 0.07}[variant.split("_")[0]]
        return pruned_record(command, seed, 0.5 + noise, fall, 1 if variant.startswith("once") else 5, int(match[1]) if (match := re.search(r"--epochs (\d+)", command)) else 20)
    network = "residual6" if "--network residual6" in command else "student"
    accuracy = {"residual6": 0.52, "residual6_narrow": 0.51}.get(variant, 0.48) + noise
    return base_record(command, seed, accuracy, network, int(re.search(r"--size (\d+)", command)[1]), int(re.search(r"--epochs (\d+)", command)[1]))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results/ with an invented record of everything that the report can hold, none pending."""
    monkeypatch.setattr(sections, "PENDING", ())
    folder = tmp_path / "results"
    for name in ("scratch", "pruning", "pruned_or_small", "bits"):
        for job in plan(name, Path("data"), Path("runs"), folder, seeds=(0, 1, 2)):
            seed = int(job.result.stem[-1])
            save(job.result, of_variant(name, job.result.stem.rsplit("-seed", 1)[0], " ".join(job.command).replace("benchmarks/", ""), seed))
    before, after = evaluated_record(0.62, 32), evaluated_record(0.60, 4)
    save(folder / "evaluation_before.json", before)
    save(folder / "evaluation.json", after)
    save(folder / "model.json", stored_record("quantize.py a b", None, after["accuracy"], 4, before["accuracy"], 296_101, 128, "residual6"))
    save(folder / "model_training.json", base_record("train_student.py data", 0, 0.6, "residual6", 96, 90, 272_395))
    for pixels in (96, 112, 128):
        save(folder / f"input_size/{pixels}.json", stored_record("quantize.py a b", None, 0.6 + pixels / 10_000, 8, 0.6 + pixels / 9_000, 296_000, pixels, "residual6"))
    for name in ("hw7_test.json", "data_path.json"):
        shutil.copyfile(ROOT / "results" / name, folder / name)
    return folder


def save(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    save(path, record)
