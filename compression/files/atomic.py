"""Reading and writing files so that nothing is half-written and nothing from a file is ever executed."""

import contextlib
import os
import secrets
from pathlib import Path
from zipfile import BadZipFile

from compression import distributed
from compression.command_line import UserError
from compression.files.torch_stream import read_torch_stream

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path beside `path` that replaces `path` when the block ends well, and vanishes otherwise.

    The folder of `path` is created. Raises UserError where the place cannot be written.
    """
    path = Path(os.path.realpath(path))  # through a symbolic link its target is written, not the link
    temporary = _new_file_beside(path)
    try:
        yield temporary
        with open(temporary, "r+b") as written:  # Windows cannot flush what is only open for reading
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; nothing was changed there") from None
    finally:
        temporary.unlink(missing_ok=True)


def _new_file_beside(path):
    """An empty file of another name in the folder of `path`, which is created."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, and a file is to be written there; name a file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device or pipe, which no file can replace; name an ordinary file")
        if path.exists() and not path.stat().st_mode & 0o222:
            raise UserError(f"{path} is a read-only file, which is not replaced; name another file")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
        except FileNotFoundError:  # another process removed the folder, which it had made for its check
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; choose another place for the output") from None
    return temporary


def write_text(path, text):
    """Write `text` to `path` atomically, as UTF-8 with LF line ends; of several processes, rank 0 does."""
    write_bytes(path, text.encode(errors="surrogateescape"))  # file names need not be UTF-8


def write_bytes(path, data):
    """Write `data` to `path` atomically; of several processes, rank 0 does."""
    if distributed.RANK:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def locked(folder):
    """Hold a folder within the block, or until the process dies; UserError if another process holds it.

    Where the system has no flock (Windows) or the file system none (some network mounts) nothing is checked.
    """
    if fcntl is None or distributed.RANK:  # rank 0 holds it for all
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is working in {folder}; wait or choose another --out") from None
        except OSError:
            pass
        yield


def check_output(path):
    """Raise UserError now if `path` could not be written later; leaves nothing there.

    Of several processes, rank 0 does: two would remove each other's folders.
    """
    if distributed.RANK:
        return
    path = Path(os.path.realpath(path))
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        _new_file_beside(path).unlink()
    finally:
        for folder in missing:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_distinct(*paths):
    """Raise UserError if two of these files (None: not asked for) are the same one."""
    real = [os.path.realpath(path) for path in paths if path is not None]
    for path in real:
        if real.count(path) > 1:
            raise UserError(f"{path} is named twice, and would be overwritten; name different files")


def read_torch(path, what, advice="copy it again, or use another file"):
    """What `torch.save` wrote to `path` (legacy or zip stream), as `torch.load(weights_only=True)` gives it.

    what: how an error message calls the file; advice: what to do about one that is damaged. Raises UserError
    for a missing, damaged or hostile file.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no {what} at {path}; check the path")
    with reading(path, what, advice):
        return read_torch_stream(Path(path).read_bytes(), path)


@contextlib.contextmanager
def reading(path, what, advice):
    """Turn what the system and the bytes of a file raise within the block into a UserError.

    what: how the message calls the file. advice: what to do about one that is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be read ({reason}); check the path and its permissions") from None
    except MemoryError:
        raise UserError(f"{path} asks for more memory than there is; it is damaged or no {what}") from None
    except Exception as error:  # readers raise a dozen types for bytes that are not their own
        internal = isinstance(error, (LookupError, AttributeError, BadZipFile)) or not str(error)
        reason = "its bytes are not in the format" if internal else " ".join(str(error).split())[:150]
        raise UserError(f"{path} is damaged or no {what} ({reason}); {advice}") from None
