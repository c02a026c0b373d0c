#!/usr/bin/env bash
# Builds the core with AddressSanitizer and UndefinedBehaviorSanitizer and runs the kernel tests under it, on NumPy
# arrays only. Arguments, if any, go to pytest in place of the list of kernel tests.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
compiler="${CXX:-c++}"

cmake --preset asan -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')"
cmake --build --preset asan

# The package beside the instrumented core, without any other build of it that may lie in the source tree.
tar -C python --exclude='*.so' --exclude=__pycache__ -cf - ensemblead | tar -C build/asan/python -xf -

# The interpreter is not instrumented, so the run-time libraries are loaded first; libstdc++ too, or the sanitizer
# cannot intercept exceptions. Leaks are not looked for: the interpreter itself leaves memory to the system at exit
# (that every DLPack deleter runs exactly once is what test_arrays.py counts). PYTHONMALLOC shows it Python's objects.
preload=""
for library in libasan.so libubsan.so libstdc++.so.6; do
  path="$("$compiler" -print-file-name="$library")"
  [[ "$path" == */* ]] || { echo "$compiler has no $library" >&2; exit 1; }
  preload+="${preload:+ }$path"
done

tests=("$@")
if [[ ${#tests[@]} -eq 0 ]]; then
  shopt -s nullglob
  # Replays and the largest problems visit no code that smaller ones do not, and take most of the time.
  tests=(tests/kernels/test_arrays.py tests/kernels/test_convolution.py tests/kernels/test_coreset*.py tests/kernels/test_nearest*.py tests/kernels/test_patches*.py tests/kernels/test_resize.py tests/kernels/test_tiling*.py tests/kernels/test_weighted.py
    -k "not replay and not large_problems and not many_rows" --durations=10)
fi

LD_PRELOAD="$preload" \
ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1" \
UBSAN_OPTIONS="print_stacktrace=1" \
PYTHONMALLOC=malloc \
PYTHONPATH=build/asan/python \
  "$python" -m pytest -p no:cacheprovider -p no:faulthandler --capture=sys --numpy-only --hypothesis-profile=brief "${tests[@]}"
