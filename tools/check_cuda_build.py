#!/usr/bin/env python
"""Compiles the CUDA kernels for every architecture and fails on spilled registers or local memory.

    python tools/check_cuda_build.py [--arch 80 90a ...] [--cubins build/cubins]
                                     [--output benchmarks/results/cuda_build.txt]

Needs a CUDA toolkit, no GPU. The host's side of the sources is compiled once, for the first architecture. What it
compiles stays in --cubins for tools/cuda_budget.py. What the compiler reports is
written as a table: registers, stack, spills and shared memory of each kernel on each architecture. Kernels that may use
local memory are listed in ALLOWED, with the reason; anything else that does is an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from cuda_toolkit import find_cuda_toolkit, toolkit_version  # noqa: E402

ARCHITECTURES = ["80", "86", "89", "90", "90a", "100", "120"]
TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Kernel (a part of its name) -> why local memory is no surprise there, and how many bytes of stack at most.
ALLOWED = {}
# Of a block, in KiB.
SHARED_LIMITS = {"80": 163, "86": 99, "89": 99, "90": 227, "90a": 227, "100": 227, "120": 99}
# A program, not a kernel: shared memory is asked for at launch, so the compiler does not report it. The fused
# convolution's depends on the device and the call: here Guided Anchoring's feature adaption, 3 x 3 on 256 channels
# with four offset groups.
SHARED_SIZES = """
#define GA_SCOPE_SIMULATED
#include <cstdio>
#include "cuda/backward.h"
#include "cuda/columns.h"
#include "cuda/fused_convolution.h"
#include "cuda/matching_kernels.h"
#include "cuda/nms_kernels.h"
using namespace ga_scope;
using namespace ga_scope::cuda;
template <class Kernel>
void print(const char* name) { std::printf("%s %zu\\n", name, sizeof(typename Kernel::Shared)); }
template <class T, int kTileRows>
void print_fused(const char* name) {
  using Kernel = FusedConvolution<T, kTileRows>;
  for (int limit : {99, 163, 227}) {
    FusedCall call{};
    call.taps = 9, call.chunks = 256 / Kernel::kChunk, call.chunks_per_sampling_group = 64 / Kernel::kChunk;
    call.deformed = true, call.shared_bytes = limit << 10;
    const int tile = kTileRows == 128 ? 0 : 1;
    call.header_bytes[tile] = sizeof(typename Kernel::Shared);
    call.stage_bytes[tile] = sizeof(typename Kernel::Stage);
    call.slot_bytes[tile] = kTileRows * sizeof(TileSample);
    Kernel kernel{};
    kernel.plan = fused_stages(call, tile);
    std::printf("%s/%d %d\\n", name, limit, kernel.plan.stages ? int(kernel.shared_bytes()) : 0);
  }
}
int main() {
  print_fused<BFloat16, 128>("FusedConvolution<c10::BFloat16,128>");
  print_fused<BFloat16, 64>("FusedConvolution<c10::BFloat16,64>");
  print_fused<Half, 128>("FusedConvolution<c10::Half,128>");
  print_fused<Half, 64>("FusedConvolution<c10::Half,64>");
  print_fused<float, 128>("FusedConvolution<float,128>");
  print_fused<float, 64>("FusedConvolution<float,64>");
  print<StoreRows<BFloat16, BFloat16>>("StoreRows<c10::BFloat16,c10::BFloat16>");
  print<StoreRows<Half, Half>>("StoreRows<c10::Half,c10::Half>");
  print<StoreRows<float, float>>("StoreRows<float,float>");
  print<StoreRows<BFloat16, float>>("StoreRows<c10::BFloat16,float>");
  print<StoreRows<Half, float>>("StoreRows<c10::Half,float>");
  print<StoreRows<double, double>>("StoreRows<double,double>");
  print<CollectRows<BFloat16, BFloat16>>("CollectRows<c10::BFloat16,c10::BFloat16>");
  print<CollectRows<Half, Half>>("CollectRows<c10::Half,c10::Half>");
  print<CollectRows<BFloat16, float>>("CollectRows<c10::BFloat16,float>");
  print<CollectRows<Half, float>>("CollectRows<c10::Half,float>");
  print<CollectRows<float, float>>("CollectRows<float,float>");
  print<CollectRows<double, double>>("CollectRows<double,double>");
  print<Match<float, FixedAnchors<float>>>("Match<float,FixedAnchors<float>>");
  print<Match<float, VariableAnchors<float>>>("Match<float,VariableAnchors<float>>");
  print<Match<double, FixedAnchors<double>>>("Match<double,FixedAnchors<double>>");
  print<Match<double, VariableAnchors<double>>>("Match<double,VariableAnchors<double>>");
  print<PairBits<float>>("PairBits<float>");
  print<PairBits<double>>("PairBits<double>");
  print<Sweep>("Sweep");
}
"""


def run(command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_report(nvcc, source, arch, cubins, host):
    """What ptxas says about every kernel of a source: a list of (name, arch, registers, stack, stores, loads).
    ``host``: the launchers are compiled, too, and thrown away."""
    includes = [f"-I{path}" for path in include_paths("cpu")]
    cubin = cubins / f"sm_{arch}" / f"{source.stem}.cubin"
    cubin.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-O3", "-lineinfo", TARGET_FLAG, *includes, f"-arch=sm_{arch}", "-Xptxas", "-v"]
    with tempfile.TemporaryDirectory() as kept:
        whole = ["-c", "--keep", "--keep-dir", kept, "-o", f"{kept}/{source.stem}.o"]
        text = run([nvcc, *flags, *(whole if host else ["-cubin", "-o", cubin]), source])
        if host:
            (made,) = Path(kept).glob("*.cubin")
            shutil.move(made, cubin)
    pattern = (
        r"Compiling entry function '(\w+)' for .*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return [
        (name, arch, int(registers), int(stack), int(stores), int(loads))
        for name, stack, stores, loads, registers in re.findall(pattern, text, re.DOTALL)
    ]


def short_name(mangled):
    """ga_scope::cuda::run<Kernel>(Kernel) as Kernel, without namespaces of ours."""
    name = run(["c++filt", mangled]).strip()
    name = re.search(r"run<(.*)>\(", name).group(1)
    return re.sub(r"ga_scope::cuda::|\(anonymous namespace\)::|\(int\)| ", "", name)


def shared_sizes():
    with tempfile.TemporaryDirectory() as directory:
        source, program = Path(directory) / "sizes.cpp", Path(directory) / "sizes"
        source.write_text(SHARED_SIZES)
        includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths("cpu"))]
        # Sizes alone are wanted: what the headers refer to of torch is not linked.
        flags = ["-std=c++20", "-O1", TARGET_FLAG, "-Wl,--unresolved-symbols=ignore-all"]
        run([os.environ.get("CXX", "c++"), *flags, *includes, source, "-o", program])
        return {name: int(size) for name, size in (line.split() for line in run([program]).splitlines())}


def shared_of(shared, name, arch):
    """Bytes that a kernel asks for on an architecture."""
    return shared.get(name, shared.get(f"{name}/{SHARED_LIMITS[arch]}", 0))


def complaint(name, stack, stores, loads):
    for part, (_, most) in ALLOWED.items():
        if part in name and stack <= most and not stores and not loads:
            return ""
    return "LOCAL MEMORY" if stack or stores or loads else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, help=f"default: {' '.join(ARCHITECTURES)}")
    parser.add_argument("--cubins", type=Path, default=ROOT / "build/cubins", help="a folder per architecture")
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    toolkit = find_cuda_toolkit()
    if toolkit is None:
        sys.exit("no CUDA toolkit: put nvcc on PATH, or type CUDA_HOME=/usr/local/cuda before the command")
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    pairs = [(source, arch) for arch in args.arch for source in sources]
    with ThreadPoolExecutor(args.jobs) as pool:
        nvcc, first = toolkit / "bin/nvcc", args.arch[0]
        reports = pool.map(lambda pair: compile_report(nvcc, *pair, args.cubins, pair[1] == first), pairs)
        rows = [row for report in reports for row in report]
    names = {mangled: short_name(mangled) for mangled in {row[0] for row in rows}}
    shared = shared_sizes()
    lines, bad = [], 0
    for mangled, arch, registers, stack, stores, loads in sorted(rows, key=lambda row: (names[row[0]], row[1])):
        name = names[mangled]
        problem = complaint(name, stack, stores, loads)
        bad += bool(problem)
        numbers = f"{registers:>9} {stack:>5} {stores:>6} {loads:>5} {shared_of(shared, name, arch):>7}"
        lines.append(f"{name:<60} sm_{arch:<4} {numbers}  {problem}")
    title = (
        f"CUDA {toolkit_version(toolkit)}, {len(rows)} kernels x architectures; stack, spills and shared memory "
        "in bytes (shared: asked for at launch, per block)"
    )
    header = f"{'kernel':<60} {'arch':<7} {'registers':>9} {'stack':>5} {'stores':>6} {'loads':>5} {'shared':>7}"
    reasons = [f"allowed: {part}: {reason}" for part, (reason, _) in ALLOWED.items()]
    table = "\n".join([title, header, *(line.rstrip() for line in lines), *reasons]) + "\n"
    print(table, end="")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table)
    if len(rows) == 0:
        sys.exit("no kernel was compiled")
    if bad:
        sys.exit(f"{bad} kernels use local memory that tools/check_cuda_build.py does not list")


if __name__ == "__main__":
    main()
