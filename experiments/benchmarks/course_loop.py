"""The loops of the course's notebook, written plainly, to measure against: every photo is decoded by Pillow
and transformed by torchvision each time it is read, one after another, and all is computed in fp32.

    python -m experiments.benchmarks.course_loop food-11 prediction.csv

Predicts testing/ as the notebook would, with an untrained `student`: for its time, not for its predictions.
"""

import csv
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compression.command_line import UserError, parser, run
from models import build

SIZE, BATCH_SIZE = 256, 32
CROP = transforms.RandomCrop(SIZE, pad_if_needed=True, padding_mode="symmetric")
TURN = (transforms.RandomHorizontalFlip(), transforms.RandomRotation(15))
TRAINING = transforms.Compose([CROP, *TURN, transforms.ToTensor()])
TESTING = transforms.Compose([transforms.CenterCrop(SIZE), transforms.ToTensor()])


class Photos(Dataset):
    """Photo files with their labels, decoded when they are read."""

    def __init__(self, paths, labels, transform):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def train(paths, labels):
    """Train a new `student` for one epoch and return how many photos it has seen."""
    network = build("student").train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss_function = torch.nn.CrossEntropyLoss()
    seen = 0
    for images, targets in DataLoader(Photos(paths, labels, TRAINING), batch_size=BATCH_SIZE, shuffle=True):
        optimizer.zero_grad()
        loss = loss_function(network(images), targets)
        loss.backward()
        optimizer.step()
        seen += len(images)
    return seen


@torch.inference_mode()
def predict(network, batches):
    """The most probable class of every photo of the batches of (images, anything)."""
    return [label for images, _ in batches for label in network(images).argmax(1).tolist()]


def testing_batches(paths):
    """The DataLoader of photos to predict."""
    return DataLoader(Photos(paths, [0] * len(paths), TESTING), batch_size=BATCH_SIZE)


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("data", type=Path, help="root that holds testing/*.jpg")
    options.add_argument("output", type=Path, help="the CSV to write")
    options = options.parse_args(argv)
    paths = sorted((options.data / "testing").glob("*.jpg"))
    if not paths:
        raise UserError(f"there are no photos {options.data}/testing/*.jpg; check the data directory")
    labels = predict(build("student").eval(), testing_batches(paths))
    with open(options.output, "w", newline="") as file:
        csv.writer(file).writerows([["Id", "label"], *zip((path.stem for path in paths), labels)])
    return 0


if __name__ == "__main__":
    run(main)
