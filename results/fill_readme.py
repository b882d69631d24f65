"""Fill README.md's generated tables from the records in this folder.

    python results/fill_readme.py            # rewrite the tables
    python results/fill_readme.py --check    # only tell whether they are up to date (status 1 if not)

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; no number there is typed by hand. Tables of the
experiments are in experiment_tables.py, those of the model that is handed in here.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import experiment_tables  # noqa: E402
from command_line import UserError, parser, run  # noqa: E402
from experiment_tables import percent, read, size_of, table  # noqa: E402
from files import write_text  # noqa: E402


def rounding():
    """Bytes and accuracy of the shipped network's weights from 8 to 2 bits, rounded only; and the shipped file."""
    shipped = read("model.json")
    records = [read(f"rounding/{path.name}") for path in (HERE / "rounding").glob("*.json")]
    if not records:
        raise UserError("results/rounding holds no records; run quantize.py --bits B --data DATA "
                        "--record results/rounding/B.json on the checkpoint behind model.bin")
    records.sort(key=lambda record: -record["bits"])
    rows = [("32", f"{shipped['raw_bytes']:,} B of tensors", percent(shipped["validation_accuracy_before"]), "")]
    in_file = f"{percent(shipped['validation_accuracy_after'])} ({shipped['file_bytes']:,} B, `model.bin`)"
    for record in records:
        rows.append((
            str(record["bits"]),
            f"{record['file_bytes']:,} B",
            percent(record["validation_accuracy_after"]),
            in_file if record["bits"] == shipped["bits"] else "",
        ))
    header = ("bits per weight", "file", "validation accuracy, rounded only", "trained through the rounding")
    return f"{table(header, rows)}\n\n{records[0]['device']}; one network, one seed; records in `results/rounding/`."


def shipped_model():
    """What model.bin is."""
    teacher, student, model = read("model_teacher.json"), read("model_training.json"), read("model.json")
    averaged, again = read("evaluation_tta.json"), read("evaluation_again.json")
    tuning, bits = model["fine_tuning"], model["bits"]
    minutes = (teacher["seconds"] + student["seconds"] + tuning["seconds"]) / 60
    teacher_accuracy = percent(teacher["best"]["validation_accuracy"])
    trained_on = (f"the stand-in's {student['photos']['training']:,} training photos: "
                  f"{student['settings']['epochs']} epochs distilled from a teacher of ours "
                  f"({teacher['parameters']:,} parameters, {teacher_accuracy} at {size_of(teacher)}, from scratch), "
                  f"{tuning['settings']['epochs']} epochs through the rounding; seed {student['seed']}")
    file = (f"{model['file_bytes']:,} bytes, {bits} bits per weight (8 in the first and last layer, "
            f"{bits + 2} in depthwise ones), {model['vectors']} for biases")
    before, after = percent(model["validation_accuracy_before"]), percent(model["validation_accuracy_after"])
    same = percent(again["agreement"]["validation"])
    in_tta = f"{percent(averaged['accuracy'])}: the mean over mirror image and three input sizes (`--tta`)"
    return table(("`model.bin`", ""), [
        ("network", f"`{model['architecture']}`, {student['parameters']:,} parameters, {size_of(model)}"),
        ("trained on", trained_on),
        ("file", file),
        ("validation accuracy (stand-in)", f"{before} in 32 bits, {after} in the file ({model['validation_photos']:,} photos)"),
        ("the same, as `hw7_test.sh` predicts", in_tta),
        ("another run of `hw7_train.sh`", f"{percent(again['accuracy'])} in its file, {same} of the photos are answered alike"),
        ("training time", f"{minutes:.0f} minutes on {student['device']}, with other work beside it"),
        ("commands", "`bash hw7_train.sh food-11 model.bin`"),
    ])


def resolution():
    """Accuracy of model.bin by the resolution of the photos."""
    record = read("evaluation.json")
    photos, small = record["photos"], record["small_photos"]
    kinds = [
        ("all", photos, record["accuracy"]),
        (f"shorter side below {size_of(record)}", small, record["accuracy_of_small"]),
        ("the others", photos - small, record["accuracy_of_larger"]),
        (f"all, first reduced to {record['reduced_to']} px", photos, record["accuracy_reduced"]),
    ]
    rows = [(name, f"{count:,}", percent(accuracy)) for name, count, accuracy in kinds]
    return f"{table(('photos', '', 'validation accuracy'), rows)}\n\n{record['device']}; `results/evaluation.json`."


def input_size():
    """Accuracy of the shipped weights by the input size they are stored with."""
    records = [read(f"input_size/{path.name}") for path in (HERE / "input_size").glob("*.json")]
    if not records:
        raise UserError("results/input_size holds no records; "
                        "run quantize.py --size ... --record results/input_size/SIZE.json")
    records.sort(key=lambda record: record["model"]["preprocessing"]["size"])
    training, rows = read("model_training.json"), []
    view = training["settings"].get("view_size")
    trained = f"{view} px" if view else size_of(training)
    for record in records:
        size = size_of(record)
        rows.append((
            f"{size} (as its training views)" if size == trained else size,
            percent(record["validation_accuracy_before"]),
            percent(record["validation_accuracy_after"]),
        ))
    header = ("input size", "validation accuracy, 32-bit weights", "in the file")
    return f"{table(header, rows)}\n\n{records[0]['device']}; records in `results/input_size/`."


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
    header = (f"teacher, {record['size']} px", "a step from memory / a step that asks")
    return f"{table(header, rows)}\n\n{record['device']}; `results/fixed_views.json`."


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
}


def fill(text):
    """README text with every table made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise UserError(f"README.md needs exactly one table {name} between its begin and end marks; restore them")
        content = make().replace(", 1 threads", ", 1 thread")  # as earlier records spell it
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="change nothing; status 1 if a table is out of date")
    options = options.parse_args(argv)
    readme = HERE.parent / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = fill(before)
    if options.check:
        stale = "README.md is out of date; run python results/fill_readme.py"
        print("README.md is up to date" if after == before else stale)
        return int(after != before)
    write_text(readme, after)
    return 0


if __name__ == "__main__":
    run(main)
