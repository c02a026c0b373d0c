#!/bin/sh
# Installs the packages of this folder into a virtual environment, without a network, and checks the model.
#   sh install.sh [FOLDER]       FOLDER: where to; "venv" beside this script if absent
#   PYTHON=/path/to/python sh install.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-"$here/venv"}
python=${PYTHON:-python@MAJOR@.@MINOR@}
if ! "$python" -I -c 'import sys; sys.exit(sys.version_info[:2] != (@MAJOR@, @MINOR@))' 2>/dev/null; then
  echo "install.sh: these packages are for Python @MAJOR@.@MINOR@ on @PLATFORM@, which $python is not: set PYTHON" >&2
  exit 1
fi
"$python" -I -m venv "$target"
"$target/bin/python" -I -m pip --isolated install --no-index --no-cache-dir --disable-pip-version-check --no-input --quiet \
  --find-links "$here/wheels" --require-hashes -r "$here/requirements.txt"
sh "$here/check.sh" "$target"
