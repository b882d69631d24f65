"""Pruning: published counts, masked = compacted, coupling, criteria, the optimiser after a cut, and prune.py
end to end.
"""

import argparse
import copy
import json
import os
import re
import signal

import pytest
import torch
from torch import nn

import models
from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.networks.registry import count_macs
from compression.pruning.channels import choose, compact, scores
from compression.pruning.coupling import NORMS, Coupling
from compression.pruning.methods import ByGamma
from compression.training import losses, teachers
from compression.training.losses import Batch, CrossEntropy
from compression.training.recipe import Settings, build_optimizer
from compression.training.run_folder import Run, write_checkpoint
from dataset import FOOD11_CLASSES
from models import ARCHITECTURES, Architecture, build, count_parameters, full_arguments

CPU = torch.device("cpu")
COUNTS = [
    ("student", 0.95, [236_066, 217_850, 200_354, 185_091, 171_606]),
    ("student", 0.90, [216_518, 183_578, 156_084, 132_858, 114_810]),
    ("wide8", 0.95, [186_750, 176_052, 166_041, 157_357, 148_993]),
    ("wide8", 0.85, [164_802, 138_988, 119_492, 105_529, 94_212, 85_495, 78_612]),
]


def random_network(name, **arguments):
    """A network in float64 and eval mode whose BNs are random, and whose layers keep the scale of what they
    read.
    """
    torch.manual_seed(0)
    network = build(name, **arguments).double().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, NORMS):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def images_for(name):
    """Photos of two levels of detail in float64, so different that deep random networks tell them apart."""
    size = min(ARCHITECTURES[name].size, 64)
    patches = 3 * torch.randn(2, 1 if name.startswith("fer") else 3, 4, 4, dtype=torch.float64)
    return nn.functional.interpolate(patches, size=(size, size)) + torch.randn(size, size)


def cut(name, network, fraction, arguments=None, **options):
    """(coupling, kept, arguments, network) after a cut to a fraction of the channels of now."""
    coupling = Coupling(network)
    kept = choose(coupling, network, fraction, **options)
    return coupling, kept, *compact(name, arguments or full_arguments(name), network, coupling, kept)


def masked(network, coupling, kept):
    """The network with gamma = 0 in all removed channels, and beta = 0 too where the plan says that constants
    are dropped.
    """
    network = copy.deepcopy(network)
    for channels, indices in kept.items():
        removed = torch.ones(channels.count, dtype=torch.bool)
        removed[indices] = False
        for name in channels.norms:
            network.get_submodule(name).weight[removed] = 0
            if channels.dropped:
                network.get_submodule(name).bias[removed] = 0
    return network


# ---------------------------------------------------------------- published counts


@pytest.mark.parametrize("name, rate, counts", COUNTS)
def test_the_published_counts_round_by_round_from_the_pruned_network(name, rate, counts):
    network, arguments = build(name).eval(), full_arguments(name)
    coupling = Coupling(network)
    for index, expected in enumerate(counts, 1):
        kept = choose(coupling, network, rate**index, scope={3, 4, 5, 6})
        arguments, network = compact(name, arguments, network, coupling, kept)
        assert count_parameters(network) == expected, f"round {index}"


