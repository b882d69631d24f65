"""Low-rank layers: a linear layer or convolution as two smaller ones, by truncated SVD of its weight.

A weight of O outputs, viewed as a matrix (O, I * kh * kw), is approximated by the product of (O, r) and
(r, I * kh * kw). So a linear layer becomes two, and a convolution becomes one with the same kernel to r
channels and a pointwise one after it (Zhang et al. 2015, "Accelerating very deep convolutional networks", but
without data). Depthwise and grouped convolutions are not changed. `models.build` with `ranks` builds layers
in this form.
"""

from collections import Counter

import torch
from torch import nn

from compression.command_line import UserError


def factorisable(network):
    """Layers that two factors can replace, by name; existing factors are left out."""
    found, factors = {}, set()
    for name, module in network.named_modules():
        if isinstance(module, Factors):
            factors |= {f"{name}.0", f"{name}.1"}
        ungrouped = isinstance(module, nn.Conv2d) and module.groups == 1
        if name not in factors and (ungrouped or isinstance(module, nn.Linear)):
            found[name] = module
    return found


def full_rank(layer):
    """The smallest rank at which two factors can represent any weight of the layer exactly."""
    return min(len(layer.weight), layer.weight[0].numel())


def rank_parameters(layer):
    """Weights that one rank adds to the two factors of a layer."""
    return len(layer.weight) + layer.weight[0].numel()


class Factors(nn.Sequential):
    """The two factors of a layer: the first without a bias, the second with the layer's bias, if any."""

    def __init__(self, layer, rank):
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            first = nn.Linear(layer.in_features, rank, bias=False, **like)
            second = nn.Linear(rank, layer.out_features, bias, **like)
        else:
            window = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
            mode = layer.padding_mode
            first = nn.Conv2d(layer.in_channels, rank, *window, bias=False, padding_mode=mode, **like)
            second = nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **like)
        super().__init__(first, second)

    @torch.no_grad()
    def approximate(self, weight, bias):
        """Set the factors to the best approximation of a weight (Eckart & Young 1936).

        Each has the square root of the singular values; beyond full rank the factors are filled with zeros.
        """
        left, values, right = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        rank = min(len(self[0].weight), len(values))
        root = values[:rank].sqrt()
        for factor, matrix in ((self[0], root[:, None] * right[:rank]), (self[1], left[:, :rank] * root)):
            rows, columns = matrix.shape
            factor.weight.zero_().flatten(1)[:rows, :columns] = matrix.to(factor.weight)
        if bias is not None:
            self[1].bias.copy_(bias)

    def product(self):
        """The weight of the equivalent single layer, in its shape."""
        product = self[1].weight.flatten(1).double() @ self[0].weight.flatten(1).double()
        return product.to(self[0].weight).reshape(len(product), *self[0].weight.shape[1:])


def factorise(network, ranks, svd=False):
    """Replace layers by their two factors in place, and return the network.

    ranks: layer name -> rank. svd: compute the factors from the layers' weights (else they are initialised).
    Raises UserError for a layer that cannot be factorised, and for a rank that is not a whole number above 0.
    """
    if not isinstance(ranks, dict) or len(ranks) > 300:
        raise UserError("ranks must be a dict of at most 300 layers, e.g. {'fc.0': 8}; change ranks")
    possible = factorisable(network)
    for name, rank in ranks.items():
        if name not in possible:
            known = ", ".join(possible)[:300]
            raise UserError(f"ranks names {str(name)[:50]!r}, which cannot be factorised; these can: {known}")
        if type(rank) is not int or not 1 <= rank <= 100_000:
            raise UserError(f"ranks gives {name} the rank {str(rank)[:50]}; use a number from 1 to 100,000")
        factors = Factors(possible[name], rank)
        if svd:
            factors.approximate(possible[name].weight, possible[name].bias)
        network.set_submodule(name, factors.train(network.training))
    return network


@torch.no_grad()
def merge(network):
    """The `state_dict` of the network without factors: every pair is multiplied to one weight."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, Factors):
            del state[f"{name}.0.weight"], state[f"{name}.1.weight"]
            state[f"{name}.weight"] = module.product()
            if module[1].bias is not None:
                state[f"{name}.bias"] = state.pop(f"{name}.1.bias")
    return state


def choose_ranks(network, fraction, order=None):
    """The rank of every layer that two factors make smaller: name -> rank, at least 1.

    The rank is int(full rank * fraction), or with `order` (see `directions`) the number of the layer's
    entries in the first `fraction` of that list.
    """
    counts = Counter(order[: int(len(order) * fraction)]) if order else None
    chosen = {}
    for name, layer in factorisable(network).items():
        rank = max(1, counts[name] if order else int(full_rank(layer) * fraction))
        if rank * rank_parameters(layer) < layer.weight.numel():
            chosen[name] = rank
    return chosen


def directions(network):
    """Layer names, one for each singular direction of a layer, in descending order of value.

    A direction's value is its share of the sum of the layer's squared singular values, divided by its number
    of parameters. This order reduces the sum of the layers' relative errors fastest per parameter, and small
    layers, such as the first and the last, are factorised last.
    """
    found = []
    for name, layer in factorisable(network).items():
        energies = torch.linalg.svdvals(layer.weight.detach().flatten(1).double()).square()
        shares = energies / energies.sum().clamp(min=1e-300)
        found += [(worth, name) for worth in (shares / rank_parameters(layer)).tolist()]
    return [name for _, name in sorted(found, reverse=True)]
