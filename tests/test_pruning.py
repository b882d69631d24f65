"""Pruning: published counts, masked = compacted, coupling, criteria, the optimiser after a cut, and prune.py
end to end.
"""

import copy
import json
import os
import re
import shutil
import signal

import pytest
import torch
from conftest import generator, read_json, same_tensors
from torch import nn

import models
from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.pruning.channels import choose, compact, scores
from compression.pruning.coupling import NORMS, Coupling
from compression.training import losses, teachers
from compression.training.losses import Batch
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


def removed(channels, kept):
    """Mask of the channels of a set that are not kept."""
    return torch.ones(channels.count, dtype=torch.bool).index_fill(0, kept, False)


def images_for(name):
    """Photos of two levels of detail in float64, so different that deep random networks tell them apart."""
    size = min(ARCHITECTURES[name].size, 64)
    patches = 3 * torch.randn(2, 1 if name.startswith("fer") else 3, 4, 4, dtype=torch.float64)
    return nn.functional.interpolate(patches, size=(size, size)) + torch.randn(size, size)


def cut(name, network, fraction, arguments=None, **options):
    """(coupling, kept, arguments, network) after a cut to a fraction of the channels of now."""
    coupling = Coupling(network)
    kept = choose(coupling, network, fraction, [channels.count for channels in coupling.sets], **options)
    return coupling, kept, *compact(name, arguments or full_arguments(name), network, coupling, kept)


def masked(network, coupling, kept):
    """The network with gamma = 0 in all removed channels, and beta = 0 too where the plan says that constants
    are dropped.
    """
    network = copy.deepcopy(network)
    for channels, indices in kept.items():
        for norm in map(network.get_submodule, channels.norms):
            norm.weight[removed(channels, indices)] = 0
            if channels.dropped:
                norm.bias[removed(channels, indices)] = 0
    return network


# ---------------------------------------------------------------- published counts


@pytest.mark.parametrize("name, rate, counts", COUNTS)
def test_the_published_counts_round_by_round_from_the_pruned_network(name, rate, counts):
    network, arguments, originals = build(name).eval(), full_arguments(name), None
    for index, expected in enumerate(counts, 1):
        coupling = Coupling(network)
        originals = originals or [channels.count for channels in coupling.sets]
        kept = choose(coupling, network, rate**index, originals, scope={3, 4, 5, 6})
        arguments, network = compact(name, arguments, network, coupling, kept)
        assert count_parameters(network) == expected, f"round {index}"


@pytest.mark.parametrize("name, rate, counts", COUNTS[1::2])
def test_the_plan_shows_the_published_counts(ok, tmp_path, name, rate, counts):
    options = (f"--rate {rate} --rounds {len(counts)} --dry-run --scope", "stages 3-6")
    shown = ok("prune.py", checkpoint(tmp_path, name), *options, "--out", tmp_path / "out").stdout
    for index, count in enumerate(counts, 1):
        assert re.search(rf"^ +{index} .* {count:,} ", shown, re.MULTILINE)
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
    name = "residual6"
    shape = {"stem": (8, 16), "widths": (12, 12), "hidden": (20, 20), "pools": (0, 0), "head": 24}
    network = random_network(name, **shape)
    images = images_for(name)
    coupling, kept, arguments, small = cut(name, network, 0.75, full_arguments(name, **shape), scope={1})
    assert arguments["stem"] == [8, 12] and arguments["residual"] == [0, 1]
    assert (masked(network, coupling, kept)(images) - small(images)).abs().max() <= 1e-5
    with pytest.raises(UserError, match="residual"):
        build(name, **shape, residual=(1, 1))


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
    assert [channels.stays for channels in Coupling(Gated()).sets] == [
        *(f"passes through {name}, which pruning does not support" for name in ("mul", "cat", "avg_pool2d")),
        "the network's output",
    ]


