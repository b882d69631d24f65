"""The report: numbers come from records, conclusions follow from numbers, and what is missing or stale is
named.
"""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "report"))

import answers_model  # noqa: E402
import architectures  # noqa: E402
import build  # noqa: E402
import conclusions  # noqa: E402
import sections  # noqa: E402

from compression.command_line import UserError  # noqa: E402
from experiments.__main__ import EXPERIMENTS, plan  # noqa: E402

CLASSES = [
    "Bread",
    "Dairy product",
    "Dessert",
    "Egg",
    "Fried food",
    "Meat",
    "Noodles/Pasta",
    "Rice",
    "Seafood",
    "Soup",
    "Vegetable/Fruit",
]
PHOTOS = 3430
MEASURED = tuple(
    name for name in EXPERIMENTS if any(name in section.needs for section in sections.SECTIONS.values())
)


# ---------------------------------------------------------------- invented records, of the shape that the
# scripts write


ARGUMENTS = {
    "student": {"widths": [16, 32, 64, 128, 256, 256, 256, 256]},
    "residual6": {"stem": [16, 32], "widths": [64, 64], "hidden": [96, 160], "pools": [1, 0], "head": 256},
}
PARAMETERS = {
    "student": 256_779,
    "residual6": 272_395,
    "slim9": 144_389,
    "wide8": 198_955,
    "resnet18": 11_182_155,
}


def base_record(
    command, seed, accuracy, network="student", pixels=64, epochs=15, parameters=None, arguments=None
):
    history = [
        {
            "epoch": epoch,
            "train_loss": 2.3 - epoch / epochs,
            "train_accuracy": accuracy * epoch / epochs,
            "validation_loss": 2.2 - 0.8 * epoch / epochs,
            "validation_accuracy": accuracy * epoch / epochs,
        }
        for epoch in range(1, epochs + 1)
    ]
    arguments = {"num_classes": 11, "in_channels": 3, **(arguments or ARGUMENTS.get(network, {}))}
    view = re.search(r"--view-size (\d+)", command)
    settings = {
        "epochs": epochs,
        "view_size": int(view[1]) if view else 0,
        "optimizer": "adamw",
        "lr": 0.002,
        "batch_size": 64,
        "augment": "light",
        "ema": 0.998,
        "label_smoothing": 0.1,
        "schedule": "cosine",
        "weight_decay": 0.05,
        "mixup": 0.3,
        "views": 2 if "--views" in command else 0,
    }
    return {
        "command": command,
        "seed": seed,
        "commit": "0123456789ab",
        "data": {"training": "e2ae8e356b852a3d", "validation": "965cdff64ff21bca"},
        "device": "A Processor, 2 threads",
        "versions": {"python": "3.11", "torch": "2.15"},
        "settings": settings,
        "parameters": parameters or PARAMETERS.get(network, 200_000),
        "photos": {"training": 9866, "validation": PHOTOS},
        "model": {
            "architecture": network,
            "arguments": arguments,
            "class_names": CLASSES,
            "preprocessing": {"size": pixels},
            "training": {"epochs": epochs},
        },
        "best": {**history[-1]},
        "history": history,
        "seconds": 600.0,
    }


def pruned_record(command, seed, start, fall, rounds, epochs, size=None, ranks=None):
    sizes = [256_779, *(size or round(256_779 * 0.9**index) for index in range(1, rounds + 1))]
    rows = [
        {
            "round": index,
            "kept": 0.9**index,
            "parameters": sizes[index],
            "macs": 30 * sizes[index],
            "before_cut": start - fall * (index - 1),
            "after_cut": start - fall * index - 0.05,
            "after_training": start - fall * index,
            "history": base_record("", 0, start - fall * index, epochs=max(epochs, 1))["history"],
        }
        for index in range(1, rounds + 1)
    ]
    return {
        **{
            key: value
            for key, value in base_record(command, seed, start).items()
            if key not in ("best", "history", "settings", "parameters", "photos")
        },
        "pruning": {"settings": {"epochs": epochs, "lr": 0.001}, "scope": "3-6"},
        "plan": [
            {"round": 0, "parameters": sizes[0]},
            *({**row, "arguments": {"ranks": ranks}} for row in rows),
        ],
        "validation_accuracy": start,
        "rounds": rows,
    }


def stored_record(command, seed, accuracy, bits, before, size, pixels=64, network="student", trained=False):
    record = base_record(command, seed, accuracy, network, pixels)
    kept = {key: record[key] for key in ("command", "seed", "commit", "data", "device", "versions", "model")}
    return {
        **kept,
        "architecture": network,
        "bits": bits,
        "vectors": 16,
        "raw_bytes": 1_100_000,
        "file_bytes": size,
        "validation_accuracy_before": before,
        "validation_accuracy_after": accuracy,
        "validation_photos": PHOTOS,
        **({"fine_tuning": {"settings": {"epochs": 2, "lr": 0.0005}, "seconds": 60.0}} if trained else {}),
    }


