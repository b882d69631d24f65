"""Distillation: its options, its loss, and the cache of teacher outputs."""

import contextlib
import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from compression import distributed
from compression.command_line import UserError, number, tell
from compression.data.augmentation import AUGMENTATIONS
from compression.data.plausibility import CHOICES, HELP
from compression.data.preprocessing import Preprocessing
from compression.data.transfer import send
from compression.files.atomic import atomic_path
from compression.training.losses import Loss, class_weights_of, distillation_loss, soft_targets
from compression.training.recipe import PIXELS, autocast, one_of, setting
from compression.training.teachers import UNKNOWN_SIZE
from dataset import default_cache


@dataclass(eq=False)
class Distillation(Loss):
    """The distillation loss as `fit` calls it: asks the teachers about the batch's views.

    cached_targets: the teachers' probabilities for each of the fixed views: a float32 tensor (photos,
    classes) on the CPU, NaN where they are not known yet. in_files: whether these tensors are mapped to
    files, and need no place in a checkpoint. class_weights: (classes,) of the labels, or None.
    """

    teachers: list
    preprocessing: Preprocessing
    alpha: float
    temperature: float
    precision: str
    cached_targets: list = ()
    in_files: bool = False
    class_weights: torch.Tensor | None = None

    @torch.no_grad()
    def teacher_probabilities(self, images):
        """Mean probabilities (N, C) of the teachers at the temperature."""
        with autocast(self.precision, images.device):
            logits = [one.logits(images, self.preprocessing, one.view_size) for one in self.teachers]
        return soft_targets(logits, self.temperature)

    def targets(self, batch):
        """The teachers' probabilities for a batch; they are asked for what is not known yet."""
        device = batch.images.device
        if not self.cached_targets:
            return self.teacher_probabilities(batch.images)
        known = self.cached_targets[batch.view][batch.positions]
        unknown = known.isnan().any(1).nonzero().squeeze(1)
        if len(unknown):
            known[unknown] = self.teacher_probabilities(batch.images[send(unknown, device)]).cpu()
            self.cached_targets[batch.view][batch.positions] = known
        return send(known, device)

    def prepare(self, batch):
        return replace(batch, targets=self.targets(batch)) if self.alpha else batch

    def __call__(self, logits, batch):
        more = {"class_weights": self.weights_for(logits)}
        return distillation_loss(logits, batch.targets, batch.labels, self.alpha, self.temperature, **more)

    def state_dict(self):
        stored = self.cached_targets and not self.in_files
        return {"said": torch.stack(self.cached_targets) if stored else None}  # the key of older checkpoints

    def load_state_dict(self, state):
        if state["said"] is not None:
            self.cached_targets, self.in_files = list(state["said"]), False


def build_distillation(options, teachers, records, preprocessing, settings, training, cache):
    """The `Distillation` that the options describe; teachers, records: from `check_teachers`; training: a
    PhotoSet.

    With `views`, teacher outputs go into the photo cache (False: into memory), where any later run finds
    them that shows the same teachers the same views: another student, or quantization-aware training after
    distillation.
    """
    shape, targets, in_files = (len(training), len(training.class_names)), None, False
    if settings.views and cache is not False and not options.dry_run:
        rules = []
        for record, one in zip(records, teachers):
            order = [one.order] if one.order else []
            rules.append([record["sha256"], one.preprocessing.to_dict(), one.view_size, *order])
        pixels = hashlib.sha256(training.photos.numpy()).hexdigest()
        rule = [pixels, training.rows.tolist(), preprocessing.to_dict()]
        rule += [
            repr(AUGMENTATIONS[settings.augment]),
            settings.view_size,
            settings.seed,
            settings.precision,
            options.temperature,
            rules,
        ]
        name = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:16]
        try:
            folder = Path(cache) if cache else default_cache()
            paths = [folder / f"teacher-{name}-{view}.npy" for view in range(settings.views)]
            with distributed.first_on_node():
                targets, in_files = [_mapped_targets(path, shape) for path in paths], True
        except (OSError, UserError) as error:
            tell(f"warning: teacher outputs are kept in memory, not in a file ({error})")
    if not in_files:
        targets = [torch.full(shape, torch.nan) for _ in range(settings.views)]
    asking = teachers, preprocessing, options.alpha, options.temperature, settings.precision
    return Distillation(*asking, targets, in_files, class_weights_of(settings, training))


def _mapped_targets(path, shape):
    """A float32 tensor mapped to a .npy file, created with NaNs where there is none of this shape."""
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
        mapped = np.load(path, mmap_mode="r+")
        if mapped.shape == shape and mapped.dtype == np.float32:
            return torch.from_numpy(mapped)
    # written whole: a full disk is an error now, not later
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.full(shape, np.nan, np.float32))
    return torch.from_numpy(np.load(path, mmap_mode="r+"))


@dataclass(frozen=True)
class Teaching:
    """How a student learns from its teachers: keys of a recipe."""

    alpha: float = setting(0.5, number(float, 0, 1), "weight of the teacher: 1 = no labels, 0 = labels only")
    temperature: float = setting(
        2.0, number(float, 0, 1000, open_low=True), "of both distributions; above 1 softer"
    )
    teacher_size: int = setting(None, PIXELS, f"input size (default: what its file tells, or {UNKNOWN_SIZE})")
    teacher_normalisation: str = setting("auto", one_of(*CHOICES), f"of photos for a teacher, {HELP}")


def add_teachers(group):
    """`--teacher`, in every script that can distil."""
    text = "checkpoint, model file, ResNet-18 state_dict or .onnx file; repeat to average several"
    group.add_argument("--teacher", type=Path, action="append", default=[], metavar="FILE", help=text)


def check_teaching(options):
    """UserError where settings about teachers contradict others, or train_kd.py has no teacher."""
    if not options.teacher and options.script == "train_kd.py":
        raise UserError(
            "name a teacher with --teacher FILE: the course's, or the best.pt of train_student.py with "
            "--network resnet18"
        )
    for field in fields(Teaching):
        if not options.teacher and field.name in options.chosen:
            raise UserError(f"{field.name} goes with --teacher, which is not given; add it or leave it out")
    if options.views and options.mixup:
        raise UserError("views=N shows fixed views again and mixup makes new ones; leave one of them out")
    if options.views and options.augment == "none":
        raise UserError("views needs random views, and augment=none has none; leave one of them out")


def origin_of_distillation(options, teachers, records):
    """What a model file says of its distillation, and `--resume` compares; teachers, records: from
    `check_teachers`.
    """
    sizes = {teacher.preprocessing.size for teacher in teachers if not teacher.states_size}
    normalisations = [teacher.normalisation for teacher in teachers if teacher.normalisation]
    return {
        "alpha": options.alpha,
        "temperature": options.temperature,
        "teachers": [record["sha256"] for record in records],
        **({"teacher_size": max(sizes)} if sizes else {}),
        **({"teacher_normalisation": normalisations} if normalisations else {}),
    }
