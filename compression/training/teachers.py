"""Teachers: reading them from any file, and checking them on the student's photos."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from compression.command_line import UserError
from compression.data.classes import listed, match, unnamed
from compression.data.plausibility import SAMPLE, choose_normalisation
from compression.data.preprocessing import Preprocessing
from compression.data.transfer import constant
from compression.files.loading import load_model
from compression.files.onnx import count_outputs, is_onnx, read_onnx
from compression.files.records import file_hash
from compression.training.evaluation import evaluate

UNKNOWN_SIZE = 128  # input pixels of a teacher whose file does not state them


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode, the preprocessing it is used with, and the size in pixels of the random views
    it was trained on, if another.
    """

    network: nn.Module
    preprocessing: Preprocessing
    path: Path
    view_size: int | None = None
    transductive: bool = False  # whether it was trained on the photos to be predicted
    states_size: bool = True  # whether its input size is the one its file tells
    order: tuple | None = None  # place of each of the student's classes among the teacher's; None = the same
    states_normalisation: bool = True  # whether its file tells the normalisation
    normalisation: str | None = None  # the name of the one that was chosen where its file tells none

    def __str__(self):
        return f"the teacher {self.path}"

    def logits(self, images, seen_by, size=None):
        """Logits for images (N, C, H, W) that were normalised as `seen_by` says, at the teacher's own
        normalisation and `size` (by default its input size), in the order of the student's classes.
        """

        def column(values):
            return constant(values, images.device).view(-1, 1, 1)

        own, pixels = self.preprocessing, images * column(seen_by.std) + column(seen_by.mean)
        shape = (size or own.size,) * 2
        if pixels.shape[2:] != shape:
            pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True, align_corners=False)
        inputs = (pixels - column(own.mean)) / column(own.std)
        logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        if self.order is None:
            return logits
        return logits.index_select(1, constant(self.order, logits.device).long())


def read_teacher(
    path, class_names, device, channels=3, size=None, unknown_size=UNKNOWN_SIZE, whose="the photos"
):
    """The teacher in a file for photos of so many channels; its logits are put in the order of `class_names`,
    by name.

    whose: what has these classes; size: input pixels in place of what the file tells; unknown_size: those
    where neither tells, as for another program's state_dict. Raises UserError if the file is no teacher,
    knows other classes, or was trained on grey photos for RGB ones or the other way round.
    """
    teacher, advice = f"the teacher {path}", "use a teacher of the same classes"
    if is_onnx(path):
        network, metadata = read_onnx(path)
        taken, names, origin = metadata["channels"], metadata.get("class_names"), {}
        preprocessing = Preprocessing(
            size=size or metadata.get("size", unknown_size),  # values in [0, 1] unless the file tells
            mean=metadata.get("mean", (0.0,) * taken),
            std=metadata.get("std", (1.0,) * taken),
        )
        states_size, states_normalisation = "size" in metadata, "mean" in metadata and "std" in metadata
        classes = count_outputs(network, taken, preprocessing.size, path)
        if names and len(names) != classes:
            raise UserError(
                f"{teacher} names {len(names)} classes and gives {classes} logits; export it again"
            )
    else:
        model = load_model(path, what="teacher file")
        network, description, origin = model.build(), model.description, model.description.training
        own, foreign = description.preprocessing, description.foreign
        # views are scaled to the teacher's size, whatever rule its photos were resized by
        preprocessing = replace(own, resize="crop", size=size or (unknown_size if foreign else own.size))
        names = None if foreign else description.class_names
        taken, classes = own.channels, len(description.class_names)
        states_size, states_normalisation = not foreign, not description.assumes_normalisation
    if classes != len(class_names):
        theirs = listed(names, 3) if names else "unnamed"
        raise UserError(
            f"{teacher} has {classes} classes ({theirs}) and {len(class_names)} are those of {whose} "
            f"({listed(class_names, 3)}); {advice}"
        )
    order = match(class_names, whose, names or unnamed(classes), teacher, advice)
    if taken != channels:
        advice = "use a teacher that was trained on photos like them"
        raise UserError(f"{teacher} takes {taken} channel(s) and the photos have {channels}; {advice}")
    view_size = None if size else origin.get("view_size")
    return Teacher(
        network.to(device, memory_format=torch.channels_last).requires_grad_(False),
        preprocessing,
        Path(path),
        view_size=view_size if type(view_size) is int and 16 <= view_size <= 4096 else None,
        transductive=bool(origin.get("transductive")),
        states_size=states_size and size is None,
        order=None if order == tuple(range(classes)) else order,
        states_normalisation=states_normalisation,
    )


