"""A reader of pickles that can import, call and run nothing: it builds plain containers, and numpy arrays.

A pickle is a program for a stack machine. Python's own machine imports any name and calls it; this one knows
the handful of opcodes that a file of weights needs, and a name in the file is no more than a key into a table
of functions that its caller wrote. Work and memory are bounded by the length of the file.
"""

import functools
import math
import pickletools

import numpy as np

from compression.command_line import UserError

MAX_OPCODES = (
    200_000  # a ResNet-18 needs 3,000, a checkpoint with its optimizer 20,000; they take a third of a second
)
MAX_VALUES, MAX_DEPTH = (
    300_000,
    50,
)  # of what was built, with everything that is referred to twice counted twice
MAX_KEY_BITS = (
    60  # beyond, Python's hash(key) is key % (2 ** 61 - 1), and thousands of keys can be made to collide
)

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_KNOWN = _VALUES | {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "BINGET",
    "LONG_BINGET",
    "GLOBAL",
    "INST",
    "STACK_GLOBAL",
    "REDUCE",
    "BUILD",
    "BINPERSID",
}


class Name:
    """A name that a pickle asks for and that the table knows, such as numpy.ndarray; nothing was imported."""

    def __init__(self, full):
        self.full = full


class Unfinished:
    """What a function of the table may return for a pickle to complete: BUILD calls the subclass's
    `build(state)`.
    """


