"""What is told before a training: photos per class, copies, contradictory labels, layouts, and the split of
--validation-share.
"""

import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from compression.command_line import UserError
from compression.data.inventory import check_photos, find_copies
from compression.data.preprocessing import Preprocessing
from dataset import Listing, PhotoSet, list_labelled, list_testing, load_photos, split_off

SMALL = Preprocessing(size=16)


def photo(path, seed):
    """A file of noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def tree(root, **classes):
    """root/training and root/validation with so many photos a class: tree(root, tea=(3, 1))."""
    for number, (name, counts) in enumerate(classes.items()):
        for split, count in zip(("training", "validation"), counts):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                seed = 1000 * number + 100 * (split == "validation") + index
                photo(root / split / name / f"{index}.jpg", seed)
    return root


def told(root):
    """What check_photos prints for a root."""
    lines, training = [], list_labelled(root, "training")
    validation = list_labelled(root, "validation", training.class_names)
    load = functools.partial(load_photos, preprocessing=SMALL, cache=False, log=lambda text: None)
    check_photos(training, load(training), validation, load(validation), lines.append)
    return "\n".join(lines)


def test_the_table_counts_read_truncated_and_left_out_photos(tmp_path):
    root = tree(tmp_path, soup=(3, 1), tea=(2, 2))
    (root / "training/soup/0.jpg").write_bytes((root / "training/soup/0.jpg").read_bytes()[:-200])
    (root / "training/tea/9.jpg").write_bytes(b"no photo")
    rows = {line.split()[0]: line.split()[1:] for line in told(root).splitlines()}
    assert rows["soup"] == ["3", "1", "0", "1", "0", "0"] and rows["tea"] == ["2", "0", "1", "2", "0", "0"]
    assert rows["all"][-6:] == ["5", "1", "1", "3", "0", "0"]


def test_of_many_classes_the_smallest_and_the_largest_are_shown(tmp_path):
    root = tree(tmp_path, **{f"class{index:02}": (1 + (index == 7) * 2, 1) for index in range(22)})
    text = told(root)
    assert "class07" in text and "all 22 classes" in text and len(text.splitlines()) < 12


def test_a_training_class_without_a_readable_photo_is_an_error_and_a_validation_class_a_warning(tmp_path):
    root = tree(tmp_path, soup=(2, 1), tea=(1, 1))
    (root / "training/tea/0.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"no readable photo of 1 of 2 classes \(tea\)"):
        told(root)
    photo(root / "training/tea/0.jpg", 5)
    (root / "validation/soup/0.jpg").unlink()
    (root / "validation/soup/1.jpg").write_bytes(b"no photo")
    assert "no readable photo of 1 of 2 classes (soup): the validation accuracy does not cover" in told(root)


def test_copies_of_training_photos_in_validation_are_counted_by_content(tmp_path):
    root = tree(tmp_path, soup=(3, 2), tea=(3, 2))
    assert "copies" not in told(root)
    shutil.copy(root / "training/soup/1.jpg", root / "validation/soup/other name.jpg")
    text = told(root)
    assert "1 of 5 validation photos are copies" in text
    assert "validation/soup/other name.jpg, a copy of training/soup/1.jpg" in text
    assert "with another label" not in text


def test_one_photo_under_two_labels_is_warned_about_on_either_side(tmp_path):
    root = tree(tmp_path, soup=(3, 1), tea=(3, 1))
    shutil.copy(root / "training/soup/2.jpg", root / "training/tea/7.jpg")
    shutil.copy(root / "training/soup/0.jpg", root / "validation/tea/8.jpg")
    assert "2 photos also appear with another label" in told(root)


def test_photos_that_differ_in_one_pixel_are_no_copies():
    pixels = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    pixels[1:3, 3, 5, 0] = 1
    training = PhotoSet(pixels, torch.arange(4), torch.zeros(4, dtype=torch.int64), ("a", "b"), "x")
    pixels = torch.cat([torch.full_like(pixels[:1], 2), pixels])  # of which the first is not readable
    validation = replace(training, photos=pixels[:3], rows=torch.tensor([1, 2]), labels=torch.zeros(2))
    twins, copies = find_copies(training, validation)
    assert twins.tolist() == [0, 1, 1, 0] and copies.tolist() == [0, 1]
    other = replace(validation, rows=torch.tensor([0]), labels=torch.zeros(1))
    assert find_copies(training, other)[1].tolist() == [-1]


def test_the_split_takes_a_share_of_every_class_the_same_way_each_time(tmp_path):
    root = tree(tmp_path, soup=(10, 0), tea=(5, 0), wine=(2, 0), milk=(1, 0))
    shutil.rmtree(root / "validation")
    splits = ("training", "validation")
    training, validation = (list_labelled(root, split, validation_share=0.2) for split in splits)
    assert [validation.labels.count(label) for label in range(4)] == [0, 2, 1, 1], "milk, soup, tea, wine"
    assert not set(training.paths) & set(validation.paths) and len(training) + len(validation) == 18
    assert split_off(list_labelled(root, "training"), 0.2)["validation"].paths == validation.paths


def test_a_share_beside_a_validation_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="validation photos of its own"):
        list_labelled(tree(tmp_path, soup=(2, 1), tea=(2, 1)), "training", validation_share=0.2)


def test_scripts_after_the_training_set_the_same_photos_apart(toy, call, tmp_path):
    shutil.copytree(toy / "training", tmp_path / "data/training")
    network = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --epochs 1 --recipe batch_size=8"
    run = ("train_student.py", tmp_path / "data", network, f"--cache none --out {tmp_path}/run")
    refused = call(*run)
    assert refused.returncode == 2 and "--validation-share 0.2" in refused.stderr
    assert call(*run, "--validation-share", 0.2).returncode == 0
    done = call("evaluate.py", tmp_path / "run/best.pt", tmp_path / "data", "--cache none")
    assert done.returncode == 0 and "11 photos" in done.stdout, "one of the four of each class"


@pytest.mark.parametrize(
    "photos, split, holds",
    [
        (["soup/1.jpg", "tea/1.jpg"], "training", r"2 folders \(soup, tea\); rename"),
        (["train/soup/1.jpg", "val/soup/1.jpg"], "training", r"2 folders \(train, val\); rename"),
        (["training/0_0.jpg"], "validation", r"1 folder \(training\); put labelled photos there"),
        (["0_0.jpg", "0_1.jpg"], "training", r"2 files \(0_0.jpg, 0_1.jpg\); .* training/ and validation/"),
    ],
)
def test_another_layout_is_told_what_ours_is(tmp_path, photos, split, holds):
    for name in photos:
        photo(tmp_path / name, 0)
    with pytest.raises(UserError, match=f"no folder .*/{split}, but .* holds {holds}"):
        list_labelled(tmp_path, split)


@pytest.mark.parametrize(
    "wrong, right", [("above", "above/food-11"), ("above/food-11/training", "above/food-11")]
)
def test_a_folder_one_level_off_is_told_the_right_one(tmp_path, wrong, right):
    photo(tmp_path / "above/food-11/training/0_0.jpg", 0)
    with pytest.raises(UserError) as caught:
        list_labelled(tmp_path / wrong, "training")
    assert str(caught.value).endswith(f"; use {tmp_path / right} instead, which has a folder training/")
    assert len(list_labelled(tmp_path / right, "training")) == 1


def test_a_folder_above_testing_is_told_the_right_one(tmp_path):
    photo(tmp_path / "food-11/testing/0.jpg", 0)
    (tmp_path / "food-11.zip").touch()
    right = tmp_path / "food-11"
    with pytest.raises(UserError, match=f"no testing/; use {right} instead, which has one"):
        list_testing(tmp_path)
    assert len(list_testing(right)) == 1


def test_a_link_to_itself_is_one_sentence(tmp_path):
    for name in ("soup", "tea"):
        photo(tmp_path / f"training/{name}/0.jpg", 0)
    (tmp_path / "training/soup/1.jpg").symlink_to("1.jpg")
    listing = list_labelled(tmp_path, "training")
    assert len(listing) == 3
    with pytest.raises(UserError, match="soup/1.jpg cannot be read: .*; fix that or remove the file"):
        load_photos(listing, Preprocessing(32), False)


def test_all_files_that_do_not_belong_are_counted(tmp_path):
    for name in ("0_0.jpg", "a.txt", "b.csv", "c.doc", "d.pdf"):
        photo(tmp_path / "training/0_0.jpg", 0).with_name(name).touch()
    with pytest.raises(UserError, match=r"4 files \(a.txt, b.csv, c.doc, ...\) without the ending"):
        list_labelled(tmp_path, "training")


def test_files_and_folders_in_a_class_folder_are_told(tmp_path):
    root = tree(tmp_path, soup=(1, 1), tea=(1, 1))
    (root / "training/tea/notes.txt").touch()
    with pytest.raises(UserError, match=r"training/tea holds 1 file \(notes.txt\) without the ending"):
        list_labelled(root, "training")
    (root / "training/tea/more").mkdir()
    with pytest.raises(UserError, match=r"tea holds 1 folder \(more\) in a class folder; put the photos"):
        list_labelled(root, "training")


def test_what_other_programs_leave_is_passed_over(tmp_path):
    root = tree(tmp_path, soup=(1, 1), tea=(1, 1))
    photo(root / "testing/1.jpg", 0)
    for folder in ("training", "training/soup", "testing"):
        for name in ("__MACOSX", "@eaDir", ".thumbnails"):
            photo(root / folder / name / "1.jpg", 0)
        for name in (
            "Icon\r",
            "ehthumbs.db",
            "THUMBS.DB",
            "desktop.ini",
            "Picasa.ini",
            ".DS_Store",
            "._0_0.jpg",
        ):
            (root / folder / name).touch()
    assert len(list_labelled(root, "training")) == 2 and len(list_testing(root)) == 1


def test_photos_beside_folders_in_testing_are_not_passed_over_in_silence(tmp_path):
    photo(tmp_path / "testing/1.jpg", 0), photo(tmp_path / "testing/more/2.jpg", 1)
    with pytest.raises(
        UserError, match=r"holds 1 folder \(more\) beside its files; photos in folders are not"
    ):
        list_testing(tmp_path)


def test_the_photos_set_apart_are_drawn_and_not_the_first_ones(tmp_path):
    paths = tuple(tmp_path / f"{index:02}.jpg" for index in range(40))
    listing = Listing(tmp_path, paths, (0,) * 20 + (1,) * 20, ("a", "b"))
    taken = split_off(listing, 0.25)["validation"].paths
    assert set(taken) != {*paths[:5], *paths[20:25]} and any(path in taken for path in paths[10:20])
