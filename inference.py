"""Predict photos with a model file and write the Kaggle CSV.

    python inference.py food-11 prediction.csv
    python inference.py my-photos prediction.csv --ids names --top-k 3 probabilities.csv
    python inference.py food-11 prediction.csv --tta
    python inference.py my-photos prediction.csv --ids names --html gallery.html

The data directory holds testing/<id>.jpg, or the photos themselves. Rows are `Id,label`, ascending;
`id,label` where the data is the 2019 homework's test.csv of faces. The label is the class number of Food-11,
or the number that is the class's name; other classes are counted in the order of the model file, and a legend
is printed. --label names writes names. The model file says everything else: network, classes, preprocessing.
With --tta every photo is seen four times, mirrored and at two sizes (see tta.py). No CSV is written unless
every photo was read; the page of --html lists the photos that were not.
"""

import argparse
import csv
import io
import re
import sys
import time
from pathlib import Path

import torch

from compression import distributed
from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.classes import class_numbers
from compression.data.faces import faces_csv
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.data.preprocessing import DecodeReport
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.atomic import check_distinct, check_output, write_text
from compression.files.loading import load_model
from compression.pages.gallery import gallery_page
from compression.pages.rendering import readable
from dataset import list_testing, photo_stream


@torch.inference_mode()
def predict(network, listing, preprocessing, device, batch_size, tta=False):
    """Class probabilities float32 (N, classes) on the CPU, in the order of the listing, and the DecodeReport.

    tta: with test-time augmentation. Rows of undecodable photos are NaN. Decoding goes on in other threads
    while the network runs.
    """
    network = network.to(device, memory_format=torch.channels_last)
    report, probabilities = DecodeReport(), None
    # whole batches, so that every photo is seen among the same others whatever the number of processes
    mine = torch.cat(
        distributed.share(torch.arange(len(listing)).split(batch_size)) or [torch.empty(0).long()]
    )
    whole, listing = listing, listing.part(mine.tolist())
    for rows, *inputs in photo_stream(listing, inputs_of(preprocessing, tta), report, batch_size):
        answers = mean_probabilities(
            network, [torch.from_numpy(photos).to(device) for photos in inputs], preprocessing, tta
        )
        if probabilities is None:
            probabilities = torch.full((len(listing), answers.shape[1]), torch.nan)
        probabilities[rows] = answers.cpu()
    return merged(len(whole), distributed.gather((mine, probabilities, report)))


def merged(count, parts):
    """(probabilities (count, classes), DecodeReport) of (rows, probabilities of these, their DecodeReport) of
    every process.
    """
    report, probabilities = DecodeReport(), None
    for rows, values, own in parts:
        for kind in ("truncated", "unreadable"):
            getattr(report, kind).update({int(rows[row]): why for row, why in getattr(own, kind).items()})
        if values is not None:
            if probabilities is None:
                probabilities = torch.full((count, values.shape[1]), torch.nan)
            probabilities[rows] = values
    return probabilities, report