@pytest.mark.parametrize("name, rate, counts", COUNTS[1::2])
def test_the_plan_shows_the_published_counts(call, tmp_path, name, rate, counts):
    rounds = ("--rate", rate, "--rounds", len(counts), "--scope", "stages 3-6", "--out", tmp_path / "out")
    shown = call("prune.py", checkpoint(tmp_path, name), *rounds, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for index, count in enumerate(counts, 1):
        assert re.search(rf"^ +{index} .* {count:,} ", shown.stdout, re.MULTILINE)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_masked_network_is_the_compacted_one(name):
    """The second cut starts from the first one's network, ranks globally and by signed gamma."""
    network, arguments, images = random_network(name), full_arguments(name), images_for(name)
    for options in ({}, {"ranking": "global", "criterion": "signed-gamma"}):
        coupling, kept, arguments, small = cut(name, network, 0.6, arguments, **options)
        assert kept and count_parameters(small) < count_parameters(network)
        logits = small(images)
        assert (masked(network, coupling, kept)(images) - logits).abs().max() <= 1e-9
        # else it would prove nothing
        assert (network(images) - logits).abs().max() > 1e-2 and (logits[0] - logits[1]).abs().max() > 1e-4
        network = small


@pytest.mark.parametrize(
    "name, lost",
    [
        ("student", []),
        ("fer_mobilenet", []),
        ("residual6", ["stem.0"]),
        ("plain_student", [f"cnn.{index}.0" for index in range(7)]),
        ("dw1mb_3", ["cnn.0.0", "cnn.1.0", "cnn.2.0"]),
        ("fer_cnn", [f"cnn.{index}" for index in (0, 3, 8, 11, 16)]),
    ],
)
def test_constants_are_absorbed_where_that_is_exact_and_elsewhere_the_plan_says_so(name, lost):
    network, images = random_network(name), images_for(name)
    coupling, kept, _, small = cut(name, network, 0.6)
    assert [channels.name for channels in kept if channels.dropped] == lost
    assert all("zero padding of " in channels.dropped for channels in kept if channels.dropped)
    for channels in kept:
        channels.dropped = "everywhere, as in the reference code"
    assert (masked(network, coupling, kept)(images) - small(images)).abs().max() > 1e-3


def test_a_pruned_network_is_built_from_its_arguments_and_loads_strictly():
    for name in ("slim9", "fer_cnn", "group1mb_4", "resnet18", "residual6"):
        images = images_for(name)
        _, _, arguments, small = cut(name, random_network(name), 0.7)
        again = build(name, **json.loads(json.dumps(arguments))).double().eval()
        again.load_state_dict(small.state_dict())
        assert torch.equal(again(images), small(images))


def test_a_block_whose_widths_agree_by_accident_does_not_become_residual():
    shape = {"stem": (8, 16), "widths": (12, 12), "hidden": (20, 20), "pools": (0, 0), "head": 24}
    network = random_network("residual6", **shape)
    arguments = full_arguments("residual6", **shape)
    coupling, kept, arguments, small = cut("residual6", network, 0.75, arguments, scope={1})
    assert arguments["stem"] == [8, 12] and arguments["residual"] == [0, 1]
    images = images_for("residual6")
    assert (masked(network, coupling, kept)(images) - small(images)).abs().max() <= 1e-5
    with pytest.raises(UserError, match="residual"):
        build("residual6", **shape, residual=(1, 1))


class Gated(nn.Module):
    """Operations that no network of the table has: a product, and a concatenation."""

    def __init__(self, num_classes=11, in_channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 8, 1), nn.BatchNorm2d(8)
        self.behind, self.behind_norm = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)
        self.free, self.free_norm = nn.Conv2d(10, 4, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.norm(self.conv(images))
        features = self.behind_norm(self.behind(features * features.mean()))
        features = self.free_norm(self.free(torch.cat([features, features], 1)))
        return self.fc(nn.functional.avg_pool2d(features, 32).flatten(1))


def test_what_cannot_be_followed_stays_and_the_plan_says_why():
    coupling = Coupling(Gated())
    assert [channels.stays for channels in coupling.sets] == [
        "passes through mul, which pruning does not support",
        "passes through cat, which pruning does not support",
        "passes through avg_pool2d, which pruning does not support",
        "the network's output",
    ]


class Repeated(nn.Module):
    """One convolution used twice, and a BN without gamma."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.plain, self.fc = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1)

    def forward(self, images):
        features = self.norm(self.conv(images))
        return self.fc(self.plain(self.twice(self.twice(features))))


def test_layers_used_twice_and_bn_without_gamma_stay():
    stays = [channels.stays for channels in Coupling(Repeated()).sets]
    assert len(stays) == 4 and all(stays) and stays[0] == stays[1] == "twice is used twice"
    assert any("plain (BatchNorm2d), which pruning does not support" in why for why in stays)


def test_residual_additions_share_one_mask():
    coupling = Coupling(build("resnet18"))
    streams = [channels for channels in coupling.sets if len(channels.norms) > 1]
    assert [set(channels.norms) for channels in streams][0] == {"bn1", "layer1.0.bn2", "layer1.1.bn2"}
    assert [set(channels.norms) for channels in streams][1:] == [
        {f"layer{i}.0.bn2", f"layer{i}.0.downsample.1", f"layer{i}.1.bn2"} for i in (2, 3, 4)
    ]


def test_groups_are_removed_whole():
    coupling, kept, arguments, small = cut("group1mb_4", random_network("group1mb_4"), 0.7)
    assert [channels.unit for channels in kept] == [1, 1, 1, 8, 8, 8, 8]
    for channels, indices in kept.items():
        assert (indices.reshape(-1, channels.unit) // channels.unit).diff(dim=1).abs().sum() == 0
    assert arguments["convs"] == [11, 11, 22, 16] and arguments["separable"] == [40, 40, 56, 88]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("criterion", ["abs-gamma", "signed-gamma"])
def test_the_kept_channels_have_the_largest_gammas(criterion):
    network = random_network("student")
    coupling, kept, _, small = cut("student", network, 0.5, criterion=criterion)
    value = torch.abs if criterion == "abs-gamma" else torch.clone
    for channels, indices in list(kept.items())[1:]:
        gammas = value(network.get_submodule(channels.norms[0]).weight)
        removed = torch.ones(channels.count, dtype=torch.bool).index_fill(0, indices, False)
        assert gammas[indices].min() > gammas[removed].max()
        left = small.get_submodule(channels.norms[0]).weight
        assert torch.equal(left, network.get_submodule(channels.norms[0]).weight[indices])


def test_a_set_with_several_norms_is_ranked_by_their_mean():
    network = random_network("fer_mobilenet")
    coupling = Coupling(network)
    found = scores(coupling, network, "abs-gamma")[coupling.sets[1]]
    assert torch.allclose(found, (network.cnn[4][4].weight.abs() + network.cnn[5][1].weight.abs()) / 2)


def test_global_ranking_has_one_threshold_and_the_share_holds_over_all_layers():
    network = random_network("student")
    coupling, kept, _, _ = cut("student", network, 0.4, ranking="global")
    found = scores(coupling, network, "abs-gamma")
    assert sum(map(len, kept.values())) == int(sum(channels.count for channels in kept) * 0.4)
    stays = torch.cat([found[channels][indices] for channels, indices in kept.items()])
    for channels, values in found.items():
        goes = torch.ones(len(values), dtype=torch.bool).index_fill(0, kept[channels], False)
        assert not goes.any() or stays.min() > values[goes].max()


@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize("floor", [1, 5])
def test_no_layer_falls_below_the_floor(ranking, floor):
    for name in ("student", "group1mb_3"):
        _, kept, _, small = cut(name, random_network(name), 1e-6, ranking=ranking, floor=floor)
        for channels, indices in kept.items():
            assert len(indices) == -(-floor // channels.unit) * channels.unit
        assert torch.isfinite(small(images_for(name))).all()


def test_chance_is_seeded():
    network, chosen = random_network("student"), []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        kept = cut("student", network, 0.5, criterion="random", generator=generator)[1]
        chosen.append([indices.tolist() for indices in kept.values()])
    assert chosen[0] == chosen[1] != chosen[2]


# ---------------------------------------------------------------- training after a cut


def step_after_cut(run):
    """The names of the network's parameters that one optimiser step left as they were."""
    before = {name: parameter.clone() for name, parameter in run.network.named_parameters()}
    run.train_step(Batch(torch.randn(8, 3, 32, 32), torch.arange(8) % 11, torch.arange(8), None))
    return [name for name, value in run.network.named_parameters() if torch.equal(value, before[name])]


def held(run):
    return {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}


def test_the_optimiser_after_a_cut_holds_the_new_network_and_changes_it():
    old = random_network("student").float()
    _, _, arguments, small = cut("student", old, 0.7)
    description = Description.of("student", arguments, FOOD11_CLASSES, Preprocessing(32))
    run = Run(small.requires_grad_(True).train(), description, Settings(epochs=2), 4, CPU)
    assert held(run) == {id(parameter) for parameter in run.network.parameters()}
    assert step_after_cut(run) == []
    # the mistake of the reference code: the optimiser of before the cut
    run.optimizer = build_optimizer(old.requires_grad_(True), run.settings)
    assert not held(run) & {id(parameter) for parameter in run.network.parameters()}
    assert step_after_cut(run) == [name for name, _ in run.network.named_parameters()]


def test_the_slimming_penalty_pulls_every_gamma_towards_zero_by_lambda():
    network = random_network("student", widths=(4,) * 8).float().requires_grad_(True)
    description = Description.of("student", {"widths": (4,) * 8}, FOOD11_CLASSES, Preprocessing(32))
    gradients = []
    for penalty in (0.0, 0.25):
        run = Run(
            copy.deepcopy(network),
            description,
            Settings(gamma_l1=penalty, clip=1e9, ema=0),
            4,
            CPU,
            CrossEntropy(),
        )
        torch.manual_seed(1)
        run.train_step(Batch(torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8), None))
        gradients.append({name: parameter.grad for name, parameter in run.network.named_parameters()})
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            added = gradients[1][f"{name}.weight"] - gradients[0][f"{name}.weight"]
            assert torch.allclose(added, 0.25 * module.weight.sign(), atol=1e-5)
            assert torch.allclose(gradients[1][f"{name}.bias"], gradients[0][f"{name}.bias"])