def evaluated_record(accuracy, bits):
    right = round(accuracy * 300)
    confusion = [
        [right if row == column else (300 - right) // 10 for column in range(11)] for row in range(11)
    ]
    confusion[0][2] += 20
    confusion[0][3] -= 10
    confusion[0][4] -= 10
    total = sum(map(sum, confusion))
    measured = sum(confusion[index][index] for index in range(11)) / total
    return {
        **stored_record("evaluate.py", None, 0, bits, 0, 0, 128, "residual6"),
        "photos": total,
        "accuracy": measured,
        "small_photos": total // 2,
        "accuracy_of_small": measured - 0.01,
        "accuracy_of_larger": measured + 0.01,
        "class_accuracy": {
            name: row[index] / sum(row) for index, (name, row) in enumerate(zip(CLASSES, confusion))
        },
        "calibration_error": 0.0456,
        "reliability": [[total // 10, index / 10 + 0.05, index / 10 + 0.03] for index in range(10)],
        "confusion": confusion,
    }


def stored_variant(name, variant, command, seed, noise):
    """Of quantize.py."""
    bits = int(re.search(r"--bits (\d+)", command)[1])
    loss = {16: 0, 8: 0, 6: 0.002, 5: 0.006, 4: 0.03, 3: 0.12, 2: 0.3}[bits]
    if name == "bits":
        network, _, granularity, *trained = variant.split("_")
        return stored_record(
            command,
            seed,
            0.5 - loss * (0.3 if trained else 1) * (1.5 if granularity == "tensor" else 1) + noise,
            bits,
            0.5 + noise,
            35_000 * bits,
            network=network,
            trained=trained,
        )
    size = {
        "compress": 256_779 * bits // 8,
        "equal_bytes": 290_000 + bits,
        "teachers": 11_200_000 * bits // 8,
    }[name]
    return stored_record(
        command, seed, 0.5 - loss / 10 + noise, bits, 0.5 + noise, size, 56, trained=name == "equal_bytes"
    )


def pruned_variant(name, variant, command, seed, noise):
    """Of prune.py."""
    fall = {
        "none": 0.06,
        "mistake1": 0.05,
        "finetune1": 0.02,
        "finetune5": 0.005,
        "finetune20": 0.004,
        "retrain5": 0.025,
        "once": 0.07,
        "pruned": 0.04,
        "factorised": 0.05,
        "factors": 0.02,
        "channels": 0.03,
    }[variant.split("_")[0]]
    rounds, epochs, target = (
        re.search(rf"--{flag} (\d+)", command) for flag in ("rounds", "epochs", "target-params")
    )
    ranks = {"cnn.5.3": 20} if "global" in variant else {"cnn.0.0": 1, "cnn.5.3": 30}
    return pruned_record(
        command,
        seed,
        0.5 + noise,
        fall,
        int(rounds[1]) if rounds else 1,
        int(epochs[1]) if epochs else 20,
        int(target[1]) if target else None,
        ranks,
    )


GROUPS = {"one_group": 0, "group1mb_3_2": 2, "group1mb_3_4": 4, "group1mb_3_8": 8, "group1mb_4_8": 8}


def of_variant(name, variant, command, seed):
    """The invented record of one variant of an experiment."""
    noise = 0.003 * (seed - 1)
    if command.startswith("quantize.py"):
        return stored_variant(name, variant, command, seed, noise)
    if command.startswith(("prune.py", "reference_mistake.py")):
        return pruned_variant(name, variant, command, seed, noise)
    if command.startswith("evaluate.py"):
        kind = variant.removesuffix("_measured")
        memorised = {"unlabelled": 0.02, "unlabelled_fixed": 0.2}.get(kind, 0)
        return {
            **evaluated_record(0.5 + noise, 32),
            "command": command,
            "agreement": {"validation": 0.6 + noise, "testing": 0.61 + memorised + noise},
            "reduced_to": 64,
            "accuracy_reduced": 0.45 + noise + (0.03 if kind == "blurred" else 0),
        }
    network = match[1] if (match := re.search(r"--network (\S+)", command)) else "residual6"
    arguments = {
        match[1]: [int(one) for one in match[2].split(",")]
        for match in re.finditer(r"--set (\w+)=(\S+)", command)
    }
    arguments = {
        key: value if key in ("widths", "hidden", "pools") and len(value) > 1 else value[0]
        for key, value in arguments.items()
    }
    parameters = 68_363 if arguments.get("widths", [0])[0] == 8 and name == "compress" else None
    if name == "one_megabyte":
        arguments = {
            "convs": [16, 16, 32, 32] + [64] * 3 * (variant == "cnn1mb"),
            "separable": [] if variant == "cnn1mb" else [64, 64, 64, 88][: 4 if "_4" in variant else 3],
            "hidden": 128,
            "pool_after": [1, 3, 5, 6],
            "group_width": GROUPS.get(variant, 1),
        }
    elif name == "families":
        family, width = variant.split("_")
        parameters = round(int(width) ** 2 * (3.9 if family == "mobile" else 34))
    elif name == "equal_bytes":
        parameters = 1_000 * int(variant.split("_")[1])
        arguments |= {"stem": [16, 32]}
    accuracy = {
        "residual6": 0.52,
        "residual6_narrow": 0.51,
        "slim9_strong": 0.56,
        "student_strong": 0.57,
        "residual6_strong": 0.58,
        "direct": 0.44,
        "course": 0.49,
        "ours": 0.57,
    }.get(variant, 0.48) + noise
    record = base_record(
        command,
        seed,
        accuracy,
        network,
        int(re.search(r"--size (\d+)", command)[1]),
        int(re.search(r"--epochs (\d+)", command)[1]),
        parameters,
        arguments,
    )
    if "--teacher" in command:
        alpha, temperature = (
            float(match[1]) if (match := re.search(rf"--{flag} (\S+)", command)) else default
            for flag, default in (("alpha", 0.8), ("temperature", 4.0))
        )
        record["model"]["training"] |= {"alpha": alpha, "temperature": temperature}
        record["teachers"] = [{"file": "model.bin", "size": 128, "validation_accuracy": 0.59}]
    return record


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """A results/ with an invented record of everything that the report can hold; read-only."""
    folder = tmp_path_factory.mktemp("invented") / "results"
    for name in MEASURED:
        for job in plan(name, Path("data"), Path("runs"), folder, seeds=(0, 1, 2)):
            seed = int(job.result.stem[-1])
            save(
                job.result,
                of_variant(
                    name,
                    job.result.stem.rsplit("-seed", 1)[0],
                    " ".join(job.command).replace("benchmarks/", ""),
                    seed,
                ),
            )
    before, after = evaluated_record(0.62, 32), evaluated_record(0.60, 4)
    save(folder / "evaluation_before.json", before)
    save(folder / "evaluation_tta.json", {**after, "accuracy": 0.6123, "tta": True})
    save(folder / "evaluation_food11.json", {**after, "accuracy": 0.5988})
    save(folder / "evaluation.json", after)
    save(
        folder / "model.json",
        stored_record(
            "quantize.py a b",
            None,
            after["accuracy"],
            4,
            before["accuracy"],
            296_101,
            128,
            "residual6",
            trained=True,
        ),
    )
    training = base_record("train_kd.py data", 0, 0.6, "residual6", 96, 90, 272_395)
    training["model"]["training"] |= {"alpha": 0.8, "temperature": 2.0}
    save(
        folder / "model_training.json",
        {**training, "teachers": [{"file": "best.pt", "size": 96, "validation_accuracy": 0.6543}]},
    )
    for pixels in (96, 112, 128):
        save(
            folder / f"input_size/{pixels}.json",
            stored_record(
                "quantize.py a b",
                None,
                0.6 + pixels / 10_000,
                8,
                0.6 + pixels / 9_000,
                296_000,
                pixels,
                "residual6",
            ),
        )
    save(
        folder / "strong_teacher.json",
        {**training, "teachers": [{"file": "best.pt", "size": 96, "validation_accuracy": 0.6543}]},
    )
    save(folder / "strong_teacher_file.json", json.loads((folder / "model.json").read_text()))
    for name in ("hw7_test.json", "data_path.json", "fixed_views.json"):
        shutil.copyfile(ROOT / "results" / name, folder / name)
    return folder


@pytest.fixture
def results(invented, tmp_path, monkeypatch):
    """A copy of the invented records that a test may change, with no section pending."""
    monkeypatch.setattr(sections, "PENDING", ())
    return shutil.copytree(invented, tmp_path / "results")


def save(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    save(path, record)


def rendered(results, out):
    """The pages of the report on these records, with everything that is built under `out`."""
    for name, names in (("typst", "report"), ("matplotlib", "report"), ("pypdf", "tests")):
        pytest.importorskip(name, reason=f"{name} is not installed ({names}/requirements.txt)")
    import pypdf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "PENDING", ())
        build.build(results, out)
    return pypdf.PdfReader(out / "report.pdf").pages


@pytest.fixture(scope="module")
def built(invented, tmp_path_factory):
    """(pages, folder) of the report on the invented records; read-only."""
    out = tmp_path_factory.mktemp("built")
    return rendered(invented, out), out


def text_of(pages):
    return " ".join(" ".join(page.extract_text().split()) for page in pages)


# ---------------------------------------------------------------- conclusions follow from numbers


def test_a_difference_counts_if_the_interval_of_the_pairs_leaves_out_zero():
    # differences 0, 1 and 2 points: mean 1, deviation 1, and Student's t for 95 % and 2 degrees of freedom is
    # 4.303
    open_ = conclusions.compare([0.50, 0.52, 0.53], [0.50, 0.51, 0.51], PHOTOS)
    assert open_.verdict == 0 and open_.needed == pytest.approx(0.01 * 4.302653 / 3**0.5)
    assert open_.to("the other") == "indistinguishable from the other (+1.00 ± 2.48 points)"
    # the same deviation of the seeds, but pairs that agree
    better = conclusions.compare([0.60, 0.55, 0.50], [0.591, 0.539, 0.49], PHOTOS)
    assert better.verdict == 1 and better.to("the other") == "1.00 points better than the other"
    assert conclusions.compare([0.591, 0.539, 0.49], [0.60, 0.55, 0.50], PHOTOS).verdict == -1
    assert conclusions.compare([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], PHOTOS).verdict == 0, (
        "equal means are no difference"
    )
    with pytest.raises(ValueError, match="cannot be paired"):
        conclusions.compare([0.6], [0.5, 0.51], PHOTOS)


def test_one_seed_is_judged_by_the_sampling_error():
    assert conclusions.sampling_error(0.5, 10_000) == 0.005
    # two standard errors of a difference: 2 * sqrt(2) * 0.5 points = 1.41 points
    assert (
        conclusions.compare([0.514], [0.5], 10_000).verdict == 0
        and conclusions.compare([0.515], [0.5], 10_000).verdict == 1
    )
    assert (
        conclusions.compare([0.5], [0.5], 10_000).to("it")
        == "indistinguishable from it (+0.00 ± 1.41 points)"
    )


def test_rates_that_disagree_are_told_apart():
    better, worse, same = (
        conclusions.compare([0.5 + shift] * 2, [0.5] * 2, PHOTOS) for shift in (0.1, -0.1, 0)
    )
    assert conclusions.together({"0.95": better, "0.90": better}, "it") == (
        "better than it (by 10.00 at rate 0.95 and 10.00 at rate 0.90, in points)"
    )
    mixed = conclusions.together({"0.95": better, "0.90": worse}, "it")
    assert mixed == "10.00 points better than it at rate 0.95, and 10.00 points worse than it at rate 0.90"
    assert conclusions.together({"0.95": same, "0.90": same}, "it").startswith("indistinguishable from it")


def test_numbers_as_text():
    assert (
        conclusions.percent(0.622449) == "62.24"
        and conclusions.points(-0.0123) == "−1.23"
        and conclusions.points(0.01) == "+1.00"
    )
    assert (
        conclusions.mean_std([0.5]) == "50.00" and conclusions.mean_std([0.49, 0.5, 0.51]) == "50.00 ± 1.00"
    )
    assert conclusions.listed(["a", "b", "c"]) == "a, b and c" and conclusions.listed(["a"]) == "a"


def test_several_things_against_one_are_sorted_by_verdict():
    better, worse, same = (
        conclusions.compare([0.5 + shift] * 2, [0.5] * 2, PHOTOS) for shift in (0.1, -0.1, 0)
    )
    assert conclusions.sorted_out({"a": worse, "b": better, "c": better}, "it") == (
        "b (+10.00) and c (+10.00) are better than it; a (−10.00) is worse than it"
    )
    assert conclusions.sorted_out({"a": same}, "it") == "a (+0.00) is indistinguishable from it"
    assert [conclusions.cell(one) for one in (better, worse, same)] == [
        "+10.00 ± 0.00",
        "−10.00 ± 0.00",
        "+0.00 ± 0.00",
    ]


VERDICTS = [  # section, variants whose accuracy decides, accuracies, key, what it then says
    (
        "compress",
        "compress/pruned",
        (0.60, 0.44, 0.30),
        "pruned",
        ("Yes: what the larger", "cannot be told", "No: the epochs"),
    ),
    (
        "compress",
        "compress/quantized_long",
        (0.60, 0.44, 0.30),
        "against",
        (
            "quantization (+16.00), pruning",
            "quantization (+0.00) is indistinguishable",
            "quantization (−14.00) is worse",
        ),
    ),
    (
        "lowrank",
        "lowrank/factors*",
        (0.60, 0.47, 0.30),
        "found",
        (
            "are better than fewer channels",
            "are indistinguishable from fewer channels",
            "are worse than fewer channels",
        ),
    ),
    (
        "distillation",
        "distillation/*_strong",
        (0.60, 0.48, 0.30),
        "gains",
        ("the answers of b hold more", "that the answers of b hold more", "the answers of b hold less"),
    ),
    (
        "distillation",
        "distillation/*_strong",
        (0.60, 0.48, 0.30),
        "source",
        ("The better teacher teaches better", "is not shown", "The better teacher teaches worse"),
    ),
    (
        "alpha_temperature",
        "alpha_temperature/temperature_2",
        (0.70, 0.57, 0.48),
        "conclusion",
        (
            "T\N{NO-BREAK SPACE}2 would have been the better choice",
            "T\N{NO-BREAK SPACE}1",
            "T\N{NO-BREAK SPACE}2",
        ),
    ),
    (
        "choices",
        "recipes/course",
        (0.70, 0.57, 0.50),
        "headline",
        (
            "13.00 points worse than the course’s",
            "indistinguishable from the course’s",
            "7.00 points better than the course’s",
        ),
    ),
    (
        "choices",
        "choices/fixed_views",
        (0.70, 0.57, 0.50),
        "views_verdict",
        ("they gain", "A loss of accuracy is not shown", "they lose"),
    ),
    (
        "pruning_wide8",
        "pruning_wide8/finetune1_*",
        (0.60, 0.25, 0.05),
        "or_mistake",
        ("better than the mistake", "at rate", "worse than the mistake"),
    ),
    (
        "families",
        "distillation/residual6_scratch",
        (0.60, 0.48, 0.30),
        "conclusion",
        ("smaller and better", "are not shown to cost anything", "are missed"),
    ),
    (
        "families",
        "families/mobile_*",
        (0.60, 0.48, 0.30),
        "family",
        ("the depthwise-separable family is ahead", "neither family", "the plain family is ahead"),
    ),
    (
        "one_megabyte",
        "one_megabyte/*_3*",
        (0.60, 0.48, 0.30),
        "conclusion",
        ("is a gain by itself", "is not shown", "costs accuracy by itself"),
    ),
    (
        "one_megabyte",
        "one_megabyte/one_group",
        (0.60, 0.48),
        "conclusion",
        ("what gains is the block", "So that separating"),
    ),
    (
        "equal_bytes",
        "equal_bytes/stored_[3-7]*",
        (0.60, 0.50, 0.30),
        "conclusion",
        ("more weights at fewer bits pay", "is not shown", "better spent on bits"),
    ),
    (
        "resolution",
        "resolution/blurred_measured",
        (0.60, 0.45, 0.30),
        "conclusion",
        ("help on blurry photos", "did not measurably help", "do not even help"),
    ),
]


@pytest.mark.parametrize(
    "section, variants, accuracies, key, texts", VERDICTS, ids=[f"{one[1]}-{one[3]}" for one in VERDICTS]
)
def test_conclusions_turn_with_the_records(invented, section, variants, accuracies, key, texts):
    needs = build.Records(invented).of(sections.SECTIONS[section])
    experiment, _, pattern = variants.partition("/")
    for accuracy, text in zip(accuracies, texts):
        for record, value in (
            (record, accuracy + 0.003 * (seed - 1))
            for variant, group in needs[experiment].items()
            if fnmatch(variant, pattern)
            for seed, record in enumerate(group)
        ):
            if "best" in record:
                record["best"]["validation_accuracy"] = value
            elif "rounds" in record:
                record["rounds"][-1]["after_training"] = value
            else:
                record.update(
                    {
                        name: value
                        for name in ("validation_accuracy_after", "accuracy_reduced")
                        if name in record
                    }
                )
        assert text in sections.SECTIONS[section].values(needs)[key]


@pytest.mark.parametrize(
    "testing, validation, text",
    [(0.9, 0.6, "is memorised, not learned"), (0.61, 0.6, "does not show"), (0.91, 0.9, "does not show")],
)
def test_what_only_testing_photos_gain_is_called_memorised(invented, testing, validation, text):
    needs = build.Records(invented).of(sections.SECTIONS["testing"])
    for name in ("unlabelled_measured", "unlabelled_fixed_measured"):
        for seed, record in enumerate(needs["testing"][name]):
            record["agreement"] = {
                "validation": validation + 0.003 * (seed - 1),
                "testing": testing + 0.003 * (seed - 1),
            }
    values = sections.SECTIONS["testing"].values(needs)
    assert text in values["conclusion"] and values["clean"]


def test_fewer_seeds_are_compared_with_the_same_seeds_of_another_experiment(results):
    for path in results.glob("alpha_temperature/*-seed[12].json"):
        path.unlink()
    values = sections.SECTIONS["alpha_temperature"].values(
        build.Records(results).of(sections.SECTIONS["alpha_temperature"])
    )
    assert (
        values["seeds"] == "one seed"
        and ["0.8", "56.70"] in values["alphas"]
        and ["20", "47.70"] in values["temperatures"]
        and "T\N{NO-BREAK SPACE}20 (−9.00)" in values["found"]
    )
    assert [value for value, _ in values["alphas"]] == ["0", "0.2", "0.5", "0.8", "1"] and [
        value for value, _ in values["temperatures"]
    ] == ["1", "2", "4", "8", "20"]
    assert values["course_settings"] == "α\N{NO-BREAK SPACE}0.5 with T\N{NO-BREAK SPACE}20"


@pytest.mark.parametrize(
    "short, long, lesson",
    [
        (0.45, 0.45, "does not hold here; that so many beat the mistake is shown at rate 0.95 and 0.90"),
        (0.25, 0.25, "does not hold here; that so many beat the mistake is shown at no rate"),
        (0.25, 0.20, "do not show at every rate; that so many beat the mistake is shown at no rate"),
        (0.25, 0.10, "is not contradicted here"),
        (0.10, 0.45, "A single epoch may be too short"),
    ],
)
def test_the_lesson_of_the_mistake_follows_the_records(results, short, long, lesson):
    for mode, accuracy in (
        ("finetune1", short),
        ("finetune5", long),
    ):  # the mistake has 0.25, no training at all 0.20
        for path in (results / "pruning").glob(f"{mode}_*.json"):
            change(
                path, lambda record, accuracy=accuracy: record["rounds"][-1].update(after_training=accuracy)
            )
    assert lesson in sections.SECTIONS["pruning"].values(build.gather(results)[1]["pruning"])["lesson"]


@pytest.mark.parametrize("anew, explained", [(0.45, True), (0.15, False)])
def test_the_mistake_explains_a_student_report_only_where_training_anew_beats_it(results, anew, explained):
    for path in (results / "pruning").glob("retrain5_*.json"):
        change(path, lambda record: record["rounds"][-1].update(after_training=anew))
    text = sections.SECTIONS["pruning"].values(build.gather(results)[1]["pruning"])["anew"]
    assert "compared with the mistake" in text and ("alone does not explain it" in text) != explained


@pytest.mark.parametrize("spread, told", [(0.001, "`student` (52.00 ± 0.10 %)"), (0.1, "")])
def test_students_above_their_teacher_are_named_where_three_seeds_show_it(results, spread, told):
    for network in ("slim9", "student", "residual6"):
        for path in (results / "distillation").glob(f"{network}_weak-seed*.json"):

            def measured(record, accuracy=0.52 if network == "student" else 0.40):
                record["best"]["validation_accuracy"] = accuracy + spread * (record["seed"] - 1)
                record["teachers"][0]["validation_accuracy"] = 0.50

            change(path, measured)
    assert (
        sections.SECTIONS["distillation"].values(build.gather(results)[1]["distillation"])["above_a"] == told
    )


def test_the_teacher_of_the_qat_is_told(results):
    record, training = json.loads((results / "model.json").read_text()), {"teachers": [{"sha256": "b"}]}
    origin = record["model"]["training"]
    assert answers_model.qat_teacher(record, training) == ""
    for teachers, text in (
        (["a"], " with the 32-bit network as teacher"),
        (["b"], " with the same teacher"),
        (["c"], " with another teacher"),
    ):
        origin.update(started_from="a", teachers=teachers)
        assert answers_model.qat_teacher(record, training) == text


@pytest.mark.parametrize("four, bits", [(0.52, "4 bits for student"), (0.30, "5 bits for student")])
def test_fewest_harmless_bits_are_those_before_the_first_loss(results, four, bits):
    for variant in ("student_8_channel", "student_6_channel", "student_5_channel", "student_4_channel"):
        for path in (results / "bits").glob(f"{variant}-seed*.json"):
            change(
                path,
                lambda record: record.update(validation_accuracy_after=four if record["bits"] == 4 else 0.51),
            )
    harmless = sections.SECTIONS["bits"].values(build.gather(results)[1]["bits"])["harmless"]
    assert bits in harmless
    assert ("points at 4)" in harmless) == (bits == "5 bits for student"), "what is lost below is told"


def test_confusions_and_classes_are_counted_by_label(results):
    values = sections.SECTIONS["evaluation"].values(build.gather(results)[1]["evaluation"])
    assert values["confusions"].startswith("Bread taken for Dessert (32 photos, 11 % of Bread)")
    assert values["wrong"] == "1,320" and values["ece"] == "4.56"  # 11 classes of 300 photos, 60 % right


@pytest.mark.parametrize(
    "photos, moved",
    [
        (4, "+1.33 points on its 300 photos, which is within"),
        (18, "+6.00 points on its 300 photos, which is beyond"),
    ],
)
def test_the_confusion_that_compression_moves_most_is_told_by_label(results, photos, moved):
    """Of 300 photos of Rice, so many are taken for Soup that were taken for Bread and Egg, one half each."""

    def compress(record):
        rice = record["confusion"][7]
        rice[0], rice[3], rice[9] = rice[0] - photos // 2, rice[3] - photos // 2, rice[9] + photos

    (results / "evaluation_before.json").write_bytes((results / "evaluation.json").read_bytes())
    change(results / "evaluation.json", compress)
    before, after = (
        json.loads((results / f"{name}.json").read_text()) for name in ("evaluation_before", "evaluation")
    )
    assert (
        answers_model.most_moved_confusion(before, after)
        == f"Rice taken for Soup, by {moved} the sampling error"
    )


def test_the_layers_of_an_architecture_have_the_parameters_of_the_record():
    record = json.loads((ROOT / "results/scratch/student-seed0.json").read_text())
    widths = [row[2] for row in architectures.stages(record["model"])[:8]]
    blocks = sum(
        10 * before + 2 * before + before * after + after for before, after in zip(widths, widths[1:])
    )
    assert 28 * widths[0] + 2 * widths[0] + blocks + 11 * (widths[-1] + 1) == record["parameters"]
    for name in ("residual6", "residual6_narrow"):
        record = json.loads((ROOT / f"results/scratch/{name}-seed0.json").read_text())
        rows, count, before = architectures.stages(record["model"]), 0, 3
        for stage, text, after, _ in rows:
            if hidden := re.search(r"1×1 to (\d+)", text):
                count += (before + 9 + after) * int(hidden[1]) + 4 * int(hidden[1]) + 2 * after
            else:
                count += {
                    "stem": 9 * before * after + 2 * after,
                    "head": before * after + 2 * after,
                    "classifier": before * after + after,
                }[stage.split()[0]]
            before = after
        assert count == record["parameters"]


def test_rows_of_an_architecture_that_are_alike_are_one():
    rows = architectures.architecture_table(
        {"architecture": "student", "arguments": {"num_classes": 11}, "preprocessing": {"size": 56}}
    )
    assert [row[0] for row in rows] == [
        "stage 0",
        "stage 1",
        "stage 2",
        "stage 3",
        "stage 4–7",
        "head",
        "classifier",
    ] and rows[3] == ["stage 3", "depthwise 3×3, 1×1, pool", "128", "3²"]


def test_slim9_and_resnet18_are_listed_as_they_are_built():
    import models

    def parameters(name):
        return models.count_parameters(models.build(name))

    widths = {
        name: [
            row[2] for row in architectures.stages({"architecture": name, "arguments": {"num_classes": 11}})
        ]
        for name in ("slim9", "resnet18")
    }
    stages, (first, second, classes) = widths["slim9"][:9], widths["slim9"][10:]
    blocks = sum(12 * before + before * after + after for before, after in zip(stages, stages[1:]))
    head = (stages[-1] + 3) * first + (first + 3) * second + (second + 1) * classes
    assert 30 * stages[0] + blocks + head == parameters("slim9")
    stem, *streams = widths["resnet18"][:5]
    count, before = 147 * stem + 2 * stem, stem
    for index, width in enumerate(streams):
        count += 9 * width * (before + 3 * width) + 8 * width + (before * width + 2 * width if index else 0)
        before = width
    assert count + 11 * (before + 1) == parameters("resnet18")


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("cnn1mb", {}),
        ("dw1mb_4", {}),
        ("group1mb_3", {"group_width": 4}),
        ("group1mb_4", {"group_width": 0}),
        ("cnn120k", {}),
    ],
)
def test_macs_without_torch_are_those_with_torch(name, arguments):
    import models

    assert architectures.small_cnn_macs(models.full_arguments(name, **arguments), 64) == models.count_macs(
        name, 64, **arguments
    )


# ---------------------------------------------------------------- missing and stale records are named


@pytest.mark.parametrize(
    "name",
    [
        "model.json",
        "scratch/student-seed1.json",
        "pruning/mistake1_0.9-seed2.json",
        "evaluation_before.json",
        "hw7_test.json",
    ],
)
def test_a_missing_record_is_named(results, name):
    (results / name).unlink()
    with pytest.raises(UserError, match=f"results/{re.escape(name)} is missing"):
        build.gather(results)


def test_a_missing_record_ends_with_status_2(tmp_path, call):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "results/scratch/student-seed1.json").unlink()
    save(tmp_path / "report/built.json", {"photos": "stand-in"})
    done = call("build.py", "--check", "--results", tmp_path / "results", "--out", tmp_path)
    assert (
        done.returncode == 2
        and "results/scratch/student-seed1.json is missing" in done.stderr
        and "experiments.py scratch" in done.stderr
    )


