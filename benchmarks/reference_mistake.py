"""The course's reference code for pruning, for comparison: prune.py whose optimiser holds another network.

    python benchmarks/reference_mistake.py runs/student/best.pt food-11 --rate 0.9 --rounds 5 --epochs 1

There, and in every student's copy of it that was found, the optimiser was built before the cut and keeps the tensors
of the un-pruned network. Each step then changes tensors that nothing reads; of the network that is evaluated, only
BN's statistics move. Options and output are prune.py's. Never use what comes out.
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prune  # noqa: E402
import training_run  # noqa: E402
from command_line import run  # noqa: E402


def main(argv=None):
    build_optimizer = training_run.build_optimizer
    training_run.build_optimizer = lambda network, settings: build_optimizer(copy.deepcopy(network), settings)
    try:
        return prune.main(argv)
    finally:
        training_run.build_optimizer = build_optimizer


if __name__ == "__main__":
    run(main)
