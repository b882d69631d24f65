#!/usr/bin/env bash
# Train the shipped model anew, by the very commands that made it:
#     bash hw7_train.sh <data directory> <model out> [folder of the runs]
# A teacher from scratch, a larger student distilled from it, and that student's weights trained through 4-bit rounding. Stopped or
# killed, the same command continues. PYTHON=... names the Python with the packages (else .venv's, else python3).
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: bash hw7_train.sh <data directory> <model out> [folder of the runs]" >&2
    exit 2
fi
data=$1 model=$2 runs=${3:-$here/runs/hw7}
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x "$here/.venv/bin/python" ] || python=$here/.venv/bin/python

"$python" "$here/train_student.py" "$data" --size 96 --epochs 90 --out "$runs/teacher" --resume
"$python" "$here/train_kd.py" "$data" --teacher "$runs/teacher/best.pt" --set widths=64,64,64,128,128,128,128 \
    --set hidden=96,192,192,320,448,448,448 --set pools=1,0,0,1,0,0,0 --set head=320 --size 128 --view-size 96 \
    --alpha 0.8 --temperature 2 --mixup 0.3 --lr 0.002 --epochs 45 --out "$runs/student" --resume
"$python" "$here/quantize.py" "$runs/student/best.pt" "$model" --bits 4 --qat-epochs 15 --teacher "$runs/student/best.pt" \
    --temperature 2 --mixup 0.3 --data "$data" --record "$runs/model.json" --out "$runs/rounded" --resume
