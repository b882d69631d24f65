"""Batch normalisation folded into the layer before it: the same function in eval mode, with fewer numbers to
store.

A convolution or linear layer and the BN that alone reads its output become one layer with a bias
(Jacob et al. 2018, section 3.2): w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps)
+ beta.
"""

import torch
from torch import nn

LAYERS, NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d)


def foldable_pairs(network):
    """[(name of a layer, name of the BN behind it)], in the network's order.

    Every network here registers its modules in the order in which they are called, so the BN behind a layer
    is the next module without children. (torch.fx finds the same pairs from the graph, as the tests do, but
    to import it takes longer than all the rest of a prediction's start-up.)
    """
    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    return [
        (name, behind)
        for (name, layer), (behind, norm) in zip(leaves, leaves[1:])
        if isinstance(layer, LAYERS) and isinstance(norm, NORMS) and norm.num_features == len(layer.weight)
    ]


@torch.no_grad()
def fold(network):
    """Fold every BN that follows a convolution or linear layer, in place, and return the network.

    An `nn.Identity` takes the BN's place, so that all other names stay. The arithmetic is done in float64.
    Works on the meta device too, where only shapes count. A network that is folded already stays as it is.
    """
    for name, behind in foldable_pairs(network):
        layer, norm = network.get_submodule(name), network.get_submodule(behind)
        before = layer.bias
        layer.bias = nn.Parameter(
            torch.empty(len(layer.weight), dtype=layer.weight.dtype, device=layer.weight.device)
        )
        network.set_submodule(behind, nn.Identity())
        if layer.weight.is_meta:  # arithmetic there imports a second's worth of torch
            continue
        gain = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        centre = (
            norm.running_mean.double() if before is None else norm.running_mean.double() - before.double()
        )
        folded = layer.weight.double() * gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight = nn.Parameter(
            folded.to(layer.weight.dtype)
        )  # a new one: a network can share its weights with a state_dict
        layer.bias.copy_(norm.bias.double() - centre * gain)
    return network
