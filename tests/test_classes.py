"""Classes are compared by name wherever data meets a model: the rules of names, and every script on photos
that it is right about.

The pictures are labelled as one network predicts them, so that its accuracy is 1 under right labels and no
other ones.
"""

import shutil
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from conftest import read_json

from compression.command_line import UserError
from compression.data.classes import FOOD11_CLASSES, class_numbers, in_class_order, match
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import CHECKPOINT_FORMAT, VERSION
from compression.training.teachers import read_teacher
from dataset import list_labelled, list_testing, load_photos
from models import build

KAGGLE = [name.replace("/", "-") for name in FOOD11_CLASSES]
NUMBERS = [str(label) for label in range(11)]
BY_TEXT = sorted(NUMBERS)  # 0, 1, 10, 2, ...: what other programs call class folders' order
DISHES = [f"dish {label}" for label in range(11)]
NOTHING = "nothing to do"


def matched(names, others, log=None):
    return match(names, "the photos", others, "the model m", NOTHING, log or pytest.fail)


# ---------------------------------------------------------------- names


def test_the_same_names_in_another_order_are_a_permutation():
    assert matched(["soup", "tea", "rice"], ["rice", "soup", "tea"]) == (1, 2, 0)
    assert matched(["soup"], ["rice", "soup"]) == (1,)


@pytest.mark.parametrize(
    "name, other",
    [
        (unicodedata.normalize("NFD", "Crème brûlée"), "Crème brûlée"),
        (" tea ", "tea"),
        ("tea\N{NO-BREAK SPACE}", "tea"),
        ("Noodles-Pasta", "Noodles/Pasta"),
        ("Noodles_Pasta", "Noodles-Pasta"),
        ("007", "7"),
    ],
)
def test_names_of_one_class(name, other):
    assert matched([name, "rice"], ["rice", other]) == (1, 0) == matched(["rice", other], [name, "rice"])


@pytest.mark.parametrize("name", ["Tea", "te a", "tea\N{ZERO WIDTH SPACE}", "t\N{CYRILLIC SMALL LETTER IE}a"])
def test_names_of_other_classes(name):
    with pytest.raises(UserError, match="of the photos .* is none of the classes of the model m .*; nothing"):
        matched([name, "rice"], ["rice", "tea"])


def test_two_names_of_one_class_are_refused_and_exact_names_come_first():
    with pytest.raises(UserError, match="classes a-b and a_b of the photos are the same class of the model"):
        matched(["a-b", "a_b"], ["c", "a/b"])
    assert matched(["a-b", "a_b"], ["a_b", "a-b"]) == (1, 0)
    with pytest.raises(UserError, match="a-b and a_b are the same class of the folders; put them into"):
        in_class_order(["a-b", "a_b", "c"], "the folders")


def test_numbers_are_food_11s_and_that_is_told():
    told = []
    assert matched(["10", "03"], FOOD11_CLASSES, told.append) == (10, 3)
    assert told == ["note: the photos and the model m are matched by class number, as in Food-11: 3 is Egg"]
    positions = BY_TEXT.index("9"), BY_TEXT.index("6")
    assert matched(["Soup", "Noodles_Pasta"], BY_TEXT, told.append) == positions
    assert len(told) == 2 and told[0] == told[1]
    for names, others in ((["11"], FOOD11_CLASSES), (["Soup"], NUMBERS[:10]), (["1", "0"], ["tea", "rice"])):
        with pytest.raises(UserError, match="is none of"):
            matched(names, others)


def test_classes_without_names_are_matched_by_position_and_that_is_told():
    told, anonymous = [], ["class 0", "class 1", "class 2"]
    assert matched(["tea", "rice", "soup"], anonymous, told.append) == (0, 1, 2)
    assert matched(anonymous, ["tea", "rice", "soup"], told.append) == (0, 1, 2)
    assert all("same order, tea, rice, soup" in text or "same order, class 0" in text for text in told)
    assert len(told) == 2
    assert matched(["2", "0", "1"], anonymous, told.append) == (2, 0, 1)
    assert told[-1].endswith("by class number")
    assert matched(anonymous[::-1], anonymous) == (2, 1, 0), "names of one kind need no assumption"
    with pytest.raises(UserError, match="is none of"):
        matched(["tea", "rice"], anonymous)


