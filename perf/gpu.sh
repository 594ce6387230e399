#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU, under 9 minutes:
#
#     bash perf/gpu.sh RESULTS [--dry-run] [--python PYTHON]
#
# Versions, the test suite on the GPU, compute-sanitizer (memcheck, racecheck) over a short
# selection, copy bandwidth and matrix rate, every case with its peers, launch overhead. Logs and
# JSON lines go to the folder RESULTS as they come; each stage has its own time limit, so a stage
# that hangs or a run that is cut leaves what was measured before. The exit status is 0 only if
# every stage passed.
#
# --dry-run rehearses every stage on a machine without a GPU: tests of a few seconds in place of the
# suite, the host in place of the device, shrunken cases. Its times mean nothing.
#
# Needed beyond numbasep's own packages (it is used from this checkout, it need not be installed):
# torch with CUDA, pytest, hypothesis, ml_dtypes. Used where installed: cupy, cucim, jax, OpenCV
# built with CUDA, compute-sanitizer.
set -uo pipefail
cd "$(dirname "$0")/.."

results="" dry=0 python="${PYTHON:-python3}"
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry=1 ;;
        --python) python="$2"; shift ;;
        -h | --help) sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
        *) results="$1" ;;
    esac
    shift
done
if [ -z "$results" ]; then
    echo "gpu.sh: name a folder for the results: bash perf/gpu.sh RESULTS [--dry-run]" >&2
    exit 2
fi
mkdir -p "$results"
started=$SECONDS
limit=500 # seconds for everything but the summary
failed=""
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# stage NAME SECONDS COMMAND...: run with a limit, log to RESULTS/NAME.log, carry on after a failure.
stage() {
    local name="$1" seconds="$2" begun=$SECONDS left=$((limit - (SECONDS - started)))
    shift 2
    if [ "$left" -le 5 ]; then
        echo "== $name: left out, no time" | tee "$results/$name.log"
        failed="$failed $name"
        return
    fi
    [ "$seconds" -gt "$left" ] && seconds=$left
    echo "== $name (at $((SECONDS - started)) s, at most $seconds s)"
    timeout --kill-after=5 "$seconds" "$@" >"$results/$name.log" 2>&1
    local status=$?
    [ $status -ne 0 ] && failed="$failed $name"
    # The end of the log is what a person wants to see.
    tail -n "${lines:-4}" "$results/$name.log"
    echo "== $name: status $status after $((SECONDS - begun)) s"
}

missing=$("$python" - <<'PY'
import importlib.util
needed = ("numba", "numba_cuda", "numpy", "scipy", "torch", "pytest", "hypothesis", "ml_dtypes")
print(*(name for name in needed if importlib.util.find_spec(name) is None))
PY
) || { echo "gpu.sh: $python does not run" >&2; exit 2; }
if [ -n "$missing" ]; then
    echo "gpu.sh: missing Python packages: $missing (pip install them for $python)" >&2
    exit 2
fi
if [ $dry -eq 0 ] && ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: PyTorch sees no GPU here; rehearse with --dry-run" >&2
    exit 2
fi

if [ $dry -eq 1 ]; then
    tests=(tests/test_perf.py --cuda=simulator)
    cases=(--machine gpu --rehearse)
    names=(separable/float32/8192x8192/9taps kernelbench 82_ 86_ 87_ mbv2_b3)
else
    tests=(tests --cuda=device -k cuda)
    cases=(--machine gpu)
    names=()
fi
selected=()
[ ${#names[@]} -gt 0 ] && selected=(--select "${names[@]}")

lines=40 stage versions 40 "$python" - <<'PY'
import json, subprocess
from perf import gpu, machine
print(json.dumps(machine.host() | gpu.device(), indent=1))
try:
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20).stdout)
except (OSError, subprocess.SubprocessError) as error:
    print("nvidia-smi:", error)
PY

# The most telling figures first, in case the rest is cut.
stage ceilings 60 "$python" -m perf.run ceilings "${cases[@]:0:2}" --out "$results/ceilings.jsonl"

# Tests before times: a result that is wrong has no speed. pytest-xdist would share one GPU.
stage tests 100 "$python" -m pytest -q -x -p no:cacheprovider "${tests[@]}"

for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        stage "sanitizer-$tool" 40 compute-sanitizer --tool "$tool" \
            --error-exitcode 3 --target-processes all \
            "$python" -m perf.sanitize
    else
        # Without the tool its cases still run, so that a mistake in them shows.
        stage "sanitizer-$tool" 40 "$python" -m perf.sanitize
        echo "compute-sanitizer is not on the PATH: the cases ran without it" |
            tee -a "$results/sanitizer-$tool.log"
    fi
done

stage overhead 30 "$python" -m perf.run overhead "${cases[@]:0:2}" --out "$results/overhead.jsonl"

# measure GROUP SECONDS: it stops by itself, between two cases, some seconds before its limit.
measure() {
    stage "$1" $(($2 + 15)) "$python" -m perf.run "$1" "${cases[@]}" "${selected[@]}" \
        --deadline "$2" --out "$results/$1.jsonl"
}
measure separable 110
measure depthwise 80
measure fused 75
measure pointwise 45

limit=$((limit + 35))
rehearsal=()
[ $dry -eq 1 ] && rehearsal=(--rehearsal)
lines=60 stage summary 30 "$python" -m perf.report "$results"/*.jsonl --plots "$results/plots" \
    "${rehearsal[@]}"
lines=60 stage goals 20 "$python" -m perf.goals "$results"/*.jsonl "${rehearsal[@]}"

echo "== done in $((SECONDS - started)) s; results in $results"
if [ -n "$failed" ]; then
    echo "gpu.sh: stages that failed:$failed" >&2
    exit 1
fi