# ---------------------------------------------------------------- the command line


SMALL = {"in_channels": 3, "widths": [8, 8, 8, 12, 12, 12, 12, 8], "hidden": 16}
SHORT = "--epochs 2 --cache none --device cpu --recipe batch_size=16 precision=fp32 ema=0.5".split()


def checkpoint(folder, name="student", arguments=None, size=32, network=None, training=None):
    """A checkpoint file of a network with random BNs."""
    arguments, training = {"in_channels": 3, **(arguments or {})}, training or {"script": "test"}
    description = Description.of(name, arguments, FOOD11_CLASSES, Preprocessing(size), training)
    network = network or random_network(name, **description.arguments).float()
    write_checkpoint(folder / f"{name}.pt", description, network.state_dict())
    return folder / f"{name}.pt"


def same_weights(first, second):
    first, second = load_model(first).state_dict, load_model(second).state_dict
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_rounds_are_trained_and_recorded_and_the_result_is_quantized_and_predicts(call, toy, tmp_path):
    out = tmp_path / "out"
    command = ["prune.py", checkpoint(tmp_path, arguments=SMALL), toy, "--rounds", 2, "--scope", "3-6"]
    command += [*SHORT, "--out", out, "--rate"]
    done = call(*command, 0.7)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "record.json").read_text())
    assert [row["arguments"]["widths"] for row in record["rounds"]] == [
        [8, 8, 8, 8, 8, 8, 8, 8],
        [8, 8, 8, 5, 5, 5, 5, 8],
    ]
    assert {"command", "commit", "seed", "versions", "plan"} <= record.keys()
    assert record["pruning"]["criterion"] == "abs-gamma"
    for index, row in enumerate(record["rounds"], 1):
        model = load_model(out / f"round{index}" / "best.pt")
        assert count_parameters(model.build()) == row["parameters"] == record["plan"][index]["parameters"]
        assert row["bytes"] == record["plan"][index]["bytes"] and row["macs"] == record["plan"][index]["macs"]
        trained = json.loads((out / f"round{index}" / "record.json").read_text())
        assert trained["best"]["validation_accuracy"] == row["after_training"]
        assert trained["history"] == row["history"] and len(row["history"]) == 2
    assert record["rounds"][1]["before_cut"] == record["rounds"][0]["after_training"]
    assert model.description.training["before"] == {"script": "test"}

    best, small, prediction = out / "round2/best.pt", tmp_path / "model.bin", tmp_path / "prediction.csv"
    assert call("quantize.py", best, small, "--bits", 8, "--device", "cpu").returncode == 0
    assert small.stat().st_size <= row["bytes"]
    predicted = call("inference.py", toy / "testing", prediction, "--model", small, "--device", "cpu")
    assert predicted.returncode == 0, predicted.stderr
    assert len(prediction.read_text().splitlines()) == 16

    again = call(*command, 0.7)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    other = call(*command, 0.6, "--resume")
    assert other.returncode == 2 and "kept" in other.stderr
    assert call(*command, 0.7, "--resume").returncode == 0
    elsewhere = call(*command, 0.7, "--out", out / "round2")  # of the training
    assert elsewhere.returncode == 2 and "no record of prune.py; choose another" in elsewhere.stderr