def test_numbers_that_names_stand_for():
    assert class_numbers(KAGGLE[::-1]) == tuple(range(10, -1, -1))
    assert class_numbers(["00", "02", "01"]) == (0, 2, 1) == class_numbers(["class 0", "class 2", "class 1"])
    assert class_numbers(["1", "2", "3"]) is None and class_numbers(["tea", "rice"]) is None
    assert class_numbers(KAGGLE[1:]) is None


# ---------------------------------------------------------------- folders


def folders(root, *names, split="training"):
    for name in names:
        (root / split / name).mkdir(parents=True)
        (root / split / name / "a.jpg").touch()
    return root


def labels_of(listing):
    return {path.parent.name: label for path, label in zip(listing.paths, listing.labels)}


@pytest.mark.parametrize("names", [NUMBERS, [f"{label:02}" for label in range(11)]])
def test_folders_0_to_10_have_their_numbers_as_labels(tmp_path, names):
    listing = list_labelled(folders(tmp_path, *names), "training")
    assert labels_of(listing) == {name: int(name) for name in names} and listing.class_names == tuple(names)


def test_folders_of_other_whole_numbers_are_in_the_order_of_their_values(tmp_path):
    assert list_labelled(folders(tmp_path, "10", "9", "100"), "training").class_names == ("9", "10", "100")


def test_folders_of_all_of_food_11_have_its_names_and_a_part_of_it_its_own(tmp_path):
    listing = list_labelled(folders(tmp_path / "all", *KAGGLE), "training")
    assert listing.class_names == FOOD11_CLASSES
    assert labels_of(listing) == {name: label for label, name in enumerate(KAGGLE)}
    part = list_labelled(folders(tmp_path / "part", *KAGGLE[6:9]), "training")
    assert part.class_names == ("Noodles-Pasta", "Rice", "Seafood")
    numbered = tmp_path / "part/validation"
    numbered.mkdir()
    (numbered / "7_1.jpg").touch()
    assert list_labelled(tmp_path / "part", "validation", part.class_names).labels == (1,)
    (numbered / "0_1.jpg").touch()
    told = (
        r"class Bread of the photos in .*part, named <class>_<index>.jpg as Food-11's, \(Bread, Rice\) is "
        r"none of the classes of the model m \(Noodles-Pasta, Rice, Seafood\)"
    )
    with pytest.raises(UserError, match=told):
        list_labelled(tmp_path / "part", "validation", part.class_names, whose="the model m")


