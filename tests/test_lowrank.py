"""Low-rank layers: full rank reproduces the network, truncation is the best there is, files load, prune.py
--mode lowrank.
"""

import copy
import json
import re

import pytest
import torch
from torch import nn

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import decode, encode
from compression.networks.lowrank import (
    Factors,
    choose_ranks,
    directions,
    factorisable,
    factorise,
    full_rank,
    merge,
    rank_parameters,
)
from compression.pruning.channels import choose, compact
from compression.pruning.coupling import Coupling
from compression.quantization.grids import Scheme
from compression.training.run_folder import write_checkpoint
from dataset import FOOD11_CLASSES
from models import ARCHITECTURES, build, count_macs, count_parameters, full_arguments


def trained(name, **arguments):
    """A network in float64 and eval mode."""
    torch.manual_seed(0)
    return build(name, **arguments).double().eval().requires_grad_(False)


def images_for(name):
    """Photos of two levels of detail in float64, so different that deep random networks tell them apart."""
    size = min(ARCHITECTURES[name].size, 64)
    patches = 3 * torch.randn(2, 1 if name.startswith("fer") else 3, 4, 4, dtype=torch.float64)
    return nn.functional.interpolate(patches, size=(size, size)) + torch.randn(size, size)


# narrow: SVD takes seconds at full width
RESNET = ("resnet18", {"widths": (8, 12, 16, 20), "hidden": (8, 8, 12, 12, 16, 16, 20, 24)})


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("student", {}),
        ("slim9", {}),
        ("cnn1mb", {}),
        ("group1mb_3", {}),
        ("fer_cnn", {"widths": (8, 16, 24), "hidden": (32, 16)}),
        ("fer_mobilenet", {}),
        ("residual6", {}),
        RESNET,
    ],
)
def test_full_rank_reproduces_the_network_and_multiplies_back(name, arguments):
    network, images = trained(name, **arguments), images_for(name)
    ranks = {layer: full_rank(module) for layer, module in factorisable(network).items()}
    factors = factorise(copy.deepcopy(network), ranks, svd=True)
    assert sum(isinstance(module, Factors) for module in factors.modules()) == len(ranks) > 1
    assert (factors(images) - network(images)).abs().max() <= 1e-9
    state = merge(factors)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.allclose(value, state[key], atol=1e-12) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 9),
        nn.Linear(12, 9, bias=False),
        nn.Conv2d(6, 10, 1, 2),
        nn.Conv2d(4, 10, 3, 2, 1, bias=False),
        nn.Conv2d(3, 8, (5, 3), padding=(2, 1)),
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, padding_mode="reflect"),
    ],
)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_truncation_loses_just_the_singular_values_that_are_left_out(layer, rank):
    """Eckart & Young: the least squared error of a matrix of rank r is the sum of the other singular values'
    squares.
    """
    layer = layer.double().requires_grad_(False)
    factors = Factors(layer, rank)
    factors.approximate(layer.weight, layer.bias)
    values = torch.linalg.svdvals(layer.weight.flatten(1))
    assert (factors.product() - layer.weight).square().sum().item() == pytest.approx(
        values[rank:].square().sum().item(), abs=1e-9
    )
    bias = 0 if layer.bias is None else len(layer.bias)
    assert count_parameters(factors) == rank * rank_parameters(layer) + bias
    whole = copy.deepcopy(layer)
    whole.weight.copy_(factors.product())
    inputs = torch.randn(
        3,
        *([layer.in_features] if isinstance(layer, nn.Linear) else [layer.in_channels, 9, 8]),
        dtype=torch.float64,
    )
    assert torch.allclose(factors(inputs), whole(inputs), atol=1e-10)


def test_a_rank_beyond_the_full_one_is_filled_with_zeros():
    layer = nn.Linear(3, 5).double().requires_grad_(False)
    factors = Factors(layer, 7)
    factors.approximate(layer.weight, layer.bias)
    assert torch.allclose(factors.product(), layer.weight)


