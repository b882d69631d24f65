"""What `inference.py` does with photos: class probabilities of all of them, and the CSV files."""

import csv
import io

import torch

from compression import distributed
from compression.data.decoding import DecodeReport
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.photo_cache import photo_stream


@torch.inference_mode()
def predict(network, listing, preprocessing, device, batch_size, tta=False):
    """Class probabilities float32 (N, classes) on the CPU, in the order of the listing, and the DecodeReport.

    tta: with test-time augmentation. Rows of undecodable photos are NaN. Decoding goes on in other threads
    while the network runs.
    """
    network = network.to(device, memory_format=torch.channels_last)
    own, parts = DecodeReport(), []
    # whole batches, so that every photo is seen among the same others whatever the number of processes
    batches = distributed.share(torch.arange(len(listing)).split(batch_size))
    mine = torch.cat([*batches, torch.empty(0, dtype=torch.int64)])
    preprocessings = inputs_of(preprocessing, tta)
    for rows, *inputs in photo_stream(listing.part(mine.tolist()), preprocessings, own, batch_size):
        inputs = [torch.from_numpy(photos).to(device) for photos in inputs]
        found = mean_probabilities(network, inputs, preprocessing, tta).cpu()
        parts.append((mine[rows], found))
    report, probabilities = DecodeReport(), None
    for photos, found, noted in distributed.gather((mine, parts, own)):
        report.truncated |= {int(photos[row]): why for row, why in noted.truncated.items()}
        report.unreadable |= {int(photos[row]): why for row, why in noted.unreadable.items()}
        for rows, values in found:
            if probabilities is None:
                probabilities = torch.full((len(listing), values.shape[1]), torch.nan)
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
    header, rows = [id_header], []
    for rank in range(1, values.shape[1] + 1):
        header += [f"class_{rank}", f"probability_{rank}"]
    for identity, row_labels, row_values in zip(ids, labels.tolist(), values.tolist()):
        rows.append([identity])
        for label, value in zip(row_labels, row_values):
            rows[-1] += [class_names[label], f"{value:.6f}"]
    return to_csv(header, rows)
