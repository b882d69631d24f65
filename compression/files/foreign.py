"""Model files that other programs wrote: what the students of this homework pass around, read and written.

    python inference.py food-11 prediction.csv --model their_8bit.pkl
    python quantize.py runs/student/best.pt model.pkl --export course8

Read: a bare `state_dict` of torch.save, pickles of 16- and 8-bit dicts, and a 16-bit dict in an .npz file.
None of them says which network its weights belong to, so that is read off the tensors' shapes; nor how photos
are fed to it: RGB ones in the course's way, grey ones whole at the network's usual size, values in [0, 1].
Written: the course's 8-bit dict, name -> (minimum, maximum, uint8 codes) for every tensor, and its 16-bit
dict, name -> float16.
"""

import functools
import io
import math
import pickle

import numpy as np
import torch
from numpy.lib import format as npy

from compression.command_line import UserError
from compression.data.classes import FOOD11_CLASSES, unnamed
from compression.data.preprocessing import Preprocessing
from compression.files.atomic import reading
from compression.files.description import FOREIGN, Description
from compression.files.model_file import Model
from compression.files.restricted_pickle import Array, Stream, numpy_names, read_pickle
from compression.files.torch_stream import ZIP_MAGIC, open_zip, read_entry
from compression.networks.depthwise import DepthwiseNet
from compression.networks.registry import ARCHITECTURES, build
from compression.quantization.grids import LARGEST, dequantize_minmax, quantize_minmax

COURSE_PREPROCESSING = Preprocessing(256, "course", (0, 0, 0), (1, 1, 1))
MAX_BYTES = 1 << 26  # a ResNet-18 in 16 bits has 22 MB
NUMBERS = (np.number, int, float)
WRAPPERS, MOST_WRAPPERS = ("state_dict", "model_state_dict", "model", "net"), 3
PREFIXES = ("_orig_mod.", "module.", "model.", "net.")
EXPORTS = {"course8": 8, "course16": 16}


def load_foreign(path, what):
    """The Model in a pickled dict or an .npz file. what: how an error message calls the file.

    Raises UserError if the file is damaged, hostile, or of no network known here.
    """
    with reading(path, what, "use a file of this project or one of the course's formats"):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        data = path.read_bytes()
        state, bits = read_tensors(_npz_member(data) if data.startswith(ZIP_MAGIC) else data, path)
    return recognise(path, state, bits)


def _npz_member(data):
    """The pickle in `weights.npy`, which np.savez(path, weights=dict) wrote."""
    with open_zip(data) as archive:  # 16-bit weights are compressed by a tenth, not tenfold
        stream = io.BytesIO(read_entry(archive, "weights.npy", 10 * len(data) + 4096))
    npy.read_magic(stream)
    shape, _, dtype = npy.read_array_header_1_0(stream, max_header_size=1000)
    if shape != () or dtype.kind != "O":
        raise ValueError("weights.npy is no dict")
    return stream.read()


def read_tensors(data, path):
    """(`state_dict` of float32 tensors, bits of the values) from a pickled dict of 32-, 16- or 8-bit arrays.

    Raises UserError naming `path` if the pickle asks for code, any Exception if it is anything else.
    """
    content = read_pickle(Stream(data), path, numpy_names())
    content = unwrapped(content.value if isinstance(content, Array) else content)  # an array: of np.savez
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise ValueError("it is no dict of named arrays")
    state, bits, total = {}, set(), 0
    for name, value in content.items():
        wrong = f"{ascii(name[:80])} is neither an array nor (minimum, maximum, codes)"
        *bounds, array = value if isinstance(value, tuple) and value else (value,)
        array = array.value if isinstance(array, Array) else array
        plain = isinstance(array, (np.ndarray, *NUMBERS)) and all(isinstance(one, NUMBERS) for one in bounds)
        if not plain:
            raise ValueError(wrong)
        array = np.asarray(array)
        coded = array.dtype == np.uint8
        if len(bounds) != (2 if coded else 0):
            raise ValueError(wrong)
        total += array.nbytes
        if total > len(data) + 8 * len(content):  # one array under many names
            raise ValueError("more arrays than the file has bytes")
        if coded or array.ndim:
            bits.add(8 if coded else 16 if array.dtype == np.float16 else 32)
        with np.errstate(over="ignore"):  # infinities are refused when the network is built
            if coded:
                low, high = map(float, bounds)
                if not -math.inf < low <= high < math.inf:
                    raise ValueError(f"{ascii(name[:80])} has no finite minimum and maximum")
                array = dequantize_minmax(low, high, array)
            kind = np.int64 if array.dtype.kind == "i" else np.float32 if array.ndim else np.float64
            state[name] = torch.from_numpy(array.astype(kind))
    return state, min(bits, default=32)


