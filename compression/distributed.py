"""Several processes on one job, as torchrun starts them; without torchrun, one process that waits for nobody.

    torchrun --nproc-per-node 2 train_student.py food-11 --out runs/student

Every process runs the whole script and does its share of each batch. Rank 0 alone writes and prints.
Processes on GPUs talk through NCCL, on CPUs through gloo.
"""

import contextlib
import functools
import os
import sys
import traceback

RANK, SIZE = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
MAY_RESTART = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
RESTARTS = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # by torchrun, after a process has died
if SIZE > 1:  # importing it takes seconds, and one process does not need it
    import torch.distributed


def quiet():
    """Send what ranks above 0 print to nowhere, so that everything is printed once."""
    if RANK:
        sys.excepthook = functools.partial(traceback.print_exception, file=sys.stderr)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # as long as the process


def connect(device):
    """Join the other processes, if there are any; device: that of this process. Repeated calls do nothing."""
    if SIZE == 1 or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # torchrun keeps its store over restarts, with the addresses of processes that have died
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = torch.distributed.TCPStore(*place, SIZE, is_master=not shared and RANK == 0)
    store = torch.distributed.PrefixStore(f"start {RESTARTS}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=RANK, world_size=SIZE)


def disconnect():
    """Leave the others, at the end of a script."""
    if SIZE > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait():
    """Wait until all processes are here."""
    if SIZE > 1:
        torch.distributed.barrier()


def total(numbers):
    """The sum of a list of numbers over several (not one) processes, as a float64 tensor."""
    values = torch.tensor(numbers, dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        values = values.cuda()
    torch.distributed.all_reduce(values)
    return values


def gather(value):
    """[value of rank 0, of rank 1, ...] in every process, for plain values and small tensors."""
    values = [value] * SIZE
    if SIZE > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def share(values):
    """Every SIZE-th of a sequence, from RANK on: what this process works on."""
    return values[RANK::SIZE]


def unshare(results):
    """What every process has made of its `share` of a sequence, as one list in the order of that sequence."""
    shares = gather(results)
    return [shares[index % SIZE][index // SIZE] for index in range(sum(map(len, shares)))]


@contextlib.contextmanager
def first_on_node():
    """The block is run by one process of each machine first, then by the others, which find its files."""
    if LOCAL_RANK:
        wait()
    try:
        yield
    finally:  # where the first one fails, the others must find out by themselves
        if not LOCAL_RANK:
            wait()


def spread(tensors):
    """Give all processes the values of rank 0, in place."""
    if SIZE > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def synchronised(network, device):
    """The network with BN statistics over the whole batch, where processes can share them: on GPUs."""
    shared = SIZE > 1 and device.type == "cuda"
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network) if shared else network


def parallel(network, device):
    """The network as it is called in training: gradients are averaged over all processes."""
    if SIZE == 1:
        return network
    devices = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(network, devices)
