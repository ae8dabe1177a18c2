#!/usr/bin/env bash
# The fuzz test under AddressSanitizer: no read or write of the operators goes out of bounds.
#
#   tools/asan.sh [CALLS]     default 5000. PYTHON=/path/to/python chooses the environment (default: .venv's)
#
# Builds the operators with -fsanitize=address into build/asan, beside the usual library. Leaks are not looked for:
# the interpreter has its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
calls=${1:-5000}

mkdir -p build/asan
cp -r --parents ga_scope tests/__init__.py tests/ops build/asan
rm -f build/asan/ga_scope/_operators*.so
GA_SCOPE_WITH_CUDA=0 CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1" LDFLAGS="-fsanitize=address" \
  "$python" setup.py -q build_ext --build-lib build/asan --build-temp build/asan/objects
# libstdc++ too: the sanitizer looks for its __cxa_throw when it starts, before the interpreter has loaded it.
LD_PRELOAD="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/asan \
  bash -c "cd build/asan && exec \"\$0\" -W ignore -m tests.ops.fuzz $calls" "$(realpath -s "$python")"
