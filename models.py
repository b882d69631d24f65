"""Every network of this collection, built by name, and the planner for what fits in a file.

    python models.py                                  # table: parameters, MACs, file bytes at 16/8/6/4 bits
    python models.py --only student --set widths=16,32,64,96,192,192,192,256
    python models.py --max-bytes 500000               # which networks fit another limit
    python models.py --max-bytes 50000 --widest food-11   # the widths of our network for so many bytes

`build(name, **arguments)` returns a newly initialised network. A model file stores `name` and `arguments`, so
every network can be rebuilt from its file alone. The networks are those of NTU "Machine Learning 2020"
homework 7 and of its students' reports, and of the 2019 homework; `residual6` is this project's own.
"""

from bisect import bisect_right
from pathlib import Path

import torch

from compression.command_line import UserError, be_silent, number, parser, run, tell
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.model_file import predicted_file_bytes
from compression.networks.layers import Architecture
from compression.networks.registry import (
    ARCHITECTURES,
    build,
    check_size,
    count_macs,
    count_parameters,
    full_arguments,
    parse_arguments,
)
from compression.quantization.grids import Scheme
from dataset import list_labelled, photo_channels

SHIPPED = {  # the arguments of the network of model.bin, whose widths `widest` scales
    "stem": (16, 32),
    "widths": (64, 64, 64, 144, 144, 144, 144),
    "hidden": (96, 192, 192, 384, 624, 624, 624),
    "pools": (1, 0, 0, 1, 0, 0, 0),
    "head": 384,
}
# Bytes of 3-bit codes after entropy coding / before: 0.86 in model.bin, 0.91 after the 30 epochs of
# results/model_9866.json, up to 0.95 after 2 epochs of QAT.
CODED = 0.91
TRAINING_BYTES = 500  # what a model file says of its training
LARGEST = 30_000_000  # bytes that `widest` plans for


def plan(name, **arguments):
    """One row of the planner: name, input size, parameters, MACs and model file bytes by bits per weight.

    The bytes are for one grid per channel, BN folded, packed to the bit. Entropy coding, which depends on the
    trained weights, makes a file 5 to 15 % smaller than that.
    """
    with torch.device("meta"):
        parameters = count_parameters(build(name, **arguments))
    size, classes = ARCHITECTURES[name].size, full_arguments(name, **arguments)["num_classes"]
    names = [f"class {index}" for index in range(classes)]
    description = Description.of(name, arguments, names, Preprocessing(size))
    schemes = [Scheme(bits, "channel", "mse") for bits in (16, 8, 6, 4)]
    sizes = {scheme.bits: predicted_file_bytes(description, scheme) for scheme in schemes}
    macs = count_macs(name, **arguments)
    return {"name": name, "input": size, "parameters": parameters, "macs": macs, "bytes": sizes}


def widest(max_bytes, class_names, in_channels=3):
    """The arguments of the widest `residual6` whose model file should have at most `max_bytes` after
    quantization-aware training at 3 bits: SHIPPED with all widths scaled, to multiples of 8.

    Raises UserError if the narrowest one is larger, and for more than LARGEST bytes.
    """
    if max_bytes > LARGEST:
        raise UserError(f"--widest plans files of at most {LARGEST:,} bytes; lower --max-bytes {max_bytes}")

    def scaled(step):
        def width(value):
            return max(8, 8 * round(step / 256 * value / 8))

        lists = {key: tuple(map(width, SHIPPED[key])) for key in ("stem", "widths", "hidden")}
        return {**SHIPPED, **lists, "head": width(SHIPPED["head"])}

    def file_bytes(step):
        arguments = {**scaled(step), "in_channels": in_channels}
        description = Description.of("residual6", arguments, class_names, Preprocessing())
        return predicted_file_bytes(description, Scheme(3, "channel", "mse"), CODED) + TRAINING_BYTES

    found = bisect_right(range(1, 10_000), max_bytes, key=file_bytes)
    if not found:
        raise UserError(
            f"the narrowest residual6 for {len(class_names)} classes takes about {file_bytes(1):,} bytes and "
            f"--max-bytes is {max_bytes:,}; raise it"
        )
    return scaled(found)


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--only", metavar="NAME", help="show only this network")
    options.add_argument(
        "--set", metavar="ARG=VALUE", action="append", default=[], help="an argument of it, e.g. widths=16,32"
    )
    options.add_argument(
        "--max-bytes", type=number(int, 1), default=300_000, metavar="N", help="mark what fits in N bytes"
    )
    text = (
        "print the --set options of our network, as wide as --max-bytes allows after quantization-aware "
        "training at 3 bits; DATA: the data directory, for its classes"
    )
    options.add_argument("--widest", type=Path, metavar="DATA", help=text)
    options = options.parse_args(argv)
    arguments = parse_arguments(options.set)
    if options.widest and (options.only or arguments):
        raise UserError("--widest chooses the network and its widths; leave --only and --set out")
    if arguments and not options.only:
        raise UserError("--set is for one network; name it with --only")
    if options.widest:
        class_names = list_labelled(options.widest, "training", log=be_silent).class_names
        channels = photo_channels(options.widest)
        arguments = widest(options.max_bytes, class_names, channels)
        counts = {"num_classes": len(class_names), "in_channels": channels}
        parameters = plan("residual6", **counts, **arguments)["parameters"]
        tell(f"residual6 with {parameters:,} parameters for {len(class_names)} classes")
        texts = {key: str(value).strip("()").replace(" ", "") for key, value in arguments.items()}
        print(*(f"--set {key}={text}" for key, text in texts.items()))
        return 0

    rows = [plan(name, **arguments) for name in ([options.only] if options.only else ARCHITECTURES)]
    print(
        f"{'network':15}{'input':>6}{'parameters':>13}{'MACs':>16}{'bytes, 16 bits':>16}{'8 bits':>13}"
        f"{'6 bits':>13}{'4 bits':>13}   * = fits in {options.max_bytes:,}"
    )
    for row in rows:
        print(f"{row['name']:15}{row['input']:>6}{row['parameters']:>13,}{row['macs']:>16,}   ", end="")
        marked = (f"{size:,}{'*' if size <= options.max_bytes else ' '}" for size in row["bytes"].values())
        print("".join(f"{size:>13}" for size in marked))
    return 0


if __name__ == "__main__":
    run(main)
