"""Times of the operators on a GPU, against torchvision in the same run and against the arithmetic's floor.

    python benchmarks/gpu_operators.py [--batches 1 16] [--output benchmarks/results/gpu_operators.txt]

Medians of CUDA-event times over several input sets, the sets in turns so that none sits in the L2 cache. The
feature maps are those of an 800 x 1344 image (strides 4 to 64, 89,523 locations), 256 channels, 4 offset groups.
The floor is the arithmetic alone at --tflops (bfloat16, dense; 790 was measured on an H200).

At the end of the table stand the bars (BARS), each met, missed or not measured; they are there from the first row on,
whatever stops the run.
"""

import argparse
import contextlib
import functools
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import harness, heads
from ga_scope.modeling.cuda_graph import Replay
from ga_scope.modeling.guided_anchoring import LocationSelection
from ga_scope.ops import deform_conv2d, nms_mask, viou_match

SIZES, STRIDES = harness.LEVELS, harness.STRIDES
CHANNELS, OFFSET_GROUPS = heads.CHANNELS, 4
DEVICE = "cuda"  # a test of this file has none
LOCATIONS = sum(h * w for h, w in SIZES)
FLOP_PER_LOCATION = 2 * 9 * CHANNELS * CHANNELS
BATCHES = (1, 16)
# dtype, and whether torch may round float32 to tf32.
PRECISIONS = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}


class Bar(NamedTuple):
    """What a figure is held to. ``least``: the bar is a minimum."""

    bar: float
    dream: float | None = None
    least: bool = False
    unit: str = "x"

    def line(self, figure):
        sign = ">=" if self.least else "<="
        dream = "" if self.dream is None else f"{sign} {self.dream:g} {self.unit}"
        bar = f"{sign} {self.bar:g} {self.unit}"
        if figure is None:
            return f"{'-':>10} {bar:>12} {dream:>12}  not measured"
        met = figure >= self.bar if self.least else figure <= self.bar
        return f"{f'{figure:.2f} {self.unit}':>10} {bar:>12} {dream:>12}  {'met' if met else 'MISSED'}"


BARS = {
    "dense, batch 1, bf16, of the floor": Bar(2.5, 1.5),
    "dense, batch 16, bf16, of the floor": Bar(2, 1.5),
    **{
        f"dense, batch {batch}, {name}, torchvision / ours": Bar(2, 4, least=True)
        for batch in BATCHES
        for name in PRECISIONS
    },
    "200 x 336, batch 16, bf16, peak memory of the output": Bar(1.1),
    "10 % active, batch 16, bf16, dense / masked": Bar(5, 8, least=True),
    "3 % active, batch 16, bf16, dense / masked": Bar(10, 20, least=True),
    **{f"GA-RPN / RPN, batch 1, {name}": Bar(1, 0.6) for name in ("fp16", "fp32")},
    "viou_match, G = 100": Bar(100, unit="us"),
    "viou_match, G = 3000": Bar(2000, unit="us"),
    "viou_match, extra memory": Bar(50, unit="MB"),
    **{f"backward, {name}, torchvision / ours": Bar(2, least=True) for name in ("fp32", "fp16")},
}


