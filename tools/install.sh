#!/usr/bin/env bash
# Installs everything that training, tests and linting need: what `make install` runs.
#
#   tools/install.sh VENV            a virtual environment with the pinned versions of constraints.txt
#   tools/install.sh --into PYTHON   an existing environment, which keeps the torch that it has
#
# detectron2 is taken only if it is importable or lies as a wheel in a local folder (pip's find-links): its name is
# not registered on the public index, where anyone could take it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$1" = --into ]; then
  python=$2
  constraints=$(mktemp)
  trap 'rm -f "$constraints"' EXIT
  "$python" - > "$constraints" <<'PY'
from importlib.metadata import PackageNotFoundError, version
for name in ("torch", "torchvision", "numpy"):
    try:
        print(f"{name}=={version(name)}")
    except PackageNotFoundError:
        pass
PY
  grep -q '^torch==' "$constraints" || { echo "tools/install.sh: $python has no torch; install one or leave PYTHON out" >&2; exit 1; }
else
  [ -x "$1/bin/python" ] || "${BASE_PYTHON:-python3}" -m venv "$1"
  python=$1/bin/python
  constraints=constraints.txt
fi

pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

pip install -c "$constraints" torch torchvision "setuptools<81" wheel ninja pybind11
pip install -c "$constraints" --no-build-isolation --editable ".[test,lint,video,docs]"

if "$python" -c 'import detectron2' 2>/dev/null; then
  echo "detectron2: already installed"
elif pip download --no-index --no-deps --dest "$(mktemp -d)" detectron2 2>/dev/null; then
  pip install -c "$constraints" "iopath<0.1.10" "omegaconf<2.4" hydra-core cloudpickle tabulate termcolor yacs black packaging
  pip install --no-index --no-deps detectron2
  echo "detectron2: installed from a local wheel"
else
  echo "detectron2: not installed and no local wheel; the built-in engine is used and detectron2's tests are skipped"
fi
