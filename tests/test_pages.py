"""The pages of evaluate.py --html and inference.py --html: their figures in closed form, names that would be
markup, links, and how they work in a browser where there is one.
"""

import csv
import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from conftest import read_json, words, write_model
from PIL import Image

import evaluate
from compression.data.decoding import DecodeReport
from compression.data.faces import FACE_CLASSES
from compression.data.preprocessing import GREY, Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.pages.gallery import gallery_page
from compression.pages.report import (
    Z,
    confident_mistakes,
    interval_of_mean,
    report_page,
    training_history,
    wilson,
)
from compression.training.run_folder import write_checkpoint
from dataset import FOOD11_CLASSES, list_labelled, list_testing, load_photos
from models import build, count_parameters

HOSTILE = ("</script><script>hacked=1</script>", "\"><img src=x onerror='hacked=1'>", "{{ 1 }} & 'co'")


class Page(HTMLParser):
    """What a browser would find: the tags with their attributes, and the text, scripts among it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.text += data

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def read(path):
    """The Page in a file, which runs nothing but the scripts of its template and loads nothing."""
    page = Page(path.read_text(encoding="utf-8"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.values("src") + page.values("href"))
    return page


def photos_of(page):
    """The gallery's photos: [name, source, labels, probabilities]."""
    return json.loads(page.scripts[0])["photos"]


@pytest.fixture(scope="session")
def hostile(small_network):
    """(the small network's Description, and the network) with class names that would be markup."""
    description, network = small_network
    return replace(description, class_names=HOSTILE + FOOD11_CLASSES[3:]), network


# ---------------------------------------------------------------- figures


def test_wilsons_interval_in_closed_form():
    for count in (1, 7, 3430):
        assert wilson(0, count) == pytest.approx((0, Z**2 / (count + Z**2)))
        assert wilson(count, count) == pytest.approx((count / (count + Z**2), 1))
    half = Z / (2 * math.sqrt(100 + Z**2))
    assert wilson(50, 100) == pytest.approx((0.5 - half, 0.5 + half))


def test_the_interval_of_a_mean_of_equal_shares_shrinks_with_the_root_of_their_number():
    assert interval_of_mean([0.7], [(0.6, 0.9)]) == pytest.approx((0.6, 0.9))
    assert interval_of_mean([0.7] * 4, [(0.6, 0.9)] * 4) == pytest.approx((0.65, 0.8))


def test_the_most_confident_mistakes_come_first():
    answers = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    labels = torch.tensor([1, 0, 0, 0])
    assert confident_mistakes(answers, labels) == [1, 3, 0] and confident_mistakes(answers, labels, 1) == [1]


def record_of(description, **changes):
    history = [
        {"epoch": 1, "train_accuracy": None, "train_loss": 2.0, "validation_accuracy": 0.25},
        {"epoch": 2, "train_accuracy": 0.5, "train_loss": 1.0, "validation_accuracy": 0.375},
    ]
    return json.dumps({"model": {**description.to_dict(), **changes}, "history": history})


def test_the_training_curve_is_that_of_the_record_beside_the_model(small_network, tmp_path):
    description = small_network[0]
    assert training_history(description.to_dict(), tmp_path / "model.bin") == []
    (tmp_path / "record.json").write_text(record_of(description))
    folded = {**description.to_dict(), "arguments": {**description.arguments, "folded": True}}
    rows = training_history(folded, tmp_path / "model.bin")
    assert [row.get("train_accuracy") for row in rows] == [None, 0.5]
    assert [row["validation_accuracy"] for row in rows] == [0.25, 0.375]


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"history": 3}', "another network"])
def test_a_record_of_something_else_is_no_training_curve(small_network, tmp_path, content):
    other = record_of(small_network[0], architecture="residual6")
    (tmp_path / "record.json").write_text(other if content == "another network" else content)
    assert training_history(small_network[0].to_dict(), tmp_path / "model.bin") == []


# ---------------------------------------------------------------- evaluate.py --html


