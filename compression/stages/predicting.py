"""What `inference.py` does with photos: class probabilities of all of them, and the CSV files."""

import csv
import io

import torch

from compression import distributed
from compression.data.decoding import DecodeReport
from compression.data.tta import inputs_of, mean_probabilities
from dataset import photo_stream


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
