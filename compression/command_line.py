"""Command-line code of all scripts: user errors, devices, argument types."""

import argparse
import contextlib
import ctypes
import math
import os
import sys

from compression import distributed


class UserError(ValueError):
    """An error that the user can correct; its text is one sentence: what was found, where, what to do."""


def tell(text):
    """Print a note or warning on stderr."""
    print(text, file=sys.stderr)


def be_silent(text):
    """In place of `tell` where a text was told before."""


def run(main):
    """Run a script's `main()` and exit with its status. A UserError, or too little GPU memory, prints one
    line on stderr and exits with status 2.

    Characters that the console's encoding lacks, such as Chinese on a cp1252 console, are printed as escapes
    such as \\u9eb5.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has no encoding
            stream.reconfigure(errors="backslashreplace")
    errors = sys.stderr
    distributed.quiet()
    try:
        status = main()
        distributed.disconnect()
        sys.stdout.flush()
        sys.exit(status)
    except (UserError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; by name, since importing torch is slow
            error = "out of GPU memory; use smaller batches or a smaller --size, or --device cpu"
        elif not isinstance(error, UserError):
            raise
        where = f" (rank {distributed.RANK})" if distributed.RANK else ""
        script = sys.argv[0].removesuffix("/__main__.py").rsplit("/", 1)[-1]
        print(f"{script}: error{where}: {error}", file=errors)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited: end as by SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        # no "(default: None)"
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


def parser(doc):
    """An argument parser that shows a script's docstring and every default; its errors are one line.

    Flags cannot be abbreviated: a new flag could change the meaning of an abbreviation.
    """
    return _Parser(description=doc, formatter_class=_Formatter, allow_abbrev=False)


def available_cores():
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory():
    """Make glibc keep freed memory for the next step instead of returning it to the kernel.

    Every step frees and allocates the same large tensors; on a CPU the page faults cost a third of a
    StudentNet training step (0.26 s -> 0.18 s, batch 64 at 128 px, 2 cores). No effect without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no private mapping for blocks below 1 GB
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: do not shrink the heap


def pick_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:1' as a `torch.device`; 'auto' is a GPU if there is one.

    On the CPU it also calls `keep_freed_memory`. Under torchrun, each process takes a GPU of its own and
    joins the others.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and distributed.SIZE > 1:
            device = torch.device("cuda", distributed.LOCAL_RANK)
        usable = device.type == "cpu" or device.type == "cuda" and (device.index or 0) < count
    except RuntimeError:
        usable = False
    if not usable:
        processes = f" for {distributed.SIZE} processes" * (distributed.SIZE > 1)
        raise UserError(
            f"--device {name} cannot be used: torch finds {count} GPU(s){processes}; use auto, cpu, cuda "
            "or cuda:N"
        )
    if device.type == "cpu":
        keep_freed_memory()
    distributed.connect(device)
    return device


def number(kind, low, high=math.inf, open_low=False):
    """An argparse type: an int or float in [low, high], or in (low, high] with `open_low`."""

    what = "a whole number" if kind is int else "a number"
    bounds = f"{'above' if open_low else 'of at least'} {low}" + f" and at most {high}" * (high < math.inf)

    def convert(text):
        with contextlib.suppress(ValueError, OverflowError):  # the latter for more digits than a float takes
            value = kind(text)
            if low <= value <= high and math.isfinite(value) and not (open_low and value == low):
                return value
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not {what} {bounds}")

    return convert