@pytest.fixture(scope="module")
def report(toy, small_model, small_network, tmp_path_factory):
    """(path of a report, the record of the same evaluation)."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(small_model, folder / "model.bin")
    (folder / "record.json").write_text(record_of(small_network[0]))
    page, record = folder / "new/report.html", folder / "new/evaluation.json"
    command = [folder / "model.bin", toy, "--cache none --html", page, "--record", record]
    assert evaluate.main(list(words(command))) == 0
    return page, read_json(record)


def test_the_report_shows_what_the_record_says(report, small_model):
    page, record = read(report[0]), report[1]
    flat = [count for row in record["confusion"] for count in row]
    labels = page.values("aria-label")
    shown = [label for label in labels if "recognised" in label or "taken for" in label]
    assert [int(re.search(r": (\d+) of", label)[1]) for label in shown] == flat
    assert shown[1].startswith(f"Bread taken for {FOOD11_CLASSES[1]}: ")
    assert f"{small_model.stat().st_size:,} bytes" in page.text
    low, high = wilson(sum(row[label] for label, row in enumerate(record["confusion"])), record["photos"])
    assert f"(95 % interval {100 * low:.1f} to {100 * high:.1f}\N{NO-BREAK SPACE}%)" in page.text
    bins = [label for label in labels if "mean probability" in label]
    assert len(bins) == sum(count > 0 for count, _, _ in record["reliability"])
    assert sum("validation accuracy" in label for label in labels) == 2, "one for each epoch"
    assert len(page.values("src")) == min(24, round(22 * (1 - record["accuracy"])))


def test_a_report_of_a_model_without_mistakes_and_without_a_class(toy, small_network, tmp_path):
    listing = list_labelled(toy, "validation")
    photos = load_photos(listing, small_network[0].preprocessing, cache=False)
    photos = replace(photos, rows=photos.rows[photos.labels > 0], labels=photos.labels[photos.labels > 0])
    model = load_model(write_model(tmp_path / "model.bin", *small_network))
    result, _ = evaluate.measure(model, listing, [photos], torch.device("cpu"))
    answers = torch.nn.functional.one_hot(photos.labels, 11).float()
    (tmp_path / "page.html").write_text(report_page(model, result, answers, photos, listing))
    page = read(tmp_path / "page.html")
    assert "There are none." in page.text and "Training" not in page.text
    assert "Bread recognised: 0 of 0 photos" in "".join(page.values("aria-label"))


@pytest.fixture
def hostile_report(toy, hostile, tmp_path):
    """A report whose class and file names would be markup."""
    plain = list_labelled(toy, "validation")
    name = "<script>hacked=1<!-- \" '.jpg"
    listing = replace(plain, paths=tuple(path.with_name(name) for path in plain.paths))
    photos = load_photos(plain, hostile[0].preprocessing, cache=False)
    model = load_model(write_model(tmp_path / "<b>.bin", *hostile))
    result, answers = evaluate.measure(model, plain, [photos], torch.device("cpu"))
    path = tmp_path / "page.html"
    path.write_text(report_page(model, result, answers, photos, listing), encoding="utf-8")
    return path


def test_names_in_a_report_cannot_be_markup(hostile_report):
    page = read(hostile_report)
    assert len(page.scripts) == 1 and "b" not in {tag for tag, _ in page.tags if tag != "b"}
    assert all(name in page.text for name in HOSTILE) and "<script>hacked=1<!-- \" '.jpg" in page.text
    assert "<b>.bin" in page.text


def test_faces_have_a_report(tmp_path, ok):
    draw_faces(tmp_path / "train.csv", "label", [row % 7 for row in range(140)])
    draw_faces(tmp_path / "test.csv", "id", range(5))
    arguments = {"widths": (8,) * 8, "hidden": 16, "in_channels": 1}
    description = Description.of("student", arguments, FACE_CLASSES, Preprocessing(48, **GREY))
    network = build("student", **description.arguments).eval()
    model = write_model(tmp_path / "model.bin", description, network)
    page = tmp_path / "page.html"
    ok("evaluate.py", model, tmp_path, "--html", page)
    assert "face " in read(page).text
    ok("inference.py", tmp_path, tmp_path / "out.csv", "--model", model, "--html", page)
    photos = photos_of(read(page))
    assert [name for name, *_ in photos] == list("01234")
    assert all(source.startswith("data:image/jpeg") for _, source, *_ in photos)


def draw_faces(path, key, values):
    rng = np.random.default_rng(0)
    rows = (f"{value},{' '.join(map(str, rng.integers(0, 256, 48 * 48)))}\n" for value in values)
    path.write_text(f"{key},feature\n" + "".join(rows))


# ---------------------------------------------------------------- inference.py --html


@pytest.fixture
def photos(toy, tmp_path):
    """A copy of testing/ with names that a link has to escape."""
    folder = Path(shutil.copytree(toy / "testing", tmp_path / "my photos #1"))
    for old, new in (
        ("0000.jpg", b"100% ?a=b#c.jpg"),
        ("0001.jpg", b"caf\xe9.jpg"),
        ("0002.jpg", "麵.jpg".encode()),
        ("0003.jpg", b"<script>hacked=1<!-- \" '.jpg"),
        ("0004.jpg", b"javascript:hacked=1.jpg"),
    ):
        os.rename(folder / old, os.fsencode(folder) + b"/" + new)
    return folder


def predict(start, model, photos, folder):
    """inference.py by names, with a gallery in another folder than the photos."""
    page = folder / "pages" / "gallery.html"
    more = ("--ids names --label names --model", model, "--html", page)
    return page, start("inference.py", photos, folder / "out.csv", *more)


def test_the_gallery_links_every_photo_with_its_class(photos, small_model, ok, tmp_path):
    page, _ = predict(ok, small_model, photos, tmp_path)
    shown = photos_of(read(page))
    assert not page.with_name("my photos #1").exists()
    links = [link for _, link, *_ in shown]
    linked = [os.path.normpath(os.fsencode(page.parent) + b"/" + unquote_to_bytes(link)) for link in links]
    assert sorted(linked) == sorted(os.fsencode(path) for path in photos.iterdir())
    assert all(re.fullmatch(r"[\w./%~-]+", link) and not link.startswith("/") for link in links)
    with open(tmp_path / "out.csv", newline="", errors="surrogateescape", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [FOOD11_CLASSES[labels[0]] for _, _, labels, _ in shown] == [label for _, label in rows]
    assert all(values == sorted(values, reverse=True) and len(values) == 3 for *_, values in shown)


def test_undecodable_photos_are_listed_in_the_gallery_and_there_is_no_csv(
    photos, small_model, refused, tmp_path
):
    (photos / "0007.jpg").write_bytes(b"no photo")
    whole = (photos / "0009.jpg").read_bytes()
    (photos / "0009.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    page, sentence = predict(refused, small_model, photos, tmp_path)
    found = read(page)
    assert f"only {page} was written" in sentence and not (tmp_path / "out.csv").exists()
    assert "Could not be decoded, no class: 1" in found.text
    assert "0007.jpg: cannot identify image file" in found.text
    assert "Truncated, decoded as far as they go: 1" in found.text and "0009.jpg" in found.text
    names = [name for name, *_ in photos_of(found)]
    assert len(names) == 14 and "0009.jpg" in names and "0007.jpg" not in names
    for path in photos.iterdir():
        path.write_bytes(b"no photo")
    page, _ = predict(refused, small_model, photos, tmp_path)
    assert photos_of(read(page)) == [] and "Could not be decoded, no class: 15" in read(page).text


def test_photos_that_browsers_do_not_show_are_embedded(small_model, ok, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.tif", "b.png"):
        Image.new("RGB", (50, 40), "red").save(tmp_path / "photos" / name)
    page, _ = predict(ok, small_model, tmp_path / "photos", tmp_path)
    sources = [source for _, source, *_ in photos_of(read(page))]
    assert sources[0].startswith("data:image/jpeg;base64,") and sources[1] == "../photos/b.png"


def test_class_names_in_the_gallery_cannot_be_markup(toy, hostile, tmp_path):
    names = hostile[0].class_names
    probabilities = torch.eye(11)[torch.arange(15) % 11]
    text = gallery_page(list_testing(toy), names, probabilities, DecodeReport({}, {}), tmp_path / "x", "<b>")
    page = Page(text)
    assert len(page.scripts) == 2 and "b" not in {tag for tag, _ in page.tags}
    assert json.loads(page.scripts[0])["classes"][:3] == list(HOSTILE)


def test_a_page_replaces_no_other_file_and_is_checked_before_the_work(toy, small_model, refused, tmp_path):
    for script, first in (
        ("evaluate.py", [small_model, toy]),
        ("inference.py", [toy, tmp_path / "out.csv", "--model", small_model]),
    ):
        assert "named twice" in refused(script, *first, "--html", small_model)
        assert "is a folder" in refused(script, *first, "--html", tmp_path)
    assert "named twice" in refused("inference.py", *first, "--html", tmp_path / "out.csv")
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: the machine's own, or Playwright's."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    own = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("there is no Chromium here; apt-get install chromium, or playwright install chromium")
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """visit(path, width) opens a page; it may ask for nothing but files, and its scripts may not fail."""
    trouble, asked, opened = [], [], []

    def start(path, width=1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        opened.append(page)
        return page

    yield start
    for page in opened:
        assert page.evaluate("typeof hacked") == "undefined"
        page.close()
    assert not trouble and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_a_phone_and_a_desktop(
    report, hostile_report, photos, small_model, call, tmp_path, visit, width
):
    gallery, _ = predict(call, small_model, photos, tmp_path)
    for path in (report[0], hostile_report, gallery):
        page = visit(path, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate("document.images[0].decode()")  # fails for a picture that is not shown


def test_the_charts_tell_their_counts_to_the_pointer_and_to_the_keyboard(report, visit):
    page, rows = visit(report[0]), report[1]["confusion"]
    shown = page.locator("figure", has=page.locator("table")).locator("output")
    page.locator(".confusion td[aria-label]").nth(12).hover()
    assert shown.inner_text().startswith(f"{FOOD11_CLASSES[1]} recognised: {rows[1][1]} of {sum(rows[1])} ")
    page.locator("summary").focus()
    page.keyboard.press("Tab")
    assert shown.inner_text().startswith(f"Bread recognised: {rows[0][0]} of ")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert shown.inner_text().startswith(f"{FOOD11_CLASSES[1]} recognised: {rows[1][1]} of ")
    page.keyboard.press("Tab")
    assert "mean probability" in page.locator("output").nth(1).inner_text(), "one Tab leaves the matrix"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert "epoch 2: train accuracy 50.0" in page.locator("output").nth(2).inner_text()


def test_the_gallery_filters_sorts_and_turns_pages(visit, toy, tmp_path):
    listing, count = list_testing(toy), 300
    paths = tuple(listing.paths[row % 15] for row in range(count))
    listing = replace(listing, paths=paths, ids=tuple(range(count)))
    labels, best = torch.arange(count) % 3, 0.5 + torch.arange(count) / 1000
    probabilities = torch.zeros(count, 11).scatter_(1, labels[:, None], best[:, None])
    names = HOSTILE + FOOD11_CLASSES[3:]
    path = tmp_path / "gallery.html"
    path.write_text(gallery_page(listing, names, probabilities, DecodeReport({}, {}), path, "300 photos"))
    page = visit(path)
    items, told = page.locator("#photos li"), page.locator("#count")
    assert (items.count(), told.inner_text()) == (120, "300 of 300 photos")
    page.get_by_role("button", name="Next").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert items.count() == 60 and page.locator("#page").inner_text() == "page 3 of 3"
    assert page.get_by_role("button", name="Next").first.is_disabled()
    page.get_by_label("class").select_option("1")
    assert told.inner_text() == "100 of 300 photos" and page.locator("#page").inner_text() == "page 1 of 1"
    assert page.locator("#photos strong").first.inner_text() == HOSTILE[1]
    page.get_by_label("probability from").fill("70.5")
    page.get_by_label("to, %").fill("75")
    expected = [row for row in range(205, 251) if row % 3 == 1]
    assert items.count() == len(expected)
    page.get_by_label("order").select_option("-1")
    assert f"{50 + expected[-1] / 10:.1f}" in items.first.inner_text()
    page.get_by_label("probability from").fill("99")
    assert items.count() == 0 and told.inner_text() == "0 of 300 photos"


def test_a_report_counts_the_parameters_of_a_folded_file_with_bn(toy, small_network, ok, tmp_path):

    write_checkpoint(tmp_path / "best.pt", small_network[0], small_network[1].state_dict())
    ok("quantize.py", tmp_path / "best.pt", tmp_path / "8.bin", "--bits 8")
    ok("evaluate.py", tmp_path / "8.bin", toy, "--cache none --html", tmp_path / "page.html")
    assert load_model(tmp_path / "8.bin").description.arguments["folded"]
    assert f"{count_parameters(small_network[1]):,} parameters" in read(tmp_path / "page.html").text


def test_the_interval_of_a_mean_takes_the_limits_of_each_share():

    assert abs(interval_of_mean([0.2, 0.8], [(0.1, 0.4), (0.5, 0.9)])[0] - (0.5 - 0.1**0.5 / 2)) < 1e-9
