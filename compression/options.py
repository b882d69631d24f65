"""The command-line options that the training scripts share, and what follows from them."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, pick_device
from compression.data.inventory import check_photos
from compression.data.plausibility import SAMPLE
from compression.data.preprocessing import GREY, RESIZE_RULES, Preprocessing
from compression.networks.registry import ARCHITECTURES, build, check_size, parse_arguments
from compression.training.initialisation import arguments_of
from compression.training.loop import evaluate, pick_precision
from compression.training.qat import parse_bits
from compression.training.recipe import PIXELS, Settings, add_recipe, defaults_of, one_of, setting
from dataset import list_labelled, load_photos, photo_channels


@dataclass(frozen=True)
class Input:
    """What a network sees of a photo, beside the size: keys of a recipe."""

    resize: str = setting(
        None,
        one_of(*RESIZE_RULES),
        "crop: shorter side to --size and centre crop; squash: both sides to --size; course: the course's "
        "centre crop without resizing (default: crop, or that of --init)",
    )
    detail: int = setting(
        None,
        PIXELS,
        "first reduce photos whose shorter side is longer to this many pixels, here and wherever the model "
        "is used: for training photos that are all small",
    )


def add_cache(group):
    """`--cache`, in every script that reads labelled photos."""
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="where decoded photos are kept; 'none' decodes into memory (default: ~/.cache/food11-photos)",
    )


def cache_folder(options):
    """The value of `--cache` as `load_photos` wants it."""
    return False if options.cache == "none" else options.cache


def add_training(parser, script, out, *groups, without=()):
    """Network, data, recipe and run of a training script, whose folder is `out` by default.

    groups, without: see `recipe.add_recipe`.
    """
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network",
        choices=ARCHITECTURES,
        metavar="NAME",
        help="what to train; `python models.py` lists sizes (default: residual6, or the network of --init)",
    )
    group.add_argument(
        "--set",
        metavar="ARG=VALUE",
        action="append",
        default=[],
        help="an argument of the network, e.g. widths=16,32,64",
    )
    group.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="start from the weights of a checkpoint or model file; a head for other classes is replaced by "
        "a new one",
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "data",
        type=Path,
        help="root that holds training/ and validation/, or train.csv of 48x48 grey faces, of which "
        "every 10th row of a class is validation unless validation.csv lies beside it",
    )
    group.add_argument("--size", type=PIXELS, help="input size in pixels (default: 128, or that of --init)")
    group.add_argument(
        "--validation-share",
        type=number(float, 0, 0.9),
        default=0.0,
        metavar="SHARE",
        help="where there is no validation/: this share of every class's training photos is for validation",
    )
    add_cache(group)
    group = parser.add_argument_group("training")
    add_length(group, script)
    group.add_argument(
        "--qat-bits",
        type=parse_bits,
        metavar="BITS[,LAYER=BITS...]",
        help="quantization-aware training: weights are rounded to 2 to 8 bits in every step, best after "
        "--init; the checkpoint keeps the scales, and quantize.py stores it",
    )
    add_recipe(group, script, Input, *groups, without=without)
    add_run(parser, out)


def add_length(group, script):
    """`--epochs`."""
    default = defaults_of(script).get("epochs", Settings.epochs)
    group.add_argument(
        "--epochs",
        type=number(int, 1),
        help=f"length of the schedule (default: {default}; 15 with --qat-bits)",
    )


def add_run(parser, out, dry_run="two batches of everything, then exit; only the photo cache is written"):
    """Where and how a run goes on; `out` is the script's default, `dry_run` says what --dry-run does."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, default=Path(out), help="folder of checkpoints, log and record")
    group.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of everything random")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--resume", action="store_true", help="continue the run in --out where it stopped")
    group.add_argument("--dry-run", action="store_true", help=dry_run)


def network_arguments(options, init=None):
    """The arguments of the network that --network and --set describe, for the photos of the data: RGB, or
    grey for a CSV of faces.

    init: the Model that --init names. The network is built once on trial, so that a mistake is told before
    any photo is read.
    """
    channels = photo_channels(options.data)
    if init:
        init.description.check_data_channels(channels, init.path)
        check_size(
            build(init.description.architecture, **init.description.arguments),
            options.view_size or options.size,
        )
        return arguments_of(init)
    arguments = {"in_channels": channels, **parse_arguments(options.set)}
    if "num_classes" in arguments or arguments["in_channels"] != channels:
        raise UserError(
            "--set cannot change num_classes or in_channels: they follow from the photos; leave them out"
        )
    network = build(options.network, **arguments)
    for size in {options.size, options.view_size or options.size}:
        check_size(network, size)
    return arguments


