"""demo.py and toy_food11.py: the commands of the demo exist, its table reads what they leave."""

import json
import re
import shlex

import numpy as np
import pytest

from compression.files.records import write_record
from experiments import demo
from experiments.toy_food11 import draw_data, draw_picture, score


@pytest.mark.parametrize("name, command", [stage[1:] for stage in demo.STAGES])
def test_every_command_gets_as_far_as_the_missing_files(refused, tmp_path, monkeypatch, name, command):
    monkeypatch.chdir(tmp_path)
    told = refused(*shlex.split(demo.with_output(name, command)))
    assert re.search("there is no (folder|model file|teacher file)", told), told
    assert list(tmp_path.iterdir()) == []


def test_the_table_reads_the_records_of_trainings_prunings_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path)
    records = {
        "kd/record.json": {"parameters": 100, "best": {"validation_accuracy": 0.75}},
        "pruned/record.json": {"rounds": [{"parameters": 50, "after_training": 0.5}]},
        "2bits.json": {"file_bytes": 77, "validation_accuracy_after": 0.25},
    }
    for name, record in records.items():
        write_record(tmp_path / name, record)
    found = [demo.measured(name) for name in ("kd", "pruned", "2bits")]
    assert found == [(400, 0.75), (200, 0.5), (77, 0.25)]


def test_clutter_changes_the_picture_and_leaves_the_easy_one_as_it_was():
    easy, same, hard = (
        np.asarray(draw_picture(3, np.random.default_rng(0), (64, 64), **more))
        for more in ({}, {"clutter": 0}, {"clutter": 1})
    )
    assert np.array_equal(easy, same) and not np.array_equal(easy, hard)


def test_a_score_counts_by_id_and_not_by_row(tmp_path):
    draw_data(tmp_path / "toy", 11, 11, 22)
    truth = (tmp_path / "toy/testing_labels.csv").read_text().splitlines()
    (tmp_path / "all.csv").write_text("\n".join([truth[0], *reversed(truth[1:])]))
    assert score(tmp_path / "toy", tmp_path / "all.csv") == (1.0, 22)
    (tmp_path / "half.csv").write_text("\n".join(truth[:12]))
    assert score(tmp_path / "toy", tmp_path / "half.csv") == (0.5, 22)


def test_the_table_shows_the_last_round_of_a_pruning(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path)
    (tmp_path / "pruned").mkdir()
    rounds = [{"parameters": 9, "after_training": 0.9}, {"parameters": 5, "after_training": 0.8}]
    (tmp_path / "pruned/record.json").write_text(json.dumps({"rounds": rounds}))
    assert demo.measured("pruned") == (20, 0.8)


def test_the_demo_stops_where_a_command_fails(tmp_path):

    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="3"):
        demo.perform(f"python {tmp_path / 'fails.py'}")
