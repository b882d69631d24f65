"""Batch normalisation folded into the layer before it: the same function in eval mode, with fewer parameters.

A convolution or linear layer and the BN after it become one layer with a bias (Jacob et al. 2018, section
3.2): w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta. No other layer may
read the convolution's output.
"""

import torch
from torch import nn

LAYERS, NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d)


def foldable_pairs(network):
    """[(name of a layer, name of the BN after it)], in the network's order.

    Every network here registers its modules in the order in which they are called, so the BN after a layer is
    the next module without children. (torch.fx would find the same pairs in the graph, as the tests do, but
    importing it takes longer than the rest of the start-up of inference.)
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

    The BN is replaced by an `nn.Identity`, so that all other names are unchanged. Computed in float64. Also
    works on the meta device, for shapes only. A folded network is not changed.
    """
    for name, behind in foldable_pairs(network):
        layer, norm = network.get_submodule(name), network.get_submodule(behind)
        before = layer.bias
        layer.bias = nn.Parameter(
            torch.empty(len(layer.weight), dtype=layer.weight.dtype, device=layer.weight.device)
        )
        network.set_submodule(behind, nn.Identity())
        if layer.weight.is_meta:  # meta arithmetic would import more of torch, for a second
            continue
        gain = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        centre = (
            norm.running_mean.double() if before is None else norm.running_mean.double() - before.double()
        )
        folded = layer.weight.double() * gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight = nn.Parameter(
            folded.to(layer.weight.dtype)
        )  # a new tensor: the old one can be shared with a state_dict
        layer.bias.copy_(norm.bias.double() - centre * gain)
    return network
