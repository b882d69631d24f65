"""Fill README.md's generated tables from the records in this folder.

    python results/fill_readme.py            # rewrite the tables
    python results/fill_readme.py --check    # only tell whether they are up to date (status 1 if not)

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; no number there is typed by hand.
"""

import json
import re
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from command_line import UserError, parser, run  # noqa: E402
from files import write_text  # noqa: E402


def read(name):
    """A record of this folder."""
    try:
        return json.loads((HERE / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the record results/{name} cannot be read ({error}); run the script that writes it") from None


def mean_std(values):
    """Accuracies as "mean ± standard deviation" in per cent (sample deviation; one value stands alone)."""
    if len(values) == 1:
        return f"{100 * values[0]:.2f}"
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def comparison(experiment):
    """Markdown rows of an experiment: a line per variant with mean ± std over its seeds."""
    groups = runs(experiment)
    lines = ["| network | parameters | tensors at 8 bits | size | epochs | seeds | validation accuracy, % |", "|---|---|---|---|---|---|---|"]
    for name, records in groups.items():
        first = records[0]
        accuracy = mean_std([record["best"]["validation_accuracy"] for record in records])
        lines.append(f"| `{name}` | {first['parameters']:,} | {_data_bytes(first):,} B | {first['model']['preprocessing']['size']} px "
                     f"| {first['settings']['epochs']} | {len(records)} | {accuracy} |")
    first = next(iter(groups.values()))[0]
    return "\n".join([*lines, "", f"{first['device']}; commit {first['commit']}; records in `results/{experiment}/`."])


def _data_bytes(record):
    """Bytes of all tensors at 8 bits, BN folded, before entropy coding. The container adds some 3,000, by the version of torch that writes it."""
    from model_file import Description, predicted_data_bytes
    from quantization import Scheme

    model = {**record["model"], "arguments": {**record["model"]["arguments"], "folded": True}}
    return predicted_data_bytes(Description.from_dict(model, "the record"), Scheme(8, "channel", "mse"))


def runs(experiment):
    """{variant: [records of its seeds]} of an experiment; UserError if there are none."""
    groups = {}
    for path in sorted((HERE / experiment).glob("*-seed*.json")):
        groups.setdefault(path.stem.rsplit("-seed", 1)[0], []).append(read(f"{experiment}/{path.name}"))
    if not groups:
        raise UserError(f"results/{experiment} holds no records; run `python experiments.py {experiment} DATA`")
    return groups


def source(groups, experiment):
    """The line under a table of {variant: records}: where its numbers come from."""
    records = [record for group in groups.values() for record in group]
    seeds, commits = len({record["seed"] for record in records} - {None}), sorted({record["commit"] for record in records})
    return f"{records[0]['device']}; {seeds} seed{'s' if seeds > 1 else ''}; commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}; records in `results/{experiment}/`."


def best_of(records):
    """The accuracies of training runs."""
    return [record["best"]["validation_accuracy"] for record in records]


def distillation():
    """Students from scratch, from a weak and from a strong teacher."""
    groups = runs("distillation")
    networks = list(dict.fromkeys(name.rpartition("_")[0] for name in groups))
    weak, strong = (groups[f"{networks[0]}_{teacher}"][0]["teachers"][0]["validation_accuracy"] for teacher in ("weak", "strong"))
    lines = [f"| student | parameters | from scratch | from ResNet-18 from scratch ({100 * weak:.2f} %) | from `model.bin` ({100 * strong:.2f} %) |", "|---|---|---|---|---|"]
    for network in sorted(networks, key=lambda network: -groups[f"{network}_scratch"][0]["parameters"]):
        cells = (mean_std(best_of(groups[f"{network}_{teacher}"])) for teacher in ("scratch", "weak", "strong"))
        lines.append(f"| `{network}` | {groups[f'{network}_scratch'][0]['parameters']:,} | {' | '.join(cells)} |")
    first = groups[f"{networks[0]}_scratch"][0]
    return "\n".join([*lines, "", f"{first['settings']['epochs']} epochs at {first['model']['preprocessing']['size']} px; {source(groups, 'distillation')}"])


CHOICES = {"lr": "`--lr 0.005`, the default", "no_ema": "`--ema 0`: no averaged weights",
           "fixed_views": "`--views 2`: two fixed views a photo, the teacher asked about each once", "dkd": "decoupled distillation (Zhao et al. 2022), β 2"}


def choices():
    """One thing changed in the distillation of the student from model.bin: accuracy and time."""
    groups = runs("choices")
    seeds = {record["seed"] for record in next(iter(groups.values()))}
    ours = [record for record in runs("distillation")["student_strong"] if record["seed"] in seeds]
    lines = ["| in place of it | validation accuracy, % | difference | time, other work beside it |", "|---|---|---|---|", f"| `student` from `model.bin`, as above | {mean_std(best_of(ours))} | | 1 |"]
    for name, text in CHOICES.items():
        difference = 100 * (statistics.mean(best_of(groups[name])) - statistics.mean(best_of(ours)))
        time = statistics.mean(record["seconds"] for record in groups[name]) / statistics.mean(record["seconds"] for record in ours)
        lines.append(f"| {text} | {mean_std(best_of(groups[name]))} | {difference:+.2f} | {time:.2f} |")
    return "\n".join([*lines, "", source(groups, "choices")])


def recipes():
    """The course's recipe of distillation and ours, trained alike."""
    groups = runs("recipes")
    names = {"course": "the course's: AdamW at a constant 0.001, batches of 32, crop, flip and rotation, α 0.5, T 20", "ours": "the defaults, with `--augment light` for the short schedule"}
    lines = ["| recipe | validation accuracy, % |", "|---|---|", *(f"| {text} | {mean_std(best_of(groups[name]))} |" for name, text in names.items())]
    first = groups["ours"][0]
    return "\n".join([*lines, "", f"`student` from `model.bin`, {first['settings']['epochs']} epochs at {first['model']['preprocessing']['size']} px; {source(groups, 'recipes')}"])


WAYS = {"big": "the network itself", "quantized": "8 bits per weight", "pruned": "channels cut by γ, fine-tuned", "factorised": "low rank, equal shares, fine-tuned",
        "factorised_global": "low rank, `--ranking global`, fine-tuned", "distilled": "a narrow network distilled from it", "direct": "the narrow network, from the labels alone"}


def compress():
    """One network at a quarter of its bytes, in several ways."""
    groups, lines = runs("compress"), ["| `student` | parameters | bytes | epochs | validation accuracy, % |", "|---|---|---|---|---|"]
    first = groups["big"][0]
    for name, text in WAYS.items():
        record = groups[name][0]
        last = record["rounds"][-1] if "rounds" in record else None
        parameters = last["parameters"] if last else record.get("parameters", first["parameters"])
        size = f"{record['file_bytes']:,}" if name == "quantized" else f"{4 * parameters:,}"
        settings = record["pruning"]["settings"] if last else record.get("settings")
        epochs = f"{first['settings']['epochs']} + {settings['epochs']}" if name not in ("big", "quantized", "direct") else (settings or first["settings"])["epochs"]
        accuracies = [one["rounds"][-1]["after_training"] if last else one["validation_accuracy_after"] if name == "quantized" else one["best"]["validation_accuracy"] for one in groups[name]]
        lines.append(f"| {text} | {parameters:,} | {size} | {epochs} | {mean_std(accuracies)} |")
    return "\n".join([*lines, "", f"{first['model']['preprocessing']['size']} px; {source(groups, 'compress')}"])


def equal_bytes():
    """Networks of four sizes, each at the bits that bring it to 300,000 bytes."""
    groups, lines = runs("equal_bytes"), ["| parameters | bits | file | 32-bit weights | in the file |", "|---|---|---|---|---|"]
    for name in sorted((name for name in groups if name.startswith("float")), key=lambda name: groups[name][0]["parameters"]):
        stored = groups[name.replace("float", "stored")]
        size = statistics.mean(record["file_bytes"] for record in stored)
        lines.append(f"| {groups[name][0]['parameters']:,} | {stored[0]['bits']} | {size:,.0f} B | {mean_std(best_of(groups[name]))} | {mean_std([record['validation_accuracy_after'] for record in stored])} |")
    first, tuned = groups[name][0], stored[0]["fine_tuning"]["settings"]["epochs"]
    return "\n".join([*lines, "", f"{first['settings']['epochs']} epochs at {first['model']['preprocessing']['size']} px and {tuned} through the rounding; {source(groups, 'equal_bytes')}"])


PRUNING = {"none": "no training", "mistake1": "the reference mistake, 1 epoch", "finetune1": "fine-tuned, 1 epoch", "finetune5": "fine-tuned, 5 epochs", "retrain5": "trained anew, 5 epochs"}


def pruning():
    """Accuracy after each of five cuts, by what was done after each of them; then what training anew once at the end gives."""
    groups, lines = runs("pruning"), []
    for rate in ("0.95", "0.9"):
        shown = [(name, text) for name, text in PRUNING.items() if f"{name}_{rate}" in groups]
        lines += [f"| rate {rate}: round | parameters | " + " | ".join(text for _, text in shown) + " |", "|---" * (2 + len(shown)) + "|"]
        first = groups[f"{shown[0][0]}_{rate}"]
        lines.append(f"| before | {first[0]['plan'][0]['parameters']:,} | " + " | ".join([mean_std([record["validation_accuracy"] for record in first])] * len(shown)) + " |")
        for index, row in enumerate(first[0]["rounds"]):
            cells = (mean_std([record["rounds"][index]["after_training"] for record in groups[f"{name}_{rate}"]]) for name, _ in shown)
            lines.append(f"| {index + 1} | {row['parameters']:,} | " + " | ".join(cells) + " |")
        if f"once_{rate}" in groups:
            once = [record["rounds"][0] for record in groups[f"once_{rate}"]]
            epochs = groups[f"once_{rate}"][0]["pruning"]["settings"]["epochs"]
            lines.append(f"| all at once | {once[0]['parameters']:,} | trained anew, {epochs} epochs: {mean_std([row['after_training'] for row in once])} |" + " |" * (len(shown) - 1))
        lines.append("")
    return "\n".join([*lines, source(groups, "pruning")])


def rounding():
    """Bytes and accuracy of the shipped network's weights from 8 to 2 bits, rounded only; and the shipped file."""
    shipped = read("model.json")
    records = sorted((read(f"rounding/{path.name}") for path in (HERE / "rounding").glob("*.json")), key=lambda record: -record["bits"])
    if not records:
        raise UserError("results/rounding holds no records; run quantize.py --bits B --data DATA --record results/rounding/B.json on the checkpoint behind model.bin")
    lines = ["| bits per weight | file | validation accuracy, rounded only | trained through the rounding |", "|---|---|---|---|",
             f"| 32 | {shipped['raw_bytes']:,} B of tensors | {100 * shipped['validation_accuracy_before']:.2f} % | |"]
    for record in records:
        same = record["bits"] == shipped["bits"]
        lines.append(f"| {record['bits']} | {record['file_bytes']:,} B | {100 * record['validation_accuracy_after']:.2f} % | "
                     + (f"{100 * shipped['validation_accuracy_after']:.2f} % ({shipped['file_bytes']:,} B, `model.bin`) |" if same else "|"))
    return "\n".join([*lines, "", f"{records[0]['device']}; one network, one seed; records in `results/rounding/`."])


def shipped_model():
    """What model.bin is."""
    teacher, student, model, averaged = read("model_teacher.json"), read("model_training.json"), read("model.json"), read("evaluation_tta.json")
    tuning = model["fine_tuning"]
    minutes = (teacher["seconds"] + student["seconds"] + tuning["seconds"]) / 60
    return "\n".join([
        "| `model.bin` | |", "|---|---|",
        f"| network | `{model['architecture']}`, {student['parameters']:,} parameters, {model['model']['preprocessing']['size']} px |",
        f"| trained on | the stand-in's {student['photos']['training']:,} training photos: {student['settings']['epochs']} epochs distilled from a teacher of ours "
        f"({teacher['parameters']:,} parameters, {100 * teacher['best']['validation_accuracy']:.2f} % at {teacher['model']['preprocessing']['size']} px, from scratch), "
        f"{tuning['settings']['epochs']} epochs through the rounding; seed {student['seed']} |",
        f"| file | {model['file_bytes']:,} bytes, {model['bits']} bits per weight (8 in the first and last layer, {model['bits'] + 2} in depthwise ones), {model['vectors']} for biases |",
        f"| validation accuracy (stand-in) | {100 * model['validation_accuracy_before']:.2f} % in 32 bits, {100 * model['validation_accuracy_after']:.2f} % in the file "
        f"({model['validation_photos']:,} photos) |",
        f"| the same, as `hw7_test.sh` predicts | {100 * averaged['accuracy']:.2f} %: the mean over mirror image and three input sizes (`--tta`) |",
        f"| training time | {minutes:.0f} minutes on {student['device']}, with other work beside it |",
        "| commands | `bash hw7_train.sh food-11 model.bin` |"])


def resolution():
    """Accuracy of model.bin by the resolution of the photos."""
    record = read("evaluation.json")
    rows = [("all", record["photos"], record["accuracy"]), (f"shorter side below {record['model']['preprocessing']['size']} px", record["small_photos"], record["accuracy_of_small"]),
            ("the others", record["photos"] - record["small_photos"], record["accuracy_of_larger"]), (f"all, first reduced to {record['reduced_to']} px", record["photos"], record["accuracy_reduced"])]
    lines = [f"| {name} | {count:,} | {100 * accuracy:.2f} % |" for name, count, accuracy in rows]
    return "\n".join(["| photos | | validation accuracy |", "|---|---|---|", *lines, "", f"{record['device']}; `results/evaluation.json`."])


def input_size():
    """Accuracy of the shipped weights by the input size they are stored with."""
    records = sorted((read(f"input_size/{path.name}") for path in (HERE / "input_size").glob("*.json")), key=lambda record: record["model"]["preprocessing"]["size"])
    if not records:
        raise UserError("results/input_size holds no records; run quantize.py --size ... --record results/input_size/SIZE.json")
    lines = ["| input size | validation accuracy, 32-bit weights | in the file |", "|---|---|---|"]
    training = read("model_training.json")
    trained = training["settings"].get("view_size") or training["model"]["preprocessing"]["size"]
    for record in records:
        size = record["model"]["preprocessing"]["size"]
        lines.append(f"| {size} px{' (as its training views)' if size == trained else ''} | {100 * record['validation_accuracy_before']:.2f} % | {100 * record['validation_accuracy_after']:.2f} % |")
    return "\n".join([*lines, "", f"{records[0]['device']}; records in `results/input_size/`."])


def grading():
    """Where the time of hw7_test.sh goes."""
    record = read("hw7_test.json")
    parts = "".join(f"| {name} | {seconds:.1f} s |\n" for name, seconds in record["seconds"].items())
    return f"| `hw7_test.sh` on {record['photos']:,} photos | |\n|---|---|\n{parts}\n{record['device']}; `results/hw7_test.json`."


def data_path():
    """The cost of the data path relative to the bare steps."""
    record = read("data_path.json")
    rows = "".join(f"| `{name}` | {result['ratio']:.3f} |\n" for name, result in record["results"].items())
    return f"| network, {record['size']} px | epoch over the cache / same steps on one batch in memory |\n|---|---|\n{rows}\n{record['device']}; `results/data_path.json`."


TABLES = {"distillation": distillation, "recipes": recipes, "choices": choices, "compress": compress, "equal_bytes": equal_bytes, "pruning": pruning, "rounding": rounding, "scratch": lambda: comparison("scratch"), "model": shipped_model, "resolution": resolution, "input_size": input_size, "grading": grading, "data_path": data_path}


def fill(text):
    """README text with every table made anew."""
    for name, table in TABLES.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise UserError(f"README.md needs exactly one table {name} between its begin and end marks; restore them")
        content = table().replace(", 1 threads", ", 1 thread")  # as earlier records spell it
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
        print("README.md is up to date" if after == before else "README.md is out of date; run python results/fill_readme.py")
        return int(after != before)
    write_text(readme, after)
    return 0


if __name__ == "__main__":
    run(main)
