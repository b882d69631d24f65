"""The 2019 homework's CSV of grey faces: how it is read and split, grey views, and the whole pipeline on a
drawn one.
"""

import csv
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import generator, learn_by_heart, read_json, words, write_model
from PIL import Image

import train_student
from compression.command_line import UserError
from compression.data.augmentation import AUGMENTATIONS
from compression.data.decoding import decode_photo, resize_image
from compression.data.faces import FACE_CLASSES
from compression.data.inventory import check_photos
from compression.data.preprocessing import GREY, Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.training.run_folder import write_checkpoint
from compression.training.teachers import read_teacher
from dataset import join, list_labelled, list_testing, list_testing_beside, load_photos, photo_channels
from models import build
from train_kd import list_extra

PLAIN = Preprocessing(48, mean=(0,), std=(1,))  # values in [0, 1]
FER = "--size 48 --device cpu --epochs 2 --recipe batch_size=16 augment=none precision=fp32 ema=0.9 lr=0.01"
NARROW = {
    "fer_cnn": "--set widths=8,8,8 --set hidden=32,64",
    "fer_mobilenet": "--set widths=8,8,16,16 --set strides=2,1,2 --set dropouts=0,0,0,0",
}


def draw(count, seed):
    """Faces that are no faces: (uint8 (count, 48, 48), labels). A class is a level of grey, the classes take
    turns.
    """
    labels = np.arange(count) % 7
    noise = np.random.default_rng(seed).normal(0, 8, (count, 48, 48))
    return (20 + 35 * labels[:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def write(path, header, keys, pictures):
    rows = (f"{key},{' '.join(map(str, picture.ravel()))}\n" for key, picture in zip(keys, pictures))
    path.write_text(header + "\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folder with a train.csv of 210 faces and a test.csv of 21 with the ids 100, 101, ..."""
    root = tmp_path_factory.mktemp("faces")
    pictures, labels = draw(210, 0)
    write(root / "train.csv", "label,feature", labels, pictures)
    write(root / "test.csv", "id,feature", range(100, 121), draw(21, 1)[0])
    return root


@pytest.fixture(scope="module")
def listing(drawn):
    """The 21 validation faces."""
    return list_labelled(drawn, "validation")


@pytest.fixture(scope="module")
def trained(drawn, listing, tmp_path_factory):
    """best.pt of a narrow fer_cnn after a short training, and made to know the validation faces: a teacher
    better than guessing.
    """
    out = tmp_path_factory.mktemp("runs") / "fer_cnn"
    options = (FER, "--network fer_cnn", NARROW["fer_cnn"], "--out", out)
    assert train_student.main(list(words([drawn / "train.csv", *options]))) == 0
    model = load_model(out / "best.pt")
    network, preprocessing = model.build(), model.description.preprocessing
    learn_by_heart(network, preprocessing, load_photos(listing, preprocessing))
    write_checkpoint(out / "best.pt", model.description, network.state_dict())
    return out / "best.pt"


# ---------------------------------------------------------------- reading


def test_pixels_are_read_row_by_row_from_the_top_left(tmp_path):
    picture = (np.arange(48 * 48) % 251).reshape(1, 48, 48)
    path = write(tmp_path / "test.csv", "id,feature", [3], picture)
    photos = load_photos(list_testing(path), PLAIN).photos
    assert photos.shape == (1, 48, 48, 1) and photos.dtype == torch.uint8
    assert photos[0, 0, 1, 0] == 1 and photos[0, 1, 0, 0] == 48
    assert np.array_equal(photos[..., 0], picture)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n") + "\n",
        lambda text: text.rstrip("\n"),
        lambda text: '"' + text.rstrip("\n").replace(",", '","').replace("\n", '"\n"') + '"',
    ],
    ids=["line ends of Windows", "byte order mark", "blank lines", "no last line end", "quotes"],
)
def test_another_way_to_write_a_csv_changes_nothing(drawn, tmp_path, change):
    (tmp_path / "test.csv").write_bytes(change((drawn / "test.csv").read_text()).encode())
    same, listing = list_testing(drawn / "test.csv"), list_testing(tmp_path / "test.csv")
    assert np.array_equal(listing.faces, same.faces)
    assert (listing.ids, listing.fingerprint()) == (same.ids, same.fingerprint())


def test_labels_and_their_names(drawn):
    training = load_photos(list_labelled(drawn / "train.csv", "training"), PLAIN)
    assert training.class_names == ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
    assert torch.equal(training.labels, ((training.photos.float().mean((1, 2, 3)) - 20) / 35).round().long())


def test_testing_faces_come_in_ascending_order_of_their_ids(tmp_path):
    pictures, _ = draw(3, 0)
    listing = list_testing(write(tmp_path / "any.csv", "id,feature", [10, 9, 0], pictures))
    assert listing.ids == (0, 9, 10) and np.array_equal(listing.faces, pictures[::-1])
    assert list_testing(tmp_path / "any.csv", by_name=True).ids == ("0", "10", "9")


def test_a_folder_with_the_csvs_is_the_same_as_their_names(drawn, toy):
    for split in ("training", "validation"):
        listings = [list_labelled(root, split) for root in (drawn, drawn / "train.csv")]
        assert listings[0].fingerprint() == listings[1].fingerprint()
    assert list_testing(drawn).ids == tuple(range(100, 121))
    assert [photo_channels(root) for root in (drawn, drawn / "train.csv", toy)] == [1, 1, 3]


def test_csvs_in_a_root_of_photos_are_passed_over(toy, drawn, tmp_path):
    both = shutil.copytree(toy, tmp_path / "both")
    for name in ("train.csv", "test.csv"):
        shutil.copy(drawn / name, both / name)
    assert photo_channels(both) == 3
    assert len(list_labelled(both, "training")) == 44 and len(list_testing(both)) == 15


# ---------------------------------------------------------------- the split


def test_every_tenth_row_of_a_class_is_validation(drawn, listing, tmp_path):
    labels = [0] * 25 + [1] * 9 + [0] * 5 + [2] * 10
    pictures = np.zeros((len(labels), 48, 48), int)
    pictures[:, 0, 0] = np.arange(len(labels))  # the number of the row
    path = write(tmp_path / "train.csv", "label,feature", labels, pictures)
    listings = [list_labelled(path, split) for split in ("training", "validation")]
    training, validation = ([int(face[0, 0]) for face in one.faces] for one in listings)
    assert validation == [9, 19, 38, 48]  # the 30th of class 0 is row 38, class 1 has no 10th
    assert training == [row for row in range(len(labels)) if row not in validation]
    assert listings[0].labels == tuple(labels[row] for row in training)
    assert listings[1].labels == (0, 0, 0, 2)
    assert np.bincount(list_labelled(drawn, "training").labels).tolist() == [27] * 7
    assert np.bincount(listing.labels).tolist() == [3] * 7


def test_a_validation_csv_beside_the_training_csv_is_the_validation_part(drawn, tmp_path):
    shutil.copy(drawn / "train.csv", tmp_path / "train.csv")
    pictures, labels = draw(5, 2)
    write(tmp_path / "validation.csv", "label,feature", labels, pictures)
    assert len(list_labelled(tmp_path / "train.csv", "training")) == 210
    assert np.array_equal(list_labelled(tmp_path / "train.csv", "validation", FACE_CLASSES).faces, pictures)


def test_a_changed_pixel_or_label_is_another_fingerprint(drawn, tmp_path):
    pictures, labels = draw(70, 0)
    fingerprints = set()
    for row, change in ((0, 0), (0, 1), (1, 1)):
        pictures[row, 47, 47] ^= change
        for first in (0, 1):
            write(tmp_path / "train.csv", "label,feature", [first, *labels[1:]], pictures)
            fingerprints.add(list_labelled(tmp_path, "training").fingerprint())
    assert len(fingerprints) == 6


def test_copies_of_faces_and_missing_classes_are_told_with_their_places_in_the_file(tmp_path):
    pictures, labels = draw(70, 0)
    pictures[63], pictures[64] = pictures[7], pictures[1]  # of class 0, for validation; of class 1, as well

    def told():
        write(tmp_path / "train.csv", "label,feature", labels, pictures)
        lines, listings = [], [list_labelled(tmp_path, split) for split in ("training", "validation")]
        training, validation = (load_photos(listing, PLAIN) for listing in listings)
        check_photos(listings[0], training, listings[1], validation, lines.append)
        return lines[-1]

    assert "2 of 7 validation photos are copies" in told()
    assert "train.csv, face 64, a copy of train.csv, face 8" in told()
    labels[labels == 6] = 5
    with pytest.raises(UserError, match=r"train.csv has no readable photo of 1 of 7 classes \(Neutral\)"):
        told()


def test_the_testing_faces_are_recognised_among_the_unlabelled(drawn, toy):
    unlabelled = list_testing(drawn / "test.csv", by_name=True)
    assert set(unlabelled.labels) == {-1} and len(unlabelled) == 21
    for root in (drawn, drawn / "train.csv"):
        assert list_testing_beside(root).fingerprint() == unlabelled.fingerprint()
    assert len(list_testing_beside(toy)) == 15 and list_testing_beside(toy / "training") is None
    options = SimpleNamespace(unlabeled=drawn / "test.csv", data=drawn, validation_share=0.0)
    assert list_extra(options)[1] is True


def test_validation_faces_among_the_unlabelled_are_told(drawn, listing, capsys, tmp_path):
    pictures = [listing.faces[3], np.zeros((48, 48), np.uint8)]
    path = write(tmp_path / "more.csv", "id,feature", [5, 6], pictures)
    assert len(list_extra(SimpleNamespace(unlabeled=path, data=drawn, validation_share=0.0))[0]) == 2
    assert re.search(r"\b1 (validation )?faces", capsys.readouterr().err)


# ---------------------------------------------------------------- pixels to input


def test_a_face_keeps_its_pixels_at_48_and_is_resized_elsewhere(listing):
    for resize in ("crop", "squash", "course"):
        preprocessing = Preprocessing(48, resize, (0,), (1,))
        same = load_photos(listing, preprocessing)
        resized = resize_image(Image.fromarray(listing.faces[2]), preprocessing)
        assert np.array_equal(same.photos[2], resized)
    assert np.array_equal(same.photos[..., 0], listing.faces) and same.rows.tolist() == list(range(21))
    larger = load_photos(listing, Preprocessing(96, mean=(0,), std=(1,))).photos
    expected = Image.fromarray(listing.faces[3]).resize((96, 96), Image.BICUBIC)
    assert np.array_equal(larger[3, ..., 0], expected)
    padded = load_photos(listing, Preprocessing(64, "course", (0,), (1,))).photos
    assert np.array_equal(padded[:, 8:56, 8:56, 0], listing.faces) and padded[:, :8].max() == 0


def test_a_face_is_reduced_to_the_detail_at_any_size(listing):
    small = Image.fromarray(listing.faces[0]).resize((24, 24), Image.LANCZOS)
    for size in (48, 96):
        seen = load_photos(listing, Preprocessing(size, mean=(0,), std=(1,), detail=24)).photos
        assert np.array_equal(seen[0, ..., 0], small.resize((size, size), Image.BICUBIC))


def test_a_face_is_grey_for_an_rgb_network_and_a_photo_for_a_grey_one(listing, toy, tmp_path):
    rgb = load_photos(listing, Preprocessing(48)).photos
    assert np.array_equal(rgb, np.repeat(listing.faces[..., None], 3, 3))
    photo = next((toy / "testing").iterdir())
    expected = Image.fromarray(decode_photo(photo, Preprocessing(64, "course"))).convert("L")
    assert np.array_equal(decode_photo(photo, Preprocessing(64, "course", **GREY))[..., 0], expected)
    photos = list_labelled(toy, "validation")
    # one cache does not stand for the other
    for preprocessing in (Preprocessing(32, **GREY), Preprocessing(32)) * 2:
        assert load_photos(photos, preprocessing, tmp_path).photos.shape == (22, *preprocessing.shape)
    assert len(list(tmp_path.iterdir())) == 2
    both = join(load_photos(photos, PLAIN, False), load_photos(listing, PLAIN))
    assert both.photos.shape == (43, 48, 48, 1)


def test_a_face_needs_no_cache(listing, tmp_path):
    load_photos(listing, PLAIN, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_normalisation_of_grey():
    photos = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1)
    seen = Preprocessing(48, mean=(0.2,), std=(0.5,)).normalise(photos)
    torch.testing.assert_close(seen, torch.tensor([-0.4, 0.0, 1.6]).view(1, 1, 1, 3))


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_a_grey_view_is_the_view_of_the_same_photo_in_rgb(name):
    """Saturation and hue leave R = G = B as they are, so one channel is all of the RGB view."""
    photos = torch.randint(0, 256, (16, 48, 48, 1), dtype=torch.uint8, generator=generator(0))

    def view(channels):
        preprocessing = Preprocessing(48, mean=(0.4,) * channels, std=(0.3,) * channels)
        return AUGMENTATIONS[name](photos.expand(-1, -1, -1, channels), preprocessing, generator(1))

    grey = view(1)
    assert grey.shape == (16, 1, 48, 48)
    torch.testing.assert_close(grey.expand(-1, 3, -1, -1), view(3), rtol=0, atol=1e-3)
    assert grey.min() >= -0.4 / 0.3 - 1e-6 and grey.max() <= 0.6 / 0.3 + 1e-6


# ---------------------------------------------------------------- the command lines


def test_from_the_csv_to_the_prediction(drawn, trained, ok, tmp_path):
    """Teacher, distilled student, model file, CSV: the commands of the README."""
    train, test = drawn / "train.csv", drawn / "test.csv"
    kd, model_file = tmp_path / "kd", tmp_path / "fer.bin"
    record = read_json(trained.with_name("record.json"))
    assert record["photos"] == {"training": 189, "validation": 21}
    assert record["model"]["arguments"]["in_channels"] == 1
    assert record["model"]["preprocessing"]["mean"] == [0.5]

    network = ("--network fer_mobilenet", NARROW["fer_mobilenet"])
    command = ("train_kd.py", train, FER, *network, "--recipe temperature=2.5 --teacher", trained)
    assert "transductive" in ok(*command, "--unlabeled", test, "--out", kd).stderr
    training = load_model(kd / "best.pt").description.training
    assert training["temperature"] == 2.5 and training["unlabelled_photos"] == 21
    assert training["transductive"] is True
    assert read_json(kd / "record.json")["teachers"][0]["validation_accuracy"] == 1

    done = ok("quantize.py", kd / "best.pt", model_file, "--device cpu --data", train)
    assert re.search(r"validation accuracy [\d.]+ -> [\d.]+ on 21 photos", done.stdout)

    command = ("inference.py", test, tmp_path / "out.csv", "--model", model_file)
    assert "21 photos" in ok(*command, "--batch-size 4 --top-k 2", tmp_path / "top.csv").stdout
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert rows.pop(0) == ["id", "label"] and [row[0] for row in rows] == [str(100 + n) for n in range(21)]
    model = load_model(model_file)
    preprocessing = model.description.preprocessing
    logits = model.build()(preprocessing.normalise(load_photos(list_testing(drawn), preprocessing).photos))
    assert [int(label) for _, label in rows] == logits.argmax(1).tolist()
    top = list(csv.DictReader((tmp_path / "top.csv").open()))
    assert [FACE_CLASSES[int(label)] for _, label in rows] == [row["class_1"] for row in top]
    assert top[0]["id"] == "100"


def test_a_network_of_grey_faces_predicts_photos_too(toy, trained, ok, tmp_path):
    ok("inference.py", toy, tmp_path / "out.csv", "--device cpu --model", trained)
    assert (tmp_path / "out.csv").read_text().startswith("Id,label\n0,")


def test_any_network_trains_on_faces_and_the_2019_networks_on_photos(drawn, toy, ok, tmp_path):
    for data, network in (
        (drawn, "--network student --size 32 --set widths=8,8,8,8,8,8"),
        (toy, f"--network fer_mobilenet --size 48 {NARROW['fer_mobilenet']}"),
    ):
        command = ("train_student.py", data, network, "--cache none --dry-run --device cpu --out")
        assert "dry run of two steps is fine" in ok(*command, tmp_path / "run").stdout


def test_a_teacher_of_rgb_photos_is_refused_for_faces_and_one_of_grey_photos_for_rgb(
    drawn, toy, refused, tmp_path
):
    for data, channels, classes, wanted in ((drawn, 3, 7, 1), (toy, 1, 11, 3)):
        teacher = tmp_path / "teacher.bin"
        torch.save(build("resnet18", num_classes=classes, in_channels=channels).state_dict(), teacher)
        command = ("train_kd.py", data, FER, "--cache none --out", tmp_path / "run", "--teacher", teacher)
        sentence = refused(*command, late=True)
        assert f"teacher.bin takes {channels} channel(s) and the photos have {wanted}" in sentence


def test_a_resnet18_of_grey_faces_sees_values_from_0_to_1(tmp_path):
    network = build("resnet18", num_classes=7, in_channels=1).eval()
    seen = Preprocessing(48, **GREY)
    torch.save(network.state_dict(), tmp_path / "teacher.bin")
    teacher = read_teacher(tmp_path / "teacher.bin", FACE_CLASSES, torch.device("cpu"), channels=1, size=48)
    photos = torch.randint(0, 256, (2, 48, 48, 1), dtype=torch.uint8)
    logits = teacher.logits(seen.normalise(photos), seen)
    expected = network(PLAIN.normalise(photos))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("argument", ["in_channels=3", "num_classes=7"])
def test_what_follows_from_the_faces_cannot_be_set(drawn, refused, tmp_path, argument):
    command = ("train_student.py", drawn, f"--network fer_cnn --set {argument} --out", tmp_path / "run")
    assert "follow from the photos" in refused(*command)


def test_a_file_whose_network_and_preprocessing_disagree_is_refused(drawn, refused, tmp_path):
    description = Description.of("fer_mobilenet", {"in_channels": 3}, FACE_CLASSES, PLAIN)
    path = write_model(tmp_path / "model.bin", description, build("fer_mobilenet", in_channels=3))
    assert "cannot read grey photos" in refused("inference.py", drawn, tmp_path / "out.csv", "--model", path)


# ---------------------------------------------------------------- bad input


FACE = " ".join(["7"] * 2304)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is no CSV of label,feature"),
        ("label,feature\n", "has no rows"),
        (f"id,feature\n0,{FACE}\n", "the header id,feature"),
        (f"0,{FACE}\n1,{FACE}\n", "label,feature"),
        (f"label,feature\n0,{FACE}\n", "no class with ten faces"),
        (f"label,feature\n0,{FACE}\n1,{FACE} 7\n", "face 2 of"),
        (f"label,feature\n\n0,{FACE[:-2]}\n", "face 1 of"),
        ("label,feature\n0,\n", "is not 48 x 48 whole numbers from 0 to 255"),
        *(
            (f"label,feature\n0,{pixel}{FACE[1:]}\n", "is not 48 x 48 whole numbers")
            for pixel in ("256", "-1", str(2**64 + 7), "7.5", "x")
        ),
        (f"label,feature\n{FACE}\n", "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,{FACE},Training\n", "is no CSV of label,feature"),
        (f"label,feature\n0,{FACE}\n7,{FACE}\n", "has the label '7', which is not 0 to 6"),
        (f"label,feature\n-1,{FACE}\n", "has the label '-1'"),
        (f"label,feature\n,{FACE}\n", "has the label ''"),
        (f"label,feature\n{'9' * 5000},{FACE}\n", "has the label '999"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is no CSV of label,feature"),
        ("label,feature\n0,7 7".encode("utf-16"), "is no CSV of label,feature"),
    ],
)
def test_a_bad_training_csv_is_refused(refused, tmp_path, content, message):
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ("train_student.py", path, "--network fer_mobilenet --size 48 --device cpu --out")
    sentence = refused(*command, tmp_path / "run")
    assert message in sentence and str(path) in sentence and len(sentence) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content, flags, message",
    [
        (f"label,feature\n0,{FACE}\n", "", "the header label,feature"),
        (
            f"id,feature\n4,{FACE}\n5,{FACE}\n4,{FACE}\n",
            "",
            "has the id '4', which is no whole number or the id of an earlier face too",
        ),
        (f"id,feature\n04,{FACE}\n4,{FACE}\n", "", "of an earlier face too; correct it, or predict with"),
        (f"id,feature\na,{FACE}\n", "", "has the id 'a', which is no whole number"),
        (f"id,feature\n,{FACE}\n", "--ids names", "the id '', which is empty"),
        (f"id,feature\n0,{FACE} 1\n", "", "is not 48 x 48 whole numbers"),
    ],
)
def test_a_bad_testing_csv_is_refused(ok, refused, trained, tmp_path, content, flags, message):
    path, out = tmp_path / "test.csv", tmp_path / "out.csv"
    path.write_text(content)
    sentence = refused("inference.py", path, out, f"--device cpu {flags} --model", trained)
    assert message in sentence and str(path) in sentence and not out.exists()
    if "'a'" in message:  # as the message says
        ok("inference.py", path, out, "--ids names --model", trained)