def to_csv(header, rows):
    """CSV text with LF line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def top_k_table(ids, probabilities, class_names, k, id_header="Id"):
    """CSV text: the id, then the k most probable classes, each with its probability."""
    values, labels = probabilities.topk(min(k, len(class_names)), dim=1)
    header = [
        id_header,
        *(
            column
            for rank in range(1, values.shape[1] + 1)
            for column in (f"class_{rank}", f"probability_{rank}")
        ),
    ]
    rows = (
        [
            identity,
            *(
                cell
                for label, value in zip(row_labels, row_values)
                for cell in (class_names[label], f"{value:.6f}")
            ),
        ]
        for identity, row_labels, row_values in zip(ids, labels.tolist(), values.tolist())
    )
    return to_csv(header, rows)


def main(argv=None):
    started = time.perf_counter()
    options = parser(__doc__)
    options.add_argument(
        "data",
        type=Path,
        help="root that holds testing/, or the folder of photos itself, or a CSV of faces (id,feature)",
    )
    options.add_argument("output", type=Path, help="the CSV to write")
    options.add_argument(
        "--model", type=Path, default=Path(__file__).parent / "model.bin", help="model file or checkpoint"
    )
    options.add_argument(
        "--ids",
        choices=("numbers", "names"),
        default="numbers",
        help="numbers: <id>.jpg as on Kaggle; names: any file name",
    )
    options.add_argument(
        "--label",
        choices=("numbers", "names"),
        default="numbers",
        help="numbers of the classes as on Kaggle, or their names",
    )
    options.add_argument(
        "--top-k",
        nargs=2,
        metavar=("K", "CSV"),
        help="also write the K most probable classes to a second file",
    )
    options.add_argument(
        "--html",
        type=Path,
        metavar="PAGE",
        help="also write a page that shows the photos with their classes, to filter by class and "
        "probability; it links the photo files, so it shows them only as long as they stay where they are",
    )
    options.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="average over the photo and its mirror image, each at the input size and at 7/6 of it",
    )
    options.add_argument("--batch-size", type=number(int, 1), default=64, help="photos per forward pass")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_normalisation(options)
    options.add_argument(
        "--max-bytes", type=number(int, 1), default=300_000, help="refuse a larger model file"
    )
    options = options.parse_args(argv)

    device = pick_device(options.device)
    k, top_k_output = 0, None
    if options.top_k:
        k, top_k_output = options.top_k
        if not re.fullmatch("[1-9][0-9]{0,5}", k):
            raise UserError(f"--top-k {k} is not a number of classes; write e.g. --top-k 3 probabilities.csv")
        k, top_k_output = int(k), Path(top_k_output)
    check_distinct(
        options.model,
        options.output,
        top_k_output,
        options.html,
        faces_csv(options.data, "test.csv", "testing"),
    )
    model = load_model(options.model, options.max_bytes)
    network = model.build()
    model = settle_normalisation(model, options.normalisation)
    listing = list_testing(options.data, by_name=options.ids == "names")
    for output in filter(None, (options.output, top_k_output, options.html)):
        check_output(output)

    loaded = time.perf_counter()
    probabilities, report = predict(
        network, listing, model.description.preprocessing, device, options.batch_size, options.tta
    )
    names = model.description.class_names
    if options.html:
        title = f"{len(listing):,} photos by {readable(options.model)}"
        page = gallery_page(listing, names, probabilities, report, options.html, title)
        write_text(options.html, page)
    if report.unreadable:
        written = f"only {options.html} was" if options.html else "nothing was"
        raise UserError(
            f"{len(report.unreadable)} of {len(listing.paths)} photos in {listing.folder} cannot be decoded: "
            f"{report.name(listing, report.unreadable)}; {written} written, replace or remove them"
        )
    if report.truncated:
        print(
            f"warning: {len(report.truncated)} of {len(listing.paths)} photos are truncated: decoded as far "
            "as they go: "
            f"{report.name(listing, report.truncated)}",
            file=sys.stderr,
        )
    numbers = class_numbers(names)
    labels = names if options.label == "names" else numbers or range(len(names))
    rows = zip(listing.ids, (labels[label] for label in probabilities.argmax(1).tolist()))
    write_text(options.output, to_csv([listing.id_header, "label"], rows))
    if top_k_output:
        write_text(top_k_output, top_k_table(listing.ids, probabilities, names, k, listing.id_header))
    now = time.perf_counter()
    print(
        f"{len(listing):,} photos -> {options.output} ({model.description.architecture}, {device}, "
        f"{loaded - started:.1f} s to load, {now - loaded:.1f} s to predict)"
    )
    if not numbers and options.label == "numbers":
        print(
            "the labels are numbers of the model's classes:",
            ", ".join(f"{label} = {name}" for label, name in enumerate(names)),
            "(--label names writes the names)",
        )
    return 0


if __name__ == "__main__":
    run(main)
