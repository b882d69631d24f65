"""What `torch.save` wrote, zip or legacy, as `torch.load` gives it, for files that nobody vouches for.

`torch.load(weights_only=True)` runs no code, but it believes what a file says of itself: one of a few hundred
bytes can ask for terabytes, or for a dictionary key that takes forever to hash. Here the pickle is read by
`restricted_pickle`, and a tensor is a view of bytes that the file has.
"""

import io
import math
import zipfile

import torch

from compression.files.restricted_pickle import Stream, read_pickle

ZIP_MAGIC, LEGACY_MAGIC = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()
DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


class _Storages(dict):
    """Key -> 1-d tensor, still to be filled, of what a pickle has asked for.

    size: bytes of the file. All storages together are no larger; all tensors are at most four times as large,
    since tied weights share a storage, but not hundreds of tensors.
    """

    def __init__(self, size):
        self.stored, self.viewed = size, 4 * size
        self.names = {
            "torch._utils._rebuild_tensor_v2": self.view,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            **{f"torch.{kind}Storage": getattr(torch, dtype) for kind, dtype in zip(KINDS, DTYPES)},
        }

    def storage(self, identity):
        what, dtype, key, _, count, *view = identity
        if what != "storage" or type(key) is not str or type(count) is not int or any(view):
            raise ValueError("a storage of an unknown kind")
        if key not in self:
            self.stored -= count * dtype.itemsize
            if count < 0 or self.stored < 0:
                raise ValueError("a storage is larger than the file")
            self[key] = torch.empty(count, dtype=dtype)
        if (self[key].dtype, len(self[key])) != (dtype, count):
            raise ValueError("a storage of two kinds")
        return self[key]

    def view(self, storage, offset, shape, stride, requires_grad, hooks, metadata=None):
        numbers = all(type(number) is int for number in (offset, *shape, *stride))
        if hooks or metadata or not numbers or len(shape) > 8 or math.prod(shape) > len(storage):
            raise ValueError("a tensor of an unknown kind, or larger than its storage")
        self.viewed -= math.prod(shape) * storage.itemsize
        if self.viewed < 0:
            raise ValueError("tensors are larger than the file")
        return storage.as_strided(shape, stride, offset)  # an error if it does not lie within


def open_zip(data):
    """A `zipfile.ZipFile` for reading; an Exception if these bytes are none, or have far too many entries."""
    if data.count(b"PK\x01\x02") > 20_000:  # torch writes one per storage
        raise ValueError("a zip file of too many entries")
    return zipfile.ZipFile(io.BytesIO(data))


def read_entry(archive, name, limit):
    """The bytes of one entry; an Exception if it has more than `limit` or is damaged."""
    entry = archive.getinfo(name)
    if entry.file_size > limit or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"an entry of {entry.file_size:,} bytes that cannot be unpacked")
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)  # without a number, it would unpack what lies beyond


def is_torch_stream(path):
    """Whether a file begins like one of `torch.save`, zip or legacy, and not like one of `np.savez`."""
    try:
        with open(path, "rb") as file:
            start = file.read(50)
    except OSError:  # to be explained by whoever reads all of it
        return False
    return start.startswith(LEGACY_MAGIC) or start.startswith(ZIP_MAGIC) and start[30:41] != b"weights.npy"


def read_torch_stream(data, path):
    """The content of these bytes of the file `path`; raises like `read_pickle`."""
    storages, legacy = _Storages(len(data)), data.startswith(LEGACY_MAGIC)
    if legacy:
        stream = Stream(data)
        for _ in range(3):  # magic number, version, sizes of C types
            read_pickle(stream, path, {})
    else:
        archive = open_zip(data)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("there is no pickle of torch.save in it, or several")
        folder = names[0].removesuffix("data.pkl") + "data/"
        stream = Stream(read_entry(archive, names[0], len(data)))
    content = read_pickle(stream, path, storages.names, storages.storage)
    keys = read_pickle(stream, path, {}) if legacy else list(storages)
    if sorted(keys) != sorted(storages):
        raise ValueError("storages that it lists are not those that it uses")
    for key in keys:
        values = memoryview(storages[key].view(torch.uint8).numpy())  # takes as many bytes only
        if legacy and int.from_bytes(stream.read(8), "little") != len(storages[key]):
            raise ValueError("a storage is not as long as it says")
        values[:] = stream.read(len(values)) if legacy else read_entry(archive, folder + key, len(values))
    return content
