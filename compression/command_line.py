"""What every script does the same way on the command line: user errors, devices, argument types."""

import argparse
import ctypes
import math
import os
import sys


class UserError(ValueError):
    """Something the caller can put right; its text is one sentence: what was found, where, what to do."""


def run(main):
    """Run a script's `main()` and exit with its status; a UserError is one line on stderr and status 2, and
    so is a full GPU.

    What the console's encoding cannot write, a Chinese name on a cp1252 console, is printed as an escape such
    as \\u9eb5.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has no encoding to care about
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not have been imported
            raise
        print(
            f"{sys.argv[0].rsplit('/', 1)[-1]}: error: out of GPU memory; "
            "use smaller batches or a smaller --size, or --device cpu",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who read our output, `head` perhaps, has gone; as if SIGPIPE had ended us
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        silent = (
            action.default is None or action.default is False or action.default == []
        )  # "(default: None)" helps nobody
        return action.help if silent else super()._get_help_string(action)


def parser(doc):
    """An argument parser that shows a script's docstring as it stands and every default; its errors are one
    line.

    A flag must be written out: an abbreviation that works today would change its meaning with the next flag.
    """
    return _Parser(description=doc, formatter_class=_Formatter, allow_abbrev=False)


def available_cores():
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step instead of returning it to the kernel.

    A step frees and allocates the same large tensors over and over; on a CPU the page faults of that cost a
    third of a StudentNet training step (0.26 s -> 0.18 s, batch 64 at 128 px, 2 cores). No effect elsewhere.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no private mapping for blocks below 1 GB
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: do not shrink the heap
    except (OSError, AttributeError):
        pass


def pick_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:1' as a `torch.device`; 'auto' takes a GPU when there is one.

    A process that works on the CPU keeps its freed memory from here on (see `keep_freed_memory`).
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name} was asked for, but torch sees no GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} was asked for, but torch sees only {torch.cuda.device_count()} GPU(s) here; "
            "use cuda:0"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def number(kind, low, high=float("inf"), open_low=False):
    """An argparse type: an int or float in [low, high], or in (low, high] with `open_low`."""

    def convert(text):
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except OverflowError:  # a whole number beyond every float
            raise argparse.ArgumentTypeError(
                f"{text[:20]}... is out of range: its {len(text)} digits are too many"
            ) from None
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from None
        if not finite or not low <= value <= high or (open_low and value == low):
            bounds = f"{'above' if open_low else 'at least'} {low}" + (
                f" and at most {high}" if high != float("inf") else ""
            )
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value

    return convert