@pytest.mark.parametrize(
    "name, edit, message",
    [
        (
            "pruning/none_0.9-seed0.json",
            lambda record: record.update(command=record["command"].replace("--rounds 5", "--rounds 4")),
            "none_0.9-seed0.json is stale: it holds another command",
        ),
        (
            "evaluation.json",
            lambda record: record.update(accuracy=0.7),
            "evaluation.json is stale: its accuracy is 0.7",
        ),
        (
            "evaluation_before.json",
            lambda record: record["model"]["preprocessing"].update(size=96),
            "evaluation_before.json is of 96 px",
        ),
        (
            "input_size/112.json",
            lambda record: record["model"]["arguments"].update(head=128),
            "input_size/112.json is stale: it is of another network",
        ),
        (
            "model_training.json",
            lambda record: record["model"]["arguments"].update(head=128),
            "model_training.json is stale",
        ),
        (
            "scratch/student-seed0.json",
            lambda record: record["data"].update(validation="another"),
            "scratch/student-seed0.json was measured on validation photos another",
        ),
    ],
)
def test_a_stale_record_is_named(results, name, edit, message):
    change(results / name, edit)
    with pytest.raises(UserError, match=re.escape(message)):
        build.gather(results)


def test_a_damaged_record_is_named(results):
    (results / "bits/residual6-seed0.json").write_text("{")
    with pytest.raises(UserError, match="results/bits/residual6-seed0.json cannot be read"):
        build.gather(results)


