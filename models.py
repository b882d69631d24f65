"""Every network of this collection, built by name, and the planner for what fits in a file.

    python models.py                                  # table: parameters, MACs, file bytes at 16/8/6/4 bits
    python models.py --only student --set widths=16,32,64,96,192,192,192,256
    python models.py --max-bytes 500000               # which networks fit another limit

`build(name, **arguments)` returns a newly initialised network. A model file stores `name` and `arguments`, so
every network can be rebuilt from its file alone. The networks are those of NTU "Machine Learning 2020"
homework 7 and of its students' reports, and of the 2019 homework; `residual6` is this project's own.
"""

import torch

from compression.command_line import UserError, number, parser, run
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


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--only", metavar="NAME", help="show only this network")
    options.add_argument(
        "--set", metavar="ARG=VALUE", action="append", default=[], help="an argument of it, e.g. widths=16,32"
    )
    options.add_argument(
        "--max-bytes", type=number(int, 1), default=300_000, metavar="N", help="mark what fits in N bytes"
    )
    options = options.parse_args(argv)
    arguments = parse_arguments(options.set)
    if arguments and not options.only:
        raise UserError("--set is for one network; name it with --only")

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