def load_splits(options, preprocessing, how, model=None):
    """(training photos, validation photos) under `--data`, described on stderr; how: what else the line says.

    model: a Model that is trained already, whose class names, their order and share of validation photos
    count.
    """
    if model:
        names, share, whose = (
            model.description.class_names,
            model.description.validation_share,
            f"the model {model.path}",
        )
    else:
        names, share, whose = None, options.validation_share, "the training photos"
    notes = []
    listing = list_labelled(options.data, "training", names, share, whose, notes.append)
    whose = whose if listing.class_names == names else "the training photos"
    others = list_labelled(options.data, "validation", listing.class_names, share, whose, notes.append)
    print(
        *(f"{note}\n" for note in dict.fromkeys(notes)), sep="", end="", file=sys.stderr
    )  # both splits may have given the same one
    training, validation = (
        load_photos(part, preprocessing, cache_folder(options)) for part in (listing, others)
    )
    check_photos(listing, training, others, validation)
    print(
        f"{len(training):,} training and {len(validation):,} validation photos, {len(listing.class_names)} "
        "classes, "
        f"{preprocessing.size} px, {how}",
        file=sys.stderr,
    )
    return training, validation


def class_names_of(options, model=None):
    """Class names of the training photos under `--data`, for a trained Model in its order; as `load_splits`
    finds them, before decoding.
    """
    names, share = (
        (model.description.class_names, model.description.validation_share)
        if model
        else (None, options.validation_share)
    )
    whose = f"the model {model.path}" if model else "the training photos"
    return list_labelled(options.data, "training", names, share, whose, lambda note: None).class_names


def validation_accuracy(options, device):
    """A function from a Model to its accuracy on a sample of the validation photos under `--data`."""

    def accuracy_of(model):
        description = model.description
        listing = list_labelled(
            options.data,
            "validation",
            description.class_names,
            description.validation_share,
            f"the model {model.path}",
            lambda note: None,
        )
        photos = load_photos(
            listing, description.preprocessing, cache_folder(options), lambda text: None
        ).sample(SAMPLE)
        network = model.build().to(device, memory_format=torch.channels_last)
        return evaluate(network, photos, description.preprocessing, device, whose=f"the model {model.path}")[
            1
        ]

    return accuracy_of


def view_size_of(options, trained=None, size=None):
    """The recipe's view_size, or where it is not given what the Description of a trained network tells of its
    views; 0 = the input size.

    size: the input size in pixels where another than the trained network's was asked for, which views of
    before may not exceed.
    """
    if options.view_size and options.augment == "none":
        raise UserError(
            "view_size is the size of random views; leave it out or choose another recipe than augment=none"
        )
    known = trained.training.get("view_size") if trained else None
    chosen = options.view_size
    if (
        not chosen
        and type(known) is int
        and known != trained.preprocessing.size
        and options.augment != "none"
    ):
        chosen = known if 16 <= known <= (size or 4096) else 0
    if trained and chosen:
        check_size(build(trained.architecture, **trained.arguments), chosen)
    return chosen


def read_settings(options, device, trained=None):
    """The `Settings` that the data, optimisation and run options describe; trained: the Description of a
    network that is trained on.
    """
    values = {
        field.name: getattr(options, field.name)
        for field in fields(Settings)
        if field.metadata and hasattr(options, field.name)
    }
    bits, overrides = getattr(options, "qat_bits", None) or (0, {})
    return Settings(
        **values
        | {
            "epochs": options.epochs,
            "seed": options.seed,
            "qat_bits": bits,
            "qat_overrides": overrides,
            "view_size": view_size_of(options, trained, options.size),
            "precision": pick_precision(options.precision, device),
        }
    )


def load(options, init=None):
    """What the options ask for: (device, settings, preprocessing, training photos, validation photos).

    init: the Model that --init names, whose normalisation and size of views are kept.
    Seeds torch's global generator last, so that what is built next is initialised from --seed.
    """
    device = pick_device(options.device)
    settings = read_settings(options, device, init.description if init else None)
    own = (
        init.description.preprocessing
        if init
        else Preprocessing(**(GREY if photo_channels(options.data) == 1 else {}))
    )
    preprocessing = replace(own, size=options.size, resize=options.resize, detail=options.detail)
    photos = load_splits(options, preprocessing, f"{settings.precision} on {device}")
    torch.manual_seed(options.seed)
    return device, settings, preprocessing, *photos