def test_a_pending_section_whose_records_are_there_is_told(results, monkeypatch):
    monkeypatch.setattr(sections, "PENDING", ("bits",))
    with pytest.raises(UserError, match="the section bits is on PENDING"):
        build.gather(results)
    (results / "bits/residual6-seed0.json").unlink()
    assert (
        "bits" not in build.gather(results)[1]
        and sections.not_measured(sections.PENDING)
        == [list(part[:2]) for part in sections.PARTS if part[2] == "bits"]
        != []
    )


def test_optional_variants_are_left_out_only_where_they_have_no_record(results):
    section = sections.SECTIONS["pruning"]

    def values():
        return section.values(build.Records(results).of(section))

    assert (
        values()["patient"].startswith("20 epochs a round are")
        and "0.95" in values()["patient"]
        and len(values()["rows"]) == 7
    )
    for path in (results / "pruning").glob("finetune20_0.95-*"):
        path.unlink()
    assert "0.95" not in values()["patient"] and ["–", "–"] in [row[1:3] for row in values()["rows"]]
    (results / "pruning/finetune20_0.9-seed1.json").unlink()
    with pytest.raises(UserError, match="finetune20_0.9-seed1.json is missing"):
        values()
    for path in (results / "pruning").glob("finetune20_*"):
        path.unlink()
    assert values()["patient"] == "" and len(values()["rows"]) == 6


