#!/usr/bin/env bash
# Builds for the GPU of this machine, runs all tests with no skip for lack of CUDA allowed, the kernel tests under
# compute-sanitizer, and the GPU benchmarks; writes what came of it to one JSON file, and all output, for whoever
# must find out why, to an archive beside it. Every step is attempted, whatever became of those before, and one that
# runs out of time keeps what it has found so far; the exit status is 0 only if all of them passed. Needs no network.
#
#   tools/gpu_check.sh [--dry-run] [--anyway] [FILE.json]
#
# FILE.json: by default gpu.json in $OUT, or in build/. It can be put into benchmarks/results/ as it is. The archive is
# called FILE.logs.tar.gz.
# --dry-run: say what would be run. --anyway: go on without a GPU, to try this script itself.
# PYTHON names the interpreter (python3). ENSEMBLEAD_COMMIT names the commit where there is no repository.
# ENSEMBLEAD_GPU_CHECK_SECONDS: the time for everything together (470); a step gets its own limit or what is left.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
python="${PYTHON:-python3}"
total="${ENSEMBLEAD_GPU_CHECK_SECONDS:-470}"
export PATH="$PATH:/usr/local/cuda/bin" # nvcc and compute-sanitizer are often there and nowhere else

dry_run="" anyway="" file=""
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=yes ;;
    --anyway) anyway=yes ;;
    -*) echo "gpu_check: unknown option $argument" >&2; exit 2 ;;
    *) file="$argument" ;;
  esac
done
file="${file:-${OUT:-build}/gpu.json}"

gpu="$(nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader 2>/dev/null | head -n 1)"
if [[ -z "$gpu" && -z "$dry_run" && -z "$anyway" ]]; then
  echo "gpu_check: there is no NVIDIA GPU here (nvidia-smi shows none), so nothing was checked" >&2
  exit 2
fi
capability="$(cut -d, -f3 <<<"$gpu" | tr -d ' .')"

work="$(mktemp -d)"
mkdir -p "$work/logs" "$work/results" "$work/running"

# Whatever ends this script ends its steps, also those in the background: a GPU is not left busy.
finish() {
  local one
  : >"$work/stopped"
  for one in "$work/running"/*; do
    if [[ -f "$one" ]]; then kill -TERM "$(<"$one")" 2>/dev/null; fi
  done
  wait
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Whoever starts in the background finds SIGINT ignored, and would hand that down. (Before coreutils 8.31 `env` cannot
# help it: there a step that is out of time is killed after ten seconds more.)
interruptible=(env)
if env --default-signal=INT "$BASH" -c : 2>/dev/null; then interruptible+=(--default-signal=INT); fi
printf '%s\n' "$gpu" >"$work/gpu.csv"

# step NAME LIMIT COMMAND...: its output to a log, its outcome to steps.tsv. Out of time, it is interrupted as by
# Ctrl-C, upon which pytest still writes its files.
step() {
  local name="$1" limit="$2" left=$((total - SECONDS)) status started="$SECONDS"
  shift 2
  if [[ -n "$dry_run" ]]; then
    printf '%-11s %4ss  %s\n' "$name" "$limit" "$*"
    return
  fi
  if ((left < limit)); then limit=$left; fi
  if [[ -e "$work/stopped" ]]; then return; fi
  printf '%s\n' "$name" >>"$work/started"
  if ((limit < 1)); then
    status="no time left"
  else
    printf '==> %s (at %ss, limit %ss)\n' "$name" "$SECONDS" "$limit"
    # In the background and waited for: a signal to this script is not kept until the step ends.
    timeout --signal=INT --kill-after=10 "$limit" "${interruptible[@]}" "$@" >"$work/logs/$name.log" 2>&1 </dev/null &
    echo $! >"$work/running/$name"
    wait $!
    status=$?
    rm -f "$work/running/$name"
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - started))" "$limit" >>"$work/steps.tsv"
  if [[ "$status" != 0 ]]; then
    printf '!!! %s: %s\n' "$name" "$status"
    if [[ -f "$work/logs/$name.log" ]]; then tail -n 25 "$work/logs/$name.log"; fi
  else
    tail -n 2 "$work/logs/$name.log"
  fi
}

# What other versions of the same packages deprecate or recommend is no concern of this check. torch and CuPy recommend by
# UserWarnings, and this library warns by them: what it warns of where it should not fails where the same tests run
# without a GPU. Other warnings stay errors.
pytest=("$python" -m pytest -q --tb=short -p no:cacheprovider -W default::DeprecationWarning
  -W default::PendingDeprecationWarning -W default::FutureWarning -W default::UserWarning)
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 ENSEMBLEAD_REQUIRE_CUDA=1
# Side by side, a test that hangs takes one process with it, and is named.
parallel=()
if "$python" -c 'import xdist' 2>/dev/null; then
  parallel=(-n 6 --dist worksteal --timeout=100 --timeout-method=thread)
fi

# Of what is known to compile, this card's architecture alone, so that it takes a minute. Warnings of a compiler that
# the project is not developed with are no errors here.
interpreter="$("$python" -c 'import sys; print(sys.executable)')"
configure=(cmake --preset cuda "-DENSEMBLEAD_CUDA_ARCHITECTURES=${capability:-90}" -DENSEMBLEAD_WERROR=OFF
  "-DPython_EXECUTABLE=$interpreter")

step configure 60 "${configure[@]}"
step build 150 cmake --build --preset cuda
step info 30 "$python" -c 'from ensemblead.cli.info import describe; import json; print(json.dumps(describe(), indent=1))'
bench() {
  step "bench_$1" "$2" "${pytest[@]}" --junitxml="$work/bench_$1.xml" --results "$work/results" -k gpu \
    "benchmarks/bench_$1.py"
}
# Steps whose time says nothing about the kernels.
untimed() {
  local tool
  for tool in memcheck racecheck; do
    # CuPy's arrays alone: torch takes long to load under a sanitizer, and the kernels are the same. Libraries make calls
    # that may fail; the core looks at the outcome of each of its own.
    step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 86 --log-file "$work/logs/$tool.sanitizer" \
      --report-api-errors=no --launch-timeout=0 \
      "${pytest[@]}" --junitxml="$work/$tool.xml" -m sanitizer -k cupy tests/kernels/test_kernels_small.py
  done
}
if [[ -n "$dry_run" ]]; then
  untimed
  bench memory 180
else
  untimed &
  beside=($!)
  bench memory 180 &
  beside+=($!)
fi
step tests 180 env OMP_NUM_THREADS=2 "${pytest[@]}" -p no:benchmark "${parallel[@]}" --junitxml="$work/tests.xml" tests
if [[ -z "$dry_run" ]]; then wait "${beside[@]}"; fi
# What is timed has the machine to itself.
for name in coreset patches tiling patchcore; do bench "$name" 90; done

if [[ -n "$dry_run" ]]; then exit 0; fi
mkdir -p "$(dirname "$file")"
tar -czf "${file%.json}.logs.tar.gz" -C "$work" . || echo "gpu_check: no archive of the output" >&2
"$python" tools/gpu_report.py "$work" "$file"
