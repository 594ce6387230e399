#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU, under 9 minutes:
#
#     bash perf/gpu.sh RESULTS [--dry-run] [--python PYTHON]
#
# Versions, copy bandwidth and matrix rate, kernels compiled ahead on all processors, the CUDA tests
# on the GPU, compute-sanitizer (memcheck, racecheck) over a short selection, launch overhead, every
# case with its peers. Logs and JSON lines go to the folder RESULTS as they come; each stage has its
# own time limit, so a stage that hangs or a run that is cut leaves what was measured before. The
# exit status is 0 only if every stage passed.
#
# --dry-run rehearses every stage on a machine without a GPU: tests of a few seconds in place of the
# suite, the host in place of the device, shrunken cases. Its times mean nothing, and a stage has four
# times as long.
#
# Needed beyond numbasep's own packages (it is used from this checkout, it need not be installed):
# torch with CUDA, pytest, hypothesis, ml_dtypes. Used where installed: pytest-xdist,
# array_api_strict and jax (tests), cupy, cucim, jax, OpenCV built with CUDA, matplotlib (plots),
# compute-sanitizer.
set -uo pipefail
cd "$(dirname "$0")/.."

results="" dry=0 python="${PYTHON:-python3}"
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry=1 ;;
        --python) python="${2:?--python needs a program}"; shift ;;
        -h | --help) sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
        *) results="$1" ;;
    esac
    shift
done
if [ -z "$results" ]; then
    echo "gpu.sh: name a folder for the results: bash perf/gpu.sh RESULTS [--dry-run]" >&2
    exit 2
fi
mkdir -p "$results" || exit 2
started=$SECONDS
failed=""
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Stages in turn and the most seconds of each.
order=(
    packages:10 versions:25 ceilings:25 warm:65 tests:95 memcheck:35 racecheck:35 overhead:20
    separable:70 depthwise:45 fused:45 pointwise:30 summary:20 goals:10
)
declare -A budget=()
total=0
for one in "${order[@]}"; do
    budget[${one%:*}]=$((${one#*:} * (dry ? 4 : 1)))
    total=$((total + budget[${one%:*}]))
done
echo "== planned, in seconds: ${order[*]}; $total in all"
# What of the plan lies behind, the running stage included.
planned=${budget[packages]}

# stage NAME COMMAND...: run with its limit, log to RESULTS/NAME.log, carry on after a failure.
stage() {
    local name="$1" begun=$SECONDS seconds="${limit:-${budget[$1]}}" status
    shift
    echo "== $name (at $((SECONDS - started)) s, at most $seconds s)"
    timeout --kill-after=5 "$seconds" "$@" >"$results/$name.log" 2>&1
    status=$?
    [ $status -ne 0 ] && failed="$failed $name"
    # The end of the log is what a person wants to see.
    tail -n "${lines:-4}" "$results/$name.log"
    echo "== $name: status $status after $((SECONDS - begun)) s"
    [ -n "${limit:-}" ] || planned=$((planned + budget[$name]))
}

# measure GROUP: it may use what earlier stages left over, and stops by itself, between two cases,
# some seconds before its limit.
measure() {
    planned=$((planned + budget[$1]))
    local limit=$((planned - (SECONDS - started)))
    if [ "$limit" -lt 25 ]; then
        echo "== $1: left out, no time" | tee "$results/$1.log"
        failed="$failed $1"
        return
    fi
    stage "$1" "$python" -m perf.run "$1" "${cases[@]}" "${selected[@]}" \
        --deadline $((limit - 18)) --out "$results/$1.jsonl"
}

missing=$("$python" - <<'PY'
import importlib.metadata
import sys
import tomllib

try:
    from packaging.requirements import Requirement
except ImportError:
    print("packaging")
    sys.exit()
with open("pyproject.toml", "rb") as file:
    needed = tomllib.load(file)["project"]["dependencies"]
for line in (*needed, "torch", "pytest", "hypothesis", "ml_dtypes"):
    wanted = Requirement(line)
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        print(line, end=" ")
        continue
    if not wanted.specifier.contains(found, prereleases=True):
        print(f"{line} (here is {found})", end=" ")
PY
) || { echo "gpu.sh: $python does not run, or is older than 3.11" >&2; exit 2; }
if [ -n "$missing" ]; then
    echo "gpu.sh: missing Python packages: $missing: pip install them for $python" >&2
    exit 2
fi
if [ $dry -eq 0 ] && ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: PyTorch sees no GPU here; rehearse with --dry-run" >&2
    exit 2
fi

has() { "$python" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$1'))"; }

# Few examples of each property: every kernel variant is a compile of seconds.
tests=(tests/cuda tests/test_spatial.py tests/test_channelwise.py tests/test_device_layers.py)
has array_api_strict && has jax && tests+=(tests/test_arrays.py)
tests+=(--cuda=device -k cuda --examples 4 --maxfail=10 -W default)
# Its processes share the GPU; they are there for the compiles.
has xdist && tests+=(-n "$(($(nproc) < 14 ? $(nproc) : 14))" --dist worksteal)
cases=(--machine gpu)
machine=("${cases[@]}")
selected=() rehearsal=() warm=()
if [ $dry -eq 1 ]; then
    cases+=(--rehearse)
    selected=(--select separable/float32/8192x8192/9taps kernelbench 82_ 86_ 87_ mbv2_b3)
    rehearsal=(--rehearsal)
    warm=(--list)
fi

lines=40 stage versions "$python" - <<'PY'
import json
import subprocess

from numbasep.cuda import launch
from perf import gpu, machine

print(json.dumps(machine.host() | gpu.device(), indent=1))
print(launch.available()[1])
try:
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20).stdout)
except (OSError, subprocess.SubprocessError) as error:
    print("nvidia-smi:", error)
PY

# The most telling figures first, in case the rest is cut.
stage ceilings "$python" -m perf.run ceilings "${machine[@]}" --out "$results/ceilings.jsonl"
stage warm "$python" -m perf.warm "${warm[@]}"

# Tests before times: a result that is wrong has no speed.
pytest=("$python" -m pytest -q -p no:cacheprovider)
if [ $dry -eq 1 ]; then
    # What a GPU would run is collected, other tests run.
    stage tests bash -c '"${@:1:6}" tests/test_perf.py && "$@" --collect-only' - \
        "${pytest[@]}" "${tests[@]}"
else
    stage tests "${pytest[@]}" "${tests[@]}"
fi

for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        stage "$tool" compute-sanitizer --tool "$tool" \
            --error-exitcode 3 --target-processes all \
            "$python" -m perf.sanitize
    else
        # Without the tool its cases still run, so that a mistake in them shows.
        stage "$tool" "$python" -m perf.sanitize
        echo "compute-sanitizer is not on the PATH: the cases ran without it" |
            tee -a "$results/$tool.log"
    fi
done

stage overhead "$python" -m perf.run overhead "${machine[@]}" --out "$results/overhead.jsonl"

measure separable
measure depthwise
measure fused
measure pointwise

lines=60 stage summary "$python" -m perf.report "$results"/*.jsonl --plots "$results/plots" \
    "${rehearsal[@]}"
lines=60 stage goals "$python" -m perf.goals "$results"/*.jsonl "${rehearsal[@]}"

echo "== done in $((SECONDS - started)) s; results in $results"
if [ -n "$failed" ]; then
    echo "gpu.sh: stages that failed:$failed" >&2
    exit 1
fi