def test_depthwise_layers_stay_and_so_do_layers_that_would_grow():
    network = build("student")
    layers = factorisable(network)
    assert len(layers) == 9
    assert not any(module.groups > 1 for module in layers.values() if isinstance(module, nn.Conv2d))
    assert choose_ranks(network, 0.4)["cnn.5.3"] == int(256 * 0.4)
    assert choose_ranks(network, 1) == {}
    for fraction in (0.9, 0.5, 0.1, 1e-6):
        ranks = choose_ranks(network, fraction)
        saved = [
            layers[name].weight.numel() - rank * rank_parameters(layers[name]) for name, rank in ranks.items()
        ]
        assert count_parameters(build("student", ranks=ranks)) == count_parameters(network) - sum(saved)
        assert min(saved) > 0


@torch.no_grad()
def test_global_ranking_keeps_what_is_worth_most_for_its_parameters():
    """Layers whose singular values are known: (8, 1, ...) has 64/71 of its squares in one direction, (1, 1,
    ...) an eighth in each.
    """
    network = nn.Sequential(
        nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 80, bias=False)
    )
    for layer, values in zip(network, ([8.0] + [1.0] * 7, [1.0] * 8, [1.0] * 8)):
        layer.weight.zero_()[:8] = torch.diag(torch.tensor(values))
    order = directions(network)
    assert order[0] == "0" and order[1:9] == ["1"] * 8, "64/71 and 1/8 of the squares at 16 parameters each"
    assert order[9:17] == ["2"] * 8 and order[17:] == ["0"] * 7, "1/8 at 88 parameters, 1/71 at 16"
    assert (
        choose_ranks(network, 4 / 24, order) == {"0": 1, "1": 3, "2": 1}
        and choose_ranks(network, 1, order) == {}
    )
    assert choose_ranks(network, 1e-9, order) == {"0": 1, "1": 1, "2": 1}


def test_global_ranking_loses_less_than_equal_shares_at_no_more_parameters():
    torch.manual_seed(0)
    network = build("student")
    order, layers = directions(network), factorisable(network)

    def lost(ranks):
        shares = []
        for name, rank in ranks.items():
            energies = torch.linalg.svdvals(layers[name].weight.detach().flatten(1)).square()
            shares.append((energies[rank:].sum() / energies.sum()).item())
        return sum(shares), count_parameters(build("student", ranks=ranks))

    even, budget = lost(choose_ranks(network, 0.2))
    fitting = [lost(choose_ranks(network, step / len(order), order)) for step in range(1, len(order), 20)]
    assert min(error for error, count in fitting if count <= budget) < even
    counts = [count for _, count in fitting]
    assert counts == sorted(counts), "more directions, more parameters"


def test_ranks_travel_in_the_description_and_count():
    description = Description.of(
        "student",
        {"in_channels": 3, "ranks": {"cnn.4.3": 10, "fc.0": 2}},
        [str(label) for label in range(11)],
        Preprocessing(32),
    )
    network = build("student", **description.arguments)
    assert network.cnn[4][3][0].out_channels == 10
    read = Description.from_dict(description.to_dict(), "test")
    restored = read.build(decode(encode(read, network.state_dict(), Scheme(32))))
    assert all(
        torch.equal(value, network.state_dict()[name]) for name, value in restored.state_dict().items()
    )
    assert count_macs("student", 32) - count_macs("student", 32, ranks={"fc.0": 2}) == 256 * 11 - 2 * (
        256 + 11
    )
    assert "ranks" not in full_arguments("student")


@pytest.mark.parametrize(
    "ranks",
    [
        {"cnn.0.1": 2},
        {"cnn.1.0": 2},
        {"nowhere": 2},
        {"fc.0": 0},
        {"fc.0": -1},
        {"fc.0": 2.5},
        {"fc.0": True},
        {"fc.0": 10**9},
        {"fc.0": "2"},
        [3],
        "x",
        {str(index): 1 for index in range(2000)},
    ],
    ids=str,
)
def test_impossible_ranks_are_a_user_error(ranks):
    with pytest.raises(UserError, match="ranks"):
        build("student", ranks=ranks)


@pytest.mark.parametrize("name, arguments", [("student", {}), ("cnn1mb", {}), RESNET, ("residual6", {})])
def test_a_factorised_network_can_be_pruned_exactly(name, arguments):
    network, images = trained(name, **arguments), images_for(name)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(), module.running_mean.normal_(), module.weight.normal_()
    ranks = choose_ranks(network, 0.3)
    factorise(network, ranks, svd=True)
    coupling = Coupling(network)
    kept = choose(coupling, network, 0.6)
    arguments, small = compact(name, full_arguments(name, **arguments, ranks=ranks), network, coupling, kept)
    masked = copy.deepcopy(network)
    for channels, indices in kept.items():
        removed = torch.ones(channels.count, dtype=torch.bool).index_fill(0, indices, False)
        for norm in channels.norms:
            masked.get_submodule(norm).weight[removed] = 0
            if channels.dropped:
                masked.get_submodule(norm).bias[removed] = 0
    assert len(kept) > 5 and arguments["ranks"] == ranks
    logits = small(images)
    assert (masked(images) - logits).abs().max() <= 1e-9 and (logits[0] - logits[1]).abs().max() > 1e-4


