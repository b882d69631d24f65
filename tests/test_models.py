"""models.py: exact parameter counts, the course's key names, errors, MACs, teachers, the planner's command
line.
"""

import json
import os
import re

import pytest
import torch
from conftest import ROOT, same_tensors
from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import encode, predicted_file_bytes, sizes, to_bytes
from compression.quantization.grids import Scheme
from dataset import FOOD11_CLASSES
from experiments.comparisons import SIZES
from models import ARCHITECTURES, CODED, SHIPPED, build, count_macs, count_parameters, plan, widest

PEER_STUDENT = ROOT.parent / "shared" / "peer_models" / "fp32_legacy.bin"
STUDENT_WIDTHS = (16, 32, 64, 128, 256, 256, 256, 256)
WIDE8 = (24, 48, 96, 96, 192, 192, 192, 192)


def count(name, **arguments):
    with torch.device("meta"):  # shapes are enough
        return count_parameters(build(name, **arguments))


@pytest.mark.parametrize(
    "name, parameters, size",
    [
        ("student", 256_779, 256),
        ("deep13", 186_123, 192),
        ("wide8", 198_955, 192),
        ("slim9", 144_389, 192),
        ("resnet18", 11_182_155, 224),
        ("plain_student", 2_233_995, 256),
        ("cnn120k", 120_859, 64),
        ("cnn1mb", 242_203, 64),
        ("dw1mb_3", 161_819, 64),
        ("dw1mb_4", 239_899, 64),
        ("group1mb_3", 163_259, 64),
        ("group1mb_4", 237_043, 64),
        ("fer_cnn", 4_038_279, 48),
        ("fer_mobilenet", 93_139, 48),
    ],
)
def test_parameter_count_and_input_size_are_the_published_ones(name, parameters, size):
    assert (count(name), ARCHITECTURES[name].size) == (parameters, size)


# ---------------------------------------------------------------- parameter counts


def test_mobilenet_v2_is_torchvisions_without_its_last_convolution():
    setting = [[1, 16, 1, 2], [6, 32, 2, 2], [6, 64, 2, 2], [4, 128, 1, 1]]
    reference = MobileNetV2(11, inverted_residual_setting=setting)
    reference.features, reference.classifier[1] = reference.features[:-1], nn.Linear(128, 11)
    ours = build("mobilenet_v2")
    images = torch.rand(2, 3, 64, 64)
    ours.load_state_dict(dict(zip(ours.state_dict(), reference.state_dict().values(), strict=True)))
    assert torch.equal(ours.eval()(images), reference.eval()(images))


def groups(name, **arguments):
    convs = (module for module in build(name, **arguments).modules() if isinstance(module, nn.Conv2d))
    return [conv.groups for conv in convs]


@pytest.mark.parametrize(
    "group_width, parameters", [(1, 161_819), (2, 163_259), (4, 166_139), (8, 171_899), (0, 243_323)]
)
def test_1mb_net_of_three_blocks_with_other_groups(group_width, parameters):
    assert count("dw1mb_3", group_width=group_width) == parameters


@pytest.mark.parametrize("group_width, wanted", [(1, [32, 64, 64]), (2, [16, 32, 32]), (0, [1, 1, 1])])
def test_group_width_sets_the_groups_of_every_separable_block(group_width, wanted):
    first, second, third = wanted
    assert groups("dw1mb_3", group_width=group_width) == [1, 1, 1, 1, first, 1, second, 1, third, 1]


def test_groups_of_the_grouped_1mb_net_with_four_blocks():
    assert [count for count in groups("group1mb_4") if count > 1] == [4, 8, 8, 11]


@pytest.mark.parametrize(
    "name, original, rate, counts",
    [
        ("student", STUDENT_WIDTHS, 0.95, [256_779, 236_066, 217_850, 200_354, 185_091, 171_606]),
        ("student", STUDENT_WIDTHS, 0.90, [256_779, 216_518, 183_578, 156_084, 132_858, 114_810]),
        ("wide8", WIDE8, 0.95, [198_955, 186_750, 176_052, 166_041, 157_357, 148_993]),
        ("wide8", WIDE8, 0.85, [198_955, 164_802, 138_988, 119_492, 105_529, 94_212, 85_495, 78_612]),
    ],
)
def test_pruned_widths_give_the_published_counts(name, original, rate, counts):
    for rounds, expected in enumerate(counts):
        pruned = [int(width * rate**rounds) for width in original[3:7]]
        assert count(name, widths=(*original[:3], *pruned, original[7])) == expected, f"round {rounds}"