def test_an_experiment_that_is_not_defined_is_named(results):
    with pytest.raises(UserError, match="there is no experiment nonsense in experiments.py"):
        build.Records(results).experiment("nonsense")


def test_other_photos_need_another_name(results):
    with pytest.raises(UserError, match="which are in results/photo_sets.json; run it again on Food-11"):
        build.gather(results, "Food-11")


def test_every_section_has_its_text_and_every_part_its_section():
    for name, section in sections.SECTIONS.items():
        assert (ROOT / f"report/text/{name}.typ").is_file() and all(
            need.endswith((".json", "/")) or need in EXPERIMENTS for need in section.needs
        )
    assert {section for _, _, section in sections.PARTS} <= sections.SECTIONS.keys()


def test_no_measured_number_is_typed_into_the_texts():
    """Accuracies, sizes and counts have a decimal point or a thousands separator; the texts have none but the
    assignment's limit.
    """
    for path in (ROOT / "report/text").glob("*.typ"):
        lines = re.sub(
            r"(?m)^#(let|import).*$|width: [\d.]+%|columns: \([^)]*\)|\d+(\.\d+)?(cm|pt|fr)",
            "",
            path.read_text(encoding="utf-8"),
        )
        assert set(re.findall(r"\d+[.,]\d+", lines)) <= {"300,000", "1.00", "2.00"}, (
            path
        )  # the limit, and the example of a difference