def test_a_missing_csv_is_told(refused, trained, tmp_path):
    told = "cannot be read (No such file or directory)"
    assert told in refused("train_student.py", tmp_path / "train.csv", "--out", tmp_path / "run")
    assert told in refused("inference.py", tmp_path / "test.csv", tmp_path / "out.csv", "--model", trained)


def test_a_network_of_other_classes_is_not_measured_on_faces(drawn, refused, small_model, tmp_path):
    train, out = drawn / "train.csv", tmp_path / "out.bin"
    sentence = refused("quantize.py", small_model, out, "--device cpu --data", train)
    assert f"class Angry of the faces in {train}" in sentence
    assert f"of the model {small_model} (Bread, " in sentence and not out.exists()


def test_labels_are_those_of_a_network_whose_classes_have_another_order(drawn, listing):
    told = []
    backwards = list_labelled(drawn, "validation", FACE_CLASSES[::-1])
    assert backwards.labels == tuple(6 - label for label in listing.labels)
    assert backwards.class_names == FACE_CLASSES[::-1]
    unnamed = list_labelled(drawn, "validation", [f"class {label}" for label in range(7)], log=told.append)
    assert unnamed.labels == listing.labels and unnamed.class_names == FACE_CLASSES and len(told) == 1


def test_the_prediction_does_not_overwrite_the_faces(drawn, refused, trained, tmp_path):
    path = shutil.copy(drawn / "test.csv", tmp_path / "test.csv")
    for data in (tmp_path, path):
        assert "named twice" in refused("inference.py", data, path, "--model", trained)
    assert "named twice" in refused("quantize.py", trained, path, "--data", path)
    assert path.read_bytes() == (drawn / "test.csv").read_bytes()
