#!/bin/sh
# Checks an installed bundle: files, versions, and the score of the image that lies here.
#   sh check.sh [FOLDER]         FOLDER: where it was installed; "venv" beside this script if absent
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-"$here/venv"}
exec "$target/bin/python" -I -m ensemblead.deploy.checking "$here"
