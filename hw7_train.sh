#!/usr/bin/env bash
# Train a model as the shipped one was trained (README.md names its own options, such as --size 96; default: 128):
#     bash hw7_train.sh <data directory> <model out> [--teacher FILE]... [--max-bytes N] [--epochs N] [--store-size N]
#                       [--runs DIR] [options of train_kd.py: --size 96, --recipe detail=64 view_size=72, --unlabeled DIR, ...]
# A student is distilled from the teachers for two thirds of its learning rate schedule. Quantization-aware training at
# 3 bits takes the last third, on the same views, whose teacher outputs are cached. Without --teacher, a teacher is
# trained from scratch first, for 90 epochs. The network is as wide as --max-bytes should allow (default: 300000; see
# models.py --widest); with --network or --set, the size of the file is only checked at the end. --store-size: input
# size of the model file, if another size is better on validation photos. If stopped, repeat the command to continue.
# --size, --recipe and --unlabeled are for both trainings of train_kd.py, but --network, --set and the recipe's lr and
# stop_epoch only for the first; --validation-share, --seed, --device and --cache are for all scripts that have them.
# PYTHON=... names the Python with the packages (default: .venv's, else python3).
set -eo pipefail
here=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    echo "usage: bash hw7_train.sh <data directory> <model out> [--teacher FILE]... [--max-bytes N] [--epochs N] [--store-size N] [--runs DIR] [options of train_kd.py]" >&2
    exit 2
}
case ${1:-} in -h | --help) sed -n '1d; s/^# \{0,1\}//p; /^set/q' "$0" && exit ;; esac
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
    --teacher | --max-bytes | --epochs | --store-size | --runs | --network | --set | --size | --unlabeled | --device | --cache | --seed | --validation-share)
        [ $# -ge 2 ] || usage
        case $1 in
        --teacher) teachers+=(--teacher "$2") ;;
        --max-bytes) limit=$2 ;;
        --epochs) epochs=$2 ;;
        --store-size) stored=(--size "$2") ;;
        --runs) runs=$2 ;;
        --network) widest='' network+=("$1" "$2") ;;
        --set) network+=("$1" "$2") ;;
        --size | --unlabeled) options+=("$1" "$2") ;;
        --device | --cache) everywhere+=("$1" "$2") ;;
        *) trainings+=("$1" "$2") ;;
        esac
        shift 2 ;;
    --recipe)
        options+=("$1") && shift
        while [[ $1 == [^-]*=* ]]; do options+=("$1") && shift; done ;;
    --resume) shift ;; # it does in any case
    *)
        echo "hw7_train.sh: error: there is no option $1 here; see the first lines of hw7_train.sh" >&2
        exit 2 ;;
    esac
done
trap 'exit 130' INT # also where a training had just ended, and its own status does not tell
trainings+=("${everywhere[@]}")
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x "$here/.venv/bin/python" ] || python=$here/.venv/bin/python

# The length is 6.3 million views, so that small data sets get more epochs. After far fewer, the weights compress less.
# A photo has a fixed view for every five epochs: teacher outputs are computed once for each, and cached.
photos=$({ find -L "$data/training" -type f 2>/dev/null || true; } | wc -l)
[ "$photos" -gt 0 ] || photos=9866 # a CSV, or an error that the first script reports
epochs=${epochs:-$(((6300000 + photos / 2) / photos))}
for given in "--epochs $epochs" "--max-bytes $limit" "--store-size ${stored[1]:-96}"; do
    [[ $given =~ ^--[a-z-]+\ [1-9][0-9]*$ ]] && continue
    echo "hw7_train.sh: error: $given is not a whole number above 0; correct it" >&2
    exit 2
done
if [ -d "$model" ]; then
    echo "hw7_train.sh: error: $model is a folder, and the model file is to be written there; name a file" >&2
    exit 2
fi
stop=$((epochs * 2 / 3 + 1)) tuning=$(((epochs + 2) / 3))
views=$((epochs > 5000 ? 1000 : (epochs + 4) / 5)) # train_kd.py takes at most 1000

if [ -n "$widest" ]; then
    found=$("$python" "$here/models.py" --max-bytes "$limit" --widest "$data")
    read -ra widths <<<"$found"
fi
fail() { # status, folder of a training: a hint that the scripts cannot give
    [ "$1" != 2 ] || [ ! -e "$2/last.pt" ] ||
        echo "hw7_train.sh: if you changed photos, teachers or settings, choose another --runs; $runs keeps the old training" >&2
    exit "$1"
}
if [ ${#teachers[@]} = 0 ]; then
    echo "hw7_train.sh: no --teacher, so one is trained from scratch first"
    "$python" "$here/train_student.py" "$data" --size 96 --epochs 90 --out "$runs/teacher" --resume "${trainings[@]}" || fail $? "$runs/teacher"
    teachers=(--teacher "$runs/teacher/best.pt")
fi
common=("${teachers[@]}" --size 128 --recipe alpha=0.5 temperature=2 augment=medium batch_size=128 view_size=96
    lr=0.005 views=$views stop_epoch=$stop "${options[@]}" --resume "${trainings[@]}")
echo "hw7_train.sh: 1 of 3, distillation"
"$python" "$here/train_kd.py" "$data" "${common[@]}" "${widths[@]}" "${network[@]}" --epochs "$epochs" --out "$runs/student" ||
    fail $? "$runs/student"
echo "hw7_train.sh: 2 of 3, quantization-aware training"
"$python" "$here/train_kd.py" "$data" "${common[@]}" --recipe lr=0.001 stop_epoch=0 --epochs "$tuning" --out "$runs/rounded" \
    --init "$runs/student/best.pt" --qat-bits 3 || fail $? "$runs/rounded"
echo "hw7_train.sh: 3 of 3, the model file"
"$python" "$here/quantize.py" "$runs/rounded/best.pt" "$model" --data "$data" --record "$runs/model.json" --max-bytes "$limit" \
    "${stored[@]}" "${everywhere[@]}" && exit
status=$?
if [ $status = 2 ] && [ -n "$widest" ]; then
    printf -v plan ' %q' "$python" "$here/models.py" --max-bytes $((limit * 95 / 100)) --widest "$data"
    printf -v teach ' %q' "${teachers[@]}"
    echo "hw7_train.sh: if the file is too large, run quantize.py with an option that it names above, or repeat this command with$teach, another --runs and the --set options of:$plan" >&2
fi
exit $status
