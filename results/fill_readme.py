"""Fill the generated tables of README.md and docs/ from the records in this folder.

    python results/fill_readme.py            # rewrite the tables
    python results/fill_readme.py --check    # only tell whether they are up to date (status 1 if not)

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; no number there is typed by hand. Tables
of the experiments are in experiment_tables.py, those of the model that is handed in here.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import experiment_tables  # noqa: E402
from experiment_tables import mean_std, percent, read, size_of, table  # noqa: E402

from compression.command_line import UserError, parser, run  # noqa: E402
from compression.files.atomic import write_text  # noqa: E402


def rounding():
    """Bytes and accuracy of the shipped network's weights from 8 to 2 bits, rounded only; and the shipped
    file.
    """
    shipped = read("model.json")
    records = [read(f"rounding/{path.name}") for path in (HERE / "rounding").glob("*.json")]
    if not records:
        raise UserError(
            "results/rounding holds no records; run quantize.py --bits B --data DATA "
            "--record results/rounding/B.json on the checkpoint behind model.bin"
        )
    records.sort(key=lambda record: -record["bits"])
    rows = [
        ("32", f"{shipped['raw_bytes']:,} B of tensors", percent(shipped["validation_accuracy_before"]), "")
    ]
    in_file = f"{percent(shipped['validation_accuracy_after'])} ({shipped['file_bytes']:,} B, `model.bin`)"
    for record in records:
        rows.append(
            (
                str(record["bits"]),
                f"{record['file_bytes']:,} B",
                percent(record["validation_accuracy_after"]),
                in_file if record["bits"] == shipped["bits"] else "",
            )
        )
    header = ("bits per weight", "file", "validation accuracy, without fine-tuning", "with QAT")
    return (
        f"{table(header, rows)}\n\n{named(records[0])}; {records[0]['device']}; one network, one seed; "
        "records in `results/rounding/`."
    )


def named(record):
    """Name of the validation photos behind a record; their fingerprint where they have none."""
    fingerprint = record["data"]["validation"]
    return read("photo_sets.json").get(fingerprint, fingerprint)


def shipped_model():
    """What model.bin is."""
    student, model = read("model_training.json"), read("model.json")
    averaged, sharp = read("evaluation_tta.json"), read("evaluation_food11.json")
    tuning, bits = model["fine_tuning"], model["bits"]
    minutes = (student["seconds"] + tuning["seconds"]) / 60
    teachers = ", ".join(
        f"`{told['file']}` ({percent(told['validation_accuracy'])})" for told in student["teachers"]
    )
    before, after = percent(model["validation_accuracy_before"]), percent(model["validation_accuracy_after"])
    return table(
        ("`model.bin`", ""),
        [
            ("network", f"`{model['architecture']}`, {student['parameters']:,} parameters, {size_of(model)}"),
            (
                "file",
                f"{model['file_bytes']:,} bytes: {bits} bits per weight (8 in the first and last layer, "
                f"{bits + 2} in depthwise ones)",
            ),
            (
                "trained on",
                f"{student['photos']['training']:,} photos of {named(student)}, "
                f"{student['settings']['epochs']} epochs distilled from "
                f"{teachers}, then {tuning['settings']['epochs']} epochs of quantization-aware training; "
                f"seed {student['seed']}",
            ),
            (
                f"validation accuracy, {named(model)}",
                f"{after} in the file, {before} in 32 bits ({model['validation_photos']:,} photos)",
            ),
            (
                "the same, as `hw7_test.sh` predicts",
                f"{percent(averaged['accuracy'])}: the mean over several views of a photo (`--tta`)",
            ),
            (
                f"validation accuracy, {named(sharp)}",
                f"{percent(sharp['accuracy'])} ({sharp['photos']:,} photos, half of them sharper)",
            ),
            ("training time", f"{minutes:.0f} minutes on {student['device']}, with other work beside it"),
        ],
    )


def resolution():
    """Accuracy of model.bin by the photos, beside the model that was shipped before."""
    rows = []
    for name in ("", "_food11"):
        record, earlier = read(f"evaluation{name}.json"), read(f"evaluation_earlier{name}.json")
        small, photos = record["small_photos"], record["photos"]
        rows.append(
            (f"{named(record)}", f"{photos:,}", percent(record["accuracy"]), percent(earlier["accuracy"]))
        )
        if 0 < small < photos:
            rows.append(
                (
                    f"of these, shorter side below {size_of(record)}",
                    f"{small:,}",
                    percent(record["accuracy_of_small"]),
                    "",
                )
            )
            rows.append(("the others", f"{photos - small:,}", percent(record["accuracy_of_larger"]), ""))
    header = ("validation photos", "", "`model.bin`", "our earlier model (270,249 B)")
    return f"{table(header, rows)}\n\n{record['device']}; `results/evaluation*.json`."


def input_size():
    """Accuracy of the shipped weights by the input size they are stored with."""
    records = [read(f"input_size/{path.name}") for path in (HERE / "input_size").glob("*.json")]
    if not records:
        raise UserError(
            "results/input_size holds no records; "
            "run quantize.py --size ... --record results/input_size/SIZE.json"
        )
    records.sort(key=lambda record: record["model"]["preprocessing"]["size"])
    training, rows = read("model_training.json"), []
    view = training["settings"].get("view_size")
    trained = f"{view} px" if view else size_of(training)
    for record in records:
        size = size_of(record)
        rows.append(
            (
                f"{size} (as its training views)" if size == trained else size,
                percent(record["validation_accuracy_before"]),
                percent(record["validation_accuracy_after"]),
            )
        )
    header = ("input size", "validation accuracy, 32-bit weights", "in the file")
    return (
        f"{table(header, rows)}\n\n{named(records[0])}; {records[0]['device']}; records in "
        "`results/input_size/`."
    )


def grading():
    """Where the time of hw7_test.sh goes."""
    record = read("hw7_test.json")
    rows = [(name, f"{seconds:.1f} s") for name, seconds in record["seconds"].items()]
    header = (f"`hw7_test.sh` on {record['photos']:,} photos", "")
    return f"{table(header, rows)}\n\n{record['device']}; `results/hw7_test.json`."


def data_path():
    """The cost of the data path relative to the bare steps."""
    record = read("data_path.json")
    rows = [(f"`{name}`", f"{result['ratio']:.3f}") for name, result in record["results"].items()]
    header = (f"network, {record['size']} px", "epoch over the cache / same steps on one batch in memory")
    return f"{table(header, rows)}\n\n{record['device']}; `results/data_path.json`."


def fixed_views():
    """What a step takes that need not ask the teacher."""
    record = read("fixed_views.json")
    rows = [(name, f"{result['ratio']:.2f}") for name, result in record["results"].items()]
    header = (f"teacher, {record['size']} px", "a step with cached outputs / a step that computes them")
    return f"{table(header, rows)}\n\n{record['device']}; `results/fixed_views.json`."


def own_classes():
    """Three own classes from the weights of model.bin and from scratch."""
    groups = experiment_tables.runs("own_classes")
    rows = []
    for name, text in (("scratch", "from scratch"), ("init", "`--init model.bin`")):
        last = [record["history"][-1]["validation_accuracy"] for record in groups[name]]
        epochs = ", ".join(str(record["best"]["epoch"]) for record in groups[name])
        rows.append((text, mean_std(experiment_tables.best_of(groups[name])), epochs, mean_std(last)))
    header = (
        "",
        "validation accuracy of the best epoch, %",
        "which epochs these are",
        "of the last epoch, %",
    )
    return f"{table(header, rows)}\n\n{experiment_tables.source(groups, 'own_classes')}"


def onnx_teacher():
    """Photos per second of the runners for an ONNX teacher."""
    record = read("onnx_teacher.json")
    runners = list(next(iter(record["results"].values())))
    rows = [
        (runner, *(f"{values[runner]['photos_per_second']:,.0f}" for values in record["results"].values()))
        for runner in runners
    ]
    differences = [
        values[runner]["largest_difference"]
        for values in record["results"].values()
        for runner in runners
        if "fp32" in runner and "largest_difference" in values[runner]
    ]
    note = (
        f"`{record['teacher']}`; in fp32 the logits differ by at most {max(differences):.0e}; "
        f"{record['device']}; `results/onnx_teacher.json`."
    )
    return f"{table(('', *record['results']), rows)}\n\n{note}"


TABLES = {
    "distillation": experiment_tables.distillation,
    "recipes": experiment_tables.recipes,
    "choices": experiment_tables.choices,
    "alpha_temperature": experiment_tables.alpha_temperature,
    "testing": experiment_tables.testing,
    "compress": experiment_tables.compress,
    "equal_bytes": experiment_tables.equal_bytes,
    "pruning": experiment_tables.pruning,
    "rounding": rounding,
    "scratch": lambda: experiment_tables.comparison("scratch"),
    "model": shipped_model,
    "resolution": resolution,
    "input_size": input_size,
    "grading": grading,
    "data_path": data_path,
    "fixed_views": fixed_views,
    "onnx_teacher": onnx_teacher,
    "own_classes": own_classes,
}
PAGES = ("README.md", "docs/findings.md", "docs/teachers.md")


def fill(pages):
    """{page: text with every table created again}; UserError unless each table has its place on exactly one
    page.
    """
    for name, make in TABLES.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        places = [page for page, text in pages.items() for _ in pattern.findall(text)]
        if len(places) != 1:
            raise UserError(
                f"{' and '.join(pages)} need exactly one table {name} between its begin and end marks; "
                "restore them"
            )
        content = make().replace(", 1 threads", ", 1 thread")  # as earlier records spell it
        pages = {
            **pages,
            places[0]: pattern.sub(
                lambda match, content=content: f"{match[1]}{content}\n{match[2]}", pages[places[0]]
            ),
        }
    return pages


def main(argv=None):
    options = parser(__doc__)
    options.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if a table is out of date"
    )
    options = options.parse_args(argv)
    root = HERE.parent
    before = {page: (root / page).read_text(encoding="utf-8") for page in PAGES}
    after = fill(before)
    stale = [page for page in PAGES if after[page] != before[page]]
    if options.check:
        print(
            f"{', '.join(stale)} out of date; run python results/fill_readme.py"
            if stale
            else "README.md and docs/ are up to date"
        )
        return int(bool(stale))
    for page in stale:
        write_text(root / page, after[page])
    return 0


if __name__ == "__main__":
    run(main)
