#!/usr/bin/env bash
# One library for every torch: builds the wheel in one environment and runs tests/ops in a fresh one with another
# torch, from another directory.
#
#   tools/check_stable_abi.sh TORCH     a pip requirement, for example torch==2.13.0+cpu
#
# PYTHON=/path/to/python chooses the environment that builds (default: .venv's). Only torch, numpy and pytest are
# installed beside the wheel: tests that need torchvision are skipped there with that reason.
set -euo pipefail
cd "$(dirname "$0")/.."
requirement=${1:?a requirement such as torch==2.13.0+cpu}
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$work/wheel" .
"$python" -c 'import torch; print("built with torch", torch.__version__)'
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q "$requirement" numpy "pytest>=8"
"$work/venv/bin/pip" install -q --no-deps "$work"/wheel/ga_scope-*.whl

mkdir "$work/tests"
cp -r "$root/tests/__init__.py" "$root/tests/conftest.py" "$root/tests/ops" "$work/tests"
cd "$work"
"$work/venv/bin/python" -c 'import ga_scope.ops, torch; print("runs with torch", torch.__version__, "from", ga_scope.ops._library.LIBRARY)'
"$work/venv/bin/python" -m pytest -q -ra -p no:cacheprovider tests/ops
