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
    groups = {}
    for path in sorted((HERE / experiment).glob("*-seed*.json")):
        groups.setdefault(path.stem.rsplit("-seed", 1)[0], []).append(read(f"{experiment}/{path.name}"))
    if not groups:
        raise UserError(f"results/{experiment} holds no records; run `python experiments.py {experiment} DATA`")
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


def shipped_model():
    """What model.bin is."""
    training, model = read("model_training.json"), read("model.json")
    return "\n".join([
        "| `model.bin` | |", "|---|---|",
        f"| network | `{model['architecture']}`, {training['parameters']:,} parameters, {model['model']['preprocessing']['size']} px |",
        f"| trained on | the stand-in's {training['photos']['training']:,} training photos at {training['model']['preprocessing']['size']} px, {training['settings']['epochs']} epochs, seed {training['seed']} |",
        f"| file | {model.get('file_bytes') or model['packed_bytes']:,} bytes, {model['bits']} bits per weight, {model['vectors']} for biases and BN |",
        f"| validation accuracy (stand-in) | {100 * model['validation_accuracy_before']:.2f} % before, {100 * model['validation_accuracy_after']:.2f} % after quantization "
        f"({model['validation_photos']:,} photos) |",
        f"| training time | {training['seconds'] / 60:.0f} minutes on {training['device']}, with other work beside it |",
        f"| command | `python {training['command']}`, then `python {model['command']}` |"])


def input_size():
    """Accuracy of the shipped weights by the input size they are stored with."""
    records = sorted((read(f"input_size/{path.name}") for path in (HERE / "input_size").glob("*.json")), key=lambda record: record["model"]["preprocessing"]["size"])
    if not records:
        raise UserError("results/input_size holds no records; run quantize.py --size ... --record results/input_size/SIZE.json")
    lines = ["| input size | validation accuracy, 32-bit weights | after 8 bits |", "|---|---|---|"]
    trained = read("model_training.json")["model"]["preprocessing"]["size"]
    for record in records:
        size = record["model"]["preprocessing"]["size"]
        lines.append(f"| {size} px{' (trained at)' if size == trained else ''} | {100 * record['validation_accuracy_before']:.2f} % | {100 * record['validation_accuracy_after']:.2f} % |")
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


TABLES = {"scratch": lambda: comparison("scratch"), "model": shipped_model, "input_size": input_size, "grading": grading, "data_path": data_path}


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
