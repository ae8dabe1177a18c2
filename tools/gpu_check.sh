#!/usr/bin/env bash
# Everything that only a GPU can show, in one run of at most eight minutes, as text in benchmarks/results/.
#
#   tools/gpu_check.sh [--python PYTHON] [--prebuilt] [--wheels DIR] [--only STEP] [--seconds N] [--commit NAME]
#                      [--output DIR] [--dry-run]
#
#   --python PYTHON   an interpreter with torch (CUDA build) and torchvision; default python3
#   --prebuilt        take ga_scope/_operators*.so as it is; otherwise build it for this GPU
#   --wheels DIR      wheels of what PYTHON lacks (tools/gpu_wheels.sh collects them); they are unpacked into build/
#   --only STEP       one step (by name; may be repeated)
#   --seconds N       for all steps together, default 480
#   --commit NAME     what the results belong to, where this is no checkout
#   --output DIR      default benchmarks/results/gpu_<card>_<date>
#   --dry-run         say what would run, check that its files are there, run nothing
#
# Steps come in order of what they tell. Each has its own limit, cut to what is left of --seconds; a failing one
# does not stop the others. DIR/summary.txt, written as the steps end, holds the environment, every step's verdict,
# time and last lines, and the benchmark's table; DIR/<step>.txt a step's whole output. The exit status says whether
# all passed.
# Nothing outside the machine is reached: datasets are generated.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} prebuilt='' wheels='' dry='' output='' seconds=480 commit='' only=()
while [ $# -gt 0 ]; do
  case $1 in
    --python | --wheels | --only | --seconds | --commit | --output)
      [ $# -ge 2 ] || { echo "tools/gpu_check.sh: $1: expected a value" >&2; exit 2; } ;;&
    --python) python=$2; shift 2 ;;
    --prebuilt) prebuilt=1; shift ;;
    --wheels) wheels=$2; shift 2 ;;
    --only) only+=("$2"); shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --commit) commit=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    *) echo "tools/gpu_check.sh: unknown option $1" >&2; exit 2 ;;
  esac
done

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # torch's deterministic matrix products need it
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # the machine's plugins are for the machine's pytest
export PATH=$PATH:/usr/local/cuda/bin
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer 2>/dev/null | head -1)
commit=${commit:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}

if [ -n "$wheels" ] && [ -z "$dry" ]; then
  packages=$PWD/build/gpu_packages
  rm -rf "$packages"
  for wheel in "$wheels"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$packages" || { echo "tools/gpu_check.sh: cannot unpack $wheel" >&2; exit 1; }
  done
  export PYTHONPATH=$PYTHONPATH:$packages
fi

summary=/dev/null
say() { printf '%s\n' "$*" | tee -a "$summary"; }

