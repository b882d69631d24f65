"""What the tests share: the project on sys.path, a toy data set and a small model file (both read-only), and
ways to call a script.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
STUDENT = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --cache none --device cpu"


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Root of a toy Food-11: 44 training, 22 validation and 15 testing pictures."""
    from experiments.toy_food11 import draw_data

    root = tmp_path_factory.mktemp("toy") / "food-11"
    draw_data(root, training=44, validation=22, testing=15)
    return root


@pytest.fixture(scope="session")
def food11():
    """Root of real photos in Food-11's layout; tests that need it skip where there are none."""
    root = Path(os.environ.get("FOOD11") or ROOT.parent / "shared/data/food11")
    if not (root / "training").is_dir():
        pytest.skip(f"there are no Food-11 photos at {root}; set FOOD11 to their root")
    return root


@pytest.fixture(scope="session")
def small_network(toy):
    """(Description, network in eval mode): a narrow student at 32 px with random weights whose answers differ
    from photo to photo.
    """
    import torch

    from compression.data.preprocessing import Preprocessing
    from compression.files.description import Description
    from dataset import FOOD11_CLASSES, list_testing, load_photos
    from models import build

    description = Description.of(
        "student", {"widths": (8,) * 8, "hidden": 16, "in_channels": 3}, FOOD11_CLASSES, Preprocessing(32)
    )
    photos = load_photos(list_testing(toy), description.preprocessing, cache=False).photos
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build("student", **description.arguments)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                # PyTorch's own initialisation shrinks activations to float16's subnormals
                torch.nn.init.kaiming_normal_(parameter)
        for _ in range(50):  # BN statistics of photos, as after a training
            network(description.preprocessing.normalise(photos))
        # no class is everyone's favourite
        network.eval().fc[-1].bias -= network(description.preprocessing.normalise(photos)).mean(0)
    return description, network.requires_grad_(False)


@pytest.fixture(scope="session")
def small_model(small_network, tmp_path_factory):
    """The small network as an 8-bit model.bin."""
    return write_model(tmp_path_factory.mktemp("model") / "model.bin", *small_network)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """The CPU as a torch.device, and the GPU of a machine that has one."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device(request.param)


def words(args):
    """Arguments of a command line, as text; text that starts with a dash is split at its blanks."""
    for arg in args:
        yield from arg.split() if isinstance(arg, str) and arg.startswith("-") else [str(arg)]


@pytest.fixture(scope="session")
def run_script():
    """run_script(name, *args, cwd=None) runs a script of the project in a process of its own; returns the
    CompletedProcess.
    """

    def start(name, *args, cwd=None):
        command = [sys.executable, ROOT / name, *words(args)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    return start


@pytest.fixture
def call(capsys):
    """call(name, *args) is run_script in this process, seconds faster; where the script would show a
    traceback, its exception comes out.
    """

    def start(name, *args):
        from compression.command_line import run

        main = importlib.import_module(name.removesuffix(".py").replace("/", ".")).main
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(lambda: main(list(words(args))))
        stdout, stderr = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=stdout, stderr=stderr)

    return start


@pytest.fixture
def ok(call):
    """ok(name, *args) is call, and asserts that the script ends with status 0."""

    def start(name, *args):
        done = call(name, *args)
        assert done.returncode == 0, done.stderr
        return done

    return start


@pytest.fixture
def refused(call):
    """refused(name, *args) asserts that the script ends with status 2 and one sentence on stderr, and returns
    that sentence; late: behind the table of the photos.
    """

    def start(name, *args, late=False):
        done = call(name, *args)
        lines = done.stderr.splitlines(keepends=True)
        assert done.returncode == 2 and (late or len(lines) == 1), done
        return lines[-1]

    return start


def read_json(path):
    return json.loads(path.read_text())


def write_model(path, description, network, *scheme):
    """Write a network as a model file, of 8 bits unless the scheme says otherwise; returns its path."""
    from compression.files.model_file import encode, to_bytes

    path.write_bytes(to_bytes(encode(description, network.state_dict(), *scheme)))
    return path


def same_tensors(before, after):
    """Whether two state dicts hold the same names in the same order, with the same types and values."""
    if list(before) != list(after):
        return False
    return all(one.dtype == after[name].dtype and one.equal(after[name]) for name, one in before.items())


def generator(seed):
    import torch

    return torch.Generator().manual_seed(seed)


def bright_or_dark(count, seed, size=32):
    """Photos whose class is their brightness: two classes that any network can learn."""
    import torch

    from dataset import PhotoSet

    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, size, size, 3), generator=generator(seed), dtype=torch.uint8)
    photos = noise + labels.view(-1, 1, 1, 1).to(torch.uint8) * 100
    return PhotoSet(photos, torch.arange(count), labels, ("dark", "bright"), f"fingerprint {seed}")


def learn_by_heart(network, preprocessing, photos):
    """Solve the last layer of a network for the labels of a PhotoSet, so that it knows these photos whatever
    its other weights are.

    What it computes before that layer must tell the photos apart: of as many classes, or in more features
    than photos.
    """
    import torch

    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    features = []
    handle = last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].double()))
    with torch.no_grad():
        network.eval()(preprocessing.normalise(photos.photos))
        handle.remove()
        inputs = torch.cat([features[0], torch.ones(len(photos), 1)], 1)
        wanted = torch.nn.functional.one_hot(photos.labels, last.out_features).double()
        # of least squares, where there are many
        solution = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
        last.weight.copy_(solution[:-1].T), last.bias.copy_(solution[-1])
        assert torch.equal(network(preprocessing.normalise(photos.photos)).argmax(1), photos.labels)
