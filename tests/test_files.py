"""Writing and reading files, and what every script does alike on its command line."""

import argparse
import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from compression.command_line import UserError, number, pick_device, run
from compression.files import records
from compression.files.atomic import atomic_path, check_output, locked, read_torch, write_bytes, write_text

SCRIPTS = ("models", "train_student", "quantize", "inference")


# ---------------------------------------------------------------- writing


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("old", [["out.txt"], []])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error, old):
    for name in old:
        (tmp_path / name).write_text("old")
    with pytest.raises(error), atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == old and all((tmp_path / name).read_text() == "old" for name in old)


def test_a_full_disk_is_a_user_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=f"cannot write {path}: No space left"), atomic_path(path):
        Path("/dev/full").write_bytes(b"x")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "out.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == mode


def test_folders_are_created_and_text_is_utf8_with_lf(tmp_path):
    path = tmp_path / "a b" / "ü" / "餐.csv"
    write_text(path, "Id,label\n0,é\n")
    assert path.read_bytes() == "Id,label\n0,é\n".encode()
    write_bytes(path, b"\r\n\0")
    assert path.read_bytes() == b"\r\n\0"


@pytest.mark.parametrize(
    "write", [check_output, lambda path: write_text(path, "x"), lambda path: write_bytes(path, b"x")]
)
def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path, write):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (tmp_path, file / "out.txt", file / "deeper/out.txt", Path("/proc/nothing/out.txt")):
        with pytest.raises(UserError, match=re.escape(str(path))):
            write(path)
    assert file.read_text() == "x" and os.listdir(tmp_path) == ["file"]


def test_a_name_that_is_too_long_is_a_user_error(tmp_path):
    for use in (check_output, lambda path: read_torch(path, "checkpoint")):
        with pytest.raises(UserError):
            use(tmp_path / ("n" * 300))


@pytest.mark.parametrize("exists", [True, False])
def test_check_output_writes_nothing(tmp_path, exists):
    path = tmp_path / "new folder" / "out.txt"
    if exists:
        write_text(path, "old")
    check_output(path)
    assert [one.name for one in tmp_path.rglob("*")] == ["new folder", "out.txt"] * exists
    assert not exists or path.read_text() == "old"


