"""What files of other programs need: finite logits, and a normalisation of photos if they state none."""

from dataclasses import replace

import torch

from compression.command_line import UserError, tell
from compression.data.classes import FOOD11_CLASSES
from compression.data.preprocessing import Preprocessing

NORMALISATIONS = {  # "unit": values in [0, 1], as the course's
    "unit": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "imagenet": {"mean": Preprocessing.mean, "std": Preprocessing.std},
}
SAMPLE = 1000  # validation photos used to choose a normalisation
CHOICES = ("auto", *NORMALISATIONS)
HELP = (
    "if its file does not state it: unit = values in [0, 1]; imagenet = ImageNet's mean and "
    "standard deviation; auto = the better one on validation photos, or unit if the script reads none"
)


def add_normalisation(group, flag="--normalisation", whose="the model"):
    """The option for the normalisation of photos if a file does not state it."""
    group.add_argument(flag, choices=CHOICES, default="auto", help=f"of photos for {whose}, {HELP}")


def check_logits(logits, whose="the model"):
    """Raise UserError unless all logits are finite."""
    if not torch.isfinite(logits).all():
        raise UserError(
            f"{whose} gives logits that are not finite, so nothing can be predicted; use an undamaged file, "
            "or train it again with a lower learning rate"
        )


def normalised(preprocessing, name):
    """A Preprocessing with one of the NORMALISATIONS; that of grey photos is not changed."""
    return preprocessing if preprocessing.channels == 1 else replace(preprocessing, **NORMALISATIONS[name])


def choose_normalisation(preprocessing, choice, whose, flag, accuracy_of=None):
    """(Preprocessing, name of its normalisation) for a file that does not state it; choice: of option `flag`.

    accuracy_of(preprocessing): validation accuracy, by which "auto" chooses; None without labels: then values
    in [0, 1] are assumed. A note is printed of either.
    """
    if preprocessing.channels == 1 and choice == "imagenet":
        advice = f"leave {flag}imagenet out"
        raise UserError(f"{whose} takes grey photos, and ImageNet's normalisation is for RGB; {advice}")
    name = "unit" if choice == "auto" else choice
    if choice == "auto" and preprocessing.channels == 3:
        reason, other = "values in [0, 1] are assumed", "imagenet"
        if accuracy_of:
            accuracies = {name: accuracy_of(normalised(preprocessing, name)) for name in NORMALISATIONS}
            name, other = sorted(accuracies, key=accuracies.get, reverse=True)
            shown = ", ".join(f"{one} {accuracy:.4f}" for one, accuracy in accuracies.items())
            reason = f"by validation accuracy ({shown}) {name} is used"
        note = f"note: {whose} does not state how photos are normalised; {reason}, {flag}{other} changes that"
        tell(note)
    return normalised(preprocessing, name), name


def settle_normalisation(model, choice, accuracy_of=None, flag="--normalisation "):
    """The Model with the normalisation of `--normalisation`; unchanged if its file states one.

    accuracy_of(model): validation accuracy. Raises UserError for a choice although the file states one.
    """
    description, whose = model.description, f"the model {model.path}"
    if not description.assumes_normalisation:
        if choice != "auto":
            raise UserError(
                f"{whose} states how photos are normalised, so {flag}{choice} cannot change it; leave it out"
            )
        return model

    if description.class_names == FOOD11_CLASSES:
        tell(f"note: {whose} names no classes; Food-11's are used, in Food-11's order")

    def with_preprocessing(preprocessing, **more):
        own = replace(description, preprocessing=preprocessing, training=description.training | more)
        return replace(model, description=own)

    measure = accuracy_of and (lambda preprocessing: accuracy_of(with_preprocessing(preprocessing)))
    preprocessing, name = choose_normalisation(description.preprocessing, choice, whose, flag, measure)
    if choice == "auto" and not accuracy_of:  # a later script with labels can choose
        return with_preprocessing(preprocessing)
    return with_preprocessing(preprocessing, normalisation=name)
