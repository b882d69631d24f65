"""Distillation: its options, its loss, and the cache of teacher outputs."""

import hashlib
import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from compression import distributed
from compression.command_line import UserError, number
from compression.data.augmentation import AUGMENTATIONS
from compression.data.plausibility import CHOICES, HELP
from compression.data.transfer import send
from compression.files.atomic import atomic_path
from compression.training.losses import Loss, balanced_weights, distillation_loss, soft_targets
from compression.training.recipe import AUTOCAST, PIXELS, one_of, setting
from compression.training.teachers import UNKNOWN_SIZE
from dataset import default_cache


class Distillation(Loss):
    """The distillation loss as `fit` calls it: asks the teachers about the batch's views.

    views: with so many fixed views per photo, the teachers' probabilities are computed once and cached: a
    float32 tensor (photos, classes) on the CPU for each view, NaN where they are not known yet. files: these
    tensors, where they are mapped to files (see `build_distillation`) and need no place in a checkpoint.
    class_weights: (classes,) of the labels, or None.
    """

    def __init__(
        self,
        teachers,
        preprocessing,
        alpha,
        temperature,
        precision,
        photos=0,
        classes=0,
        views=0,
        files=None,
        class_weights=None,
    ):
        self.teachers, self.preprocessing, self.alpha, self.temperature = (
            teachers,
            preprocessing,
            alpha,
            temperature,
        )
        self.autocast, self.in_files = AUTOCAST[precision], files is not None
        self.class_weights = class_weights
        self.cached_targets = files or [torch.full((photos, classes), torch.nan) for _ in range(views)]

    @torch.no_grad()
    def teacher_probabilities(self, images):
        """Mean probabilities (N, C) of the teachers at the temperature."""
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            logits = [
                teacher.logits(images, self.preprocessing, teacher.view_size) for teacher in self.teachers
            ]
        return soft_targets(logits, self.temperature)

    def targets(self, batch):
        """The teachers' probabilities for a batch, from memory where it holds them."""
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
        in_checkpoint = self.cached_targets and not self.in_files
        # the key that older checkpoints have
        return {"said": torch.stack(self.cached_targets) if in_checkpoint else None}

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
    shape, files = (len(training), len(training.class_names)), None
    if settings.views and cache is not False and not options.dry_run:
        rule = [
            training.fingerprint,
            preprocessing.to_dict(),
            repr(AUGMENTATIONS[settings.augment]),
            settings.view_size,
            settings.seed,
            settings.precision,
            options.temperature,
            [
                (
                    record["sha256"],
                    teacher.preprocessing.to_dict(),
                    teacher.view_size,
                    *([teacher.order] if teacher.order else []),
                )
                for record, teacher in zip(records, teachers)
            ],
        ]
        name = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:16]
        try:
            folder = Path(cache) if cache else default_cache()
            with distributed.first_on_node():
                files = [
                    _mapped_targets(folder / f"teacher-{name}-{view}.npy", shape)
                    for view in range(settings.views)
                ]
        except (OSError, UserError) as error:
            print(
                f"warning: teacher outputs cannot be cached in a file ({error}); they are kept in memory",
                file=sys.stderr,
            )
    return Distillation(
        teachers,
        preprocessing,
        options.alpha,
        options.temperature,
        settings.precision,
        *shape,
        settings.views,
        files,
        balanced_weights(training.labels, shape[1]) if settings.class_weights == "balanced" else None,
    )


def _mapped_targets(path, shape):
    """A float32 tensor mapped to a .npy file, created with NaNs where there is none of this shape."""
    try:
        mapped = np.load(path, mmap_mode="r+", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        mapped = None
    if mapped is None or mapped.shape != shape or mapped.dtype != np.float32:
        # written whole: a full disk is an error now, not later
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.full(shape, np.nan, np.float32))
        mapped = np.load(path, mmap_mode="r+", allow_pickle=False)
    return torch.from_numpy(mapped)


@dataclass(frozen=True)
class Teaching:
    """How a student learns from its teachers: keys of a recipe."""

    alpha: float = setting(
        0.5, number(float, 0, 1), "weight of the teacher: 1 = soft labels only, 0 = hard labels only"
    )
    temperature: float = setting(
        2.0, number(float, 0, 1000, open_low=True), "of both distributions; above 1 they are softer"
    )
    teacher_size: int = setting(
        None, PIXELS, f"input size of the teacher (default: what its file tells, else {UNKNOWN_SIZE})"
    )
    teacher_normalisation: str = setting("auto", one_of(*CHOICES), f"of photos for a teacher, {HELP}")


def add_teachers(group, required):
    """`--teacher`, in every script that can distil."""
    group.add_argument(
        "--teacher",
        type=Path,
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="checkpoint, model file, ResNet-18 state_dict or .onnx file; repeat to average several",
    )


def check_teaching(options):
    """UserError where settings about teachers contradict others, or there is no teacher."""
    for field in fields(Teaching):
        if not options.teacher and field.name in options.chosen:
            raise UserError(f"{field.name} goes with --teacher, which is not given; add it or leave it out")
    if options.views and options.mixup:
        raise UserError(
            "views caches teacher outputs of fixed views and mixup makes new views every time; leave one of "
            "them out"
        )
    if options.views and options.augment == "none":
        raise UserError("views needs random views; leave it out or choose another recipe than augment=none")


def origin_of_distillation(options, teachers, records):
    """What a model file says of its distillation, and `--resume` compares; teachers, records: from
    `check_teachers`.
    """
    sizes = {teacher.preprocessing.size for teacher in teachers if not teacher.says_size}
    return {
        "alpha": options.alpha,
        "temperature": options.temperature,
        "teachers": [record["sha256"] for record in records],
        **({"teacher_size": max(sizes)} if sizes else {}),
    }
