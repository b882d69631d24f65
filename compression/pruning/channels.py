"""Channel pruning: which channels matter least, and the network without them.

coupling = Coupling(network)                       # coupling.sets: channels that are removed together
kept = choose(coupling, network, 0.9)              # {set: indices of the channels to keep}
arguments, smaller = compact("student", arguments, network, coupling, kept)
"""

import copy
import math

import torch

from compression.command_line import UserError
from compression.networks.registry import ARCHITECTURES, build


def read_scope(text, count):
    """Indices of a scope such as "3-6" or "0,3-6" among `count` stages; None for "all"."""
    if text == "all":
        return None
    stages = set()
    for part in text.removeprefix("stages").strip().split(","):
        first, dash, last = part.partition("-")
        if not (first.strip().isdecimal() and (last.strip().isdecimal() or not dash)):
            raise UserError(f"--scope {text} is neither 'all' nor a list of stages; write e.g. --scope 0,3-6")
        stages |= set(range(int(first), int(last or first) + 1)[:10_000])
    if not stages or max(stages) >= count:
        raise UserError(
            f"--scope {text} must name stages from 0 to {count - 1}, the smaller number first; "
            "--scope all --dry-run lists them"
        )
    return stages


def scores(coupling, network, criterion, generator=None):
    """Importance of every unit of every set: {set: values}; for a set with several BNs, their mean.

    criterion: "abs-gamma", |gamma| of the BN (Liu et al. 2017); "signed-gamma", gamma itself, as in the
    course; "random", from the generator.
    """
    found = {}
    for channels in coupling.sets:
        if channels.stays:
            continue
        gammas = [network.get_submodule(name).weight.detach().double() for name in channels.norms]
        gammas = torch.stack(gammas)
        if criterion == "random":
            values = torch.rand(gammas.shape[1], generator=generator)
        else:
            values = (gammas.abs() if criterion == "abs-gamma" else gammas).mean(0)
        found[channels] = values.reshape(-1, channels.unit).mean(1)
    return found


def choose(
    coupling, network, fraction, scope=None, criterion="abs-gamma", ranking="layer", floor=1, generator=None
):
    """The channels to keep: {set: ascending indices}, for every set in scope that can be pruned.

    network: the traced one or a pruned one. fraction: of the traced one's channels. scope: indices of sets
    (None: all). ranking: "layer" keeps int(original * fraction) in every set, "global" int(sum of originals *
    fraction) over all sets by one threshold. Every set keeps at least `floor` channels (or all, if it has
    fewer), in whole units.
    """
    found = scores(coupling, network, criterion, generator)
    wanted = coupling.sets if scope is None else [coupling.sets[index] for index in sorted(scope)]
    sets = [channels for channels in wanted if channels in found]
    budget = int(sum(channels.count for channels in sets) * fraction)
    units, further = {}, []  # the units that every set keeps, and those that global ranking can add
    for channels in sets:
        values = found[channels]
        order = values.argsort(descending=True, stable=True).tolist()
        count = math.ceil(floor / channels.unit)
        if ranking == "layer":
            count = max(count, int(channels.count * fraction) // channels.unit)
        units[channels] = order[:count]
        budget -= len(units[channels]) * channels.unit
        further += [(values[index].item(), channels, index) for index in order[count:]]
    if ranking == "global":
        for _, channels, index in sorted(further, key=lambda entry: -entry[0]):
            if channels.unit <= budget:
                units[channels].append(index)
                budget -= channels.unit
    return {channels: spread(torch.tensor(sorted(kept)), channels.unit) for channels, kept in units.items()}


def spread(indices, width):
    """The indices where each one stands for `width` neighbours: [0, 2], 3 -> [0, 1, 2, 6, 7, 8]."""
    return (indices[:, None] * width + torch.arange(width)).flatten()


def compact(architecture, arguments, network, coupling, kept, absorb=True):
    """(arguments, network in eval mode) with only the channels `kept`, {set: ascending indices}, in a copy.

    absorb: whether the constant output of removed channels (for gamma = 0) is added to the biases after them.
    On the meta device only the arguments are meaningful. Raises UserError if they cannot express the shape.
    """
    small = copy.deepcopy(network).eval().requires_grad_(False)
    modules = dict(small.named_modules())
    if absorb and not next(small.parameters()).is_meta:
        coupling.carried_to(small).absorb(kept)

    def cut(name, tensor, dimension, indices):
        old = getattr(modules[name], tensor, None)
        if old is not None:
            old.data = old.data.index_select(dimension, indices.to(old.device))

    for channels, indices in kept.items():
        count = len(modules[channels.name].weight)
        for name in (*channels.producers, *channels.through, *channels.norms):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                cut(name, tensor, 0, indices)
        for name in channels.consumers:
            # after flattening, a channel is several inputs
            cut(name, "weight", 1, spread(indices, modules[name].weight.shape[1] // count))
    arguments = {**arguments, **ARCHITECTURES[architecture].network.shape(small, arguments)}
    with torch.device("meta"):
        result = build(architecture, **arguments)
    try:
        result.load_state_dict(small.state_dict(), assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n\t")[1:2]).strip()[:120]
        raise UserError(
            f"{architecture} has no arguments for this shape ({detail}); leave the layer out with --scope"
        ) from None
    return arguments, result.eval().requires_grad_(False)
