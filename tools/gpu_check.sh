#!/usr/bin/env bash
# Everything that only a GPU can show, in one run of under eight minutes, as text in benchmarks/results/.
#
#   tools/gpu_check.sh [--python PYTHON] [--prebuilt] [--only STEP] [--output DIR] [--dry-run]
#
#   --python PYTHON   an interpreter with torch (CUDA build), torchvision, pytest, numpy, fvcore, pycocotools
#   --prebuilt        take ga_scope/_operators*.so as it is; otherwise build it for this GPU
#   --only STEP       one step (by name; may be repeated)
#   --output DIR      default benchmarks/results/gpu_<card>_<date>
#   --dry-run         say what would run, check that its files and tools are there, run nothing
#
# A failing step does not stop the others; the last line and the exit status say how many failed. Each step has
# its own time limit. Nothing outside the machine is reached: datasets are generated.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} prebuilt='' dry='' output='' only=()
while [ $# -gt 0 ]; do
  case $1 in
    --python) python=$2; shift 2 ;;
    --prebuilt) prebuilt=1; shift ;;
    --only) only+=("$2"); shift 2 ;;
    --output) output=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    *) echo "tools/gpu_check.sh: unknown option $1" >&2; exit 2 ;;
  esac
done

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # torch's deterministic matrix products need it
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)

if [ -z "$dry" ]; then
  card=$("$python" -c 'import torch; print(torch.cuda.get_device_name())') || {
    echo "tools/gpu_check.sh: $python sees no CUDA device" >&2
    exit 1
  }
  output=${output:-benchmarks/results/gpu_${card// /_}_$(date +%Y-%m-%d)}
  mkdir -p "$output"
  {
    echo "card: $card"
    echo "date: $(date -u +%Y-%m-%dT%H:%MZ)"
    echo "commit: $(git rev-parse HEAD 2>/dev/null || echo 'not a checkout')"
    nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm --format=csv 2>/dev/null
    "$python" -m ga_scope.collect_env 2>/dev/null || "$python" -c 'import torch; print("torch", torch.__version__)'
  } | tee "$output/environment.txt"
fi

failed=0 missing=0

# step NAME SECONDS COMMAND...: runs a step, its output in NAME.txt
step() {
  local name=$1 limit=$2
  shift 2
  if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
  if [ -n "$dry" ]; then
    printf '%-14s %4s s  %s\n' "$name" "$limit" "$*"
    return
  fi
  echo "== $name: $*"
  local began=$SECONDS status=0
  timeout "$limit" "$@" >"$output/$name.txt" 2>&1 || status=$?
  tail -n 5 "$output/$name.txt"
  if [ $status -ne 0 ]; then
    failed=$((failed + 1))
    echo "FAILED: $name (status $status, $((SECONDS - began)) s); see $output/$name.txt"
  else
    echo "passed: $name ($((SECONDS - began)) s)"
  fi
}

# need FILE...: in a dry run, says what is not there
need() {
  for file in "$@"; do
    [ -e "$file" ] || { echo "missing: $file"; missing=$((missing + 1)); }
  done
}

need setup.py tests/ops/test_gpu.py tests/ops/test_wide_convolution.py tools/gpu_small_shapes.py
need benchmarks/gpu_operators.py tools/make_shapes.py train_net.py configs/shapes/ga_faster_rcnn_R_18_FPN.yaml

if [ -n "$prebuilt" ]; then
  need ga_scope/_operators*.so
else
  step build 240 env GA_SCOPE_WITH_CUDA=1 TORCH_CUDA_ARCH_LIST="$(
    [ -n "$dry" ] && echo '<this GPU>' || "$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())'
  )" "$python" setup.py build_ext --inplace
fi

# Operators on cuda against their definitions, torchvision and the CPU; gradcheck; opcheck; streams, devices, graphs.
step operators 200 "$python" -m pytest -q --durations 10 --maxfail 20 -p no:cacheprovider -m gpu tests/ops

# Memory errors, races and uninitialised reads, on small shapes.
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck synccheck; do
    step "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name kns=ga_scope \
      "$python" tools/gpu_small_shapes.py
  done
  # Of all kernels, or what torch's write would count as unwritten; without torch's cache, which would hide reuse.
  step initcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool initcheck --error-exitcode 9 \
    "$python" tools/gpu_small_shapes.py
else
  echo "compute-sanitizer: not found; memcheck, racecheck, initcheck and synccheck are left out"
  [ -n "$dry" ] || failed=$((failed + 1))
fi

step benchmark 120 "$python" benchmarks/gpu_operators.py --output "${output:-DIR}/operators.txt"

# Short trainings with bfloat16 autocast, on generated shapes.
[ -e datasets/shapes/annotations ] || step shapes 60 "$python" tools/make_shapes.py datasets/shapes
for config in ga_faster_rcnn_R_18_FPN scopenet_R_18_FPN; do
  file=configs/shapes/$config.yaml
  if [ ! -e "$file" ]; then
    echo "missing: $file: its training is left out"
    continue
  fi
  step "train_$config" 90 "$python" train_net.py --engine torchvision --config-file "$file" \
    MODEL.DEVICE cuda SOLVER.AMP.ENABLED True SOLVER.MAX_ITER 100 DATASETS.TEST "[]" \
    OUTPUT_DIR "${output:-DIR}/$config"
done

if [ -n "$dry" ]; then
  echo "dry run: $missing files missing"
  [ "$missing" -eq 0 ]
else
  echo "$failed steps failed; results in $output"
  [ "$failed" -eq 0 ]
fi
