#!/usr/bin/env bash
# Builds the core with its CUDA kernels emulated on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer, and
# runs their tests. No GPU and no CUDA toolkit is needed. Arguments, if any, go to pytest in place of the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
compiler="${CXX:-c++}"

cmake --preset emulated -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')"
cmake --build --preset emulated

# The package beside this core, without any other build of it that may lie in the source tree.
tar -C python --exclude='*.so' --exclude=__pycache__ -cf - ensemblead | tar -C build/emulated/python -xf -

# See asan_check.sh.
preload=""
for library in libasan.so libubsan.so libstdc++.so.6; do
  path="$("$compiler" -print-file-name="$library")"
  [[ "$path" == */* ]] || { echo "$compiler has no $library" >&2; exit 1; }
  preload+="${preload:+ }$path"
done

tests=("$@")
if [[ ${#tests[@]} -eq 0 ]]; then tests=(tests/cuda_emulation); fi

LD_PRELOAD="$preload" \
ASAN_OPTIONS="detect_leaks=0" \
UBSAN_OPTIONS="print_stacktrace=1" \
PYTHONMALLOC=malloc \
PYTHONPATH=build/emulated/python \
ENSEMBLEAD_EMULATION_PROBE=build/emulated/probe/emulation_probe.so \
  "$python" -m pytest -p no:cacheprovider -p no:faulthandler --capture=sys --numpy-only --hypothesis-profile=brief "${tests[@]}"
