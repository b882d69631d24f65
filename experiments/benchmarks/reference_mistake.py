"""The course's reference code for pruning, for comparison: prune.py whose optimiser holds another network.

    python -m experiments.benchmarks.reference_mistake runs/student/best.pt food-11 --rate 0.9 --rounds 5
    --epochs 1

There, and in every student's copy of it that was found, the optimiser was built before the cut and keeps the
tensors of the un-pruned network. Each step then changes tensors that nothing reads; of the network that is
evaluated, only BN's statistics move. Options and output are prune.py's. Never use what comes out.
"""

import copy
from unittest import mock

import prune
from compression.command_line import UserError, pick_device, run
from compression.training import run_folder
from compression.training.loop import pick_precision


def main(argv=None):
    options = prune.read_options(argv)
    # torch's GradScaler ends with an AssertionError where no gradient reaches the optimiser
    if pick_precision(options.precision, pick_device(options.device)) == "fp16":
        raise UserError("this mistake cannot be repeated in fp16; use precision=fp32 or bf16")
    build_optimizer = run_folder.build_optimizer

    def of_a_copy(network, settings):
        return build_optimizer(copy.deepcopy(network), settings)

    with mock.patch.object(run_folder, "build_optimizer", of_a_copy):
        return prune.main(argv)


if __name__ == "__main__":
    run(main)
