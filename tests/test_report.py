"""The report: numbers and words follow the records, claims are checked, what is missing is named."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "report"))

for needed in ("typst", "matplotlib", "pypdf", "scipy"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (tests/requirements.txt)")

import build  # noqa: E402
import claims  # noqa: E402
import summarise  # noqa: E402

from compression.command_line import UserError  # noqa: E402


@pytest.fixture(scope="module")
def summary():
    return summarise.summarise()


@pytest.fixture
def results(tmp_path):
    """A copy of the published records that a test may change."""
    return shutil.copytree(ROOT / "results", tmp_path / "results")


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def set_accuracy(results, variant, *accuracies):
    """Give the seeds 0, 1, 2 of a training's or a stored file's variant these accuracies."""
    for seed, accuracy in enumerate(accuracies):

        def edit(record, accuracy=accuracy):
            if "best" in record:
                record["best"]["validation_accuracy"] = accuracy
            else:
                record["validation_accuracy_after"] = accuracy

        change(results / f"{variant}-seed{seed}.json", edit)


def text_of(pdf):
    import pypdf

    pages = pypdf.PdfReader(pdf).pages
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages)).replace("\xad", "")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the report on the published records; read-only."""
    out = tmp_path_factory.mktemp("built")
    build.build(ROOT / "results", out)
    return out


# ---------------------------------------------------------------- statistics


def test_a_difference_counts_if_the_interval_of_the_pairs_leaves_out_zero():
    # pairs 0, 1, 2 points: mean 1, deviation 1; Student's t for 95 % and 2 degrees of freedom is 4.303
    found = summarise.difference(pd.Series([0.50, 0.52, 0.53]), pd.Series([0.50, 0.51, 0.51]), 3430)
    assert found["verdict"] == 0 and found["bound"] == pytest.approx(0.01 * 4.302653 / 3**0.5)
    ours, theirs = pd.Series([0.60, 0.55, 0.50]), pd.Series([0.591, 0.539, 0.49])
    assert summarise.difference(ours, theirs, 3430)["verdict"] == 1
    assert summarise.difference(theirs, ours, 3430)["verdict"] == -1
    assert summarise.difference(pd.Series([0.3, 0.1, 0.2]), pd.Series([0.1, 0.2, 0.3]), 3430)["verdict"] == 0


@pytest.mark.parametrize("accuracy, verdict", [(0.514, 0), (0.515, 1), (0.485, -1)])
def test_one_seed_is_judged_by_the_sampling_error(accuracy, verdict):
    # two standard errors of a difference: 2 * sqrt(2) * 0.5 points = 1.41 points
    found = summarise.difference(pd.Series([accuracy]), pd.Series([0.5]), 10_000)
    assert found["verdict"] == verdict


def test_only_seeds_that_both_have_are_paired():
    found = summarise.difference(pd.Series({0: 0.5, 1: 0.6, 2: 0.9}), pd.Series({1: 0.5, 2: 0.8}), 3430)
    assert found["mean"] == pytest.approx(0.1) and found["verdict"] == 1


def test_the_summary_holds_mean_and_sample_deviation_of_the_records(summary):
    paths = (ROOT / "results/scratch").glob("student-seed*.json")
    values = pd.Series([json.loads(path.read_text())["best"]["validation_accuracy"] for path in paths])
    found = summary["scratch"]["student"]["accuracy"]
    assert found["n"] == len(values) and found["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert found["std"] == pytest.approx(values.std(ddof=1), abs=1e-6)


# ---------------------------------------------------------------- claims


def test_the_texts_and_the_list_name_the_same_claims():
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "report").rglob("*.typ"))
    assert set(re.findall(r'#claim\("([^"]+)"\)', texts)) == claims.CLAIMS.keys()


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_every_claim_can_fail_and_is_named(summary, name):
    assert claims.broken(summary) is None
    changed = json.loads(json.dumps(summary))
    for _, verdict, found in claims.compared(changed, claims.CLAIMS[name]):
        found["verdict"] = -1 if verdict == 1 else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "CLAIMS", {name: claims.CLAIMS[name]})
        assert f'the claim "{name}" of the report no longer holds' in claims.broken(changed)


def test_a_claim_that_no_longer_holds_stops_the_build_and_the_check(built, results, tmp_path, refused):
    set_accuracy(results, "distillation/student_course", 0.3, 0.31, 0.32)
    out = tmp_path / "out"
    for options in ((), ("--check",)):
        shutil.copytree(built, out, dirs_exist_ok=True)
        before = (out / "report.pdf").read_bytes()
        sentence = refused("build.py", "--results", results, "--out", out, *options)
        assert 'the claim "no difference to the course\'s recipe"' in sentence
        assert (out / "report.pdf").read_bytes() == before


# ---------------------------------------------------------------- missing, damaged and stale records


