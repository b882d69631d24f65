#!/usr/bin/env bash
# `make test` on other processors, thread counts and library versions: a set of runs that contains every value at least once.
# Usage: make test-matrix. Prints a table at the end; its status is 1 if a run failed. The output of each run is in runs/test-matrix/.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
logs=runs/test-matrix
mkdir -p "$logs"

# The oldest versions that requirements.txt admits, in an environment of their own: torch>=2.6 -> torch==2.6.*
# They exist for Python 3.10 to 3.12 only; make test-matrix PYTHON=python3.12 names one.
if [ ! -e .venv-oldest/installed ] || [ requirements.txt -nt .venv-oldest/installed ] || [ tests/requirements.txt -nt .venv-oldest/installed ]; then
    echo "setting up .venv-oldest (a few GB, some minutes)"
    rm -rf .venv-oldest
    "${PYTHON:-python3}" -m venv .venv-oldest &&
        sed -nE 's/^([a-z0-9]+)>=([0-9.]+)$/\1==\2.*/p' requirements.txt > .venv-oldest/oldest.txt &&
        .venv-oldest/bin/python -m pip install --quiet --requirement tests/requirements.txt --constraint .venv-oldest/oldest.txt &&
        touch .venv-oldest/installed || exit 1
fi

# environment   ATEN_CPU_CAPABILITY   ONEDNN_MAX_CPU_ISA   OMP_NUM_THREADS ("-": not set)
runs=(
    ".venv          -         -      1"
    ".venv          default   -      2"
    ".venv          avx2      AVX2   1"
    ".venv-oldest   -         AVX2   2"
    ".venv-oldest   default   -      1"
)
table=() failed=0
for run in "${runs[@]}"; do
    read -r venv aten onednn threads <<< "$run"
    variables=("OMP_NUM_THREADS=$threads")
    if [ "$aten" != - ]; then variables+=("ATEN_CPU_CAPABILITY=$aten"); fi
    if [ "$onednn" != - ]; then variables+=("ONEDNN_MAX_CPU_ISA=$onednn"); fi
    versions=$("$venv/bin/python" -c 'import torch, numpy; print(f"torch {torch.__version__}, numpy {numpy.__version__}")') || exit 1
    log="$logs/${venv#.}_aten-${aten}_onednn-${onednn}_threads-${threads}.txt"
    echo "== $versions, ${variables[*]}"
    started=$SECONDS
    if env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA "${variables[@]}" \
        make --no-print-directory test "venv=$venv/bin/python" 2>&1 | tee "$log"; then
        result=passed
    else
        result=FAILED failed=1
    fi
    table+=("$(printf '%-32s %-8s %-7s %-8s %-7s %4d s  %s' "$versions" "$aten" "$onednn" "$threads" "$result" $((SECONDS - started)) \
        "$(grep -E '^[0-9]+ (passed|failed)' "$log" | tail -1)")")
done
echo
printf '%-32s %-8s %-7s %-8s %-7s %6s\n' versions aten onednn threads result time
printf '%s\n' "${table[@]}"
exit "$failed"