def test_count_parameters_leaves_out_the_statistics_of_batch_norm():
    assert count_parameters(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) == (3 * 2 + 2) + (2 + 2)


# ---------------------------------------------------------------- shape of the networks


def test_student_has_the_keys_of_the_course():
    keys = list(build("student").state_dict())
    assert len(keys) == 72
    kinds = "weight|bias|running_mean|running_var|num_batches_tracked"
    assert all(re.fullmatch(rf"cnn\.[0-7]\.[013]\.({kinds})|fc\.0\.(weight|bias)", key) for key in keys)


@pytest.mark.skipif(not PEER_STUDENT.is_file(), reason=f"the course's model file {PEER_STUDENT} is not here")
def test_student_file_of_the_course_loads_strictly():
    student = build("student")
    state = torch.load(PEER_STUDENT, map_location="cpu", weights_only=True)
    student.load_state_dict(state, strict=True)
    assert same_tensors(student.state_dict(), state)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("in_channels", [3, 1])
def test_every_network_gives_finite_logits_for_other_classes_and_channels(name, in_channels):
    torch.manual_seed(0)
    network = build(name, num_classes=5, in_channels=in_channels)
    images = torch.rand(2, in_channels, *[min(ARCHITECTURES[name].size, 64)] * 2)
    with torch.no_grad():
        for training in (True, False):
            logits = network.train(training)(images)
            assert logits.shape == (2, 5)
            assert torch.isfinite(logits).all()


def test_swish_begins_at_the_stage_asked_for():
    stages = build("wide8").cnn
    assert [type(stage[2]) for stage in stages[:8]] == [nn.ReLU6] * 5 + [nn.SiLU] * 3


def test_first_four_stages_of_the_student_are_closed_by_pooling_and_nothing_follows_a_pointwise():
    stages = build("student").cnn
    assert [isinstance(stage[-1], nn.MaxPool2d) for stage in stages[:8]] == [True] * 4 + [False] * 4
    assert all(isinstance(stage[3], nn.Conv2d) and stage[3].kernel_size == (1, 1) for stage in stages[1:8])


@pytest.mark.parametrize(
    "name, arguments, blamed",
    [
        ("studnet", {}, "studnet"),
        ("student", {"width": (16, 32)}, "width"),
        ("resnet18", {"widths": (16, 32)}, "widths"),
    ],
)
def test_unknown_name_or_argument_is_named(name, arguments, blamed):
    with pytest.raises(UserError, match=blamed):
        build(name, **arguments)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("student", {"widths": ()}),
        ("student", {"widths": 16}),
        ("student", {"widths": "wide"}),
        ("student", {"widths": (16, -32, 64)}),
        ("student", {"widths": (16, 0, 64)}),
        ("student", {"widths": (16, 32.5)}),
        ("student", {"widths": (10**12, 10**12)}),
        ("student", {"num_classes": 0}),
        ("student", {"in_channels": 0}),
        ("wide8", {"hidden": -5}),
        ("dw1mb_3", {"group_width": 3}),
        ("dw1mb_3", {"group_width": 64}),
        ("fer_mobilenet", {"widths": (8, 8, 8, 8, 8, 8, 8, 8, 16)}),  # more widths than strides
        ("fer_mobilenet", {"strides": (1, 2)}),
        ("fer_mobilenet", {"dropouts": ()}),
        ("residual6", {"widths": (8, 8)}),  # fewer widths than the other per-block lists
        ("residual6", {"dropout": 2.0}),
        ("cnn1mb", {"convs": ()}),
        ("fer_cnn", {"widths": ()}),
    ],
)
def test_impossible_shape_is_a_user_error(name, arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        build(name, **arguments)


# ---------------------------------------------------------------- multiply-accumulates


def test_macs_of_a_two_stage_student_by_hand():
    stem = 16 * 16 * 4 * 3 * 9
    depthwise, pointwise = 8 * 8 * 4 * 9, 8 * 8 * 4 * 8
    assert count_macs("student", size=16, widths=(4, 8)) == stem + depthwise + pointwise + 8 * 11


@pytest.mark.parametrize("name", ["student", "group1mb_4", "fer_mobilenet", "resnet18", "residual6"])
def test_macs_agree_with_a_count_layer_by_layer(name):
    total = 0

    def add(module, inputs, output):
        nonlocal total
        total += module.weight[0].numel() * output.numel()  # one weight row per output value

    with torch.device("meta"):
        network = build(name).eval()
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(add)
        network(torch.empty(1, 1 if name.startswith("fer") else 3, *[ARCHITECTURES[name].size] * 2))
    assert count_macs(name) == total


# ---------------------------------------------------------------- teachers


@pytest.fixture(scope="module")
def teacher_state():
    torch.manual_seed(0)
    return build("resnet18").state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype, prefix", [(torch.float32, ""), (torch.float16, "module.")])
def test_teacher_file_of_every_kind_loads(teacher_state, tmp_path, legacy, dtype, prefix):
    path = tmp_path / "teacher.bin"
    floats = {key: value.to(dtype) for key, value in teacher_state.items() if value.is_floating_point()}
    stored = {prefix + key: value for key, value in (teacher_state | floats).items()}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    teacher = load_model(path).build()
    assert not teacher.training
    rounded = teacher_state | {key: value.float() for key, value in floats.items()}
    assert same_tensors(teacher.state_dict(), rounded)


def test_teacher_with_other_classes_and_channels_gives_its_own_logits(tmp_path):
    original = build("resnet18", num_classes=4, in_channels=1).eval()
    torch.save(original.state_dict(), tmp_path / "teacher.bin")
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "teacher.bin").build()(images), original(images))


