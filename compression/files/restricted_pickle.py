"""A reader of pickles that can import, call and run nothing: it builds plain containers, and numpy arrays.

A name in the file is only a key into a table of functions that the caller wrote, and few opcodes are known.
The base is `pickle._Unpickler`, as in joblib, since its opcodes can be replaced; `pickle.Unpickler` gives its
memo as much memory as an index asks for, and hashes any key.
"""

import collections
import io
import pickle

import numpy as np

from compression.command_line import UserError

MAX_READS = 400_000  # a checkpoint of ResNet-18 with optimizer takes 24,000, of DenseNet-201 234,000
MAX_VALUES, MAX_DEPTH = 300_000, 50  # of what was built, where what is referred to twice counts twice

OPCODES = """PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST APPEND APPENDS EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL INST
    STACK_GLOBAL REDUCE BINPERSID""".split()


class Stream(io.BytesIO):
    """Bytes that are read in so many steps only, which bounds the time and the memory of unpickling."""

    reads = 0

    def read(self, size=-1):
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError(f"its pickle takes more than {MAX_READS:,} steps")
        return super().read(size)


class Array:
    """Stands for an array until BUILD gives its `value`: a numpy array, or the object of a 0-d array."""

    value = None


class _Unpickler(pickle._Unpickler):
    dispatch = {code: pickle._Unpickler.dispatch[code] for (code,) in map(vars(pickle).__getitem__, OPCODES)}
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]  # its own would allocate before it reads

    def find_class(self, module, name):
        if (full := f"{module}.{name}") not in self.names:
            raise UserError(
                f"{self.path} asks for {ascii(full)[1:-1][:100]}, which no file of weights needs; nothing "
                "was run: if you made it, save model.state_dict() alone, else do not use it"
            )
        return self.names[full]

    def load_frame(self):
        self.read(8)  # how far to read ahead, which is past what Stream counts

    def load_setitem(self):
        self.fill_dict([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self):
        self.fill_dict(self.pop_mark())

    def fill_dict(self, items):
        keys = items[::2]
        # tuples can take forever to hash, and hash(n) is n % (2 ** 61 - 1), by which thousands can collide
        small = (isinstance(key, (str, float)) or isinstance(key, int) and abs(key) < 1 << 60 for key in keys)
        if not isinstance(self.stack[-1], dict) or not all(small):
            raise ValueError("a dict with keys that are neither text nor numbers of the usual size")
        self.stack[-1].update(zip(keys, items[1::2], strict=True))

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Array):
            _, shape, dtype, fortran, data = state
            single = shape == () and type(data) is list  # an object
            target.value = data[0] if single else _array(data, dtype, shape, "F" if fortran else "C")
        elif not isinstance(target, collections.OrderedDict):  # on which torch hangs an attribute
            if not isinstance(target, np.dtype) or state[1] == ">":
                raise ValueError("numbers in another order of bytes, or a state for another value")

    dispatch |= {
        pickle.FRAME[0]: load_frame,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }


def read_pickle(stream, path, names, persistent=None):
    """The plain value in the pickle at the position of a `Stream`, which is left behind it.

    names: "module.name" -> what stands for it. persistent: function for what is kept outside of the pickle.
    Raises UserError naming `path` for any other name, any Exception for what is damaged or too large.
    """
    unpickler = _Unpickler(stream)
    unpickler.path, unpickler.persistent_load = path, persistent
    # without the arguments of the real one, whose keys nobody has looked at
    unpickler.names = names | {"collections.OrderedDict": lambda: collections.OrderedDict()}
    result = unpickler.load()
    pending, count = [(result, 0)], 0
    while pending:  # a few references to references can stand for billions of values
        value, depth = pending.pop()
        children = [*value, *value.values()] if isinstance(value, dict) else value
        if isinstance(children, (list, tuple)):
            pending += [(child, depth + 1) for child in children]
            count += len(children)
        elif isinstance(children, (str, bytes)):
            count += len(children) // 64
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError("more values than a file of weights can have")
    return result


def _array(data, dtype, shape, order="C"):
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise ValueError("an array of other things than numbers")
    return np.ndarray(shape, dtype, data, order=order)  # an error where the bytes do not fill the shape


def numpy_names():
    """The table for a file with numpy arrays."""
    encoded = {}

    def dtype(code, *_):
        if code not in "f2 f4 f8 u1 i4 i8 O8".split():  # O8: `np.savez` wraps a dict in an array
            raise ValueError("an array of other things than numbers")
        return np.dtype(code)

    def encode(text, encoding):  # what protocol 2 makes of bytes; once for each, however often the file asks
        if type(text) is not str or encoding != "latin1":
            raise ValueError("text in another encoding")
        if text not in encoded:
            encoded[text] = text.encode("latin-1")
        return encoded[text]

    names = {"numpy.ndarray": None, "numpy.dtype": dtype, "_codecs.encode": encode}
    for core in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
        names[f"{core}.multiarray._reconstruct"] = lambda *_: Array()
        names[f"{core}.multiarray.scalar"] = lambda dtype, data: _array(data, dtype, ())[()]
        names[f"{core}.numeric._frombuffer"] = _array
    return names | dict.fromkeys(("__builtin__.bytes", "builtins.bytes"), lambda: b"")