@pytest.mark.parametrize(
    "size, flags, views",
    [
        (None, (), 24),
        (28, (), 24),
        (None, (), 32),
        (20, (), 20),
        (20, ("--recipe", "view_size=22"), 22),
        (20, ("--recipe", "augment=none"), 20),
    ],
)
def test_views_of_before_are_taken_over_where_they_are_no_larger_than_the_new_size(
    call, toy, tmp_path, size, flags, views
):
    path = checkpoint(tmp_path, arguments=SMALL, training={"view_size": 40 if views == 32 else 24})
    more = [*flags, *(["--size", size] if size else []), "--out", tmp_path / "out"]
    done = call("prune.py", path, toy, "--rate", 0.5, "--mode", "none", *SHORT, *more)
    assert done.returncode == 0, done.stderr
    description = load_model(tmp_path / "out/round1/best.pt").description
    assert (description.preprocessing.size, description.training["view_size"]) == (size or 32, views)


def test_the_reference_mistake_changes_statistics_only_and_is_refused_in_fp16(
    call, refused, toy, tmp_path, monkeypatch
):
    command = ["experiments/benchmarks/reference_mistake.py", checkpoint(tmp_path, arguments=SMALL), toy]
    command += ["--rate", 0.5, *SHORT]
    with monkeypatch.context() as patch:
        # as on a GPU
        patch.setattr("experiments.benchmarks.reference_mistake.pick_precision", lambda name, device: "fp16")
        assert "cannot be repeated in fp16" in refused(*command, "--out", tmp_path / "fp16")
        assert not (tmp_path / "fp16").exists()
    assert call(*command, "--out", tmp_path / "trained").returncode == 0
    assert call("prune.py", *command[1:], "--mode", "none", "--out", tmp_path / "cut").returncode == 0
    trained, cut = (load_model(tmp_path / name / "round1/best.pt").state_dict for name in ("trained", "cut"))
    assert {name.rpartition(".")[2] for name in cut if not torch.equal(cut[name], trained[name])} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize("mode", ["finetune", "lowrank"])
def test_a_resumed_pruning_ends_with_bitwise_the_weights_of_an_uninterrupted_one(
    call, toy, tmp_path, monkeypatch, mode
):
    path = checkpoint(tmp_path, arguments=SMALL)
    rounds = ("--rate", 0.6, "--rounds", 2, "--mode", mode, "--seed", 3)
    command = ("prune.py", path, toy, *rounds, *SHORT, "--out")
    assert call(*command, tmp_path / "whole").returncode == 0
    steps, train_step = iter(range(1, 100)), Run.train_step

    def stopping(self, batch, *rest):
        train_step(self, batch, *rest)
        if next(steps) in (1, 8):  # in round 1, and behind it in round 2; epochs have two steps
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "train_step", stopping)
    stopped = call(*command, tmp_path / "parts")
    assert stopped.returncode == 128 + signal.SIGTERM
    assert call(*command, tmp_path / "parts", "--resume").returncode == 128 + signal.SIGTERM
    torch.rand(3)
    assert call(*command, tmp_path / "parts", "--resume").returncode == 0
    for index in (1, 2):
        whole, parts = (tmp_path / name / f"round{index}/best.pt" for name in ("whole", "parts"))
        assert same_weights(whole, parts)
    whole, parts = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "parts"))
    for row in whole["rounds"] + parts["rounds"]:
        for timed in (row, *row["history"]):
            del timed["seconds"]
    assert whole["rounds"] == parts["rounds"]


def test_mode_none_writes_the_cut_and_training_starts_from_it(call, toy, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    command = ("prune.py", path, toy, "--rate", 0.6, *SHORT)
    done = call(*command, "--mode", "none", "--out", tmp_path / "none")
    assert done.returncode == 0
    model = load_model(path)
    _, _, arguments, small = cut("student", model.build(), 0.6, model.description.arguments)
    written = load_model(tmp_path / "none" / "round1" / "best.pt")
    assert written.description.arguments["widths"] == arguments["widths"]
    assert all(torch.equal(value, written.state_dict[name]) for name, value in small.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "none" / "round1").iterdir()) == ["best.pt"]
    assert "so these are not used: batch_size, ema, epochs, precision" in done.stderr
    assert call(*command, "--recipe", "lr=1e-9", "--out", tmp_path / "slow").returncode == 0
    slow = load_model(tmp_path / "slow" / "round1" / "best.pt").state_dict
    assert all(torch.allclose(value, slow[name], atol=1e-6) for name, value in small.named_parameters())