@pytest.mark.parametrize("name", ["model.json", "scratch/student-seed1.json", "hw7_test.json"])
def test_a_missing_record_is_named_with_status_2(results, tmp_path, refused, name):
    (results / name).unlink()
    sentence = refused("build.py", "--results", results, "--out", tmp_path)
    assert f"results/{name} is missing" in sentence and not (tmp_path / "report.pdf").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seed": 0}'])
def test_a_damaged_record_is_named(results, content):
    (results / "bits/residual6-seed0.json").write_text(content)
    with pytest.raises(UserError, match="results/bits/residual6-seed0.json is damaged"):
        summarise.summarise(results)


STALE = {
    "evaluation.json": lambda record: record.update(accuracy=0.1),
    "evaluation_before.json": lambda record: record["model"]["preprocessing"].update(size=96),
    "model_training.json": lambda record: record["model"]["arguments"].update(head=128),
    "model_qat.json": lambda record: record["model"]["arguments"].update(head=128),
    "scratch/student-seed0.json": lambda record: record["data"].update(validation="another"),
}


@pytest.mark.parametrize("name", STALE)
def test_a_stale_record_is_named(results, name):
    change(results / name, STALE[name])
    with pytest.raises(UserError, match=f"results/{name.partition('-')[0]}"):
        summarise.summarise(results)


def test_other_photos_need_another_name(results):
    with pytest.raises(UserError, match="of other validation photos than Food-11"):
        summarise.summarise(results, "Food-11")


# ---------------------------------------------------------------- the PDF


def test_the_pdf_holds_every_part_in_embedded_fonts_and_vector_figures(built):
    import pypdf

    text = text_of(built / "report.pdf")
    for heading in (*(f"Question {n}" for n in (1, 2, 3, 4)), "Questions 5 and 6", "Fewer bits", "Papers"):
        assert heading in text
    assert text.index("model.bin classifies") < 200 and "None of these photos is from Food-11" in text
    reader = pypdf.PdfReader(built / "report.pdf")
    objects = [reader.get_object(number) for number in range(1, reader.trailer["/Size"])]
    objects = [one for one in objects if hasattr(one, "keys")]
    fonts = [one for one in objects if one.get("/Type") == "/FontDescriptor"]
    assert len(fonts) >= 3 and all({"/FontFile2", "/FontFile3"} & one.keys() for one in fonts)
    assert not [one for one in objects if one.get("/Subtype") == "/Image"]


def test_every_round_of_wide8_is_in_the_pdf(built, summary):
    text, wide8 = text_of(built / "report.pdf"), summary["pruning_wide8"]
    sizes = [one["parameters"] for rate in ("0.95", "0.85") for one in wide8[f"none_{rate}"]["rounds"]]
    assert sizes[0] == 186_750 and sizes[4] == 148_993 and sizes[-1] == 78_612 and len(sizes) == 12
    for rate in ("0.95", "0.85"):
        for mode in ("none", "mistake1", "finetune1"):
            for one in wide8[f"{mode}_{rate}"]["rounds"]:
                assert f"{one['parameters']:,}" in text and f"{100 * one['accuracy']['mean']:.2f} ±" in text


def test_distillation_follows_new_records_whatever_they_say(results, tmp_path):
    for kind, accuracy in (("scratch", 0.50), ("weak", 0.40), ("strong", 0.60)):
        for network in ("slim9", "student", "residual6"):
            if (network, kind) != ("student", "strong"):  # which other sentences compare too
                variant = f"distillation/{network}_{kind}"
                set_accuracy(results, variant, *(accuracy + 0.001 * seed for seed in range(3)))
    build.build(results, tmp_path / "out")
    text = text_of(tmp_path / "out/report.pdf")
    assert "weak teacher brings a loss of 10.00 points" in text
    assert "strong teacher a gain of" in text and "EfficientNet-Lite0" in text


def test_changed_records_change_the_text_and_are_noticed(built, results, tmp_path):
    assert build.outdated(results, built) is None
    assert "43.21 %" not in text_of(built / "report.pdf")
    set_accuracy(results, "teachers/resnet18_16", 0.4321)
    assert "has changed since report.pdf was built: teachers" in build.outdated(results, built)
    out = shutil.copytree(built, tmp_path / "out")
    build.build(results, out)
    assert "43.21 %" in text_of(out / "report.pdf") and build.outdated(results, out) is None
    figures = [(folder / "report/figures/bits.svg").read_bytes() for folder in (built, out)]
    assert figures[0] == figures[1], "the same records make the same figure"
    (out / "report.pdf").write_bytes(b"another")
    assert build.outdated(results, out) == "report.pdf is not the file that was built"
    (out / "report/built.json").write_bytes(b"{")
    assert "built.json" in build.outdated(results, out)


def test_the_published_report_is_that_of_the_records():
    command = [sys.executable, ROOT / "report/build.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
