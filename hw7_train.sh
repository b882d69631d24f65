#!/usr/bin/env bash
# Train the shipped model again, with the same commands:
#     bash hw7_train.sh <data directory> <model out> [--teacher FILE]... [--max-bytes N] [--epochs N] [--store-size N]
#                       [--runs DIR] [options of train_kd.py, such as --size 96 --recipe detail=64 view_size=72]
# A student is distilled from the teachers for two thirds of its learning rate schedule. Quantization-aware training at
# 3 bits takes the last third, on the same views, whose teacher outputs are cached. Without --teacher, a teacher is
# trained from scratch first. The network is as wide as --max-bytes should allow (default: 300000; see models.py --widest);
# with --network or --set, the size of the file is only checked at the end. --store-size: input size of the model file, if another size is better on validation photos. If stopped, repeat the
# command to continue. Other options of train_kd.py are for both of its trainings, but --network, --set and the
# recipe's lr and stop_epoch only for the first; --validation-share, --seed, --device and --cache are for all scripts
# that have them.
# PYTHON=... names the Python with the packages (default: .venv's, else python3).
set -eo pipefail
here=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    echo "usage: bash hw7_train.sh <data directory> <model out> [--teacher FILE]... [--max-bytes N] [--epochs N] [--store-size N] [--runs DIR] [options of train_kd.py]" >&2
    exit 2
}
[[ $# -ge 2 && $1 != --* && $2 != --* ]] || usage
data=$1 model=$2 runs=$here/runs/hw7 epochs= limit=300000 widest=yes
teachers=() widths=() network=() everywhere=() trainings=() options=() stored=()
shift 2
while [ $# -gt 0 ]; do
    case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case $1 in
    --qat-bits | --init | --out)
        echo "hw7_train.sh: error: $1 is set by this script; leave it out (--runs names another folder for a new start)" >&2
        exit 2 ;;
    --teacher | --max-bytes | --epochs | --store-size | --runs | --network | --set | --device | --cache | --seed | --validation-share)
        [ $# -ge 2 ] || usage
        case $1 in
        --teacher) teachers+=(--teacher "$2") ;;
        --max-bytes) limit=$2 ;;
        --epochs) epochs=$2 ;;
        --store-size) stored=(--size "$2") ;;
        --runs) runs=$2 ;;
        --network) widest='' network+=("$1" "$2") ;;
        --set) network+=("$1" "$2") ;;
        --device | --cache) everywhere+=("$1" "$2") ;;
        *) trainings+=("$1" "$2") ;;
        esac
        shift 2 ;;
    *) options+=("$1") && shift ;;
    esac
done
trap 'exit 130' INT # also where a training had just ended, and its own status does not tell
trainings+=("${everywhere[@]}")
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x "$here/.venv/bin/python" ] || python=$here/.venv/bin/python

# The length is 6.3 million views, so that small data sets get more epochs. After far fewer, the weights compress less;
# if the file is then too large, use other --runs and the --set options that models.py --widest prints for 5 % fewer
# bytes. A photo has a fixed view for every five epochs: teacher outputs are computed once for each, and cached.
photos=$({ find -L "$data/training" -type f 2>/dev/null || true; } | wc -l)
[ "$photos" -gt 0 ] || photos=9866 # a CSV, or an error that the first script reports
epochs=${epochs:-$(((6300000 + photos / 2) / photos))}
if ! [[ $epochs =~ ^[1-9][0-9]*$ && $limit =~ ^[1-9][0-9]*$ ]]; then
    echo "hw7_train.sh: error: --epochs $epochs or --max-bytes $limit is not a whole number above 0; correct it" >&2
    exit 2
fi
stop=$((epochs * 2 / 3 + 1)) tuning=$(((epochs + 2) / 3))
views=$((epochs > 5000 ? 1000 : (epochs + 4) / 5)) # train_kd.py takes at most 1000

if [ -n "$widest" ]; then
    found=$("$python" "$here/models.py" --max-bytes "$limit" --widest "$data")
    read -ra widths <<<"$found"
fi
if [ ${#teachers[@]} = 0 ]; then
    "$python" "$here/train_student.py" "$data" --size 96 --epochs 90 --out "$runs/teacher" --resume "${trainings[@]}"
    teachers=(--teacher "$runs/teacher/best.pt")
fi
common=("${teachers[@]}" --size 128 --recipe alpha=0.5 temperature=2 augment=medium batch_size=128 view_size=96
    lr=0.005 views=$views stop_epoch=$stop "${options[@]}" --resume "${trainings[@]}")
"$python" "$here/train_kd.py" "$data" "${common[@]}" "${widths[@]}" "${network[@]}" --epochs "$epochs" --out "$runs/student"
"$python" "$here/train_kd.py" "$data" "${common[@]}" --recipe lr=0.001 stop_epoch=0 --epochs "$tuning" --out "$runs/rounded" \
    --init "$runs/student/best.pt" --qat-bits 3
"$python" "$here/quantize.py" "$runs/rounded/best.pt" "$model" --data "$data" --record "$runs/model.json" --max-bytes "$limit" \
    "${stored[@]}" "${everywhere[@]}"