@pytest.mark.parametrize(
    "name, arguments, size, rate", [("student", SMALL, 32, 0.1), ("group1mb_4", {"hidden": 0}, 64, 0.3)]
)
def test_rounds_go_on_where_a_depthwise_layer_has_one_channel_or_group_left(
    call, toy, tmp_path, name, arguments, size, rate
):
    rounds = ("--rate", rate, "--rounds", 3, "--mode", "none", "--out", tmp_path / "out")
    done = call("prune.py", checkpoint(tmp_path, name, arguments, size), toy, *rounds, *SHORT)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    planned = [row["parameters"] for row in record["plan"][1:]]
    assert [row["parameters"] for row in record["rounds"]] == planned
    last = record["rounds"][-1]["arguments"]
    assert last["widths"][:7] == [1] * 7 if name == "student" else last["separable"][:3] == [8] * 3


def test_retraining_forgets_the_weights_and_starts_from_the_seed(call, toy, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        network = random_network("student", **SMALL).float()
        network.fc[0].weight.mul_(1 + seed)  # other weights, the same gammas
        path = checkpoint(tmp_path, arguments=SMALL, network=network)
        command = ("prune.py", path, toy, "--rate", 0.6, "--mode", "retrain", *SHORT)
        assert call(*command, "--out", tmp_path / name).returncode == 0
    assert same_weights(tmp_path / "a/round1/best.pt", tmp_path / "b/round1/best.pt")


def test_a_dry_run_without_photos_ignores_the_teacher(call, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    done = call("prune.py", path, "--rate", 0.5, "--teacher", path, "--dry-run")
    assert done.returncode == 0 and "dry run" in done.stdout, done.stderr


def test_a_teacher_that_guesses_is_refused(call, toy, tmp_path):
    path, teacher = checkpoint(tmp_path, arguments=SMALL), tmp_path / "teacher.pt"
    command = ("prune.py", path, toy, "--rate", 0.5, "--teacher")
    assert "label_smoothing" in call(*command, path, "--recipe", "label_smoothing=0.1").stderr
    content = torch.load(path, weights_only=True)
    content["state_dict"]["fc.0.weight"].zero_()  # one class for every photo, whatever the photos
    torch.save(content, teacher)
    done = call(*command, teacher, "--out", tmp_path / "out", *SHORT)
    assert done.returncode == 2 and "the teacher" in done.stderr
    assert "always predicting the most frequent class" in done.stderr


def test_a_real_teacher_is_distilled_from_and_a_resumed_pruning_asks_it_at_the_same_size(
    call, toy, tmp_path, monkeypatch
):
    path, teacher = checkpoint(tmp_path, arguments=SMALL), tmp_path / "teacher.bin"
    network = random_network("resnet18").float()
    torch.save(network.state_dict(), teacher)
    monkeypatch.setattr(teachers, "check_teacher", lambda *arguments, **options: 0.5)
    command = ("prune.py", path, toy, "--rate", 0.5, "--teacher", teacher, "--out", tmp_path / "out")
    command += (*SHORT, "--recipe", "alpha=1")
    done = call(*command, "teacher_size=48")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    (teacher,) = record["teachers"]
    known = {"sha256": teacher["sha256"], "size": 48, "normalisation": teacher["normalisation"]}
    assert record["pruning"]["teachers"] == [known] and known["normalisation"] in ("unit", "imagenet")
    assert record["pruning"]["alpha"] == 1
    assert call(*command, "teacher_size=48", "--resume").returncode == 0
    other = call(*command, "teacher_size=64", "--resume")
    assert other.returncode == 2 and "teachers" in other.stderr
    (changed,) = {"unit", "imagenet"} - {known["normalisation"]}
    other = call(*command, "teacher_size=48", f"teacher_normalisation={changed}", "--resume")
    assert other.returncode == 2 and "teachers" in other.stderr


@pytest.mark.parametrize("setting", ["alpha=0.5", "temperature=2", "teacher_size=64"])
def test_settings_about_a_teacher_need_one(refused, toy, tmp_path, setting):
    command = ("prune.py", checkpoint(tmp_path, arguments=SMALL), toy, "--rate", 0.5, "--recipe")
    assert f"{setting.partition('=')[0]} goes with --teacher" in refused(*command, setting)


@pytest.mark.parametrize("what, target", [("parameters", 1500), ("bytes", 4700)])
def test_a_target_is_just_met_in_the_last_round(call, tmp_path, what, target):
    path = checkpoint(tmp_path, arguments=SMALL)
    shown = call("prune.py", path, "--target", f"{what}={target}", "--rounds", 2, "--dry-run")
    assert shown.returncode == 0, shown.stderr

    def plan(stdout):
        """[(share kept, parameters or bytes)] of the rounds."""
        rows = [line.split() for line in stdout.splitlines() if re.match(r" +[012] +[01]\.\d{4} ", line)]
        return [(float(row[1]), int(row[2 if what == "parameters" else 3].replace(",", ""))) for row in rows]

    kept, sizes = zip(*plan(shown.stdout))
    assert sizes[0] > sizes[1] >= sizes[2] and sizes[2] <= target  # torch.save pads to 64 bytes
    steps = sorted({count / width for width in (8, 12, 16) for count in range(1, width + 1)})
    larger = next(step for step in steps if step > kept[2] + 1e-4)
    assert plan(call("prune.py", path, "--rate", larger + 1e-9, "--dry-run").stdout)[1][1] > target


def test_the_penalty_is_an_option_and_an_older_run_without_it_can_be_resumed(call, toy, tmp_path):
    network = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32".split()
    command = ("train_student.py", toy, *network, "--out", tmp_path / "run", *SHORT)
    assert call(*command, "--recipe", "gamma_l1=0.01").returncode == 0
    assert json.loads((tmp_path / "run" / "record.json").read_text())["settings"]["gamma_l1"] == 0.01
    refused = call(*command, "--resume")
    assert refused.returncode == 2 and "gamma_l1 was 0.01" in refused.stderr
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del content["run"]["settings"]["gamma_l1"]
    torch.save(content, tmp_path / "run" / "last.pt")
    assert call(*command, "--resume").returncode == 0


def test_a_checkpoint_without_batch_norm_is_refused(refused, tmp_path, monkeypatch):
    class Plain(nn.Sequential):
        def __init__(self, num_classes=11, in_channels=3):
            super().__init__(
                nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
            )

    monkeypatch.setitem(models.ARCHITECTURES, "plain", Architecture(Plain, 32))
    assert "no BN" in refused("prune.py", checkpoint(tmp_path, "plain"), "--rate", 0.5, "--dry-run")


@pytest.mark.parametrize(
    "options, blamed",
    [
        (("--rate", 0), "above 0"),
        (("--rate", 1.5), "at most 1"),
        (("--rate", "nan"), "is not a number"),
        ((), "required"),
        (("--rate", 0.5, "--target", "bytes=5"), "not allowed"),
        (("--target", "parameters=100"), "floor"),
        (("--target", "bytes=1000"), "floor"),
        (("--target", "parameters=1000000"), "already met"),
        (("--target", "photos=3"), "neither parameters=N nor bytes=N"),
        (("--rate", 0.5, "--mode", "rewind"), "give both or neither"),
        (("--rate", 0.5, "--rewind-to", "x.pt"), "give both or neither"),
        (("--rate", 0.5, "--scope", "3-99"), "stages from 0 to 10"),
        (("--rate", 0.5, "--scope", "7"), "nothing to prune"),
        (("--rate", 0.5, "--scope", "x"), "list of stages"),
        (("--rate", 0.5, "--mode", "lowrank", "--recipe", "floor=2"), "floor"),
        (("--rate", 0.5, "--mode", "none", "--teacher", "x"), "--teacher"),
        (
            ("--target", "parameters=1500", "--recipe", "ranking=global", "--rounds", 2),
            "--target cannot foresee",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(refused, tmp_path, options, blamed):
    command = ("prune.py", checkpoint(tmp_path, arguments=SMALL), "--dry-run", "--out", tmp_path / "out")
    assert blamed in refused(*command, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong, advice, right",
    [
        (
            ("--rate", 0.3, "--mode", "lowrank", "--recipe", "floor=2"),
            "leave it out",
            ("--rate", 0.3, "--mode", "lowrank"),
        ),
        (
            ("--target", "parameters=1500", "--recipe", "ranking=global", "--rounds", 2),
            "use --rounds 1",
            ("--target", "parameters=1500", "--recipe", "ranking=global"),
        ),
        (
            ("--target", "parameters=1500", "--recipe", "ranking=global", "--rounds", 2),
            "or ranking=layer",
            ("--target", "parameters=1500", "--rounds", 2),
        ),
        (("--rate", 0.5, "--scope", "3-99"), "stages from 0 to 10", ("--rate", 0.5, "--scope", "3-10")),
        (("--rate", 0.5, "--scope", 7), "--scope all --dry-run shows", ("--rate", 0.5, "--scope", "all")),
    ],
)
def test_the_advice_of_a_refusal_works(call, refused, tmp_path, wrong, advice, right):
    path = checkpoint(tmp_path, arguments=SMALL)
    assert advice in refused("prune.py", path, *wrong, "--dry-run")
    assert call("prune.py", path, *right, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    "more, ways",
    [
        ((), "raise it\n"),
        (("--recipe", "floor=2"), "raise it or lower floor\n"),
        (("--scope", "3-6"), "raise it or widen --scope\n"),
    ],
)
def test_a_target_below_what_can_be_left_names_what_can(call, refused, tmp_path, more, ways):
    path = checkpoint(tmp_path, arguments=SMALL)
    sentence = refused("prune.py", path, "--target", "parameters=100", *more, "--dry-run")
    least = int(re.search(r"less than the ([\d,]+) parameters", sentence)[1].replace(",", ""))
    assert sentence.endswith(ways)
    assert call("prune.py", path, "--target", f"parameters={least}", *more, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    "more, way", [("--rate 1", "lower --rate"), ("--rate 0.5 --recipe floor=1000", "lower floor in --recipe")]
)
def test_a_round_that_removes_nothing_is_told(call, tmp_path, more, way):
    path = checkpoint(tmp_path, arguments=SMALL)
    done = call("prune.py", path, more, "--dry-run")
    assert done.returncode == 0 and f"removes nothing; {way} if" in done.stderr
    assert "nothing" not in call("prune.py", path, "--rate 0.5 --dry-run").stderr


def test_a_folded_network_is_refused_with_a_way_that_works(call, refused, tmp_path):
    assert call("quantize.py", checkpoint(tmp_path, arguments=SMALL), tmp_path / "model.bin").returncode == 0
    assert "or --mode lowrank" in refused("prune.py", tmp_path / "model.bin", "--rate", 0.5, "--dry-run")
    again = call("prune.py", tmp_path / "model.bin", "--mode", "lowrank", "--rate", 0.3, "--dry-run")
    assert again.returncode == 0


def test_the_data_is_needed_and_a_damaged_record_is_refused(refused, toy, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    assert "the data directory" in refused("prune.py", path, "--rate", 0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.json").write_text("{}")
    again = ("--out", tmp_path / "out", "--resume", *SHORT)
    assert "damaged" in refused("prune.py", path, toy, "--rate", 0.5, *again)


def test_a_training_run_and_a_pruning_do_not_overwrite_each_other(refused, call, toy, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    prune = ("prune.py", path, toy, "--rate", 0.6, "--mode", "none", *SHORT)
    train = ("train_student.py", toy, "--network", "student", "--size", 32, *SHORT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(path.read_bytes())
    assert "training run" in refused(*prune, "--out", tmp_path / "run")
    assert call(*prune, "--out", tmp_path / "out").returncode == 0
    record = (tmp_path / "out" / "record.json").read_bytes()
    assert "no last.pt" in call(*train, "--out", tmp_path / "out", "--resume").stderr
    assert (tmp_path / "out" / "record.json").read_bytes() == record
    assert not (tmp_path / "out" / "best.pt").exists()


def test_the_help_tells_what_a_dry_run_of_pruning_is(call):
    shown = " ".join(call("prune.py", "--help").stdout.split())
    assert "print the plan, then exit" in shown and "run two batches" not in shown


def test_the_real_command_line(run_script, tmp_path):
    shown = run_script("prune.py", checkpoint(tmp_path, "residual6"), "--rate", 0.5, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "constants dropped: zero padding of stem.3" in shown.stdout
    assert "kept: the network's output" in shown.stdout


def test_rewinding_starts_every_round_from_the_early_weights_of_the_channels_that_stay(call, toy, tmp_path):
    shape = "--network student --set widths=8,8,8,12,12,12,12,8 --set hidden=16 --size 32".split()
    keep = ("--recipe", "keep_epoch=1", "lr=0.05")
    assert call("train_student.py", toy, *shape, *SHORT, *keep, "--out", tmp_path / "base").returncode == 0
    early, best = load_model(tmp_path / "base/epoch1.pt"), load_model(tmp_path / "base/last.pt")
    command = ["prune.py", tmp_path / "base/last.pt", toy, "--rate", 0.5, "--mode", "rewind", *SHORT]
    command += ["--rewind-to", tmp_path / "base/epoch1.pt", "--recipe", "lr=1e-9", "--rounds"]
    done = call(*command, 2, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kept = None
    for index, start in ((1, best), (2, load_model(tmp_path / "whole/round1/best.pt"))):
        coupling = Coupling(best.build())
        chosen = choose(coupling, start.build(), 0.5**index)
        sets = [channels.name for channels in coupling.sets]
        now = {channels.name: indices for channels, indices in chosen.items()}
        kept = now if kept is None else {name: kept[name][now[name]] for name in now}
        assert set(kept) <= set(sets)
        pruned = load_model(tmp_path / f"whole/round{index}/best.pt").state_dict
        # a depthwise layer: its channels are those of one set
        for name in ("cnn.3.0.weight", "cnn.3.0.bias"):
            owner = next(channels for channels in coupling.sets if "cnn.3.0" in channels.through)
            assert torch.allclose(pruned[name], early.state_dict[name][kept[owner.name]], atol=1e-5), name
        assert torch.allclose(pruned["fc.7.bias"], early.state_dict["fc.7.bias"], atol=1e-5)
        assert not torch.allclose(pruned["fc.7.bias"], best.state_dict["fc.7.bias"], atol=1e-5)
    assert call(*command, 2, "--out", tmp_path / "parts", "--resume").returncode == 0
    record = json.loads((tmp_path / "parts/record.json").read_text())
    record["rounds"].pop()  # as if it had been killed between the rounds
    (tmp_path / "parts/record.json").write_text(json.dumps(record))
    for file in (tmp_path / "parts/round2").iterdir():
        file.unlink()
    assert call(*command, 2, "--out", tmp_path / "parts", "--resume").returncode == 0
    assert same_weights(tmp_path / "whole/round2/best.pt", tmp_path / "parts/round2/best.pt")


def test_rewinding_to_another_network_is_refused(refused, tmp_path):
    (tmp_path / "other").mkdir()
    path = checkpoint(tmp_path, arguments=SMALL)
    other = checkpoint(tmp_path / "other", arguments={**SMALL, "hidden": 8})
    more = ("--rate", 0.5, "--mode", "rewind", "--rewind-to", other, "--dry-run")
    assert "holds another network than" in refused("prune.py", path, *more)


def test_balanced_class_weights_are_for_labels_with_a_teacher_too(call, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "check_teacher", lambda *arguments, **options: 0.5)  # random weights
    seen, path = [], checkpoint(tmp_path, arguments=SMALL)
    original = losses.distillation_loss

    def noting(*arguments, **more):
        seen.append(more.get("class_weights"))
        return original(*arguments, **more)

    monkeypatch.setattr("compression.training.distillation.distillation_loss", noting)
    command = ("prune.py", path, toy, "--rate", 0.5, "--teacher", path, "--out", tmp_path / "out")
    done = call(*command, *SHORT, "--recipe", "class_weights=balanced")
    assert done.returncode == 0, done.stderr
    assert seen and all(torch.allclose(weights, torch.ones(11)) for weights in seen)  # the toy is balanced


def test_a_depthwise_layer_behind_a_grouped_one_keeps_the_unit():
    layers = []
    for conv in (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=8)):
        layers += [conv, nn.BatchNorm2d(8)]
    assert Coupling(nn.Sequential(*layers, nn.Conv2d(8, 2, 1)).eval()).sets[0].unit == 4


def test_a_unit_is_ranked_by_the_mean_of_its_channels():
    network = build("group1mb_4")
    coupling = Coupling(network)
    channels = next(one for one in coupling.sets if one.unit > 1 and not one.stays)
    gammas = torch.ones(channels.count)
    gammas[0], gammas[channels.unit + 1 : 2 * channels.unit] = 3, 2
    for name in channels.norms:
        network.get_submodule(name).weight.data = gammas
    found = scores(coupling, network, "abs-gamma")[channels]
    assert found[1] > found[0] > found[2]


def test_every_round_to_a_target_keeps_the_same_share(call, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    shown = call("prune.py", path, "--target parameters=1500 --rounds 3 --dry-run").stdout
    kept = [float(share) for share in re.findall(r"^ +[0-3] +([01]\.\d{4}) ", shown, re.MULTILINE)]
    assert kept == pytest.approx([kept[3] ** (index / 3) for index in range(4)], abs=2e-4) and kept[3] < 0.9


def test_random_channels_follow_from_the_seed_and_the_round(tmp_path):
    model = load_model(checkpoint(tmp_path, arguments=SMALL))

    def cut(seed, index):
        options = argparse.Namespace(scope="all", criterion="random", ranking="layer", floor=1, seed=seed)
        _, network = ByGamma(model, model.build(), options).cut(model, 0.5, index)
        return network.state_dict()["cnn.0.0.weight"]

    assert torch.equal(cut(0, 1), cut(0, 1))
    assert not torch.equal(cut(0, 1), cut(1, 1)) and not torch.equal(cut(0, 1), cut(0, 2))


def test_the_plan_shows_macs_at_the_size_it_prunes_for(call, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    for size in (32, 48):
        shown = call("prune.py", path, f"--rate 0.5 --size {size} --dry-run").stdout
        macs = int(re.search(r"^ +0 +1\.0000 .* ([\d,]+)$", shown, re.MULTILINE)[1].replace(",", ""))
        assert macs == count_macs("student", size, **load_model(path).description.arguments)


def test_a_target_of_global_ranking_is_met_to_the_channel(call, tmp_path):
    path = checkpoint(tmp_path, arguments=SMALL)
    model = load_model(path)
    options = argparse.Namespace(scope="all", criterion="abs-gamma", ranking="global", floor=1, seed=0)
    method = ByGamma(model, model.build(), options)
    total = sum(channels.count for channels in method.coupling.sets if not channels.stays)

    def plan(*choice):
        shown = call("prune.py", path, *choice, "--recipe ranking=global --dry-run").stdout
        share, parameters = re.search(r"^ +1 +([01]\.\d{4}) +([\d,]+) ", shown, re.MULTILINE).groups()
        return float(share), int(parameters.replace(",", ""))

    for target in range(1400, 1700, 150):
        share, parameters = plan(f"--target parameters={target}")
        assert parameters <= target < plan("--rate", (round(share * total) + 1) / total + 1e-9)[1]


def test_a_resumed_rewinding_needs_the_same_early_weights(call, refused, toy, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path, other = (checkpoint(tmp_path / name, arguments=SMALL, training={"script": name}) for name in "ab")
    command = [
        "prune.py",
        path,
        toy,
        "--rate 0.5 --mode rewind",
        *SHORT,
        "--out",
        tmp_path / "out",
        "--rewind-to",
    ]
    assert call(*command, path).returncode == 0
    assert call(*command, path, "--resume").returncode == 0
    refused(*command, other, "--resume", late=True)


def test_a_pruned_network_keeps_the_share_and_says_that_its_teacher_was_transductive(
    call, toy, tmp_path, monkeypatch
):
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *arguments, **more: 0.5)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = checkpoint(tmp_path / "a", arguments=SMALL, training={"validation_share": 0.25})
    teacher = checkpoint(tmp_path / "b", arguments=SMALL, training={"transductive": True})
    done = call("prune.py", path, toy, "--rate 0.5", *SHORT, "--teacher", teacher, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    description = load_model(tmp_path / "out/round1/best.pt").description
    assert description.training["transductive"] is True and description.validation_share == 0.25


def test_a_resumed_round_starts_from_the_accuracy_of_the_round_before(call, toy, tmp_path):
    command = ["prune.py", checkpoint(tmp_path, arguments=SMALL), toy, "--rate 0.6 --rounds 2 --mode none"]
    command += [*SHORT, "--out", tmp_path / "out"]
    assert call(*command).returncode == 0
    path = tmp_path / "out/record.json"
    record = json.loads(path.read_text())
    record["rounds"].pop()
    record["rounds"][0]["after_training"] = 0.123
    path.write_text(json.dumps(record))
    assert call(*command, "--resume").returncode == 0
    assert json.loads(path.read_text())["rounds"][1]["before_cut"] == 0.123
