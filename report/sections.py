"""The report's sections, in their order: numbers and conclusions, the records they need, the part of the
assignment they answer.

A section is a function of the records it needs, in answers_*.py; text/NAME.typ holds its words and reads what
the function returns as r.NAME. No number reaches the page on another way. To add one: the function, a line in
SECTIONS, the file of text, and the part of the assignment that it answers in PARTS.
"""

from dataclasses import dataclass
from typing import Callable

import answers_bytes
import answers_design
import answers_distillation
import answers_model
import answers_pruning


@dataclass(frozen=True)
class Section:
    """needs: records as "model.json", experiments as "pruning", folders as "input_size/". figures: functions
    of figures.py.

    optional: variants of its experiments that the section does without where they have no records.
    """

    values: Callable
    needs: tuple
    figures: tuple = ()
    optional: tuple = ()


PATIENT = ("finetune20_0.95", "finetune20_0.9")  # of `pruning`: hours of training

SECTIONS = {
    "shipped": Section(
        answers_model.shipped,
        ("model.json", "model_training.json", "evaluation_tta.json", "evaluation_food11.json"),
    ),
    "compress": Section(answers_bytes.compress, ("compress", "teachers")),
    "lowrank": Section(answers_pruning.lowrank, ("lowrank", "pruning"), (), PATIENT),
    "distillation": Section(
        answers_distillation.distillation,
        ("distillation", "teachers", "strong_teacher.json", "strong_teacher_file.json"),
    ),
    "alpha_temperature": Section(
        answers_distillation.alpha_temperature, ("alpha_temperature", "distillation")
    ),
    "choices": Section(
        answers_distillation.choices, ("recipes", "choices", "distillation", "fixed_views.json")
    ),
    "testing": Section(answers_distillation.testing, ("testing", "distillation", "model.json")),
    "pruning": Section(answers_pruning.pruning, ("pruning",), ("pruning", "pruning_epochs"), PATIENT),
    "pruning_wide8": Section(answers_pruning.pruning_wide8, ("pruning_wide8",)),
    "one_megabyte": Section(answers_design.one_megabyte, ("one_megabyte",)),
    "families": Section(answers_design.families, ("families", "teachers", "distillation"), ("families",)),
    "scratch": Section(answers_design.scratch, ("scratch",)),
    "bits": Section(answers_bytes.bits, ("bits",), ("bits",)),
    "equal_bytes": Section(answers_bytes.equal_bytes, ("equal_bytes",)),
    "input_size": Section(
        answers_model.input_size, ("model.json", "model_training.json", "input_size/"), ("input_size",)
    ),
    "evaluation": Section(
        answers_model.evaluation,
        ("model.json", "evaluation.json", "evaluation_before.json"),
        ("confusion", "reliability", "classes"),
    ),
    "resolution": Section(answers_model.resolution, ("resolution",)),
    "speed": Section(answers_model.speed, ("hw7_test.json", "data_path.json")),
}

# Sections whose experiments have not been run: left out, and named under "Not measured yet".
# Take one off when its records are there.
PENDING = ()

PARTS = (  # what is asked, and the section that answers it
    (
        "question 1",
        "one big network by quantization, pruning, low rank and distillation against the small network "
        "trained "
        "directly, and ResNet-18 at 32, 16 and 8 bits",
        "compress",
    ),
    ("question 1", "low-rank factors against fewer channels at equal parameters", "lowrank"),
    (
        "question 2",
        "distillation from a teacher trained from scratch and from a strong one (a to e)",
        "distillation",
    ),
    ("question 2", "the weight of the teacher's answers and the temperature", "alpha_temperature"),
    ("question 2", "the course's recipe and other choices of distillation", "choices"),
    ("question 2", "what distillation on the testing photos teaches", "testing"),
    ("question 3", "the pruning chart, and what the reference code's mistake does", "pruning"),
    ("question 3", "the same cuts of a network of a student report", "pruning_wide8"),
    ("question 4", "ordinary, depthwise and grouped convolutions at about 1 MB", "one_megabyte"),
    (
        "questions 5 and 6",
        "the compressed network against the big CNN, and parameters against accuracy of the MobileNet and "
        "the plain CNN family",
        "families",
    ),
    ("beyond the questions", "bytes against accuracy from 8 to 2 bits per weight", "bits"),
    (
        "beyond the questions",
        "few weights of many bits against many weights of few, at equal bytes",
        "equal_bytes",
    ),
    (
        "beyond the questions",
        "classes, confusions and calibration before and after compression",
        "evaluation",
    ),
    ("beyond the questions", "training on photos of every resolution", "resolution"),
)


def not_measured(pending):
    """The parts without measurements, as (question, what)."""
    return [[question, what] for question, what, section in PARTS if section in pending]
