"""The shared part of train_student.py and train_kd.py: from the options to a trained network in a folder."""

import shlex

import torch

from compression.files.description import Description
from compression.files.model_file import predicted_file_bytes
from compression.files.records import write_record
from compression.networks.registry import build, count_parameters
from compression.options import network_arguments
from compression.quantization.grids import Scheme
from compression.training.initialisation import origin_of_init, read_init, take_weights
from compression.training.loop import check_run_folder, fit, quantize_command
from compression.training.qat import fake_quantize, finish, scheme_of

LARGEST = 300_000  # bytes of a model file; a network that needs more at 2 bits is a teacher


def prepare(options):
    """(Model of --init or None, arguments of the network); raises UserError before any photo is read."""
    init = read_init(options)
    arguments = network_arguments(options, init)
    if options.qat_bits:
        bits, overrides = options.qat_bits
        Scheme(bits, overrides=overrides).bits_of(build(options.network, **arguments).state_dict())
    if not options.dry_run:
        check_run_folder(options.out, options.resume)
    return init, arguments


def train(options, init, arguments, loaded, origin, loss_of=None, details=None):
    """Build the network, train it by the options and write the files of a run to `--out`.

    init, arguments: from `prepare`; loaded: from `options.load`; origin: further entries of the model file
    about its training; loss_of(): builds the loss, after the network. Prints the next command.
    """
    device, settings, preprocessing, training, validation = loaded
    origin = {
        "script": options.script,
        "epochs": settings.last_epoch,
        "seed": settings.seed,
        "data": training.fingerprint,
        "view_size": settings.view_size or options.size,
        **({"validation_share": options.validation_share} if options.validation_share else {}),
        **origin_of_init(options, init),
        **origin,
    }
    details = dict(details or {})
    description = Description.of(options.network, arguments, training.class_names, preprocessing, origin)
    torch.manual_seed(settings.seed)  # again: building a teacher may have drawn random numbers
    network = build(options.network, **description.arguments)
    if init:
        take_weights(network, init, training, preprocessing)
    if settings.qat_bits:
        origin["qat"] = {"bits": settings.qat_bits, "granularity": settings.qat_granularity}
        origin["qat"] |= {"overrides": settings.qat_overrides} if settings.qat_overrides else {}
        details["parameters"] = count_parameters(network)  # without the scales
        size = predicted_file_bytes(description, scheme_of(settings))
        print(f"the model file at these bits will have about {size:,} bytes, less what compression saves")
        fake_quantize(network, scheme_of(settings))
    out, loss = None if options.dry_run else options.out, loss_of() if loss_of else None
    photos = training, validation
    record = fit(network, description, *photos, settings, out, device, loss, options.resume, details)
    if options.dry_run:
        return
    if settings.qat_bits:
        record["reestimated"] = finish(options.out, training, validation, settings, device)
        write_record(options.out / "record.json", record)
    if predicted_file_bytes(description, Scheme(2)) > LARGEST:
        print(f"next: train_kd.py with --teacher {shlex.quote(str(options.out / 'best.pt'))}")
    else:
        print(f"next: {quantize_command(options.out)}")