def test_what_is_factorised_already_is_not_enlarged(refused, call, tmp_path):
    network = build("student", in_channels=3)
    arguments = {"in_channels": 3, "ranks": choose_ranks(network, 0.3)}
    network, path = build("student", **arguments), tmp_path / "factors.pt"
    write_checkpoint(
        path, Description.of("student", arguments, FOOD11_CLASSES, Preprocessing(32)), network.state_dict()
    )
    assert "enlarge it" in refused("prune.py", path, "--mode", "lowrank", "--rate", 0.45, "--dry-run")
    target = f"parameters={count_parameters(network) + 20_000}"
    assert "already met" in refused("prune.py", path, "--mode", "lowrank", "--target", target, "--dry-run")
    assert call("prune.py", path, "--mode", "lowrank", "--rate", 0.2, "--dry-run").returncode == 0


@pytest.mark.parametrize("share", [0.3, 0.7, 1])
def test_rounds_to_a_target_start_from_the_ranks_of_now(refused, call, tmp_path, share):
    shape = {"in_channels": 3, "widths": (8, 16, 24, 32, 32, 32, 32, 32)}
    arguments = {**shape, "ranks": choose_ranks(build("student", **shape), share)}
    network, path = build("student", **arguments), tmp_path / "factors.pt"
    write_checkpoint(
        path, Description.of("student", arguments, FOOD11_CLASSES, Preprocessing(32)), network.state_dict()
    )
    target = count_parameters(network) - 600
    command = ("prune.py", path, "--mode", "lowrank", "--dry-run", "--target")
    done = call(*command, f"parameters={target}", "--rounds", 3)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" +[0123] +[01]\.\d{4} ", line)]
    sizes, kept = [int(row[2].replace(",", "")) for row in rows], [float(row[1]) for row in rows]
    assert count_parameters(network) == sizes[0] >= sizes[1] >= sizes[2] >= sizes[3] > target - 600
    assert sizes[3] <= target
    assert kept[2] / kept[1] == pytest.approx(kept[3] / kept[2], abs=1e-3)  # every round by the same share
    assert kept[1] < share + 1e-4
    assert kept[3] / kept[2] == pytest.approx((kept[3] / share) ** (1 / 3), rel=0.05)
    assert "at rank 1; raise it\n" in refused(*command, "parameters=100")


def test_the_command_line_factorises_round_by_round_and_starts_from_the_nearest_weights(call, toy, tmp_path):
    path = tmp_path / "student.pt"
    arguments = {"in_channels": 3, "widths": [8, 8, 16, 16, 16, 16, 16, 16]}
    description = Description.of("student", arguments, FOOD11_CLASSES, Preprocessing(32))
    torch.manual_seed(0)
    network = build("student", **description.arguments)
    write_checkpoint(path, description, network.state_dict())
    short = "--epochs 1 --cache none --device cpu --recipe batch_size=16 precision=fp32 lr=1e-9".split()
    rounds = ("--mode", "lowrank", "--rate", 0.5, "--rounds", 2, "--out", tmp_path / "out")
    done = call("prune.py", path, toy, *rounds, *short)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [row["arguments"]["ranks"]["fc.0"] for row in record["rounds"]] == [5, 2]
    best = tmp_path / "out/round2/best.pt"
    model = load_model(best)
    ranks = choose_ranks(network, 0.25)
    assert model.description.arguments["ranks"] == ranks
    # twice truncated is once truncated, without training between
    nearest = factorise(copy.deepcopy(network), ranks, svd=True)
    product, expected = merge(model.build()), merge(nearest)
    for name in expected:
        assert not name.endswith("weight") or torch.allclose(product[name], expected[name], atol=1e-3)
    assert call("quantize.py", best, tmp_path / "model.bin", "--device", "cpu").returncode == 0