@contextlib.contextmanager
def tf32(allowed):
    """For convolutions, whose switch ours follow, and for matrix products, whose switch torchvision's do."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def median_us(functions, runs=30, warm=5):
    """Microseconds of one call; ``functions`` do the same on different inputs and are called in turns."""
    for i in range(warm):
        functions[i % len(functions)]()
    times = []
    for i in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200_000)  # hides the launches' own time, so that the device's is measured
        begin.record()
        functions[i % len(functions)]()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times), min(times), max(times)


def extra_mb(function):
    function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = function()
    kept = sum(t.numel() * t.element_size() for t in (out if isinstance(out, (list, tuple)) else [out]))
    return (torch.cuda.max_memory_allocated() - before - kept) / 1e6


class Inputs:
    """One set of inputs of the dense and sparse deformable convolution, in ``dtype``."""

    def __init__(self, images, dtype, fraction=None):
        def random(*shape):
            return torch.randn(*shape, device=DEVICE)

        last = torch.channels_last
        self.maps = [random(images, CHANNELS, *s).to(dtype).contiguous(memory_format=last) for s in SIZES]
        self.weight = (random(CHANNELS, CHANNELS, 3, 3) / 48).to(dtype)
        if fraction is None:
            self.offset = [random(images, 18 * OFFSET_GROUPS, *s) for s in SIZES]
        else:
            count = images * LOCATIONS
            self.locations = torch.randperm(count, device=DEVICE)[: int(fraction * count)].sort().values
            self.shape, self.matrix = random(len(self.locations), 2), random(18 * OFFSET_GROUPS, 2)

    def dense(self):
        return deform_conv2d(self.maps, self.offset, self.weight, padding=1)

    def sparse(self):
        return deform_conv2d(
            self.maps, self.shape, self.weight, padding=1, locations=self.locations, offset_weight=self.matrix
        )


class Peer:
    """torchvision on the same maps, in the layout that it takes. It has no bfloat16: a call casts to float32 and back,
    as its autocast does."""

    def __init__(self, inputs):
        from torchvision.ops import deform_conv2d

        self.run = deform_conv2d
        self.dtype = inputs.weight.dtype
        self.own = torch.float32 if self.dtype == torch.bfloat16 else self.dtype
        self.maps = [m.contiguous() for m in inputs.maps]
        self.weight = inputs.weight
        self.offset = [o.to(self.own) for o in inputs.offset]

    def dense(self):
        weight = self.weight.to(self.own)
        maps = zip(self.maps, self.offset, strict=True)
        return [self.run(m.to(self.own), o, weight, padding=1).to(self.dtype) for m, o in maps]


class Table:
    """Lines, printed and written as they come, and below them the bars: a time limit loses no row."""

    def __init__(self, title, output):
        self.output, self.lines, self.figures = output, [], dict.fromkeys(BARS)
        for line in (title, "", f"{'what':<66} {'median us':>10} {'low':>9} {'high':>9}  notes"):
            self.note(line)

    def add(self, what, times, notes=""):
        self.note(f"{what:<66} {times[0]:>10.1f} {times[1]:>9.1f} {times[2]:>9.1f}  {notes}".rstrip())

    def note(self, line):
        self.lines.append(line)
        print(line, flush=True)
        self._write()

    def figure(self, name, value):
        """What a bar is about; the worst, if there are several."""
        found = self.figures[name]
        worst = min if BARS[name].least else max
        self.figures[name] = value if found is None else worst(found, value)
        self._write()

    def bars(self):
        """A line for each, met or not."""
        header = f"{'figure':<56} {'measured':>10} {'bar':>12} {'dream':>12}"
        return [header, *(f"{name:<56} {BARS[name].line(value)}" for name, value in self.figures.items())]

    def _write(self):
        if self.output:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text("\n".join([*self.lines, "", *self.bars()]) + "\n")


def peers_times(table, name, run):
    """Times of torchvision's operator, or None with a row that says what it refuses."""
    try:
        return run()
    except (ImportError, RuntimeError) as error:
        table.note(f"{name}: {str(error).splitlines()[0]}")


def dense(table, images, tflops, sets):
    floor = images * LOCATIONS * FLOP_PER_LOCATION / tflops / 1e6
    for label, (dtype, allowed) in PRECISIONS.items():
        with tf32(allowed):
            case = f"batch {images}, {label}"
            inputs = [Inputs(images, dtype) for _ in range(sets)]
            ours = median_us([i.dense for i in inputs])
            notes = ""
            if dtype == torch.bfloat16:
                notes = f"{ours[0] / floor:.2f}x of the {floor:.0f} us floor  "
                table.figure(f"dense, {case}, of the floor", ours[0] / floor)
            table.add(f"deform conv, five levels, {case}", ours, f"{notes}extra {extra_mb(inputs[0].dense):.0f} MB")
            peers = [Peer(i) for i in inputs]
            name = f"  torchvision, {label}"
            theirs = peers_times(table, name, lambda p=peers: median_us([i.dense for i in p], runs=10, warm=2))
            if theirs:
                table.add(name, theirs, f"{theirs[0] / ours[0]:.2f}x ours")
                table.figure(f"dense, {case}, torchvision / ours", theirs[0] / ours[0])
            del inputs, peers


def memory(table, images):
    """Of a dense call on the finest map, beyond its inputs."""
    inputs = Inputs(images, torch.bfloat16)
    inputs.maps, inputs.offset = inputs.maps[:1], inputs.offset[:1]
    output = inputs.maps[0].numel() * inputs.maps[0].element_size() / 1e6
    share = (extra_mb(inputs.dense) + output) / output
    size = " x ".join(map(str, SIZES[0]))
    table.note(f"deform conv, {size}, batch {images}, bf16: peak memory {share:.2f}x of the output's {output:.0f} MB")
    if images == BATCHES[-1]:
        table.figure(f"200 x 336, batch {images}, bf16, peak memory of the output", share)


def sparse(table, images, sets):
    whole = median_us([Inputs(images, torch.bfloat16).dense for _ in range(sets)])
    for fraction in (0.1, 0.03, 0.01):
        ours = median_us([Inputs(images, torch.bfloat16, fraction).sparse for _ in range(sets)])
        table.add(
            f"masked deform conv, batch {images}, bf16, {fraction:.0%} active",
            ours,
            f"dense / this {whole[0] / ours[0]:.1f}",
        )
        if images == BATCHES[-1] and fraction >= 0.03:
            table.figure(f"{fraction * 100:.0f} % active, batch {images}, bf16, dense / masked", whole[0] / ours[0])