def read_pickle(stream, path, names, persistent=None):
    """The plain value in the pickle at the position of a binary `stream`, which is left behind it.

    names: "module.name" -> function that stands for it, or None where it is only mentioned.
    persistent: function that stands for what the pickle keeps outside of itself.
    Raises UserError naming `path` for any other name, ValueError for what is damaged or too large.
    """
    stack, marks, memo = [], [], {}
    try:
        for _ in range(MAX_OPCODES):
            opcode = _OPCODES.get(stream.read(1))
            if opcode is None or opcode.name not in _KNOWN:  # before its argument is read
                raise ValueError(
                    f"{opcode.name if opcode else 'a byte that'} is no opcode of a file of weights"
                )
            if opcode.name in ("GLOBAL", "INST"):  # pickletools would interpret escapes in it
                argument = ".".join(stream.readline()[:-1].decode() for _ in range(2))
            else:
                argument = opcode.arg.reader(stream) if opcode.arg else None
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    (result,) = stack
                    check_extent(result)
                    return result
                case "MARK":
                    marks.append(stack)
                    stack = []
                case kind if kind in _VALUES:
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                    stack.append(
                        {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[opcode.name]()
                    )
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise ValueError("the stack is too short")
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE":
                    items, stack = stack, marks.pop()
                    stack.append(tuple(items))
                case "APPEND" | "APPENDS":
                    items, stack = ([stack.pop()], stack) if opcode.name == "APPEND" else (stack, marks.pop())
                    _expect(stack[-1], list).extend(items)
                case "SETITEM" | "SETITEMS":
                    items, stack = (
                        ([stack.pop(-2), stack.pop()], stack)
                        if opcode.name == "SETITEM"
                        else (stack, marks.pop())
                    )
                    for key in items[::2]:  # hashing nested tuples recurses, and can take forever
                        if (
                            type(_expect(key, str, int, float, bool, type(None))) is int
                            and key.bit_length() > MAX_KEY_BITS
                        ):
                            raise ValueError("a key that is too large a number")
                    _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if opcode.name == "MEMOIZE" else argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL" | "INST" | "STACK_GLOBAL":
                    full = (
                        ".".join((stack.pop(-2), stack.pop())) if opcode.name == "STACK_GLOBAL" else argument
                    )
                    if full not in names or opcode.name == "INST":
                        raise UserError(
                            f"{path} asks for {ascii(full)[1:-1][:100]}, which no file of weights needs; "
                            "nothing was run: if you made the file, save model.state_dict() alone, else do "
                            "not use it"
                        )
                    stack.append(Name(full))
                case "REDUCE":
                    arguments = _expect(stack.pop(), tuple)
                    stack[-1] = names[_expect(stack[-1], Name).full](*arguments)
                case "BUILD":
                    state = stack.pop()
                    if (
                        type(stack[-1]) is dict
                    ):  # an OrderedDict: torch hangs the versions of its modules on it
                        if set(_expect(state, dict)) - {"_metadata"}:
                            raise ValueError("a container with attributes")
                    elif isinstance(stack[-1], Unfinished):
                        stack[-1].build(state)
                    else:
                        raise ValueError(f"a state for a {type(stack[-1]).__name__}")
                case "BINPERSID":
                    stack.append(persistent(stack.pop()))
    except (
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:  # of a short stack, an unknown memo, wrong arguments
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None
    raise ValueError(f"more than {MAX_OPCODES:,} opcodes")


def _expect(value, *types):
    if type(value) not in types:
        raise ValueError(f"a {type(value).__name__} in the place of a {types[0].__name__}")
    return value


def check_extent(value):
    """ValueError if a value, written out, would be too large or too deep: a few references to references can
    stand for billions.
    """
    pending, count = [(value, 0)], 1
    while pending:
        value, depth = pending.pop()
        if isinstance(value, dict):
            children = [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            children = value
        else:
            count += len(value) // 64 if isinstance(value, (str, bytes, bytearray)) else 0
            children = ()
        count += len(children)
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError("more values than a file of weights can have")
        pending += [(child, depth + 1) for child in children]


# ---------------------------------------------------------------- numpy


class Dtype(Unfinished):
    """Stands for numpy.dtype: numbers, or "O8" for the wrapper that `np.savez` puts around a dict."""

    def __init__(self, code, align=False, copy=True):
        if code not in ("f2", "f4", "f8", "u1", "i4", "i8", "O8"):
            raise ValueError(f"arrays of {ascii(code)[:20]}")
        self.code, self.order = code, "<"

    def build(self, state):
        _, order, *fields = _expect(state, tuple)
        if order not in ("<", ">", "|") or any(field is not None for field in fields[:3]):
            raise ValueError("an array of records")
        self.order = order

    def of(self, data):
        """The bytes `data` as a vector of this dtype."""
        if self.code == "O8":
            raise ValueError("an array of objects")
        return np.frombuffer(_expect(data, bytes, bytearray), self.order.replace("|", "<") + self.code)


class Array(Unfinished):
    """Stands for an array that is still to be filled; `value` is the numpy array, or the one object in a 0-d
    array of objects.
    """

    value = None

    def build(self, state):
        _, shape, dtype, fortran, data = _expect(state, tuple)
        if _expect(dtype, Dtype).code == "O8":
            (self.value,) = _expect(data, list)
            if shape != ():
                raise ValueError("an array of objects")
        else:
            self.value = _shaped(dtype.of(data), shape, "F" if fortran else "C")


def _shaped(vector, shape, order):
    if (
        len(_expect(shape, tuple)) > 8
        or not all(type(length) is int and length >= 0 for length in shape)
        or math.prod(shape) != vector.size
    ):
        raise ValueError("an array whose bytes do not fill its shape")
    return vector.reshape(shape, order=order)


def _reconstruct(kind, shape, code):
    if _expect(kind, Name).full != "numpy.ndarray":
        raise ValueError("an array of another kind")
    return Array()


def _scalar(dtype, data):
    (value,) = _expect(dtype, Dtype).of(data)
    return value


def _from_buffer(data, dtype, shape, order):
    array = Array()
    array.value = _shaped(_expect(dtype, Dtype).of(data), shape, order)
    return array


def _encode(text, encoding):
    """Protocol 2 has no bytes: it writes them as text."""
    if encoding != "latin1":
        raise ValueError("text in another encoding")
    return _expect(text, str).encode("latin-1")


def _empty_bytes():
    return b""


def empty_dict():
    """Stands for collections.OrderedDict(): a dict keeps its order by itself."""
    return {}


def numpy_names():
    """The table for a file with numpy arrays. A text is encoded once, however often the file asks."""
    return {
        "numpy.ndarray": None,
        "numpy.dtype": Dtype,
        "collections.OrderedDict": empty_dict,
        "_codecs.encode": functools.cache(_encode),
        "__builtin__.bytes": _empty_bytes,
        "builtins.bytes": _empty_bytes,
        **{
            f"numpy.{core}.multiarray.{name}": function
            for core in ("core", "_core")
            for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
        },
        **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    }