# ---------------------------------------------------------------- the PDF


def test_the_pdf_holds_every_section_in_embedded_fonts_and_vector_figures(built):
    pages, out = built
    text = text_of(pages)
    assert len(pages) <= 8
    reader = pages[0].pdf
    objects = [
        found
        for number in range(1, reader.trailer["/Size"])
        if hasattr(found := reader.get_object(number), "keys")
    ]
    fonts = {
        font["/BaseFont"]: font["/FontDescriptor"]
        for font in objects
        if font.get("/Type") == "/Font" and "/DescendantFonts" not in font
    }
    assert (
        len(fonts) >= 3
        and {name for name, inside in fonts.items() if "+" not in name or "/FontFile" not in "".join(inside)}
        == set()
    ), "every font is embedded as a subset"
    assert not [found for found in objects if found.get("/Subtype") == "/Image"] and not any(
        len(page.images) for page in pages
    ), "figures are vectors"
    for heading in (
        "Question 1",
        "Question 2",
        "recipe and other choices",
        "testing photos as a trap",
        "Question 3",
        "another network",
        "Question 4",
        "Questions 5 and 6",
        "Design",
        "down to 2 bits",
        "few weights at many",
        "Input size",
        "gets wrong",
        "every resolution",
        "Speed",
    ):
        assert heading in text
    assert "(--tta), which needs no bytes: 61.23 %" in text
    assert "best.pt (65.43 % on the student’s input), temperature 2, weight of the teacher 0.8" in text
    assert "then for 2 epochs of quantization-aware training" in text
    assert "stand-in for Food-11" in text and "make report PHOTOS=Food-11" in text
    links = [found for found in objects if found.get("/Subtype") == "/Link"]
    assert any("arxiv.org" in link.get("/A", {}).get("/URI", "") for link in links), "papers are clickable"
    assert any("/Dest" in link or link["/A"]["/S"] == "/GoTo" for link in links), "sections are clickable"
    for name in ("pruning", "families", "bits", "confusion", "reliability", "classes", "input_size"):
        assert (out / f"report/figures/{name}.svg").read_bytes().lstrip().startswith(b"<?xml") and (
            out / f"report/figures/{name}.png"
        ).read_bytes().startswith(b"\x89PNG")
    assert (out / "results/pruning.svg").read_bytes() == (
        out / "report/figures/pruning.svg"
    ).read_bytes() and (out / "results/bits.png").is_file()