class SeenBy(nn.Module):
    """A teacher as a network for the student's input, so that it can be evaluated like one."""

    def __init__(self, teacher, preprocessing):
        super().__init__()
        self.teacher, self.preprocessing = teacher, preprocessing

    def forward(self, images):
        return self.teacher.logits(images, self.preprocessing)


def accuracy_of(teacher, photos, preprocessing, device, batches=None):
    """The teacher's accuracy on a PhotoSet as the student's preprocessing shows it."""
    network = SeenBy(teacher, preprocessing)
    return evaluate(network, photos, preprocessing, device, batches=batches, whose=teacher).accuracy


def check_teacher(teacher, validation, preprocessing, device, batches=None):
    """The teacher's validation accuracy on the student's input; UserError if it is no better than chance."""
    accuracy = accuracy_of(teacher, validation, preprocessing, device, batches)
    guessing = validation.labels.bincount().max().item() / len(validation)
    if accuracy <= guessing and batches is None:
        raise UserError(
            f"{teacher} has a validation accuracy of {accuracy:.1%}, no better than always predicting the "
            f"most frequent class ({guessing:.1%}); check its input size and normalisation, or use another "
            "teacher"
        )
    return accuracy


def read_teachers(options, class_names, channels, device):
    """The teachers that the options name; read before photos are decoded, which can take minutes."""
    size = options.teacher_size
    teachers = [read_teacher(path, class_names, device, channels, size) for path in options.teacher]
    check_normalisations(teachers, options.teacher_normalisation)
    return teachers


def check_normalisations(teachers, choice):
    """UserError for a normalisation that is asked for where every teacher's file says its own."""
    if teachers and choice != "auto" and all(teacher.states_normalisation for teacher in teachers):
        raise UserError(f"{teachers[0]} says how photos are normalised; leave teacher_normalisation out")


def settle_teacher(teacher, choice, validation, preprocessing, device):
    """The Teacher with the normalisation that is asked for or better on validation photos, where its file
    does not say one.
    """
    if teacher.states_normalisation:
        return teacher
    sample = validation.sample(SAMPLE)

    def accuracy_with(own):
        return accuracy_of(replace(teacher, preprocessing=own), sample, preprocessing, device)

    flag = "--recipe teacher_normalisation="
    settled, name = choose_normalisation(teacher.preprocessing, choice, teacher, flag, accuracy_with)
    return replace(teacher, preprocessing=settled, normalisation=name)


def check_teachers(teachers, options, validation, preprocessing, device):
    """(teachers, records of them): with the normalisation of those that do not say it, and checked on the
    student's input.
    """
    found, records = [], []
    batches, part = (2, ", of two batches only") if options.dry_run else (None, "")
    for teacher in teachers:
        teacher = settle_teacher(teacher, options.teacher_normalisation, validation, preprocessing, device)
        accuracy = check_teacher(teacher, validation, preprocessing, device, batches)
        size = teacher.preprocessing.size
        views = f"{preprocessing.size} px views seen at {size} px{part}"
        print(f"teacher {teacher.path}: validation accuracy {accuracy:.4f} on {views}")
        record = {"file": teacher.path.name, "sha256": file_hash(teacher.path), "size": size}
        record["validation_accuracy"] = accuracy
        record |= {"normalisation": teacher.normalisation} if teacher.normalisation else {}
        records.append(record | ({"transductive": True} if teacher.transductive else {}))
        found.append(teacher)
    return found, records
