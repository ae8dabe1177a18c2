#!/usr/bin/env bash
# The fuzz test under AddressSanitizer and UndefinedBehaviorSanitizer: no read or write of the operators goes out of
# bounds, no sum or product of sizes overflows.
#
#   tools/asan.sh [CALLS [SEED]]     default 5000 of seed 0. PYTHON=/path/to/python chooses the environment (default:
#                                    .venv's)
#
# Builds the operators with both sanitizers into build/asan, beside the usual library. Leaks are not looked for: the
# interpreter has its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
calls=${1:-5000}
seed=${2:-0}

mkdir -p build/asan
cp -r --parents ga_scope tests/__init__.py tests/ops build/asan
rm -f build/asan/ga_scope/_operators*.so
# -O1: the sanitizers' checks of the kernels' unrolled loops take the compiler many minutes at -O3. Not `vptr`: it asks
# for the types of torch's exceptions, which are another library's.
GA_SCOPE_WITH_CUDA=0 LDFLAGS="-fsanitize=address,undefined" \
  CFLAGS="-O1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1" \
  "$python" setup.py -q build_ext --build-lib build/asan --build-temp build/asan/objects
# libstdc++ too: the sanitizer looks for its __cxa_throw when it starts, before the interpreter has loaded it.
library() { "${CXX:-g++}" -print-file-name="$1"; }
LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan \
  bash -c "cd build/asan && exec \"\$0\" -W ignore -m tests.ops.fuzz $calls --seed $seed" "$(realpath -s "$python")"
