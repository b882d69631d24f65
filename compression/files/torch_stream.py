"""What a `torch.save` stream would ask of `torch.load`, checked before it is asked.

`weights_only=True` runs no code, but it believes what a file says of itself: one of a few hundred bytes can
ask for terabytes, or for a dictionary key that takes forever to hash. Here its pickle is read by
`restricted_pickle`, with stand-ins for storages and tensors that only check that the bytes claimed are bytes
the file has.
"""

import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path

from compression.command_line import UserError
from compression.files.restricted_pickle import Name, empty_dict, read_pickle

ZIP_MAGIC, LEGACY_MAGIC = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
END_BYTES = (
    56 + 20 + 22
)  # of a zip file: zip64 record, locator of that record, end record; the first two may be missing
MAX_ENTRIES = 20_000  # torch writes one per tensor
ITEM_BYTES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}


class _Claims:
    """The stand-ins, and the bytes that they have promised so far.

    entries: bytes of every storage in the file, or None where they lie one after another at its end.
    """

    def __init__(self, size, entries=None):
        self.size, self.entries, self.storages, self.tensor_bytes = size, entries, {}, 0
        self.names = {
            "collections.OrderedDict": empty_dict,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": self.parameter,
            **{f"torch.{kind}Storage": None for kind in ITEM_BYTES},
        }

    def storage(self, identity):
        """(elements, bytes per element) of a storage: ("storage", type, key, device, elements) and, in legacy
        streams, no view.
        """
        what, kind, key, _, count, *view = identity
        if (
            what != "storage"
            or not isinstance(kind, Name)
            or type(key) is not str
            or view not in ([], [None])
            or not _is_count(count)
        ):
            raise ValueError("a storage of an unknown kind")
        item = ITEM_BYTES[kind.full[len("torch.") : -len("Storage")]]
        if self.storages.setdefault(key, (count, item)) != (count, item):
            raise ValueError("a storage of two kinds")
        if count * item > (self.size if self.entries is None else self.entries.get(key, 0)):
            raise ValueError("a storage is larger than its bytes in the file")
        return count, item

    def tensor(self, storage, offset, shape, stride, requires_grad, hooks, metadata=None):
        count, item = storage
        if (
            len(shape) != len(stride)
            or len(shape) > 8
            or not all(map(_is_count, (offset, *shape, *stride)))
            or hooks
            or metadata
        ):
            raise ValueError("a tensor of an unknown kind")
        claimed = math.prod(shape)
        self.tensor_bytes += claimed * item
        if (
            claimed > count or self.tensor_bytes > 4 * self.size
        ):  # tied weights share a storage, but not hundreds of tensors
            raise ValueError("tensors are larger than their bytes in the file")
        return Tensor()

    def parameter(self, tensor, requires_grad, hooks):
        if not isinstance(tensor, Tensor) or hooks:
            raise ValueError("a parameter of an unknown kind")
        return tensor


class Tensor:
    """Stands for a tensor in the values that the checks see."""


def _is_count(value):
    return type(value) is int and 0 <= value < 1 << 62


def open_zip(path):
    """A `zipfile.ZipFile` for reading, whose directory was found to be of bearable length; ValueError for
    anything else.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        entries, position = 0, view.find(b"PK\x01\x02")
        while position >= 0:
            entries, position = entries + 1, view.find(b"PK\x01\x02", position + 4)
            if entries > MAX_ENTRIES:
                raise ValueError("a zip file of too many entries")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(str(error)) from None


def read_entry(archive, entry, limit):
    """The bytes of one entry, at most `limit`; ValueError if it has more or is damaged."""
    if (
        entry.file_size > limit
        or entry.flag_bits & 1
        or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ):
        raise ValueError(f"an entry of {entry.file_size:,} bytes that cannot be unpacked")
    try:
        with archive.open(entry) as stream:
            data = stream.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    if len(data) != entry.file_size:
        raise ValueError("an entry is not as long as it says")
    return data


def is_torch_stream(path):
    """Whether the file begins like one of `torch.save`, zip or legacy; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY_MAGIC))
        if start == LEGACY_MAGIC:
            return True
        with open_zip(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    except ValueError:  # a truncated zip file says best in torch's words what it is
        return start.startswith(ZIP_MAGIC)


def check_torch_stream(path):
    """Raise UserError if a stream asks for a name that no weights need, ValueError if its bytes are not what
    it claims.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_MAGIC))
        file.seek(-min(size, END_BYTES), os.SEEK_END)
        end = file.read().rjust(END_BYTES, b"\0")
    if start == LEGACY_MAGIC:
        _check_legacy(path, size)
    elif not start.startswith(ZIP_MAGIC):
        raise ValueError("it does not begin like one")
    else:
        _check_end(end, size)
        with open_zip(path) as archive:
            _check_zip(path, size, archive)


def _check_end(end, size):
    """ValueError unless the last END_BYTES of a zip file of so many bytes leave no doubt about where its
    directory is.

    Of two zip64 records, Python's zipfile takes the one in front of the locator and torch the one that the
    locator points to, so there must be one only, with the directory right in front of it.
    """
    if end[-22:-18] != b"PK\x05\x06" or end[-2:] != bytes(2):
        raise ValueError("its end is missing or is not that of a zip file")
    record, (length, begin) = size - 22, struct.unpack("<LL", end[-10:-2])
    if end[-42:-38] == b"PK\x06\x07":
        record, (length, begin), (located,) = (
            size - END_BYTES,
            struct.unpack("<QQ", end[40:56]),
            struct.unpack("<Q", end[-34:-26]),
        )
        if end[:4] != b"PK\x06\x06" or located != record:
            raise ValueError("its zip64 record is not where it should be")
    if begin + length != record:
        raise ValueError("its directory does not end where its end begins")


def _check_zip(path, size, archive):
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()) or min(entry.header_offset for entry in entries.values()) != 0:
        raise ValueError(
            "entries of the same name, or bytes before the first"
        )  # torch might see other entries than we do
    if (
        any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size
            for entry in entries.values()
        )
        or sum(entry.file_size for entry in entries.values()) > size
    ):
        raise ValueError("entries are compressed or larger than the file, which torch.save does not write")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise ValueError("there is no pickle in it, or several")
    prefix = f"{roots[0]}data/"
    claims = _Claims(
        size,
        {
            name.removeprefix(prefix): entry.file_size
            for name, entry in entries.items()
            if name.startswith(prefix)
        },
    )
    data = read_entry(archive, entries[f"{roots[0]}data.pkl"], 1 << 24)
    read_pickle(io.BytesIO(data), path, claims.names, claims.storage)


def _check_legacy(path, size):
    # the memory map reads no further than the file, whatever it is asked
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        claims = _Claims(size)
        for _ in range(3):  # magic number, version, sizes of C types
            read_pickle(stream, path, {})
        read_pickle(stream, path, claims.names, claims.storage)
        keys = read_pickle(stream, path, {})
        if type(keys) is not list or sorted(keys) != sorted(claims.storages):
            raise ValueError("storages that it lists are not those that it uses")
        for key in keys:
            count, item = claims.storages[key]
            if int.from_bytes(stream.read(8), "little") != count or stream.tell() + count * item > size:
                raise ValueError("a storage is larger than its bytes in the file")
            stream.seek(count * item, os.SEEK_CUR)
