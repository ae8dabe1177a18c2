#!/usr/bin/env python
"""Counts the instructions of the CUDA kernels' hot loops, beside torchvision's, and holds them to a budget.

    python tools/cuda_budget.py [--cubins build/cubins] [--arch 80 90 ...] [--only TEXT] [--paths]
                                [--output benchmarks/results/cuda_budget.txt]

Needs a CUDA toolkit and a disassembler (tools/sass.py), no GPU. The cubins are those that tools/check_cuda_build.py
left in --cubins; torchvision's are taken from its installed library.

An instruction here is a warp's: an issue slot, of which a multiprocessor has four per clock. Counted is the longest
path through a kernel's control flow, loops taken as often as a measure says (below), so the figure is what a warp
executes at most. Per element: of the columns that a gather writes, or that a backward reads. Per step: of the fused
convolution, all warps of a block, for one of the four schedulers.

The ceiling is the share of the peak that the count leaves possible: for a step, of the tensor cores' dense rate; for
elements, of the memory's rate at which columns of that type can be written or read. The figure beside a step is what
shared memory and L1 allow (128 bytes a clock). mma.sync itself reaches about 62 % of the dense rate on sm_90 (Luo et
al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", Table 7).

Budgets are in benchmarks/cuda_budgets.json: measure -> architecture -> most instructions. Exceeding one is an error,
and so is a measure without a budget. They leave a few percent to the compiler. A bfloat16 step of 128 x 256 on sm_90
was held to 75 % of the dense rate until an H200 was there: 2 % more instructions, which load in time, made it 15 %
faster.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import sass  # noqa: E402
from check_cuda_build import shared_of, shared_sizes, short_name  # noqa: E402
from cuda_toolkit import find_cuda_toolkit, toolkit_version  # noqa: E402

BUDGETS = ROOT / "benchmarks/cuda_budgets.json"
LANES, SCHEDULERS = 32, 4


@dataclass(frozen=True)
class Card:
    """A card of an architecture: what its datasheet says, per multiprocessor and clock."""

    name: str
    fma: int  # bfloat16 multiply-adds of the tensor cores, dense; tf32: half
    memory: float  # bytes of DRAM
    shared: int  # KiB per multiprocessor
    threads: int


CARDS = {
    "80": Card("A100", 1024, 13.4, 164, 2048),
    "86": Card("A10", 512, 4.9, 100, 1536),
    "89": Card("L40S", 512, 2.4, 100, 1536),
    "90": Card("H100", 2048, 13.9, 228, 2048),
    "100": Card("B200", 4096, 29.2, 228, 2048),
    "120": Card("RTX PRO 6000", 512, 3.6, 100, 1536),
}
PEER_ARCH = {"89": "86"}  # torchvision's wheel has no code of its own for sm_89


@dataclass(frozen=True)
class Elements:
    """Instructions per element of `item` bytes: the longest path that executes `count` of the instructions `units`,
    outer loops taken `trips` times (sass.ControlFlow). The elements of a warp are what those instructions move, divided
    by `times`: how often each is moved. Or there are `elements`, and the path is the longest of up to `count` units."""

    count: int
    item: int
    trips: tuple = ()
    units: str = "STG"
    times: float = 1
    elements: int | None = None

    def __call__(self, flow, card):
        paths = flow.paths(self.units, self.count, self.trips)
        if self.elements:
            path, elements = max(paths.values(), key=lambda path: path.length), self.elements
        elif self.count in paths:
            path = paths[self.count]
            elements = LANES * path.bytes(self.units) / self.item / self.times
        else:
            sys.exit(f"no path with {self.count} of {self.units}: the kernel's loops have changed")
        count = path.length / elements
        ceiling = min(1.0, SCHEDULERS / count * self.item / card.memory)
        return count, ceiling, path, ""


@dataclass(frozen=True)
class Step:
    """Instructions of a fused step per scheduler: the loop with HMMA for every consumer warp, that with STS and without
    HMMA for every producer warp, which gathers a row's four pixels by loads of 16 bytes."""

    rows: int
    columns: int
    item: int
    consumers: int
    producers: int

    def __call__(self, flow, card):
        outer = [loop for loop in flow.loops if loop.depth == 1]
        consumer = max((loop for loop in outer if loop.has("HMMA")), key=lambda loop: len(loop.blocks))
        producer = max((loop for loop in outer if loop.has("STS") and not loop.has("HMMA")), key=self._size)
        consume = flow.turns(consumer)[0]
        depth = 128 // self.item
        multiplied = self.rows * self.columns * depth / self.consumers
        steps = consume.count("HMMA") / (multiplied / (16 * 8 * 32 // self.item))  # of one turn
        loads = 4 * self.rows * 128 // (16 * LANES * self.producers)
        produce = flow.turns(producer, r"LDG\.E\.128", loads)[loads]
        slots = (self.consumers * consume.length / steps + self.producers * produce.length) / SCHEDULERS
        peak = self.rows * self.columns * depth / (card.fma * 2 / self.item)
        # Bytes of shared memory and L1: fragments read; pixels (LDG), samples and weights (STS, LDGSTS) written.
        moved = LANES * (self.consumers * consume.count("LDSM") * 16 + self.producers * produce.bytes("LDG|STS"))
        note = f"shared/L1 {min(1, peak / (moved / 128)):.0%}"
        note += f", consumer {consume.length / steps:.0f}, producer {produce.length}"
        return slots, min(1.0, peak / slots), produce, note

    @staticmethod
    def _size(loop):
        return sum(loop.opcodes.values())


@dataclass(frozen=True)
class Measure:
    name: str
    kernel: str  # of the demangled name, a regular expression
    count: Callable
    peer: bool = False


RED = "RED|ATOMG"
VECTOR = r"LDG\.E\.128"  # a backward's loads: an element's gradient, and its four pixels


def _fused(label, kind, item, rows):
    kernel = rf"FusedConvolution<{kind}, (\(int\))?{rows}>"
    name = f"fused convolution, {label}, {rows} x 256 x {128 // item}: step"
    return Measure(name, kernel, Step(rows, 256, item, 8, 4))


MEASURES = [
    # A warp's 32 samples: 16 turns of two, or 32 turns of one in two vectors a lane.
    Measure("gather, float32, 64 channels per group", r"GatherColumns<float, (\(int\))?4>", Elements(16, 4, (1, 16))),
    Measure("gather, float32, 256 channels per group", r"GatherColumns<float, (\(int\))?4>", Elements(64, 4, (2, 32))),
    Measure(
        "gather, bfloat16, 64 channels per group", r"GatherColumns<.*BFloat16, (\(int\))?8>", Elements(8, 2, (1, 8))
    ),
    Measure("torchvision: im2col, float32", r"deformable_im2col_kernel<float, int>", Elements(9, 4, (1, 3, 3)), True),
    Measure("torchvision: im2col, float16", r"deformable_im2col_kernel<.*Half, int>", Elements(9, 2, (1, 3, 3)), True),
    # An element adds to four pixels.
    Measure(
        "backward, float32, 64 channels per group",
        r"BackwardSamples<float, (\(int\))?4>",
        Elements(80, 4, (1, 16), VECTOR, elements=64 * LANES),
    ),
    Measure(
        "backward, float32, 256 channels per group",
        r"BackwardSamples<float, (\(int\))?4>",
        Elements(320, 4, (2, 32), VECTOR, elements=256 * LANES),
    ),
    Measure(
        "torchvision: col2im, float32", r"deformable_col2im_kernel<float, int>", Elements(4, 4, (1,), RED, 4), True
    ),
    # Of x and of y: each reads every element.
    Measure(
        "torchvision: col2im_coord, float32, 64 channels per group",
        r"deformable_col2im_coord_kernel<float, int>",
        Elements(64 * 12, 4, (1, 64), "LDG", elements=64 * LANES // 2),
        True,
    ),
    _fused("bfloat16", ".*BFloat16", 2, 128),
    _fused("bfloat16", ".*BFloat16", 2, 64),
    _fused("float16", ".*Half", 2, 128),
    _fused("tf32", "float", 4, 128),
    _fused("tf32", "float", 4, 64),
]


def occupancy(card, registers, shared, threads):
    """Blocks of a multiprocessor, and the share of its warps that they are."""
    warps = math.ceil(threads / LANES)
    per_warp = math.ceil(max(registers, 1) * LANES / 256) * 256
    blocks = min(
        65536 // (per_warp * warps),
        card.threads // (warps * LANES),
        card.shared * 1024 // (shared + 1024),
        32,
    )
    return blocks, blocks * warps * LANES / card.threads


def threads_of(name):
    """Of a block, as the kernels say themselves; torchvision's launch what its sources say."""
    if "FusedConvolution" in name:
        return 384
    if name.startswith("deformable_"):
        return 512
    return 256


def toolkit_name():
    toolkit = find_cuda_toolkit()
    if toolkit is None:
        sys.exit("no CUDA toolkit: put nvcc on PATH, or type CUDA_HOME=/usr/local/cuda before the command")
    return f"CUDA {toolkit_version(toolkit)}"


def own_kernels(folder):
    cubins = sorted(Path(folder).glob("*.cubin"))
    if not cubins:
        sys.exit(f"{folder}: no cubins: run tools/check_cuda_build.py --cubins {Path(folder).parent} first")
    return cubins


def peer_library():
    found = importlib.util.find_spec("torchvision")
    libraries = sorted(Path(found.origin).parent.glob("_C*.so")) if found else []
    return libraries[0] if libraries else None


class Kernels:
    """The kernels of some cubins, disassembled when asked for."""

    def __init__(self, cubins):
        self.instructions, self.resources = {}, {}
        for cubin in cubins:
            self.instructions |= sass.disassemble(cubin)
            self.resources |= sass.resources(cubin)
        self.names = sass.demangle(self.instructions)
        self.flows = {}

    def find(self, pattern):
        found = [mangled for mangled, name in self.names.items() if re.search(pattern, name)]
        if len(found) != 1:
            sys.exit(f"{pattern}: expected one kernel, found {len(found)}")
        return found[0]

    def flow(self, mangled):
        if mangled not in self.flows:
            self.flows[mangled] = sass.ControlFlow(self.instructions[mangled])
        return self.flows[mangled]


def summary(path):
    """A path's instructions by kind, the most frequent first."""
    kinds = {}
    for opcode, count in path.opcodes.items():
        name = opcode.split(".")[0]
        kinds[name] = kinds.get(name, 0) + count
    return " ".join(f"{name} {count}" for name, count in sorted(kinds.items(), key=lambda item: -item[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubins", type=Path, default=ROOT / "build/cubins", help="with a folder per architecture")
    parser.add_argument("--arch", nargs="+", default=list(CARDS), choices=list(CARDS))
    parser.add_argument("--only", default="", help="measures whose name has this text; no budgets are checked")
    parser.add_argument("--paths", action="store_true", help="also what the counted paths consist of")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parser.parse_args()
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    shared = shared_sizes()
    library = peer_library()
    peer_version = f"torchvision {importlib.metadata.version('torchvision')}" if library else "no torchvision"
    lines, exceeded = [f"{toolkit_name()}, {peer_version}; tools/cuda_budget.py says what is counted"], []
    header = (
        f"{'measure':<62} {'arch':<7} {'instructions':>12} {'ceiling':>8} {'registers':>9} {'shared':>7} "
        f"{'blocks':>6} {'warps':>6}"
    )
    lines.append(header)
    with tempfile.TemporaryDirectory() as folder:
        peers = sass.extract_cubins(library, folder, "deformable_im2col") if library else {}
        own = {arch: Kernels(own_kernels(args.cubins / f"sm_{arch}")) for arch in args.arch}
        other = {arch: Kernels(files) for arch, files in peers.items() if arch in CARDS}
        for measure in MEASURES:
            if args.only not in measure.name:
                continue
            for arch in args.arch:
                card = CARDS[arch]
                kernels = other.get(PEER_ARCH.get(arch, arch)) if measure.peer else own[arch]
                if kernels is None:
                    lines.append(f"{measure.name:<62} sm_{arch:<4} torchvision is not installed, or has no such code")
                    continue
                mangled = kernels.find(measure.kernel)
                count, ceiling, path, note = measure.count(kernels.flow(mangled), card)
                registers, _, fixed = kernels.resources[mangled]
                name = mangled if measure.peer else short_name(mangled)
                dynamic = 0 if measure.peer else shared_of(shared, name, arch)
                short = re.search(r"deformable_\w+", kernels.names[mangled]).group() if measure.peer else name
                blocks, share = occupancy(card, registers, dynamic + fixed, threads_of(short))
                verdict = ""
                if not measure.peer and not args.only:
                    limit = budgets.get(measure.name, {}).get(arch)
                    if limit is None:
                        verdict = "NO BUDGET"
                    elif round(count, 2) > limit:
                        verdict = f"OVER THE BUDGET OF {limit}"
                    if verdict:
                        exceeded.append(measure.name)
                lines.append(
                    f"{measure.name:<62} sm_{arch:<4} {count:>12.2f} {ceiling:>8.0%} {registers:>9} "
                    f"{dynamic + fixed:>7} {blocks:>6} {share:>6.0%}  {note} {verdict}".rstrip()
                )
                if args.paths:
                    lines.append(f"    {summary(path)}")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table)
    if exceeded:
        sys.exit(f"{len(set(exceeded))} measures exceed their budget, or have none: {BUDGETS.name}")


if __name__ == "__main__":
    main()
