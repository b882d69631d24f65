"""Predict photos with a model file and write the Kaggle CSV.

    python inference.py food-11 prediction.csv
    python inference.py some-folder prediction.csv --ids names --top-k 3 probabilities.csv
    python inference.py food-11 prediction.csv --tta
    python inference.py some-folder prediction.csv --ids names --html gallery.html

The data directory holds testing/<id>.jpg, or the photos themselves. Rows are `Id,label`, ascending;
`id,label` where the data is the 2019 homework's test.csv of faces. The label is the class number of
Food-11, or the class's name if that is a number; other classes are numbered in the order of the model file,
and a legend is printed. --label names writes names. The model file says everything else: network, classes,
preprocessing. With --tta every photo is seen four times, mirrored and at two sizes (see
compression/data/tta.py). No CSV is written unless every photo was read; the page of --html lists those that
could not be read.
"""

import os
import re
import time
from pathlib import Path

from compression.command_line import UserError, number, parser, pick_device, run, tell
from compression.data.classes import class_numbers
from compression.data.faces import faces_csv
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.data.tta import add_tta
from compression.files.atomic import check_distinct, check_output, write_text
from compression.files.loading import load_model
from compression.pages.gallery import gallery_page
from compression.pages.rendering import readable
from compression.stages.predicting import predict, to_csv, top_k_table
from dataset import list_testing

MODEL = Path(__file__).parent / "model.bin"


def read_options(argv):
    options = parser(__doc__)
    add, kinds = options.add_argument, ("numbers", "names")
    add("data", type=Path, help="folder that holds testing/, or the photos, or a CSV of faces (id,feature)")
    add("output", type=Path, help="the CSV to write")
    add("--model", type=Path, default=MODEL, help="model file or checkpoint")
    add("--ids", choices=kinds, default="numbers", help="numbers: <id>.jpg as on Kaggle; names: any name")
    add("--label", choices=kinds, default="numbers", help="class numbers as on Kaggle, or class names")
    add("--top-k", nargs=2, metavar=("K", "CSV"), help="also write the K most probable classes there")
    text = (
        "also write a page that shows the photos with their classes, to filter by class and probability; it "
        "links the photo files, so they have to stay where they are"
    )
    add("--html", type=Path, metavar="PAGE", help=text)
    add_tta(options)
    add("--batch-size", type=number(int, 1, 100_000), default=64, help="photos per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_normalisation(options)
    add("--max-bytes", type=number(int, 1), default=300_000, help="refuse a larger model file")
    options = options.parse_args(argv)
    options.k, options.table = 0, None
    if options.top_k:
        k, table = options.top_k
        if not re.fullmatch("[1-9][0-9]{0,5}", k):
            raise UserError(f"--top-k {k} is not a number of classes; write e.g. --top-k 3 probabilities.csv")
        options.k, options.table = int(k), Path(table)
    return options


def main(argv=None):
    started = time.perf_counter()
    options = read_options(argv)
    device = pick_device(options.device)
    faces = faces_csv(options.data, "test.csv", "testing")
    outputs = [path for path in (options.output, options.table, options.html) if path is not None]
    check_distinct(options.model, faces, *outputs)
    model = load_model(options.model, options.max_bytes)
    network = model.build()
    model = settle_normalisation(model, options.normalisation)
    description, names = model.description, model.description.class_names
    listing = list_testing(options.data, by_name=options.ids == "names")
    for output in outputs:
        if os.path.exists(output) and os.path.realpath(output) in set(map(os.path.realpath, listing.paths)):
            raise UserError(f"{output} is one of the photos and would be overwritten; name another file")
        check_output(output)

    loaded = time.perf_counter()
    preprocessing = description.preprocessing
    probabilities, report = predict(network, listing, preprocessing, device, options.batch_size, options.tta)
    if options.html:
        title = f"{len(listing):,} photos by {readable(options.model)}"
        write_text(options.html, gallery_page(listing, names, probabilities, report, options.html, title))
    if report.unreadable:
        written = f"only {options.html} was" if options.html else "nothing was"
        raise UserError(
            f"{len(report.unreadable)} of {len(listing)} photos in {listing.folder} cannot be decoded: "
            f"{report.name(listing, report.unreadable)}; {written} written, replace or remove them"
        )
    if report.truncated:
        text = f"{len(report.truncated)} of {len(listing)} photos are truncated: decoded as far as they go"
        tell(f"warning: {text}: {report.name(listing, report.truncated)}")
    numbers = class_numbers(names)
    labels = names if options.label == "names" else numbers or range(len(names))
    rows = zip(listing.ids, (labels[label] for label in probabilities.argmax(1).tolist()))
    write_text(options.output, to_csv([listing.id_header, "label"], rows))
    if options.table:
        write_text(
            options.table, top_k_table(listing.ids, probabilities, names, options.k, listing.id_header)
        )
    now = time.perf_counter()
    print(
        f"{len(listing):,} photos -> {options.output} ({description.architecture}, {device}, "
        f"{loaded - started:.1f} s to load, {now - loaded:.1f} s to predict)"
    )
    if not numbers and options.label == "numbers":
        legend = ", ".join(f"{label} = {name}" for label, name in enumerate(names))
        print("the labels are numbers of the model's classes:", legend, "(--label names writes the names)")
    return 0


if __name__ == "__main__":
    run(main)