def test_changed_records_change_text_and_figures_and_are_noticed(built, results, tmp_path):
    pages, first = built
    assert build.outdated(results, first) is None
    text = text_of(pages)
    assert (
        "43.21" not in text
        and "12.34" not in text
        and "for 2 rates (3 seeds" in text
        and "One run epoch by epoch" in text
    )
    change(
        results / "model.json",
        lambda record: record.update(validation_accuracy_before=0.4321, validation_accuracy_after=0.4290),
    )
    for name, accuracy in (("evaluation_before.json", 0.4321), ("evaluation.json", 0.4290)):
        change(results / name, lambda record, accuracy=accuracy: record.update(accuracy=accuracy))
    assert "results/evaluation.json has changed" in build.outdated(results, first)
    for path in results.glob("pruning/*.json"):
        change(path, lambda record: [one.pop("history", None) for one in record.get("rounds", [])])
        if not path.stem.endswith("seed0"):
            path.unlink()
    change(
        results / "pruning/none_0.9-seed0.json",
        lambda record: record["rounds"][-1].update(after_training=0.1234),
    )
    second = shutil.copytree(first, tmp_path / "out")
    text = text_of(rendered(results, second))
    assert "43.21" in text and "12.34" in text, "numbers in text and tables are the records'"
    assert "for 2 rates (one seed)" in text, "and so are the seeds"
    assert (
        "One run epoch by epoch" not in text and not (second / "report/figures/pruning_epochs.svg").exists()
    ), "a chart without records goes"
    figures = {
        name: [(out / "report/figures" / name).read_bytes() for out in (first, second)]
        for name in ("pruning.svg", "pruning.png", "bits.svg", "bits.png")
    }
    assert (
        figures["pruning.svg"][0] != figures["pruning.svg"][1]
        and figures["pruning.png"][0] != figures["pruning.png"][1]
    )
    assert (
        figures["bits.svg"][0] == figures["bits.svg"][1] and figures["bits.png"][0] == figures["bits.png"][1]
    ), "the same records make the same file"
    assert build.outdated(results, second) is None
    for file, message in (
        ("report/figures/bits.svg", "bits.svg is not the file"),
        ("report.pdf", "report.pdf is not the file"),
        ("report/built.json", "built.json"),
    ):
        (second / file).write_bytes(b"another")
        assert message in build.outdated(results, second)


def test_the_published_report_is_that_of_the_records():
    result = subprocess.run(
        [sys.executable, ROOT / "report/build.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
