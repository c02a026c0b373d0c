#!/usr/bin/env bash
# Builds the core, with warnings as errors, for what the wheels are for and this machine is not, and runs the kernel
# tests where that can be done. Arguments name the checks; without them all are done:
#   clang     Clang and its OpenMP
#   threads   Clang and C++ threads, as on Windows and macOS
#   aarch64   64-bit Arm: GCC crosswise, the tests on an emulated Python
#   windows   the kernels alone, crosswise, by Clang and GCC: 32-bit `long`, no POSIX; and the options for clang-cl
# Debian's packages: clang libomp-dev g++-aarch64-linux-gnu qemu-user g++-mingw-w64-x86-64. The Python needs the
# extras `test` and `dev`. TESTS names tests in place of tests/kernels; PYTEST_ADDOPTS has options for them.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$("${PYTHON:-python}" -c 'import sys; print(sys.executable)')"
base=build/portability

say() { printf '\n==> %s (%ss)\n' "$1" "$SECONDS"; }

need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "check_portability.sh: $tool is not installed" >&2; exit 1; }
  done
}

# Usage: build NAME CMAKE_ARGUMENTS...; into build/portability/NAME, with the package beside the core.
build() {
  local folder="$base/$1"
  cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$folder/python" \
    -DENSEMBLEAD_CUDA=OFF -DENSEMBLEAD_WERROR=ON "${@:2}" >"$folder.log" || { cat "$folder.log" >&2; exit 1; }
  cmake --build "$folder"
}

install_core() {
  local folder="$base/$1"
  cmake --install "$folder" >/dev/null
  tar -C python --exclude='*.so' --exclude=__pycache__ -cf - ensemblead | tar -C "$folder/python" -xf -
}

# Usage: test_kernels PYTHON OPTIONS...
test_kernels() {
  # shellcheck disable=SC2086
  "$1" -m pytest -p no:cacheprovider --numpy-only --hypothesis-profile=brief ${TESTS:-tests/kernels} "${@:2}"
}

with_clang() {
  need clang++
  build "$1" -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DPython_EXECUTABLE="$python" \
    "-DENSEMBLEAD_OPENMP=$2"
  install_core "$1"
  CXX=clang++ PYTHONPATH="$base/$1/python" test_kernels "$python"
}

# Python and NumPy for 64-bit Arm. Debian's packages are unpacked into a folder; nothing is installed.
arm_python() {
  local root="$base/arm" version
  version="$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  if [[ ! -e "$root/ready" ]]; then
    rm -rf "$root"
    mkdir -p "$root"/{apt/lists/partial,apt/archives/partial,packages}
    : >"$root/apt/status"
    local apt=(-o "Dir::State=$PWD/$root/apt" -o "Dir::Cache=$PWD/$root/apt" -o "Dir::State::status=$PWD/$root/apt/status"
      -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update -qq
    (cd "$root/packages" && apt-get "${apt[@]}" download -qq libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 \
      libffi8 libbz2-1.0 liblzma5 libssl3 libsqlite3-0 "python$version-minimal" "libpython$version-minimal" \
      "libpython$version-stdlib" "libpython$version-dev")
    for package in "$root"/packages/*.deb; do dpkg-deb -x "$package" "$root"; done
    "$python" -m pip install --quiet --target "$root/site" --platform manylinux_2_28_aarch64 \
      --platform manylinux2014_aarch64 --python-version "$version" --only-binary=:all: \
      numpy pytest pytest-timeout hypothesis "tomli; python_version < '3.11'"
    touch "$root/ready"
  fi
  echo "$version"
}

on_aarch64() {
  need aarch64-linux-gnu-g++ qemu-aarch64 apt-get dpkg-deb
  local version root="$PWD/$base/arm"
  version="$(arm_python)"
  build aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DPython_EXECUTABLE="$python" \
    -DPython_INCLUDE_DIR="$root/usr/include/python$version" \
    -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" \
    -DPYTHON_MODULE_EXTENSION=".cpython-${version/./}-aarch64-linux-gnu.so"
  install_core aarch64
  # The name of a script in argv[0]: Python takes it for `sys.executable`, which tests start.
  printf '#!/bin/sh\nPYTHONHOME="%s/usr" exec qemu-aarch64 -0 "$0" -L "%s" "%s" "$@"\n' "$root" "$root" \
    "$root/usr/bin/python$version" >"$base/arm-python"
  chmod +x "$base/arm-python"
  # Left out: programs of their own, which only Python is emulated for, and what asks the compiler for this processor.
  CXX=aarch64-linux-gnu-g++ PYTHONPATH="$PWD/$base/aarch64/python:$root/site" \
    test_kernels "$PWD/$base/arm-python" --ignore=tests/kernels/test_parallel.py -k "not native"
}

for_windows() {
  need clang++ x86_64-w64-mingw32-g++-posix
  local options=(-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64 -DENSEMBLEAD_BINDINGS=OFF)
  options+=(-DCMAKE_CXX_FLAGS_RELEASE=-O0)  # nothing of it is run
  build windows-gcc "${options[@]}" -DCMAKE_CXX_COMPILER=x86_64-w64-mingw32-g++-posix
  # Clang with the headers of that GCC: the compiler of the wheels for Windows, but for its headers and its linker.
  local headers
  headers="$(x86_64-w64-mingw32-g++-posix -print-file-name=include/c++)"
  build windows-clang "${options[@]}" -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_COMPILER_TARGET=x86_64-w64-mingw32 \
    -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
    -DCMAKE_CXX_FLAGS="-isystem $headers -isystem $headers/x86_64-w64-mingw32"
  # clang-cl knows the options that CMakeLists.txt gives it; Microsoft's headers are not to be had here.
  local names
  names="$(sed -n '/^set(simd_options_v4/p; /^set(cxx_options/,/^)/p' CMakeLists.txt | grep -o ' -[^ )]*' | sed 's|^ |/clang:|')"
  echo 'int one() { return 1; }' >"$base/one.cpp"
  # shellcheck disable=SC2086
  clang++ --driver-mode=cl --target=x86_64-pc-windows-msvc -Werror -std:c++17 $names /c "$base/one.cpp" "/Fo$base/one.obj"
}

checks=("$@")
if [[ ${#checks[@]} -eq 0 ]]; then checks=(clang threads aarch64 windows); fi
for check in "${checks[@]}"; do
  case "$check" in
    clang | threads | aarch64 | windows) ;;
    *) echo "check_portability.sh: $check is none of clang, threads, aarch64, windows" >&2; exit 2 ;;
  esac
done
mkdir -p "$base"
need cmake ninja
for check in "${checks[@]}"; do
  say "$check"
  case "$check" in
    clang) with_clang clang ON ;;
    threads) with_clang threads OFF ;;
    aarch64) on_aarch64 ;;
    windows) for_windows ;;
  esac
done
say "done: ${checks[*]}"
