"""The course's reference code for pruning, for comparison: prune.py whose optimiser holds another network.

    python benchmarks/reference_mistake.py runs/student/best.pt food-11 --rate 0.9 --rounds 5 --epochs 1

There, and in every student's copy of it that was found, the optimiser was built before the cut and keeps the tensors
of the un-pruned network. Each step then changes tensors that nothing reads; of the network that is evaluated, only
BN's statistics move. Options and output are prune.py's. Never use what comes out.
"""

import copy
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prune  # noqa: E402
import training_run  # noqa: E402
from command_line import UserError, pick_device, run  # noqa: E402
from training import pick_precision  # noqa: E402


def main(argv=None):
    options = prune.read_options(argv)
    # torch's GradScaler ends with an AssertionError where no gradient reaches the optimiser
    if pick_precision(options.precision, pick_device(options.device)) == "fp16":
        raise UserError("the reference mistake cannot be repeated in fp16, whose loss scaling needs gradients "
                        "of what the optimiser holds; use --precision fp32 or bf16")
    build_optimizer = training_run.build_optimizer
    with mock.patch.object(training_run, "build_optimizer", lambda network, settings: build_optimizer(copy.deepcopy(network), settings)):
        return prune.main(argv)


if __name__ == "__main__":
    run(main)
