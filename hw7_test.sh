#!/usr/bin/env bash
# Predict the photos of <data directory>/testing with model.bin and write the Kaggle CSV:
#     bash hw7_test.sh <data directory> <prediction csv> [options of inference.py]
# Predictions are averaged over two sizes and mirror images (--tta), or mirror images only for grey faces and the
# course's files; the option --no-tta uses one view.
# Uses .venv beside this script or the python3 on the PATH, whichever has the packages (PYTHON=... names
# another). If neither has them, .venv is set up from requirements.txt first, which needs the internet.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

case ${1:-} in -h | --help) sed -n '1d; s/^# \{0,1\}//p; /^set/q' "$0" && exit ;; esac
if [ $# -lt 2 ]; then
    echo "usage: bash hw7_test.sh <data directory> <prediction csv> [options of inference.py]" >&2
    exit 2
fi

usable() { # has the packages of inference.py in new enough versions; 50 times faster than importing torch
    "$1" -c '
import sys
from importlib import metadata, util
found = sys.version_info >= (3, 10) and all(map(util.find_spec, ("torch", "numpy", "pandas", "PIL", "tqdm")))
sys.exit(not (found and tuple(map(int, metadata.version("torch").split(".")[:2])) >= (2, 6)))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ] && ! usable "$PYTHON"; then
    echo "hw7_test.sh: error: PYTHON=$PYTHON does not run or lacks torch 2.6, numpy, pandas, pillow or tqdm; unset PYTHON or name another" >&2
    exit 2
fi
python=
for candidate in ${PYTHON:+"$PYTHON"} "$here/.venv/bin/python" python3 python; do
    if usable "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "hw7_test.sh: error: Python 3.10 or newer is needed as python3; install it or set PYTHON to one that has torch" >&2
        exit 2
    fi
    echo "no Python with torch was found: setting up $here/.venv from requirements.txt (a few GB, some minutes)" >&2
    python3 -m venv "$here/.venv"
    "$here/.venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt" >&2
    python=$here/.venv/bin/python
fi
exec "$python" "$here/inference.py" --tta "$@"
