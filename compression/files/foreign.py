"""Model files that other programs wrote: what the students of this homework pass around, read and written.

    python inference.py food-11 prediction.csv --model their_8bit.pkl
    python quantize.py runs/student/best.pt model.pkl --export course8

Read: a bare `state_dict` of torch.save, pickles of 16- and 8-bit dicts, and a 16-bit dict in an .npz file.
None of them says which network its weights belong to, so that is read off the tensors' shapes; nor how photos
are fed to it: RGB ones in the course's way, grey ones whole at the network's usual size, with values in [0,
1].
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
from compression.quantization.grids import dequantize_minmax, quantize_minmax

COURSE_PREPROCESSING = Preprocessing(256, "course", (0, 0, 0), (1, 1, 1))
MAX_BYTES = 1 << 26  # a ResNet-18 in 16 bits has 22 MB
WRAPPERS, MOST_WRAPPERS = ("state_dict", "model_state_dict", "model", "net"), 3
PREFIXES = ("_orig_mod.", "module.", "model.", "net.")
EXPORTS = {"course8": 8, "course16": 16}


def load_foreign(path, what="model file"):
    """The Model in a pickled dict or an .npz file; UserError if it is damaged, hostile, or of no network
    known here.

    what: how an error message calls the file.
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
    # np.savez wraps a dict in an array
    content = unwrapped(content.value if isinstance(content, Array) else content)
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise ValueError("it is no dict of named arrays")
    state, bits, total = {}, set(), 0
    for name, value in content.items():
        *bounds, array = value if isinstance(value, tuple) and value else (value,)
        array = array.value if isinstance(array, Array) else array
        if not all(isinstance(number, (np.number, int, float)) for number in bounds) or not isinstance(
            array, (np.ndarray, np.number, int, float)
        ):
            raise ValueError(f"{ascii(name)[:80]} is neither an array nor (minimum, maximum, codes)")
        array = np.asarray(array)
        total += array.nbytes
        if total > len(data) + 8 * len(content):  # one array under many names
            raise ValueError("more arrays than the file has bytes")
        if len(bounds) == 2 and array.dtype == np.uint8:
            low, high = map(float, bounds)
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{ascii(name)[:80]} has no finite minimum and maximum")
            bits.add(8)
            with np.errstate(over="ignore"):  # infinities are refused when the network is built
                array = dequantize_minmax(low, high, array)
        elif bounds or array.dtype == np.uint8:
            raise ValueError(f"{ascii(name)[:80]} is neither an array nor (minimum, maximum, codes)")
        elif array.ndim:
            bits.add(16 if array.dtype == np.float16 else 32)
        with np.errstate(over="ignore"):
            state[name] = torch.from_numpy(
                array.astype(
                    np.int64 if array.dtype.kind == "i" else np.float32 if array.ndim else np.float64
                )
            )
    return state, min(bits, default=32)


def bare_state_dict(content):
    """The `state_dict` in what `torch.save` wrote, out of the wrappers that training programs put around it;
    None if there is none.
    """
    content = unwrapped(content)
    tensors = (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )
    return content if tensors else None


def unwrapped(content):
    """What stands inside {"state_dict": ...} and the like, some of them within each other; the content itself
    without any.
    """
    for _ in range(MOST_WRAPPERS):
        inside = [
            content[key]
            for key in WRAPPERS
            if isinstance(content, dict) and isinstance(content.get(key), dict)
        ]
        if not inside:
            break
        content = inside[0]
    return content


