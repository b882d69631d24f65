"""Command-line options shared by the training scripts, and the settings and data that they select."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from compression.command_line import UserError, be_silent, number, pick_device, tell
from compression.data.inventory import check_photos
from compression.data.plausibility import SAMPLE, settle_normalisation
from compression.data.preprocessing import GREY, RESIZE_RULES, Preprocessing
from compression.networks.registry import ARCHITECTURES, build, check_size, parse_arguments
from compression.training.evaluation import evaluate
from compression.training.initialisation import arguments_of
from compression.training.loop import pick_precision
from compression.training.qat import parse_bits
from compression.training.recipe import PIXELS, Settings, add_recipe, defaults_of, one_of, setting
from dataset import list_labelled, load_photos, photo_channels


@dataclass(frozen=True)
class Input:
    """How a photo becomes the network's input, besides the size: keys of a recipe."""

    resize: str = setting(
        None,
        one_of(*RESIZE_RULES),
        "crop: resize the shorter side to --size, then centre crop; squash: resize both sides; course: the "
        "course's centre crop without resizing (default: crop, or that of --init)",
    )
    detail: int = setting(
        None,
        PIXELS,
        "reduce larger photos to this shorter side in pixels first, also wherever the model is used; for "
        "training photos that are all small",
    )


def add_cache(group):
    """`--cache`, in every script that reads labelled photos."""
    text = "folder for decoded photos; 'none' decodes into memory (default: ~/.cache/food11-photos)"
    group.add_argument("--cache", metavar="DIR", help=text)


def cache_folder(options):
    """The value of `--cache` as `load_photos` expects it."""
    return False if options.cache == "none" else options.cache


def add_training(parser, script, out, *groups, without=()):
    """Options of a training script; out: the default of --out; groups, without: see `recipe.add_recipe`."""
    add = parser.add_argument_group("network").add_argument
    text = "the network; `python models.py` lists all with sizes (default: residual6, or that of --init)"
    add("--network", choices=ARCHITECTURES, metavar="NAME", help=text)
    text = "an argument of the network, e.g. widths=16,32,64"
    add("--set", metavar="ARG=VALUE", action="append", default=[], help=text)
    text = (
        "start from the weights of a checkpoint or model file; for other classes the last layer is replaced"
    )
    add("--init", type=Path, metavar="FILE", help=text)
    group = parser.add_argument_group("data")
    group.add_argument(
        "data",
        type=Path,
        help="folder with training/ and validation/, or train.csv of 48x48 grey faces; every 10th face of a "
        "class is used for validation unless validation.csv is beside it",
    )
    group.add_argument("--size", type=PIXELS, help="input size in pixels (default: 128, or that of --init)")
    text = "without validation/: use this share of every class's training photos for validation"
    share = number(float, 0, 0.9)
    group.add_argument("--validation-share", type=share, default=0.0, metavar="SHARE", help=text)
    add_cache(group)
    group = parser.add_argument_group("training")
    add_length(group, script)
    group.add_argument(
        "--qat-bits",
        type=parse_bits,
        metavar="BITS[,LAYER=BITS...]",
        help="quantization-aware training (QAT): round weights to 2 to 8 bits in every step, best with "
        "--init; the checkpoint stores the scales for quantize.py",
    )
    add_recipe(group, script, Input, *groups, without=without)
    add_run(parser, out)


def add_length(group, script):
    """`--epochs`."""
    qat = "" if script == "prune.py" else "; 15 with --qat-bits"
    text = f"length of the training (default: {defaults_of(script).get('epochs', Settings.epochs)}{qat})"
    group.add_argument("--epochs", type=number(int, 1), help=text)


def add_run(parser, out, dry_run="run two batches, then exit; only the photo cache is written"):
    """Options of a run: `out` is the default of --out, `dry_run` the help of --dry-run."""
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, default=Path(out), help="folder for checkpoints, log and record")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="random seed")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--resume", action="store_true", help="continue the stopped run in --out")
    add("--dry-run", action="store_true", help=dry_run)


def network_arguments(options, init=None):
    """The arguments of the network of --network and --set, for the channels of the data: RGB, or grey for a
    CSV of faces.

    init: the Model of --init, whose arguments are kept. The network is built once here, so that a mistake is
    reported before any photo is read.
    """
    channels = photo_channels(options.data)
    if init:
        init.description.check_data_channels(channels, init.path)
    arguments = arguments_of(init) if init else {"in_channels": channels, **parse_arguments(options.set)}
    if "num_classes" in arguments or arguments.get("in_channels", channels) != channels:
        raise UserError("num_classes and in_channels follow from the photos; leave them out of --set")
    network = build(options.network, **arguments)
    for size in {options.size, options.view_size or options.size}:
        check_size(network, size)
    return arguments


def classes_of(options, model=None):
    """(class names, validation share, whose they are) for `list_labelled`: those of a trained Model, or None,
    that of the options and "the training photos". Data with validation photos of its own needs no share.
    """
    if not model:
        return None, options.validation_share, "the training photos"
    share = 0.0 if os.path.exists(options.data / "validation") else model.description.validation_share
    return model.description.class_names, share, f"the model {model.path}"