def test_two_folders_of_one_class_are_refused(tmp_path):
    folders(tmp_path, "tea", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    with pytest.raises(UserError, match="cafe\u0301 and caf\xe9 are the same class of the class folders"):
        list_labelled(tmp_path, "training")


def test_folders_for_a_model_without_names_keep_their_names(tmp_path):
    told, unnamed = [], ("class 0", "class 1")
    listing = list_labelled(folders(tmp_path, "soup", "tea"), "training", unnamed, log=told.append)
    assert listing.class_names == ("soup", "tea") and labels_of(listing) == {"soup": 0, "tea": 1}
    assert "same order, soup, tea" in told[0]
    folders(tmp_path, "1", split="validation")
    listing = list_labelled(tmp_path, "validation", unnamed, log=told.append)
    assert listing.labels == (1,) and told[1].endswith("by class number")


# ---------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def made(small_network, toy, tmp_path_factory):
    """`layout(kind)` is a root of photos that are labelled as the network predicts them, in files named
    <class>_<index>.jpg ("files") or in folders of these names; `model(names)` the same network in a
    checkpoint with the classes in this order.
    """
    description, network = small_network
    root = tmp_path_factory.mktemp("labelled")
    photos = load_photos(list_testing(toy), description.preprocessing, cache=False)
    predicted = network(description.preprocessing.normalise(photos.photos)).argmax(1).tolist()
    assert len(set(predicted)) > 2

    def layout(kind):
        place = root / (kind if kind == "files" else kind[3])
        for split in ("training", "validation") if not place.exists() else ():
            paths, labels = list_testing(toy).paths, predicted
            if split == "training":  # needs a photo of every class
                paths, labels = (*paths, *list_testing(toy).paths[:11]), [*labels, *range(11)]
            for index, (path, label) in enumerate(zip(paths, labels)):
                name = f"{label}_{index}.jpg" if kind == "files" else f"{kind[label]}/{index}.jpg"
                target = place / split / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return place

    def model(names, number_of):
        """number_of: Food-11's number of each name."""
        path = root / f"{len(list(root.iterdir()))}.pt"
        state = dict(network.state_dict())
        for name in ("fc.7.weight", "fc.7.bias"):
            state[name] = state[name][number_of]
        named = Description.of("student", description.arguments, names, description.preprocessing).to_dict()
        torch.save({"format": CHECKPOINT_FORMAT, "version": VERSION, **named, "state_dict": state}, path)
        return path

    return SimpleNamespace(layout=layout, model=model)


MODELS = {
    "Food-11": (FOOD11_CLASSES, list(range(11))),
    "Food-11 backwards": (FOOD11_CLASSES[::-1], list(range(10, -1, -1))),
    "folders": (sorted(KAGGLE, key=str.lower, reverse=True), list(range(10, -1, -1))),
    "numbers by text": (BY_TEXT, list(map(int, BY_TEXT))),
}


@pytest.mark.parametrize("kind", ["files", KAGGLE, NUMBERS], ids=["files", "Kaggle's", "numbers"])
@pytest.mark.parametrize("named", MODELS)
def test_every_script_finds_a_models_classes_in_photos_of_every_layout(made, ok, tmp_path, kind, named):
    model, teacher, data = made.model(*MODELS[named]), made.model(*MODELS["Food-11"]), made.layout(kind)
    out, common = tmp_path / "out.json", "--cache none --device cpu"
    done = ok("evaluate.py", model, data, common, f"--record {out} --teacher {teacher}")
    record = read_json(out)
    assert record["accuracy"] == 1 == record["agreement"]["validation"]
    assert set(record["class_accuracy"].values()) <= {1, None}
    assert ("by class number" in done.stderr) == ("by text" in named or kind is NUMBERS)
    ok("quantize.py", model, tmp_path / "out.bin", common, f"--data {data} --bits 16 --record {out}")
    assert read_json(out)["validation_accuracy_before"] == 1
    done = ok("prune.py", model, data, common, f"--mode none --rate 0.9 --out {tmp_path}/pruned")
    assert read_json(tmp_path / "pruned/record.json")["validation_accuracy"] == 1
    assert done.stderr.count("note:") <= 1, "both splits give one note"


def test_photos_of_other_classes_are_refused_with_the_right_sides(made, refused, toy, tmp_path):
    others = tmp_path / "others"
    for split in ("training", "validation"):
        for name in ("tea", "Soup"):
            (others / split / name).mkdir(parents=True)
            shutil.copy(next((toy / "training").iterdir()), others / split / name)
    model, common = made.model(*MODELS["Food-11"]), "--device cpu --cache none"
    wrong = f"class tea of the class folders of {others} (Soup, tea) is none of the classes of"
    for command in (
        ("evaluate.py", model, others),
        ("quantize.py", model, tmp_path / "out.bin", "--data", others),
        ("prune.py", model, others, "--rate 0.5 --out", tmp_path / "pruned"),
    ):
        assert f"{wrong} the model {model} (Bread, Dairy" in refused(*command, common)
    shutil.move(others / "training/tea", others / "training/Rice")
    text = refused("train_student.py", others, "--out", tmp_path / "run", common)
    assert f"{wrong} the training photos (Rice, Soup)" in text


def test_a_teacher_of_classes_in_another_order_gives_its_logits_in_the_students(made, small_network):
    network, cpu = small_network[1], torch.device("cpu")
    seen = Preprocessing(32)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for named in MODELS.values():
        teacher = read_teacher(made.model(*named), FOOD11_CLASSES, cpu)
        assert torch.allclose(teacher.logits(images, seen), network(images), atol=1e-4), named
        assert (teacher.order is None) == (named == MODELS["Food-11"])


@pytest.mark.parametrize("named", MODELS)
def test_distilling_finds_a_teacher_right_whatever_its_order(made, ok, tmp_path, named):
    teacher, student = made.model(*MODELS[named]), made.model(*MODELS["folders"])
    common = f"--cache none --device cpu --dry-run --out {tmp_path}/run --teacher {teacher}"
    for options in ("--size 32", f"--init {student} --qat-bits 8"):
        done = ok("train_kd.py", made.layout("files"), options, common)
        assert f"teacher {teacher}: validation accuracy 1.0000" in done.stdout


def test_a_bare_teacher_is_matched_by_position_and_that_is_told(tmp_path, capsys):
    path = tmp_path / "t.bin"
    torch.save(build("resnet18", num_classes=3).state_dict(), path)
    assert read_teacher(path, ("tea", "rice", "soup"), torch.device("cpu"), size=32).order is None
    told = f"the teacher {path} are assumed to be in the same order, tea, rice, soup"
    assert told in capsys.readouterr().err


def test_a_teacher_of_other_names_is_refused_with_the_right_sides(made, tmp_path):
    model = made.model(*MODELS["Food-11"])
    told = r"class Tea of the photos \(Dessert, .*, Tea\) is none of the classes of the teacher .* \(Bread, "
    with pytest.raises(UserError, match=told):
        read_teacher(model, (*FOOD11_CLASSES[2:], "Bread", "Tea"), torch.device("cpu"))


@pytest.mark.parametrize("names", [FOOD11_CLASSES, KAGGLE, NUMBERS, DISHES])
def test_labels_of_the_csv_are_class_numbers_or_have_a_legend(made, ok, toy, tmp_path, names):
    """A network whose classes are stored backwards writes the same numbers where names tell them."""
    rows, legend = [], names is DISHES
    for order in (list(range(11)), list(range(10, -1, -1))):
        model = made.model([names[number] for number in order], order)
        common = f"--model {model} --max-bytes 10000000 --device cpu"
        told = ok("inference.py", toy, tmp_path / "out.csv", common).stdout
        assert ("0 = dish 0" in told or "0 = dish 10" in told) == legend
        assert ("--label names" in told) == legend
        rows.append((tmp_path / "out.csv").read_text())
        ok("inference.py", toy, tmp_path / "names.csv", common, "--label names")
        rows.append((tmp_path / "names.csv").read_text())
    numbers, written, backwards, written_again = rows
    assert (numbers == backwards) != legend and written == written_again
    pairs = zip(numbers.splitlines()[1:], written.splitlines()[1:], strict=True)
    assert all(line == f"{row.split(',')[0]},{names[int(row.split(',')[1])]}" for row, line in pairs)


def test_training_on_folders_0_to_10_predicts_the_folders_numbers(ok, toy, tmp_path):
    """What the network learns in one step does not matter: its file has the classes in the order of their
    numbers.
    """
    for split in ("training", "validation"):
        for path in (toy / split).iterdir():
            target = tmp_path / "data" / split / path.name.split("_")[0] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    network = "--network student --size 16 --set widths=4,4,4,4,4,4,4,4 --epochs 1"
    ok("train_student.py", tmp_path / "data", network, f"--out {tmp_path}/run --device cpu --cache none")
    assert load_model(tmp_path / "run/best.pt").description.class_names == tuple(NUMBERS)