def refuse(path, match=None):
    with pytest.raises(UserError, match=match) as caught:
        load_model(path, what="teacher file").build()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_teacher_file_cut_anywhere_is_refused(teacher_state, tmp_path, legacy):
    path = tmp_path / "teacher.bin"
    state = {key: value.half() for key, value in teacher_state.items()}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    for keep in (path.stat().st_size - 1, path.stat().st_size // 2, 1000, 10):
        os.truncate(path, keep)
        refuse(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teacher_with_a_value_that_is_not_finite_is_refused(teacher_state, tmp_path, value):
    damaged = teacher_state["layer1.0.bn1.running_var"].clone()
    damaged[3] = value
    torch.save({**teacher_state, "layer1.0.bn1.running_var": damaged}, tmp_path / "teacher.bin")
    refuse(tmp_path / "teacher.bin", "not finite")


def test_teacher_that_lacks_a_layer_is_refused(teacher_state, tmp_path):
    rest = {key: value for key, value in teacher_state.items() if not key.startswith("layer4.1.conv2")}
    torch.save(rest, tmp_path / "teacher.bin")
    refuse(tmp_path / "teacher.bin", "those of")


@pytest.mark.parametrize(
    "content",
    [
        *([], {}, "text", torch.zeros(3), {"epoch": 3}, {1: torch.zeros(3)}),
        {"state_dict": {"fc.weight": torch.zeros(11, 512)}},
        {"fc.weight": torch.tensor(1.0), "conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"fc.weight": torch.zeros(11, 512), "conv1.weight": torch.tensor(1.0)},
        {"fc.weight": torch.zeros(0, 512), "conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"fc.weight": torch.zeros(11, 512), "conv1.weight": torch.zeros(64, 0, 7, 7)},
    ],
)
def test_torch_file_that_holds_no_teacher_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "teacher.bin")
    refuse(tmp_path / "teacher.bin")


# ---------------------------------------------------------------- the planner


def test_plan_of_the_student_fits_the_homework_at_8_bits_only():
    row = plan("student")
    assert row["parameters"] == 256_779
    assert row["bytes"][4] < row["bytes"][6] < row["bytes"][8] <= 300_000 < row["bytes"][16]
    # without gamma and beta
    assert row["bytes"][16] >= 2 * (256_779 - 2 * sum((16, *(16, 32, 64, 128, 256, 256, 256))))
    assert row["bytes"][4] < 0.6 * row["bytes"][8]


def test_a_planned_file_is_never_far_from_the_file_itself():
    network = build("student", folded=True)
    description = Description.of("student", {"folded": True}, FOOD11_CLASSES, Preprocessing(256))
    for bits, planned in plan("student")["bytes"].items():
        content = encode(description, network.state_dict(), Scheme(bits, "channel", "mse"))
        assert abs(planned - (len(to_bytes(content)) + sizes(content).packed - sizes(content).coded)) < 500


def test_command_line_shows_one_network(run_script):
    shown = run_script("models.py", "--only student")
    assert shown.returncode == 0, shown.stderr
    header, row = shown.stdout.splitlines()
    assert row.split()[:3] == ["student", "256", "256,779"]
    assert [cell.endswith("*") for cell in row.split()[4:]] == [False, True, True, True]


def test_command_line_error_is_one_line_and_status_2(run_script):
    shown = run_script("models.py", "--only student --set width=16,32")
    assert shown.returncode == 2 and len(shown.stderr.splitlines()) == 1
    assert shown.stderr.startswith("models.py: error: ") and "'width'" in shown.stderr


def test_set_changes_the_network_shown(ok):
    shown = ok("models.py", "--only student --set widths=16,32,64 --set num_classes=5 --max-bytes 1000000")
    row = shown.stdout.splitlines()[1]
    assert f"{count('student', widths=(16, 32, 64), num_classes=5):,}" in row.split()
    assert row.count("*") == 4


@pytest.mark.parametrize(
    "options",
    [
        "--set widths=16,32",
        "--only studnet",
        "--only student --set widths",
        "--only student --set widths=wide",
        "--only student --set =3",
        "--only student --set widths=__import__('os')",
        "--only student --set num_classes=0",
        "--only student --set hidden=x=3",
        "--only student --set ranks={[1]:2}",
        "--only residual6 --set pools=1,1,1,1,1,1",
        "--only mobilenet_v2 --set strides=0,2,2,1",
    ],
)
def test_wrong_set_or_name_is_a_user_error(refused, options):
    assert "error: " in refused("models.py", options)


def test_a_list_of_one_number_is_written_as_the_message_says(ok, refused):
    assert "widths=16,32,64" in refused("models.py", "--only student --set widths=16")
    for widths in ("16,32,64", "16,"):
        ok("models.py", f"--only student --set widths={widths}")


def test_a_network_of_more_layers_than_any_in_the_field_is_refused_before_it_is_built():
    with pytest.raises(UserError, match="at most 100 numbers"):
        build("student", widths=(1,) * 101)


# ---------------------------------------------------------------- the width for so many bytes


def test_the_shipped_network_is_the_widest_for_300_000_bytes():
    shipped = load_model(ROOT / "model.bin").description.arguments
    assert widest(300_000, FOOD11_CLASSES) == SHIPPED
    assert all(
        shipped[key] == (list(value) if type(value) is tuple else value) for key, value in SHIPPED.items()
    )


def test_the_recorded_sizes_are_those_of_the_planner():
    for size, shape in SIZES.items():
        arguments = widest(1000 * size, FOOD11_CLASSES)
        texts = (",".join(map(str, arguments[key])) for key in ("stem", "widths", "hidden"))
        assert (*texts, arguments["head"]) == shape


@pytest.mark.parametrize("record", ["model.json", "model_9866.json", "sizes/stored_25-seed0.json"])
def test_recorded_files_are_as_large_as_the_planner_expects(record):
    """The trained files took 94 to 101 % of it."""
    record = json.loads((ROOT / "results" / record).read_text())
    description = Description.from_dict(record["model"], "record")
    expected = predicted_file_bytes(description, Scheme(3, "channel", "mse"), CODED)
    assert 0.93 * expected < record["file_bytes"] < 1.02 * expected


@pytest.mark.parametrize("limit", [20_000, 100_000, 1_000_000])
def test_the_widest_network_fills_its_bytes(limit):
    arguments = widest(limit, FOOD11_CLASSES)
    description = Description.of("residual6", arguments, FOOD11_CLASSES, Preprocessing())
    assert 0.9 * limit < predicted_file_bytes(description, Scheme(3, "channel", "mse"), CODED) < limit


def test_more_classes_leave_less_for_the_rest():
    names = [f"class number {index}" for index in range(1000)]
    assert widest(300_000, names)["head"] < SHIPPED["head"]
    with pytest.raises(UserError, match="for 1000 classes takes about .* raise it"):
        widest(20_000, names)


def test_widest_prints_options_that_training_takes(toy, ok, refused, tmp_path):
    found = ok("models.py", "--max-bytes 30000 --widest", toy)
    shown = ok("train_student.py", toy, "--dry-run --size 32", found.stdout, "--out", tmp_path / "run").stdout
    (parameters,) = re.findall(r"([\d,]+) parameters; no run was written", shown)
    assert f"with {parameters} parameters for 11 classes" in found.stderr
    assert "leave --only and --set out" in refused("models.py", "--only student --widest", toy)
    assert "raise it" in refused("models.py", "--max-bytes 3000 --widest", toy)
    assert "lower --max-bytes" in refused("models.py", f"--max-bytes {10**20} --widest", toy)
    assert "there is no folder" in refused("models.py", "--widest", tmp_path / "none")


@pytest.mark.parametrize("arguments", [{"head": 0}, {"stem": (16, 0)}])
def test_a_network_with_an_empty_layer_is_refused(arguments):
    with pytest.raises(UserError, match="cannot be built with"):
        build("residual6", **arguments)