def test_residual_additions_share_one_mask():
    sets = [set(channels.norms) for channels in Coupling(build("resnet18")).sets if len(channels.norms) > 1]
    assert sets == [
        {"bn1", "layer1.0.bn2", "layer1.1.bn2"},
        *({f"layer{i}.0.bn2", f"layer{i}.0.downsample.1", f"layer{i}.1.bn2"} for i in (2, 3, 4)),
    ]


def test_groups_are_removed_whole():
    coupling, kept, arguments, small = cut("group1mb_4", random_network("group1mb_4"), 0.7)
    assert [channels.unit for channels in kept] == [1, 1, 1, 8, 8, 8, 8]
    for channels, indices in kept.items():
        assert (indices.reshape(-1, channels.unit) // channels.unit).diff(dim=1).abs().sum() == 0
    assert arguments["convs"] == [11, 11, 22, 16] and arguments["separable"] == [40, 40, 56, 88]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("criterion, value", [("abs-gamma", torch.abs), ("signed-gamma", torch.clone)])
def test_the_kept_channels_have_the_largest_gammas(criterion, value):
    network = random_network("student")
    _, kept, _, small = cut("student", network, 0.5, criterion=criterion)
    for channels, indices in list(kept.items())[1:]:
        gammas = network.get_submodule(channels.norms[0]).weight
        assert value(gammas[indices]).min() > value(gammas[removed(channels, indices)]).max()
        assert torch.equal(small.get_submodule(channels.norms[0]).weight, gammas[indices])


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
    goes = torch.cat([found[channels][removed(channels, indices)] for channels, indices in kept.items()])
    assert stays.min() > goes.max()


@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize("floor", [1, 5])
def test_no_layer_falls_below_the_floor(ranking, floor):
    for name in ("student", "group1mb_3"):
        _, kept, _, small = cut(name, random_network(name), 1e-6, ranking=ranking, floor=floor)
        for channels, indices in kept.items():
            assert len(indices) == -(-floor // channels.unit) * channels.unit
        assert torch.isfinite(small(images_for(name))).all()


def test_chance_is_seeded():
    def chosen(seed):
        options = {"criterion": "random", "generator": generator(seed)}
        kept = cut("student", random_network("student"), 0.5, **options)[1]
        return [indices.tolist() for indices in kept.values()]

    assert chosen(0) == chosen(0) != chosen(1)


# ---------------------------------------------------------------- training after a cut


def step_after_cut(run):
    """The names of the network's parameters that one optimiser step left as they were."""
    before = {name: parameter.clone() for name, parameter in run.network.named_parameters()}
    run.train_step(Batch(torch.randn(8, 3, 32, 32), torch.arange(8) % 11, torch.arange(8), None))
    return [name for name, now in run.network.named_parameters() if torch.equal(now, before[name])]


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
        settings = Settings(gamma_l1=penalty, clip=1e9, ema=0)
        run = Run(copy.deepcopy(network), description, settings, 4, CPU)
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
SHORT = "--epochs 2 --recipe batch_size=16 precision=fp32 ema=0.5 --cache none --device cpu"


def checkpoint(folder, name="student", arguments=None, size=32, network=None, training=None):
    """A checkpoint file of a network with random BNs."""
    training = training or {"script": "test"}
    arguments = {"in_channels": 3, **(arguments or {})}
    description = Description.of(name, arguments, FOOD11_CLASSES, Preprocessing(size), training)
    network = network or random_network(name, **description.arguments).float()
    write_checkpoint(folder / f"{name}.pt", description, network.state_dict())
    return folder / f"{name}.pt"


@pytest.fixture
def narrow(tmp_path):
    """The checkpoint of a narrow student."""
    return checkpoint(tmp_path, arguments=SMALL)


@pytest.fixture
def no_check(monkeypatch):
    """Takes random weights for a teacher."""
    monkeypatch.setattr(teachers, "check_teacher", lambda *arguments, **options: 0.5)


def weights(path):
    return load_model(path).state_dict


def test_two_rounds_are_trained_and_recorded_and_the_result_is_quantized_and_predicts(
    ok, refused, toy, tmp_path, narrow
):
    out, model_file = tmp_path / "out", tmp_path / "model.bin"
    command = ("prune.py", narrow, toy, SHORT, "--rounds 2 --scope 3-6 --out", out)
    ok(*command, "--rate 0.7")
    record = read_json(out / "record.json")
    assert [row["arguments"]["widths"][3:7] for row in record["rounds"]] == [[8] * 4, [5] * 4]
    assert {"command", "commit", "seed", "versions", "plan"} <= record.keys()
    assert record["pruning"]["criterion"] == "abs-gamma"
    for index, row in enumerate(record["rounds"], 1):
        plan = record["plan"][index]
        trained = read_json(out / f"round{index}/record.json")
        model = load_model(out / f"round{index}/best.pt")
        assert count_parameters(model.build()) == row["parameters"] == plan["parameters"]
        assert row["bytes"] == plan["bytes"] and row["macs"] == plan["macs"]
        assert trained["best"]["validation_accuracy"] == row["after_training"]
        assert trained["history"] == row["history"] and len(row["history"]) == 2
    assert record["rounds"][1]["before_cut"] == record["rounds"][0]["after_training"]
    assert model.description.training["before"] == {"script": "test"}

    ok("quantize.py", out / "round2/best.pt", model_file, "--bits 8 --device cpu")
    assert model_file.stat().st_size <= row["bytes"]
    ok("inference.py", toy, tmp_path / "out.csv", "--model", model_file, "--device cpu")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 16

    assert "already holds a run" in refused(*command, "--rate 0.7")
    assert "kept was " in refused(*command, "--rate 0.6 --resume", late=True)
    ok(*command, "--rate 0.7 --resume")


@pytest.mark.parametrize(
    "options, size, views",
    [
        ("", 32, 24),
        ("--size 28", 28, 24),
        ("--size 20", 20, 20),
        ("--size 20 --recipe view_size=22", 20, 22),
        ("--size 20 --recipe augment=none", 20, 20),
    ],
)
def test_views_of_before_are_taken_over_where_they_are_no_larger_than_the_new_size(
    ok, toy, tmp_path, options, size, views
):
    path = checkpoint(tmp_path, arguments=SMALL, training={"view_size": 24})
    ok("prune.py", path, toy, f"--rate 0.5 --mode none {SHORT} {options} --out", tmp_path / "out")
    description = load_model(tmp_path / "out/round1/best.pt").description
    assert (description.preprocessing.size, description.training["view_size"]) == (size, views)


def test_the_reference_mistake_changes_statistics_only_and_is_refused_in_fp16(
    ok, refused, toy, tmp_path, monkeypatch, narrow
):
    script = "experiments/benchmarks/reference_mistake.py"
    command = (narrow, toy, "--rate 0.5", SHORT, "--out")
    with monkeypatch.context() as patch:
        # as on a GPU
        patch.setattr("experiments.benchmarks.reference_mistake.pick_precision", lambda name, device: "fp16")
        assert "cannot be repeated in fp16" in refused(script, *command, tmp_path / "fp16")
        assert not (tmp_path / "fp16").exists()
    ok(script, *command, tmp_path / "trained")
    ok("prune.py", *command, tmp_path / "cut", "--mode none")
    trained, cut = (weights(tmp_path / name / "round1/best.pt") for name in ("trained", "cut"))
    changed = {name.rpartition(".")[2] for name in cut if not torch.equal(cut[name], trained[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("mode", ["finetune", "lowrank"])
def test_a_resumed_pruning_ends_with_bitwise_the_weights_of_an_uninterrupted_one(
    call, ok, toy, tmp_path, monkeypatch, narrow, mode
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ("prune.py", narrow, toy, f"--rate 0.6 --rounds 2 --mode {mode} --seed 3", SHORT, "--out")
    ok(*command, whole)
    steps, train_step = iter(range(1, 100)), Run.train_step

    def stopping(self, batch, *rest):
        train_step(self, batch, *rest)
        if next(steps) in (1, 8):  # in round 1, and behind it in round 2; epochs have two steps
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "train_step", stopping)
    assert call(*command, parts).returncode == 128 + signal.SIGTERM
    assert call(*command, parts, "--resume").returncode == 128 + signal.SIGTERM
    torch.rand(3)
    ok(*command, parts, "--resume")
    for path in ("round1/best.pt", "round2/best.pt"):
        assert same_tensors(weights(whole / path), weights(parts / path))
    rounds = [read_json(out / "record.json")["rounds"] for out in (whole, parts)]
    for row in (*rounds[0], *rounds[1]):
        for timed in (row, *row["history"]):
            timed["seconds"] = 0
    assert rounds[0] == rounds[1]


def test_mode_none_writes_the_cut_and_training_starts_from_it(ok, toy, tmp_path, narrow):
    ok("prune.py", narrow, toy, SHORT, "--rate 0.6 --mode none --out", tmp_path / "none")
    model = load_model(narrow)
    written = load_model(tmp_path / "none/round1/best.pt")
    _, _, arguments, small = cut("student", model.build(), 0.6, model.description.arguments)
    assert written.description.arguments["widths"] == arguments["widths"]
    assert same_tensors(small.state_dict(), written.state_dict)
    assert [path.name for path in (tmp_path / "none/round1").iterdir()] == ["best.pt"]
    ok("prune.py", narrow, toy, SHORT, "--rate 0.6 --recipe lr=1e-9 --out", tmp_path / "slow")
    slow = weights(tmp_path / "slow/round1/best.pt")
    assert all(torch.allclose(value, slow[name], atol=1e-6) for name, value in small.named_parameters())


@pytest.mark.parametrize(
    "name, arguments, size, rate, widths, least",
    [
        ("student", SMALL, 32, 0.1, "widths", [1] * 7),
        ("group1mb_4", {"hidden": 0}, 64, 0.3, "separable", [8] * 3),
    ],
)
def test_rounds_go_on_where_a_depthwise_layer_has_one_channel_or_group_left(
    ok, toy, tmp_path, name, arguments, size, rate, widths, least
):
    path = checkpoint(tmp_path, name, arguments, size)
    ok("prune.py", path, toy, SHORT, f"--rate {rate} --rounds 3 --mode none --out", tmp_path / "out")
    record = read_json(tmp_path / "out/record.json")
    planned = [row["parameters"] for row in record["plan"][1:]]
    assert [row["parameters"] for row in record["rounds"]] == planned
    assert record["rounds"][-1]["arguments"][widths][: len(least)] == least


def test_retraining_forgets_the_weights_and_starts_from_the_seed(ok, toy, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        network = random_network("student", **SMALL).float()
        network.fc[0].weight.mul_(1 + seed)  # other weights, the same gammas
        path = checkpoint(tmp_path, arguments=SMALL, network=network)
        ok("prune.py", path, toy, SHORT, "--rate 0.6 --mode retrain --out", tmp_path / name)
    assert same_tensors(weights(tmp_path / "a/round1/best.pt"), weights(tmp_path / "b/round1/best.pt"))


def test_a_dry_run_without_photos_ignores_the_teacher(ok, narrow):
    assert "dry run" in ok("prune.py", narrow, "--rate 0.5 --dry-run --teacher", narrow).stdout


def test_a_teacher_that_guesses_is_refused(refused, toy, tmp_path, narrow):
    content = torch.load(narrow, weights_only=True)
    teacher = tmp_path / "teacher.pt"
    content["state_dict"]["fc.0.weight"].zero_()  # one class for every photo, whatever the photos
    torch.save(content, teacher)
    command = ("prune.py", narrow, toy, SHORT, "--rate 0.5 --out", tmp_path, "--teacher", teacher)
    sentence = refused(*command, late=True)
    assert "the teacher" in sentence and "always predicting the most frequent class" in sentence


def test_a_real_teacher_is_distilled_from_and_a_resumed_pruning_asks_it_at_the_same_size(
    ok, refused, toy, tmp_path, narrow, no_check
):
    teacher = tmp_path / "teacher.bin"
    torch.save(random_network("resnet18").float().state_dict(), teacher)
    command = ("prune.py", narrow, toy, "--rate 0.5 --teacher", teacher, SHORT, "--out", tmp_path / "out")
    ok(*command, "--recipe alpha=1 teacher_size=48")
    record = read_json(tmp_path / "out/record.json")
    assert record["pruning"]["teachers"] == [{"sha256": record["teachers"][0]["sha256"], "size": 48}]
    assert record["pruning"]["alpha"] == 1
    ok(*command, "--recipe alpha=1 teacher_size=48 --resume")
    assert "teachers" in refused(*command, "--recipe alpha=1 teacher_size=64 --resume", late=True)


@pytest.mark.parametrize("what, target, column", [("parameters", 1500, 2), ("bytes", 4700, 3)])
def test_a_target_is_just_met_in_the_last_round(ok, narrow, what, target, column):
    def plan(options):
        """[(share kept, parameters or bytes)] of the rounds."""
        lines = ok("prune.py", narrow, options, "--dry-run").stdout.splitlines()
        rows = [line.split() for line in lines if re.match(r" +[012] +[01]\.\d{4} ", line)]
        return [(float(row[1]), int(row[column].replace(",", ""))) for row in rows]

    kept, sizes = zip(*plan(f"--target {what}={target} --rounds 2"))
    assert sizes[0] > sizes[1] >= sizes[2] and sizes[2] <= target  # torch.save pads to 64 bytes
    steps = sorted({count / width for width in (8, 12, 16) for count in range(1, width + 1)})
    larger = next(step for step in steps if step > kept[2] + 1e-4)
    assert plan(f"--rate {larger + 1e-9}")[1][1] > target


def test_the_penalty_is_an_option_and_an_older_run_without_it_can_be_resumed(ok, refused, toy, tmp_path):
    run = tmp_path / "run"
    command = ("train_student.py", toy, "--network student --set widths=4,4,4,4,4,4,4,4 --size 32", SHORT)
    ok(*command, "--out", run, "--recipe gamma_l1=0.01")
    assert read_json(run / "record.json")["settings"]["gamma_l1"] == 0.01
    assert "gamma_l1 was 0.01" in refused(*command, "--out", run, "--resume", late=True)
    content = torch.load(run / "last.pt", weights_only=True)
    del content["run"]["settings"]["gamma_l1"]
    torch.save(content, run / "last.pt")
    ok(*command, "--out", run, "--resume")


def test_a_checkpoint_without_batch_norm_is_refused(refused, tmp_path, monkeypatch):
    class Plain(nn.Sequential):
        def __init__(self, num_classes=11, in_channels=3):
            pooling = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
            super().__init__(nn.Conv2d(in_channels, 4, 3), *pooling, nn.Linear(4, num_classes))

    monkeypatch.setitem(models.ARCHITECTURES, "plain", Architecture(Plain, 32, "test"))
    assert "no BN" in refused("prune.py", checkpoint(tmp_path, "plain"), "--rate 0.5 --dry-run")


@pytest.mark.parametrize(
    "options, blamed",
    [
        ("--rate 0", "above 0"),
        ("--rate 1.5", "at most 1"),
        ("--rate nan", "is not a number"),
        ("--dry-run", "required"),
        ("--rate 0.5 --target bytes=5", "not allowed"),
        ("--target bytes=1000", "floor"),
        ("--target parameters=1000000", "already met"),
        ("--target photos=3", "neither parameters=N nor bytes=N"),
        ("--rate 0.5 --mode rewind", "give both or neither"),
        ("--rate 0.5 --rewind-to x.pt", "give both or neither"),
        ("--rate 0.5 --scope x", "list of stages"),
        ("--rate 0.5 --mode none --teacher x", "--teacher"),
        ("--rate 0.5 --recipe alpha=0.5", "alpha goes with --teacher"),
        ("--rate 0.5 --recipe temperature=2", "temperature goes with --teacher"),
        ("--rate 0.5 --recipe teacher_size=64", "teacher_size goes with --teacher"),
        ("--rate 0.5 --teacher x --recipe label_smoothing=0.1", "label_smoothing"),
    ],
)
def test_what_cannot_be_is_one_sentence(refused, tmp_path, narrow, options, blamed):
    assert blamed in refused("prune.py", narrow, options, "--dry-run --out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong, advice, right",
    [
        ("--rate 0.3 --mode lowrank --recipe floor=2", "leave it out", "--rate 0.3 --mode lowrank"),
        (
            "--target parameters=1500 --rounds 2 --recipe ranking=global",
            "use --rounds 1",
            "--target parameters=1500 --rounds 1 --recipe ranking=global",
        ),
        (
            "--target parameters=1500 --rounds 2 --recipe ranking=global",
            "or ranking=layer",
            "--target parameters=1500 --rounds 2 --recipe ranking=layer",
        ),
        ("--rate 0.5 --scope 3-99", "stages 0-10", "--rate 0.5 --scope 3-10"),
        ("--rate 0.5 --scope 7", "nothing to prune.*--scope all --dry-run", "--rate 0.5 --scope all"),
    ],
)
def test_the_advice_of_a_refusal_works(ok, refused, narrow, wrong, advice, right):
    assert re.search(advice, refused("prune.py", narrow, wrong, "--dry-run"))
    ok("prune.py", narrow, right, "--dry-run")


@pytest.mark.parametrize(
    "more, ways",
    [
        ("--rounds 1", "raise it\n"),
        ("--recipe floor=2", "raise it or lower floor\n"),
        ("--scope 3-6", "raise it or widen --scope\n"),
    ],
)
def test_a_target_below_what_can_be_left_names_what_can(ok, refused, narrow, more, ways):
    sentence = refused("prune.py", narrow, "--target parameters=100 --dry-run", more)
    least = re.search(r"less than the ([\d,]+) parameters", sentence)[1].replace(",", "")
    assert sentence.endswith(ways)
    ok("prune.py", narrow, f"--target parameters={least} --dry-run", more)


def test_a_folded_network_is_refused_with_a_way_that_works(ok, refused, tmp_path, narrow):
    model_file = tmp_path / "model.bin"
    ok("quantize.py", narrow, model_file)
    assert "or --mode lowrank" in refused("prune.py", model_file, "--rate 0.5 --dry-run")
    ok("prune.py", model_file, "--mode lowrank --rate 0.3 --dry-run")


def test_the_data_is_needed_and_a_damaged_record_is_refused(refused, toy, tmp_path, narrow):
    assert "the data directory" in refused("prune.py", narrow, "--rate 0.5")
    (tmp_path / "record.json").write_text("{}")
    assert "damaged" in refused("prune.py", narrow, toy, SHORT, "--rate 0.5 --resume --out", tmp_path)


def test_a_training_run_and_a_pruning_do_not_overwrite_each_other(refused, ok, toy, tmp_path, narrow):
    run, out = tmp_path / "run", tmp_path / "out"
    prune = ("prune.py", narrow, toy, "--rate 0.6 --mode none", SHORT)
    run.mkdir()
    shutil.copy(narrow, run / "last.pt")
    assert "training run" in refused(*prune, "--out", run)
    ok(*prune, "--out", out)
    record = (out / "record.json").read_bytes()
    train = ("train_student.py", toy, "--network student --size 32 --resume", SHORT)
    assert "no last.pt" in refused(*train, "--out", out)
    assert (out / "record.json").read_bytes() == record and not (out / "best.pt").exists()


def test_the_real_command_line(run_script, tmp_path):
    shown = run_script("prune.py", checkpoint(tmp_path, "residual6"), "--rate 0.5 --dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "constants dropped: zero padding of stem.3" in shown.stdout
    assert "kept: the network's output" in shown.stdout


def test_rewinding_starts_every_round_from_the_early_weights_of_the_channels_that_stay(ok, toy, tmp_path):
    base, whole, parts = tmp_path / "base", tmp_path / "whole", tmp_path / "parts"
    shape = "--network student --set widths=8,8,8,12,12,12,12,8 --set hidden=16 --size 32"
    ok("train_student.py", toy, shape, SHORT, "--recipe keep_epoch=1 lr=0.05 --out", base)
    early, best = weights(base / "epoch1.pt"), load_model(base / "last.pt")
    command = ("prune.py", base / "last.pt", toy, "--rate 0.5 --rounds 2 --mode rewind", SHORT)
    command += ("--rewind-to", base / "epoch1.pt", "--recipe lr=1e-9 --out")
    ok(*command, whole)
    kept = None
    starts = (best, load_model(whole / "round1/best.pt"))
    for index, start in enumerate(starts, 1):
        network = start.build()
        coupling = Coupling(best.build()).carried_to(network)
        originals = [channels.count for channels in Coupling(best.build()).sets]
        chosen = choose(coupling, network, 0.5**index, originals)
        now = {channels.name: indices for channels, indices in chosen.items()}
        kept = now if kept is None else {name: kept[name][now[name]] for name in now}
        pruned = weights(whole / f"round{index}/best.pt")
        # a depthwise layer: its channels are those of one set
        owner = next(channels for channels in coupling.sets if "cnn.3.0" in channels.through)
        for name in ("cnn.3.0.weight", "cnn.3.0.bias"):
            assert torch.allclose(pruned[name], early[name][kept[owner.name]], atol=1e-5), name
        assert torch.allclose(pruned["fc.7.bias"], early["fc.7.bias"], atol=1e-5)
        assert not torch.allclose(pruned["fc.7.bias"], best.state_dict["fc.7.bias"], atol=1e-5)
    ok(*command, parts, "--resume")
    record = read_json(parts / "record.json")
    record["rounds"].pop()  # as if it had been killed between the rounds
    (parts / "record.json").write_text(json.dumps(record))
    for file in (parts / "round2").iterdir():
        file.unlink()
    ok(*command, parts, "--resume")
    assert same_tensors(weights(whole / "round2/best.pt"), weights(parts / "round2/best.pt"))


def test_rewinding_to_another_network_is_refused(refused, tmp_path, narrow):
    (tmp_path / "other").mkdir()
    other = checkpoint(tmp_path / "other", arguments={**SMALL, "hidden": 8})
    sentence = refused("prune.py", narrow, "--rate 0.5 --mode rewind --dry-run --rewind-to", other)
    assert "holds another network than" in sentence


def test_balanced_class_weights_are_for_labels_with_a_teacher_too(
    ok, toy, tmp_path, monkeypatch, narrow, no_check
):
    seen = []

    def noting(*arguments, **more):
        seen.append(more.get("class_weights"))
        return losses.distillation_loss(*arguments, **more)

    monkeypatch.setattr("compression.training.distillation.distillation_loss", noting)
    command = ("prune.py", narrow, toy, SHORT, "--rate 0.5 --recipe class_weights=balanced")
    ok(*command, "--teacher", narrow, "--out", tmp_path / "out")
    assert seen and all(torch.allclose(weights, torch.ones(11)) for weights in seen)  # the toy is balanced
