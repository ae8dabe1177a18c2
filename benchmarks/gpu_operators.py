"""Times of the operators on a GPU, against torchvision in the same run and against the arithmetic's floor.

    python benchmarks/gpu_operators.py [--batches 1 16] [--output benchmarks/results/gpu_operators.txt]

Medians of CUDA-event times over several input sets, the sets in turns so that none sits in the L2 cache. The
feature maps are those of an 800 x 1344 image (strides 4 to 64, 89,523 locations), 256 channels, 4 offset groups.
The floor is the arithmetic alone at --tflops (bfloat16, dense; 790 was measured on an H200).
"""

import argparse
import functools
import statistics
import sys
from pathlib import Path

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
    """torchvision on the same maps, in the layout and dtypes that it takes."""

    def __init__(self, inputs):
        from torchvision.ops import deform_conv2d

        self.run = deform_conv2d
        self.maps = [m.contiguous() for m in inputs.maps]
        self.weight = inputs.weight
        self.offset = [o.to(inputs.weight.dtype) for o in inputs.offset]

    def dense(self):
        return [self.run(m, o, self.weight, padding=1) for m, o in zip(self.maps, self.offset)]


class Table:
    """Lines, printed and written as they come: a time limit loses no row."""

    def __init__(self, title, output):
        self.output, self.lines = output, []
        for line in (title, "", f"{'what':<66} {'median us':>10} {'low':>9} {'high':>9}  notes"):
            self.note(line)

    def add(self, what, times, notes=""):
        self.note(f"{what:<66} {times[0]:>10.1f} {times[1]:>9.1f} {times[2]:>9.1f}  {notes}".rstrip())

    def note(self, line):
        self.lines.append(line)
        print(line, flush=True)
        if self.output:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text("\n".join(self.lines) + "\n")


def dense(table, images, tflops, sets):
    floor = images * LOCATIONS * FLOP_PER_LOCATION / tflops / 1e6
    for dtype, label in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            torch.backends.cudnn.allow_tf32 = tf32
            name = f"deform conv, five levels, batch {images}, {'tf32' if tf32 else label}"
            inputs = [Inputs(images, dtype) for _ in range(sets)]
            ours = median_us([i.dense for i in inputs])
            notes = f"{ours[0] / floor:.2f}x of the {floor:.0f} us floor" if dtype == torch.bfloat16 else ""
            table.add(name, ours, f"{notes}  extra {extra_mb(inputs[0].dense):.0f} MB")
            try:
                peers = [Peer(i) for i in inputs]
                theirs = median_us([p.dense for p in peers], runs=10, warm=2)
                table.add(f"  torchvision, {label}", theirs, f"{theirs[0] / ours[0]:.2f}x ours")
            except (ImportError, RuntimeError) as error:
                table.note(f"  torchvision, {label}: {str(error).splitlines()[0]}")
            del inputs
    torch.backends.cudnn.allow_tf32 = False


def sparse(table, images, sets):
    whole = median_us([Inputs(images, torch.bfloat16).dense for _ in range(sets)])
    for fraction in (0.1, 0.03, 0.01):
        ours = median_us([Inputs(images, torch.bfloat16, fraction).sparse for _ in range(sets)])
        table.add(
            f"masked deform conv, batch {images}, bf16, {fraction:.0%} active",
            ours,
            f"dense / this {whole[0] / ours[0]:.1f}",
        )


def backward(table, images, dtype, label):
    inputs = Inputs(images, dtype)
    leaves = [*inputs.maps[:2], *inputs.offset[:2], inputs.weight]
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for name, run in (("ours", deform_conv2d), ("torchvision", None)):
        if run is None:
            from torchvision.ops import deform_conv2d as run
        offsets = inputs.offset[:2] if name == "ours" else [o.to(dtype) for o in inputs.offset[:2]]
        out = [run(m, o, inputs.weight, padding=1) for m, o in zip(inputs.maps[:2], offsets)]
        grads = [torch.randn_like(o) for o in out]
        times = median_us([lambda o=out, g=grads: torch.autograd.grad(o, leaves, g, retain_graph=True)], runs=10)
        results.append(times[0])
        ratio = f"{times[0] / results[0]:.2f}x ours" if name != "ours" else ""
        table.add(f"backward, two levels, batch {images}, {label}, {name}", times, ratio)


def matching(table):
    for count in (100, 3000):
        corner = torch.rand(count, 2, device=DEVICE) * torch.tensor([1200.0, 700.0], device=DEVICE)
        side = torch.exp(torch.empty(count, 2, device=DEVICE).uniform_(2.5, 6))
        boxes = torch.cat([corner, corner + side], 1)
        for floor in (0.0, 0.3):
            run = lambda b=boxes, f=floor: viou_match(b, SIZES, STRIDES, min_iou=f)  # noqa: E731
            table.add(
                f"viou_match, exact, G = {count}, min_iou {floor}", median_us([run]), f"extra {extra_mb(run):.1f} MB"
            )


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
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--sets", type=int, default=3, help="input sets called in turns")
    parser.add_argument("--tflops", type=float, default=790, help="bfloat16 rate that the floor assumes")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    table = Table(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", args.output)
    with torch.no_grad():
        matching(table)
        suppression(table)
        proposals(table, 1, torch.float16, "fp16")
        proposals(table, 1, torch.float32, "fp32")
        for images in args.batches:
            sets = args.sets if images <= 4 else 2
            dense(table, images, args.tflops, sets)
            sparse(table, images, sets)
    for dtype, label in ((torch.float32, "fp32"), (torch.float16, "fp16")):
        backward(table, min(args.batches), dtype, label)


if __name__ == "__main__":
    main()