if [ -z "$dry" ]; then
  card=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null) || {
    echo "tools/gpu_check.sh: $python sees no CUDA device" >&2
    exit 1
  }
  output=${output:-benchmarks/results/gpu_${card// /_}_$(date +%Y-%m-%d)}
  mkdir -p "$output"
  summary=$output/summary.txt
  : >"$summary"
  say "card: $card"
  say "date: $(date -u +%Y-%m-%dT%H:%MZ)"
  say "commit: $commit"
  say "$(nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm --format=csv 2>/dev/null)"
  say "$("$python" -c 'import platform, torch, torchvision as v
print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda, "torchvision", v.__version__)' 2>&1)"
fi

failed=0 missing=0 SECONDS=0

# step NAME LIMIT COMMAND...: runs a step for at most LIMIT seconds, its output in NAME.txt
step() {
  local name=$1 limit=$2
  shift 2
  if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
  if [ -n "$dry" ]; then
    printf '%-34s %4s s  %s\n' "$name" "$limit" "$*"
    return
  fi
  local left=$((seconds - SECONDS)) began=$SECONDS status=0
  if [ "$left" -lt 10 ]; then
    failed=$((failed + 1))
    say "LEFT OUT: $name: $seconds s are used up"
    return
  fi
  timeout --kill-after 5 $((limit < left ? limit : left)) "$@" >"$output/$name.txt" 2>&1 || status=$?
  local verdict=passed
  if [ $status -ne 0 ]; then
    failed=$((failed + 1)) verdict="FAILED (status $status)"
    [ $status -ne 124 ] || verdict="FAILED (stopped after $((SECONDS - began)) s)"
  fi
  say "== $name: $verdict, $((SECONDS - began)) s"
  tail -n 6 "$output/$name.txt" | tee -a "$summary"
}

# need FILE...: in a dry run, says what is not there
need() {
  for file in "$@"; do
    [ -e "$file" ] || { echo "missing: $file"; missing=$((missing + 1)); }
  done
}

gpu_tests=(-m pytest -q --durations 5 --maxfail 20 -p no:cacheprovider -m gpu)

if [ -n "$prebuilt" ]; then
  [ -z "$dry" ] || need ga_scope/_operators*.so
else
  need setup.py
  arch='<this GPU>'
  [ -n "$dry" ] || arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  step build 200 env GA_SCOPE_WITH_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" "$python" setup.py build_ext --inplace
fi

# Streams, devices, graphs, opcheck, agreement with the CPU: the operators, then the detectors.
need tests/ops/test_gpu.py tests/modeling/test_gpu.py
step gpu_tests 120 "$python" "${gpu_tests[@]}" tests/ops/test_gpu.py tests/modeling/test_gpu.py

# Against torchvision in the same run, in bf16, fp16, tf32 and fp32, batch 1 and 16, and the bars with what was
# measured; what is stopped keeps the rows that it has.
need benchmarks/gpu_operators.py
step benchmark 120 "$python" benchmarks/gpu_operators.py --output "${output:-DIR}/benchmark_table.txt"

# Memory errors on small shapes. Only our own kernels, by their namespace.
need tools/gpu_small_shapes.py
if [ -n "$sanitizer" ]; then
  step memcheck 75 "$sanitizer" --tool memcheck --error-exitcode 9 --kernel-name kns=ga_scope \
    "$python" tools/gpu_small_shapes.py
else
  failed=$((failed + 1))
  say "compute-sanitizer: not found; memcheck, racecheck, initcheck and synccheck are left out"
fi

# The operators against their definitions and torchvision: gradcheck, shapes, dtypes, layouts.
step operators 240 "$python" "${gpu_tests[@]}" tests/ops --ignore tests/ops/test_gpu.py

# Short trainings with bfloat16 autocast, on generated shapes.
need tools/make_shapes.py train_net.py configs/shapes/ga_faster_rcnn_R_18_FPN.yaml configs/shapes/scopenet_R_18_FPN.yaml
# Few images, in a folder of their own: the demos' have their place and number.
data=build/gpu_check/shapes
step shapes 40 "$python" tools/make_shapes.py $data --train 200 --val 20
for model in ga_faster_rcnn scopenet; do
  step "train_$model" 60 "$python" train_net.py --engine torchvision \
    --config-file "configs/shapes/${model}_R_18_FPN.yaml" MODEL.DEVICE cuda SOLVER.AMP.ENABLED True \
    DATASETS.REGISTER "[['gpu_check_train', '$data/annotations/instances_train.json', '$data/train']]" \
    DATASETS.TRAIN "('gpu_check_train',)" DATASETS.TEST "()" SOLVER.MAX_ITER 60 OUTPUT_DIR "build/gpu_check/$model"
done

if [ -n "$sanitizer" ]; then
  for tool in racecheck synccheck; do
    step "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name kns=ga_scope \
      "$python" tools/gpu_small_shapes.py
  done
  # Of all kernels, or what torch's write would count as unwritten; without torch's cache, which would hide reuse.
  step initcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool initcheck --error-exitcode 9 \
    "$python" tools/gpu_small_shapes.py
fi

if [ -n "$dry" ]; then
  echo "dry run: $missing files missing"
  [ "$missing" -eq 0 ]
else
  say "$failed steps failed or were left out, $SECONDS s"
  [ ! -e "$output/benchmark_table.txt" ] || tee -a "$summary" <"$output/benchmark_table.txt"
  rm -rf build/gpu_check
  echo "results: $summary"
  [ "$failed" -eq 0 ]
fi