def is_state_dict(content):
    """Whether it is a dict of named tensors, and not an empty one."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in content.items())


def unwrapped(content):
    """What stands inside {"state_dict": ...} and the like, up to three within each other, or the content."""
    for _ in range(MOST_WRAPPERS):
        if isinstance(content, dict):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    return content


def without_prefixes(state):
    """A dict without what compiling, parallel training and wrapping modules put before all its names."""
    for _ in PREFIXES:  # not forever: a name may repeat one thousands of times
        shared = [one for one in PREFIXES if all(name.startswith(one) for name in state)]
        prefix = shared[0] if shared else ""
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def recognise(path, state, bits=32):
    """The Model of a bare `state_dict`: the only network of the table with such tensors in this order.

    Names may differ (see `without_prefixes`; other names of modules), but the last part of each (`weight`,
    `running_var`, ...) must agree. The number of classes and, in the DepthwiseNet family, the widths are read
    off the shapes, so pruned networks are recognised too. Raises UserError if no network fits, or several.
    """
    state = without_prefixes(state)
    kinds = [(_kind(name), value.ndim) for name, value in state.items()]
    shapes = [tuple(value.shape) for value in state.values() if value.numel()]
    kernels = [shape for shape in shapes if len(shape) == 4]
    matrices = [shape for shape in shapes if len(shape) == 2]
    found = {}
    for name, architecture in ARCHITECTURES.items() if kernels and matrices else ():
        arguments = {"num_classes": matrices[-1][0], "in_channels": kernels[0][1]}
        if architecture.network is DepthwiseNet:
            hidden = tuple(rows for rows, _ in matrices[:-1])
            arguments["widths"] = tuple(shape[0] for shape in kernels[:1] + kernels[2::2])
            arguments["hidden"] = hidden if len(set(hidden)) > 1 else hidden[0] if hidden else 0
        if _skeleton(name) == kinds and (renamed := _renamed(name, arguments, state)):
            found[name] = arguments, renamed
    if len(found) != 1:
        what = f"may be those of {' or '.join(found)}" if found else "are those of no network known here"
        raise UserError(
            f"{path} was not written by this project, and its {len(state)} tensors {what}; use a file that "
            "says what it is"
        )
    ((name, (arguments, renamed)),) = found.items()
    classes = arguments["num_classes"]
    names = FOOD11_CLASSES if classes == len(FOOD11_CLASSES) else unnamed(classes)
    grey = Preprocessing(ARCHITECTURES[name].size, "crop", (0,), (1,))
    preprocessing = grey if arguments["in_channels"] == 1 else COURSE_PREPROCESSING
    description = Description.of(name, arguments, names, preprocessing, {"from": FOREIGN})
    return Model(description, renamed, bits, path)


def _kind(tensor):
    """What a tensor is to its module: the last part of its name."""
    return tensor.rpartition(".")[2]


@functools.cache
def _skeleton(name):
    """[(kind, dimensions), ...] of a network's tensors, which its widths do not change."""
    if name == "resnet18":  # without importing torchvision, which takes seconds
        norm = [(kind, 1) for kind in ("weight", "bias", "running_mean", "running_var")]
        return 20 * [("weight", 4), *norm, ("num_batches_tracked", 0)] + [("weight", 2), ("bias", 1)]
    with torch.device("meta"):
        return [(_kind(tensor), value.ndim) for tensor, value in build(name).state_dict().items()]


def _renamed(name, arguments, state):
    """`state` with the names and the kinds of numbers of a network, or None if it does not fit."""
    try:
        with torch.device("meta"):
            expected = build(name, **arguments).state_dict()
    except UserError:
        return None
    if state.keys() != expected.keys():
        if list(map(_kind, state)) != list(map(_kind, expected)):
            return None
        state = dict(zip(expected, state.values()))
    if any(state[key].shape != expected[key].shape for key in expected):
        return None
    return {key: _of_kind(state[key], expected[key]) for key in expected}


def _of_kind(value, expected):
    """A tensor as float32 or, where the network counts batches, as an integer; unchanged if impossible."""
    if expected.is_floating_point():
        return value.float() if value.is_floating_point() else value
    whole = not value.is_floating_point() or ((value == value.round()) & (value.abs() < 2**53)).all()
    return value.to(expected.dtype) if whole else value


def export(state_dict, bits):
    """A `state_dict` as the bytes of the course's 8- or 16-bit file, for `pickle.load`.

    Raises UserError for values that the format cannot hold.
    """
    content = {}
    for name, tensor in state_dict.items():
        array = tensor.detach().cpu().numpy()
        limit = LARGEST if bits == 16 and array.ndim else math.inf
        if not np.isfinite(array).all() or np.abs(array).max(initial=0) > limit:
            raise UserError(
                f"tensor {name} holds values that {bits} bits of the course's format cannot; "
                "take another format or train again"
            )
        if not array.ndim:
            content[name] = np.float64(array)
        else:
            content[name] = array.astype(np.float16) if bits == 16 else quantize_minmax(array)
    # protocol 3 writes names without their lengths; under the old name of this module, NumPy 1 reads it too
    packed = pickle.dumps(content, protocol=3)
    return packed.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def export_warnings(description):
    """Sentences on what the course's script would do differently with a network of this description."""
    ours = description.to_dict()
    course = Description.of("student", {}, FOOD11_CLASSES, COURSE_PREPROCESSING).to_dict()
    if any(ours[key] != course[key] for key in ("architecture", "arguments")):
        yield "the course's script builds its own StudentNet for 11 classes and cannot load these weights"
    if description.preprocessing != COURSE_PREPROCESSING:
        yield "the course's script feeds 256 px crops with values in [0, 1], unlike this network's training"