def test_check_output_takes_away_the_folders_it_made_and_no_others(tmp_path):
    (tmp_path / "old").mkdir()
    check_output(tmp_path / "old/new/newer/out.txt")
    check_output(tmp_path / "old/out.txt")
    assert os.listdir(tmp_path) == ["old"] and not os.listdir(tmp_path / "old")


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    """As root, an output of /dev/stdout or /dev/null would otherwise cost the machine its device."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a writer need not wait for one
    try:
        write_text(path, "x")
    except UserError:
        pass  # refusing it is fine, and so is writing into it
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_read_only_file_is_not_replaced(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("old")
    kept.chmod(0o444)
    with pytest.raises(UserError, match="read-only"):
        write_text(kept, "new")
    with pytest.raises(UserError, match="read-only"):
        check_output(kept)
    assert kept.read_text() == "old" and list(tmp_path.iterdir()) == [kept]


def test_a_folder_is_held_by_one_block_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is working"), locked(tmp_path):
        pytest.fail("held twice")
    with locked(tmp_path / "new"):
        pass


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        monkeypatch.undo()


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("zipped", [True, False])
def test_read_torch_gives_what_torch_load_gives(tmp_path, zipped):
    matrix = torch.arange(12.0).view(3, 4) - 4
    kinds = "double float half bfloat16 long int short char byte bool".split()
    content = {
        **{kind: getattr(matrix, kind)() for kind in kinds},
        "views": [matrix.t(), matrix[1:, ::2], matrix, torch.zeros(1).expand(1, 1), torch.zeros(0, 3)],
        "parameter": torch.nn.Parameter(torch.tensor(2.5)),
        "state": torch.nn.BatchNorm1d(3).state_dict(),
        5: [1, -(2**70), 2.5, "é", None, True, (), {1.5: {}}],
    }
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    found = read_torch(tmp_path / "file.pt", "checkpoint")
    expected = torch.load(tmp_path / "file.pt", weights_only=True)
    assert list(found) == list(expected) and repr(found.pop(5)) == repr(expected.pop(5))
    assert type(found["state"]) is type(expected["state"])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)
    found["views"][2].zero_()  # what shared a storage still does
    assert not found["float"].any() and not found["views"][0].any()


@pytest.mark.parametrize("name", ["absent.pt", "folder", "file/below.pt"])
def test_read_torch_says_what_is_missing(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="there is no teacher file at .*check the path"):
        read_torch(tmp_path / name, "teacher file")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"hello", b"PK\x03\x04" + bytes(50), bytes(1000)),
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    ],
)
def test_read_torch_refuses_what_torch_did_not_write_in_one_line(tmp_path, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or no checkpoint") as error:
        read_torch(path, "checkpoint")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- the command line


def test_a_user_error_is_status_2_and_one_line(capsys, monkeypatch):
    def main():
        raise UserError("the file is green; paint it red")

    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "script.py: error: the file is green; paint it red\n")


@pytest.mark.parametrize("error", [ValueError, TypeError, OSError, AssertionError])
def test_a_programming_error_keeps_its_traceback(error):
    def main():
        raise error("a bug")

    with pytest.raises(error, match="a bug"):
        run(main)


@pytest.mark.parametrize("rank, where", [(0, "error: "), (1, "error (rank 1): ")])
def test_a_full_gpu_is_one_sentence_and_status_2(capsys, monkeypatch, rank, where):
    monkeypatch.setattr("compression.distributed.RANK", rank)
    monkeypatch.setattr("compression.distributed.quiet", lambda: None)

    class OutOfMemoryError(RuntimeError):  # as torch calls its own
        pass

    def main(error):
        raise error("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(SystemExit) as ended:
        run(lambda: main(OutOfMemoryError))
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and shown.count("\n") == 1
    assert f"{where}out of GPU memory; use smaller batches or a smaller --size" in shown
    with pytest.raises(RuntimeError, match="Tried to allocate"):
        run(lambda: main(RuntimeError))
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert torch.OutOfMemoryError.__name__ == OutOfMemoryError.__name__


def test_a_reader_that_has_gone_is_no_error():
    """As in `python models.py | head -1`."""
    main = "lambda: print('x' * 100_000) or print('y' * 100_000) or 0"
    command = [sys.executable, "-c", f"from compression import command_line; command_line.run({main})"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 141 and process.stderr.read() == b""


def test_an_interruption_is_status_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 130 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_main_is_the_scripts(status):
    with pytest.raises(SystemExit) as ended:
        run(lambda: status)
    assert ended.value.code == status


@pytest.mark.parametrize(
    "convert, text, value",
    [
        (number(int, 1), "1", 1),
        (number(int, 1, 5), "5", 5),
        (number(float, 0, 1), "0", 0.0),
        (number(float, 0, 1), "1", 1.0),
        (number(float, 0, open_low=True), "1e-9", 1e-9),
        (number(int, -3), "-3", -3),
    ],
)
def test_numbers_within_the_bounds_are_taken(convert, text, value):
    assert convert(text) == value and type(convert(text)) is type(value)


@pytest.mark.parametrize(
    "convert, wrong",
    [
        (number(int, 1), ["0", "1.5", "", "x", "9" * 5000, "9" * 400]),
        (number(int, 1, 5), ["6", "9" * 400]),
        (number(float, 0, 1), ["1.0001", "-0.1", "nan"]),
        (number(float, 0), ["nan", "inf", "a"]),
        (number(float, 0, open_low=True), ["0"]),
    ],
)
def test_numbers_outside_the_bounds_are_refused(convert, wrong):
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a (whole )?number "):
            convert(text)


def test_a_device_is_checked(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "gpu", "", "meta", "cpu:x"):
        with pytest.raises(UserError, match="--device"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"--device cuda:2 cannot be used: torch finds 2 GPU\(s\); use"):
        pick_device("cuda:2")
    monkeypatch.setattr("compression.distributed.SIZE", 3)
    monkeypatch.setattr("compression.distributed.LOCAL_RANK", 2)
    with pytest.raises(UserError, match=r"torch finds 2 GPU\(s\) for 3 processes"):
        pick_device("auto")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_an_example_and_the_defaults(ok, name):
    done = ok(name, "--help")
    assert f"python {name}.py" in done.stdout
    assert "default:" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_and_abbreviated_flags_are_errors(call, name):
    for flag in ("--no-such-flag", "--hel"):
        done = call(name, flag)
        assert done.returncode == 2 and "error:" in done.stderr


def test_importing_a_script_parses_no_arguments_and_seeds_nothing():
    program = f"""
import sys, torch
before = torch.random.get_rng_state()
sys.argv = ["x", "--help", "--no-such-flag"]
import {", ".join(SCRIPTS)}
assert torch.equal(before, torch.random.get_rng_state()) and not torch.cuda.is_initialized()
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_contents_are_on_disk_before_the_name(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *paths: order.append("replace") or replace(*paths))
    write_text(tmp_path / "file", "text")
    assert order == ["fsync", "replace"]


def test_the_commit_of_a_record_says_whether_a_script_was_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    for name in ("a.py", "b.sh", "notes.md"):
        (tmp_path / name).write_text("1")
    for command in (["init"], ["add", "."], ["commit", "-m", "all"]):
        git(*command)
    commit = records._commit()
    assert len(commit) == 12
    for name in ("notes.md", "new.py"):
        (tmp_path / name).write_text("2")
    assert records._commit() == commit
    for name in ("a.py", "b.sh"):
        (tmp_path / name).write_text("2")
        assert records._commit() == f"{commit}+changes"
        (tmp_path / name).write_text("1")