def without_prefixes(state):
    """A dict of tensors without what compiling, parallel training and wrapping modules put before all its
    names.
    """
    while prefix := next(
        (prefix for prefix in PREFIXES if state and all(name.startswith(prefix) for name in state)), None
    ):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def recognise(path, state, bits=32):
    """The Model of a bare `state_dict`: the one network of the table that has tensors of these shapes in this
    order.

    Names may differ (see `without_prefixes`; other names of modules), but the last part of each (`weight`,
    `running_var`, ...) must agree. The number of classes and, in the DepthwiseNet family, the widths are read
    off the shapes, so pruned networks are recognised too. Raises UserError if no network fits, or several.
    """
    state = without_prefixes(state)
    shapes = [tuple(value.shape) for value in state.values()]
    kernels, matrices = (
        [shape for shape in shapes if len(shape) == dimensions and 0 not in shape] for dimensions in (4, 2)
    )
    found = {}
    for name, architecture in ARCHITECTURES.items() if kernels and matrices else ():
        arguments = {"num_classes": matrices[-1][0], "in_channels": kernels[0][1]}
        if architecture.network is DepthwiseNet:
            hidden = tuple(rows for rows, _ in matrices[:-1])
            arguments |= {
                "widths": tuple(shape[0] for shape in kernels[:1] + kernels[2::2]),
                "hidden": hidden if len(set(hidden)) > 1 else hidden[0] if hidden else 0,
            }
        if _skeleton(name) != [(_kind(tensor), len(shape)) for tensor, shape in zip(state, shapes)]:
            continue
        renamed = _renamed(name, arguments, state)
        if renamed:
            found[name] = arguments, renamed
    if len(found) != 1:
        what = (
            f"may be those of {' or '.join(found)}"
            if found
            else "are not those of a network that this project knows"
        )
        raise UserError(
            f"{path} was not written by this project, and its {len(state)} tensors {what}; use a file that "
            "says what it is"
        )
    ((name, (arguments, renamed)),) = found.items()
    classes = arguments["num_classes"]
    names = FOOD11_CLASSES if classes == len(FOOD11_CLASSES) else unnamed(classes)
    grey = Preprocessing(ARCHITECTURES[name].size, "crop", (0,), (1,))
    preprocessing = grey if arguments["in_channels"] == 1 else COURSE_PREPROCESSING
    return Model(
        Description.of(name, arguments, names, preprocessing, {"from": FOREIGN}), renamed, bits, path
    )


def _kind(tensor):
    """What a tensor is to its module: the last part of its name."""
    return tensor.rpartition(".")[2]


@functools.cache
def _skeleton(name):
    """[(kind, dimensions), ...] of a network's tensors, which its widths do not change."""
    if name == "resnet18":  # without importing torchvision, which takes seconds
        kinds = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        norm = [(kind, 0 if kind == "num_batches_tracked" else 1) for kind in kinds]
        return 20 * [("weight", 4), *norm] + [("weight", 2), ("bias", 1)]
    with torch.device("meta"):
        return [(_kind(tensor), value.ndim) for tensor, value in build(name).state_dict().items()]


def _renamed(name, arguments, state):
    """`state` with the names and the kinds of numbers of a network, or None if it does not fit."""
    try:
        with torch.device("meta"):
            expected = build(name, **arguments).state_dict()
    except UserError:
        return None
    if state.keys() == expected.keys():
        pairs = {key: state[key] for key in expected}
    elif list(map(_kind, state)) == list(map(_kind, expected)):
        pairs = dict(zip(expected, state.values()))
    else:
        return None
    if any(pairs[key].shape != expected[key].shape for key in expected):
        return None
    return {key: _of_kind(value, expected[key]) for key, value in pairs.items()}


def _of_kind(value, expected):
    """A tensor as float32 or, where the network counts batches, as an integer; unchanged where that is not
    possible.
    """
    if expected.is_floating_point():
        return value.float() if value.is_floating_point() else value
    whole = (
        not value.is_floating_point()
        or (value.isfinite() & (value == value.round()) & (value.abs() < 2**53)).all()
    )
    return value.to(expected.dtype) if whole else value


def export(state_dict, bits):
    """A `state_dict` as the bytes of the course's 8- or 16-bit file: a pickle for `pickle.load`; UserError
    for NaN or infinity.
    """
    content = {}
    for name, tensor in state_dict.items():
        array = tensor.detach().cpu().numpy()
        if not np.isfinite(array).all() or (
            bits == 16 and np.abs(array).max(initial=0) > np.finfo(np.float16).max and array.ndim
        ):
            raise UserError(
                f"tensor {name} holds values that {bits} bits of the course's format cannot; "
                "take another format or train again"
            )
        content[name] = (
            np.float64(array)
            if not array.ndim
            else array.astype(np.float16)
            if bits == 16
            else quantize_minmax(array)
        )
    # NumPy 2 has moved this module; under the old name, NumPy 1 reads the file too. Protocol 3 writes names
    # without their lengths.
    return pickle.dumps(content, protocol=3).replace(
        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )


def export_warnings(description):
    """Sentences on what the course's script would do differently with a network of this description."""
    course = Description.of("student", {}, FOOD11_CLASSES, COURSE_PREPROCESSING).to_dict()
    if any(description.to_dict()[key] != course[key] for key in ("architecture", "arguments")):
        yield (
            "the course's script builds its own StudentNet for 11 classes and cannot load this network's "
            "weights"
        )
    if description.preprocessing != COURSE_PREPROCESSING:
        yield (
            "the course's script feeds 256 px crops with values in [0, 1], not what this network was "
            "trained on"
        )