def load_splits(options, preprocessing, how, model=None):
    """(training photos, validation photos) of the data, described on stderr; how: the end of that line.

    model: a trained Model, whose class names, their order and validation share are used.
    """
    names, share, whose = classes_of(options, model)
    notes = []
    listing = list_labelled(options.data, "training", names, share, whose, notes.append)
    whose = whose if listing.class_names == names else "the training photos"
    others = list_labelled(options.data, "validation", listing.class_names, share, whose, notes.append)
    for note in dict.fromkeys(notes):  # both splits can give the same one
        tell(note)
    cache = cache_folder(options)
    training, validation = (load_photos(part, preprocessing, cache) for part in (listing, others))
    check_photos(listing, training, others, validation)
    photos = f"{len(training):,} training and {len(validation):,} validation photos"
    tell(f"{photos}, {len(listing.class_names)} classes, {preprocessing.size} px, {how}")
    return training, validation


def class_names_of(options, model=None):
    """Class names of the training photos, as `load_splits` finds them; with a trained Model, in its order."""
    return list_labelled(options.data, "training", *classes_of(options, model), be_silent).class_names


def validation_photos(options, model, log=tell):
    """(PhotoSet of the validation photos for a trained Model, what has its class names for an error)."""
    names, share, whose = classes_of(options, model)
    listing = list_labelled(options.data, "validation", names, share, whose, log)
    return load_photos(listing, model.description.preprocessing, cache_folder(options), log), whose


def validation_accuracy(options, device):
    """A function from a Model to its accuracy on a sample of the validation photos of the data."""

    def accuracy_of(model):
        photos, whose = validation_photos(options, model, be_silent)
        network = model.build().to(device, memory_format=torch.channels_last)
        preprocessing = model.description.preprocessing
        return evaluate(network, photos.sample(SAMPLE), preprocessing, device, whose=whose).accuracy

    return accuracy_of


def settled(init, options, device):
    """The Model of --init with the normalisation that is better on validation photos, where its file does not
    state one and the photos are of its classes.
    """
    try:
        flag = "quantize.py --bits 32 --max-bytes 100000000 --normalisation "  # its file states one
        return settle_normalisation(init, "auto", validation_accuracy(options, device), flag)
    except UserError as error:  # other classes: its outputs do not show which one is right
        mean, std = init.description.preprocessing.mean, init.description.preprocessing.std
        tell(f"note: mean {mean} and std {std} are assumed for {init.path} ({error})")
        return init


def view_size_of(options, trained=None):
    """The recipe's view_size; if not given, that in the Description of a trained network, unless larger than
    the input size of this training, which 0 stands for.
    """
    chosen, augmented = options.view_size, options.augment != "none"
    if chosen and not augmented:
        raise UserError("view_size is that of random views, and augment=none has none; leave one of them out")
    if trained and augmented and not chosen:
        known = trained.training.get("view_size")
        own = type(known) is int and known != trained.preprocessing.size
        chosen = known if own and 16 <= known <= (options.size or trained.preprocessing.size) else 0
    if trained and chosen:
        check_size(build(trained.architecture, **trained.arguments), chosen)
    return chosen


def read_settings(options, device, trained=None):
    """The `Settings` of the options; trained: the Description of the network that training starts from."""
    keys = [field.name for field in fields(Settings) if field.metadata and hasattr(options, field.name)]
    values = {key: getattr(options, key) for key in keys}
    last = values.get("stop_epoch") or options.epochs
    for key, most in (("stop_epoch", options.epochs), ("keep_epoch", last)):
        if (epoch := values.get(key, 0)) > most:
            raise UserError(f"{key}={epoch} is after the last epoch, {most}; lower it or raise --epochs")
    bits, overrides = getattr(options, "qat_bits", None) or (0, {})
    if "qat_granularity" in options.chosen and not bits:
        raise UserError("qat_granularity goes with --qat-bits, which is not given; add it or leave it out")
    values |= {"epochs": options.epochs, "seed": options.seed}
    values |= {"view_size": view_size_of(options, trained)}
    values |= {"precision": pick_precision(options.precision, device)}
    return Settings(**values, qat_bits=bits, qat_overrides=overrides)


def load(options, init=None):
    """(device, settings, preprocessing, training photos, validation photos) of the options.

    init: the Model of --init, whose normalisation and view size are kept.
    Seeds torch's global generator last, so that the next network is initialised from --seed.
    """
    device = pick_device(options.device)
    settings = read_settings(options, device, init.description if init else None)
    if init:
        own = settled(init, options, device).description.preprocessing
    else:
        own = Preprocessing(**(GREY if photo_channels(options.data) == 1 else {}))
    preprocessing = replace(own, size=options.size, resize=options.resize, detail=options.detail)
    photos = load_splits(options, preprocessing, f"{settings.precision} on {device}")
    torch.manual_seed(options.seed)
    return device, settings, preprocessing, *photos