def backward(table, images, dtype, label):
    """Of two levels, all gradients."""
    from torchvision.ops import deform_conv2d as peer

    inputs = Inputs(images, dtype)
    maps, offsets = inputs.maps[:2], inputs.offset[:2]
    leaves = [*maps, *offsets, inputs.weight]
    for leaf in leaves:
        leaf.requires_grad_()

    def times(outputs):
        grads = [torch.randn_like(out) for out in outputs]
        return median_us([lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)], runs=10)

    def peers():
        return times([peer(m, o.to(dtype), inputs.weight, padding=1) for m, o in zip(maps, offsets, strict=True)])

    with torch.enable_grad():
        ours = times(deform_conv2d(maps, offsets, inputs.weight, padding=1))
        name = f"backward, two levels, batch {images}, {label}"
        table.add(name, ours)
        theirs = peers_times(table, f"  torchvision, {label}", peers)
    if theirs:
        table.add(f"  torchvision, {label}", theirs, f"{theirs[0] / ours[0]:.2f}x ours")
        table.figure(f"backward, {label}, torchvision / ours", theirs[0] / ours[0])


def matching(table):
    for count in (100, 3000):
        corner = torch.rand(count, 2, device=DEVICE) * torch.tensor([1200.0, 700.0], device=DEVICE)
        side = torch.exp(torch.empty(count, 2, device=DEVICE).uniform_(2.5, 6))
        boxes = torch.cat([corner, corner + side], 1)
        for floor in (0.0, 0.3):
            run = lambda b=boxes, f=floor: viou_match(b, SIZES, STRIDES, min_iou=f)  # noqa: E731
            times, extra = median_us([run]), extra_mb(run)
            table.add(f"viou_match, exact, G = {count}, min_iou {floor}", times, f"extra {extra:.1f} MB")
            table.figure(f"viou_match, G = {count}", times[0])
            table.figure("viou_match, extra memory", extra)


def fixed_size(rpn, maps, sizes):
    """A function of tensors, of fixed sizes throughout: what a CUDA graph can hold."""
    return rpn(maps, sizes, fixed_size=True).proposals


def proposals(table, images, dtype, label):
    """GA-RPN's head and proposals against torchvision's RPN: with a threshold, with a budget, that as a CUDA graph."""
    sizes = torch.tensor([harness.IMAGE] * images, device=DEVICE)
    maps = [
        [torch.randn(images, CHANNELS, *s, device=DEVICE).to(dtype, memory_format=torch.channels_last) for s in SIZES]
        for _ in range(3)
    ]

    def measure(function):
        return median_us([functools.partial(function, m) for m in maps])

    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        peer = heads.TorchvisionRPN()
        peer.module.to(DEVICE).eval()
        theirs = measure(peer)
        table.add(f"RPN + proposals, torchvision, batch {images}, {label}", theirs)
        for conv in (True, False):
            rpn = heads.guided_rpn(conv).to(DEVICE).eval()
            name = f"GA-RPN + proposals, batch {images}, {label}, {'with' if conv else 'without'} conv"
            heads.activate(rpn, maps[0], 0.1)
            times = {"10 % active": measure(functools.partial(rpn, image_sizes=[harness.IMAGE] * images))}
            rpn.selection = LocationSelection(0.0, heads.PRE_NMS[1])
            budgeted = functools.partial(fixed_size, rpn)
            times["budget"] = measure(functools.partial(budgeted, sizes=sizes))
            replay = Replay(budgeted, maps[0], sizes)
            times["graph"] = measure(lambda m, replay=replay: replay(m, sizes))
            for kind, own in times.items():
                table.add(f"{name}: {kind}", own, f"{own[0] / theirs[0]:.2f}x of the RPN")
            table.note(f"  budget, eager / graph: {times['budget'][0] / times['graph'][0]:.2f}")
            if conv:
                table.figure(f"GA-RPN / RPN, batch {images}, {label}", times["10 % active"][0] / theirs[0])


def suppression(table):
    """nms_mask on a budget's proposals, five levels of 1000, against torchvision's batched_nms."""
    from torchvision.ops import batched_nms

    corner = torch.rand(5, 1000, 2, device=DEVICE) * torch.tensor([1200.0, 700.0], device=DEVICE)
    boxes = torch.cat([corner, corner + torch.exp(torch.empty(5, 1000, 2, device=DEVICE).uniform_(2.5, 6))], 2)
    scores, levels = torch.arange(5000, 0, -1.0, device=DEVICE), torch.arange(5, device=DEVICE).repeat_interleave(1000)
    ours = median_us([lambda: nms_mask(boxes, 0.7)])
    theirs = median_us([lambda: batched_nms(boxes.flatten(0, 1), scores, levels, 0.7)])
    table.add("nms_mask, 5 x 1000 boxes", ours, f"torchvision's batched_nms / this {theirs[0] / ours[0]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", choices=BATCHES, default=BATCHES)
    parser.add_argument("--sets", type=int, default=3, help="input sets called in turns")
    parser.add_argument("--tflops", type=float, default=790, help="bfloat16 rate that the floor assumes")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    table = Table(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", args.output)
    # What bars are about comes first.
    with torch.no_grad(), tf32(False):
        matching(table)
        for images in args.batches:
            sets = args.sets if images <= 4 else 2
            dense(table, images, args.tflops, sets)
            sparse(table, images, sets)
            memory(table, images)
        for label in ("fp16", "fp32"):
            backward(table, min(args.batches), PRECISIONS[label][0], label)
            proposals(table, 1, PRECISIONS[label][0], label)
        suppression(table)
    print("", *table.bars(), sep="\n")


if __name__ == "__main__":
    main()
