"""Records: JSON files under which every published number can be found again and reproduced."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from compression import distributed
from compression.files.atomic import write_text

ROOT = Path(__file__).resolve().parents[2]


def provenance(device, seed=None, data=None):
    """Where a number comes from: command, seed, commit, data fingerprints, device and library versions.

    device: a `torch.device`. data: name -> fingerprint of the photos that were read.
    """
    import numpy
    import PIL
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": data or {},
        "device": name,
        **({"processes": distributed.SIZE} if distributed.SIZE > 1 else {}),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
    }


def file_hash(path):
    """Identifies a file in records: the first 16 digits of its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_record(path, record):
    """Write a record atomically as indented JSON."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def _commit():
    """The scripts' commit, with "+changes" if a script differs from it; "unknown" outside a checkout."""

    def git(*arguments):
        command = ["git", "--no-optional-locks", *arguments]  # a lock would stop a `git commit` meanwhile
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.sh")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
