#!/usr/bin/env bash
# Fetches what tools/gpu_check.sh needs beside torch, for a machine without a network:
#
#   tools/gpu_wheels.sh DIR [PYTHON_VERSION]     default 3.12
#
# Carry DIR (about 25 MB) to that machine and run there: tools/gpu_check.sh --wheels DIR
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?a folder for the wheels} version=${2:-3.12}
python=${PYTHON:-python3}
mkdir -p "$target"

pip() { "$python" -m pip --disable-pip-version-check "$@"; }
pinned() { grep -E "^$1==" constraints.txt || echo "$1"; }

# Published as sources only, and pure Python.
pip wheel -q --no-deps --wheel-dir "$target" "$(pinned fvcore)" "$(pinned iopath)"
platforms=()
for name in 2014 _2_17 _2_24 _2_26 _2_27 _2_28; do platforms+=(--platform "manylinux${name}_x86_64"); done
for name in pycocotools msgspec tensorboard tqdm pytest; do
  requirement=$(pinned "$name")
  pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --dest "$target" "$requirement"
done
# What those need: torch's own needs (numpy, setuptools, typing_extensions, ...) are there.
for name in yacs portalocker tabulate termcolor pyyaml absl-py grpcio markdown protobuf tensorboard-data-server \
  werkzeug markupsafe packaging pillow pluggy iniconfig pygments; do
  pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --dest "$target" "$name" ||
    pip wheel -q --no-deps --wheel-dir "$target" "$name"
done
ls "$target" | wc -l
