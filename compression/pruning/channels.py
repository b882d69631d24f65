"""Channel pruning: which channels matter least, and the network without them.

coupling = Coupling(network)                       # coupling.sets: channels that are removed together
kept = choose(coupling, network, 0.9, originals)   # {set: indices of the channels to keep}
arguments, smaller = compact("student", arguments, network, coupling, kept)
"""

import copy
import math

import torch
from torch import nn

from compression.command_line import UserError
from compression.networks.registry import build
from compression.pruning.shapes import widths

CRITERIA = ("abs-gamma", "signed-gamma", "random")


def read_scope(text, count):
    """Indices of a scope such as "3-6" or "0,3-6" among `count` stages; None for "all"."""
    if text == "all":
        return None
    stages = set()
    for part in text.removeprefix("stages").strip().split(","):
        first, dash, last = part.partition("-")
        if not (first.strip().isdecimal() and (last.strip().isdecimal() or not dash)):
            raise UserError(
                f"--scope {text} is neither 'all' nor a list of stages; write e.g. --scope 3-6 or --scope "
                "0,3-6"
            )
        stages |= set(range(int(first), int(last or first) + 1)[:10_000])
    if not stages or max(stages) >= count:
        raise UserError(
            f"--scope {text} names stages that the network does not have; "
            f"it has stages 0-{count - 1}, which --scope all --dry-run lists"
        )
    return stages


def scores(coupling, network, criterion, generator=None):
    """Importance of every unit of every set: {set: values}; for a set with several BNs, their mean.

    criterion: "abs-gamma", |gamma| of the BN (Liu et al. 2017); "signed-gamma", gamma itself, as in the
    course; "random", from the generator.
    """
    modules, found = dict(network.named_modules()), {}
    for channels in coupling.sets:
        if not channels.stays:
            gammas = torch.stack([modules[name].weight.detach().double() for name in channels.norms])
            values = gammas.abs() if criterion == "abs-gamma" else gammas
            values = (
                torch.rand(channels.count, generator=generator) if criterion == "random" else values.mean(0)
            )
            found[channels] = values.reshape(-1, channels.unit).mean(1)
    return found


def choose(
    coupling,
    network,
    fraction,
    originals,
    scope=None,
    criterion="abs-gamma",
    ranking="layer",
    floor=1,
    generator=None,
):
    """The channels to keep: {set: ascending indices}, for every set in scope that can be pruned.

    fraction: of the original channels, whose numbers `originals` lists set by set. scope: indices of sets
    (None: all). ranking: "layer" keeps int(original * fraction) in every set, "global" int(sum of originals *
    fraction) over all sets by one threshold. Every set keeps at least `floor` channels (or all, if it has
    fewer), in whole units.
    """
    ranked = {
        channels: values
        for channels, values in scores(coupling, network, criterion, generator).items()
        if scope is None or coupling.sets.index(channels) in scope
    }
    sizes = {channels: originals[coupling.sets.index(channels)] for channels in ranked}
    least = {
        channels: min(math.ceil(max(1, floor) / channels.unit), len(values))
        for channels, values in ranked.items()
    }
    order = {
        channels: values.sort(descending=True, stable=True).indices.tolist()
        for channels, values in ranked.items()
    }
    if ranking == "layer":
        wanted = {channels: int(sizes[channels] * fraction) // channels.unit for channels in ranked}
        units = {
            channels: min(len(order[channels]), max(least[channels], wanted[channels])) for channels in ranked
        }
    else:
        units, budget = (
            dict(least),
            int(sum(sizes.values()) * fraction) - sum(least[channels] * channels.unit for channels in ranked),
        )
        further = [
            (ranked[channels][index].item(), channels)
            for channels in ranked
            for index in order[channels][least[channels] :]
        ]
        for _, channels in sorted(further, key=lambda entry: -entry[0]):
            if channels.unit <= budget:
                units[channels], budget = units[channels] + 1, budget - channels.unit
    kept = {channels: sorted(order[channels][: units[channels]]) for channels in ranked}
    return {
        channels: torch.tensor(
            [index * channels.unit + offset for index in kept[channels] for offset in range(channels.unit)]
        )
        for channels in ranked
    }


def compact(architecture, arguments, network, coupling, kept, absorb=True):
    """(arguments, network in eval mode) with only the channels `kept`, {set: ascending indices}; the given
    network is not changed.

    absorb: whether the constant output of removed channels (for gamma = 0) is added to the biases after them.

    On the meta device only the arguments are meaningful. Raises UserError if the arguments cannot express the
    shape.
    """
    small = copy.deepcopy(network).eval().requires_grad_(False)
    modules = dict(small.named_modules())
    if absorb and not next(small.parameters()).is_meta:
        of_the_copy = copy.copy(coupling)
        of_the_copy.modules = modules
        mask = {
            channels: torch.ones(channels.count, dtype=torch.bool).index_fill(0, indices, False)
            for channels, indices in kept.items()
        }
        of_the_copy.absorb({channels: removed.nonzero().flatten() for channels, removed in mask.items()})

    def cut(name, tensor, dimension, indices):
        old = getattr(modules[name], tensor)
        if old is not None:
            new = old.index_select(dimension, indices.to(old.device))
            setattr(
                modules[name],
                tensor,
                nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new,
            )

    for channels, indices in kept.items():
        for name in (*channels.producers, *channels.through, *channels.norms):
            for tensor in ("weight", "bias"):
                cut(name, tensor, 0, indices)
        for name in channels.norms:
            cut(name, "running_mean", 0, indices)
            cut(name, "running_var", 0, indices)
        for name in channels.consumers:
            # after flattening, a channel is several inputs
            repeat = modules[name].weight.shape[1] // channels.count
            cut(name, "weight", 1, (indices[:, None] * repeat + torch.arange(repeat)).flatten())
    arguments = {**arguments, **widths(small, arguments)}
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
