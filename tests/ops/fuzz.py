"""Random calls of every operator, good and bad: a right result or an error message, never a signal.

    python -m tests.ops.fuzz 100000 [--seed 0]

runs that many calls in a process of its own and prints what became of them. A call draws its shapes, layouts,
dtypes and settings at random; then arguments are spoiled: NaN, infinities, huge and negative numbers, wrong
shapes, dtypes and types, empty and expanded tensors, and the operators' own entry points behind the Python
checks. Whatever is accepted is compared with the definition where that is defined, else checked for shape.
"""

import argparse
import collections
import faulthandler
import math
import random
import sys

import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, reference, viou_match

from .cases import random_boxes, random_convolution, random_locations

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, MemoryError)
BAD_NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e9, -1e9, 1e30, -3e38, 1e-40, 0.5)
BAD_INTEGERS = (0, -1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 7)
BAD_OBJECTS = (None, "text", 1.5, [], [None], (), {}, torch.tensor(3.0), torch.zeros(0), torch.zeros(2, 2), object())


class Wrong(Exception):
    """An accepted call with a wrong result."""


def spoil_numbers(tensor):
    """The tensor with some numbers replaced."""
    tensor = tensor.detach().clone()
    if tensor.numel() and tensor.is_floating_point():
        hit = torch.rand(tensor.shape) < random.choice([0.02, 0.3, 1.0])
        tensor[hit] = random.choice(BAD_NUMBERS)
    return tensor


def spoil_tensor(tensor):
    """Another shape, dtype, layout or kind of tensor."""
    choice = random.randrange(9)
    if choice == 0:
        return tensor.to(random.choice([torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]))
    if choice == 1:
        return tensor[None]
    if choice == 2 and tensor.dim():
        return tensor.select(random.randrange(tensor.dim()), 0) if min(tensor.shape) > 0 else tensor.flatten()
    if choice == 3 and tensor.dim():
        axis = random.randrange(tensor.dim())
        return tensor.narrow(axis, 0, random.randint(0, tensor.shape[axis]))
    if choice == 4 and tensor.dim():
        return torch.cat([tensor, tensor], random.randrange(tensor.dim()))
    if choice == 5 and tensor.dim():
        sizes = [-1] * tensor.dim()
        axis = random.randrange(tensor.dim())
        first = tensor.narrow(axis, 0, min(1, tensor.shape[axis]))
        sizes[axis] = random.choice([3, 2**12, 2**35, 2**40]) if first.shape[axis] else -1
        try:
            return first.expand(sizes)
        except RuntimeError:  # torch itself refuses so many numbers
            return first
    if choice == 6:
        return tensor.to("meta")
    if choice == 7:
        return tensor.to_sparse() if tensor.dim() else tensor
    return spoil_numbers(tensor)


def spoil(value):
    if random.random() < 0.15:
        return random.choice(BAD_OBJECTS)
    if isinstance(value, torch.Tensor):
        return spoil_tensor(value)
    if isinstance(value, (list, tuple)) and value:
        items = list(value)
        choice = random.randrange(3)
        at = random.randrange(len(items))
        if choice == 0:
            del items[at]
        elif choice == 1:
            items.append(items[at])
        else:
            items[at] = spoil(items[at])
        return items
    if isinstance(value, bool) or value is None:
        return random.choice(BAD_OBJECTS)
    if isinstance(value, int):
        return random.choice(BAD_INTEGERS)
    if isinstance(value, float):
        return random.choice(BAD_NUMBERS)
    return value


def check(condition, *message):
    if not condition:
        raise Wrong(" ".join(str(part) for part in message))


def finite(*values):
    return all(
        bool(v.isfinite().all()) and (v.numel() == 0 or float(v.abs().max()) < 1e6) for v in values if v is not None
    )


def close(ours, theirs, dtype):
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    check(ours.shape == theirs.shape, "shape", ours.shape, theirs.shape)
    error = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
    check(error <= tolerance * (1 + scale), "error", error, "at scale", scale)


def backward(out, leaves):
    outs = [o for o in (out if isinstance(out, list) else [out]) if o.requires_grad]
    if not outs:
        return
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    grads = torch.autograd.grad(sum(o.float().sum() for o in outs), wanted, allow_unused=True)
    for leaf, grad in zip(wanted, grads):
        check(grad is None or grad.shape == leaf.shape, "gradient", None if grad is None else grad.shape, leaf.shape)


def convolution_call():
    """A good call of one of the convolutions, and what checks its result."""
    dtype = random.choice([torch.float64, torch.float32, torch.bfloat16, torch.float16])
    case = random_convolution(dtype=torch.float64)
    case.maps = [m.to(dtype) for m in case.maps]
    case.weight = case.weight.to(dtype)
    case.bias = None if case.bias is None else case.bias.to(dtype)
    locations = random_locations(case.locations)[:40]
    arguments = {"input": case.maps, "weight": case.weight, "bias": case.bias, **case.settings, "locations": locations}
    wide = [m.double() for m in case.maps]
    if random.random() < 0.5:
        arguments["groups"] = case.groups
        if random.random() < 0.3:
            arguments["dense"] = True

        def verify(out):
            expected = reference.masked_conv2d(
                wide, case.weight.double(), None if case.bias is None else case.bias.double(), locations,
                **case.settings, groups=case.groups,
            )  # fmt: skip
            if not arguments.get("dense"):
                close(out, expected, dtype)

        return masked_conv2d, arguments, verify
    positions = torch.float64 if dtype == torch.float64 else torch.float32
    offset = torch.randn(len(locations), 2 * case.offset_groups * case.taps, dtype=positions) * 3
    if random.random() < 0.3:
        offset = spoil_numbers(offset)
    mask = torch.rand(len(locations), case.offset_groups * case.taps, dtype=positions)
    mask = mask if random.random() < 0.5 else None
    arguments |= {"offset": offset, "mask": mask}

    def verify(out):
        few = slice(0, 4)  # the definition takes a millisecond per location
        expected = reference.deform_conv2d(
            wide, offset[few].double(), case.weight.double(), None if case.bias is None else case.bias.double(),
            **case.settings, mask=None if mask is None else mask[few].double(), locations=locations[few],
        )  # fmt: skip
        close(out[few], expected, dtype)

    return deform_conv2d, arguments, verify


def scene():
    sizes = [(random.randint(1, 9), random.randint(1, 12)) for _ in range(random.choice([1, 3]))]
    strides = [4.0 * 2**level for level in range(len(sizes))]
    dtype = random.choice([torch.float32, torch.float64])
    boxes = [random_boxes(random.choice([0, 1, 5]), (40, 50)).to(dtype) for _ in range(random.choice([1, 2]))]
    return boxes, sizes, strides, dtype


def check_match(match, anchors, boxes):
    for iou, index, limit in ((match.iou, match.index, boxes), (match.gt_iou, match.gt_index, anchors)):
        check(not iou.isnan().any() and bool((iou >= 0).all()), "iou", iou)
        check(bool(((index >= -1) & (index < limit)).all()), "index", index, limit)
        check(bool(((index >= 0) == (iou > 0)).all()) or bool((iou == 0).any()), "index without overlap")


def matching_call():
    boxes, sizes, strides, dtype = scene()
    regions = [random_boxes(random.choice([0, 1, 3]), (40, 50)).to(dtype) for _ in boxes]
    if random.random() < 0.3:
        boxes, regions = ([spoil_numbers(b) for b in group] for group in (boxes, regions))
    ignoring = {"ignore_boxes": regions} if random.random() < 0.5 else {}
    count = sum(map(len, boxes))
    if random.random() < 0.3:
        anchors = [random_boxes(random.choice([0, 1, 70]), (40, 50)).to(dtype) for _ in boxes]

        def verify(match):
            check_match(match, sum(map(len, anchors)), count)
            if finite(*boxes):
                expected = [
                    reference.box_iou(a, b).amax(1) if len(b) else a.new_zeros(len(a)) for a, b in zip(anchors, boxes)
                ]
                close(match.iou, torch.cat(expected), torch.float32)

        return iou_match, {"boxes": anchors, "gt_boxes": boxes, "ignore_from": 0.5, **ignoring}, verify
    arguments = {"gt_boxes": boxes, "level_sizes": sizes, "strides": strides, **ignoring}
    locations = len(boxes) * sum(h * w for h, w in sizes)
    if random.random() < 0.4:
        arguments |= {"center_ratio": 0.2, "ignore_ratio": 0.5, "sigma": 8.0}

        def verify(labels):
            if finite(*boxes, *regions):
                expected = [
                    reference.location_targets(b, sizes, strides, ignore_boxes=r if ignoring else None)
                    for b, r in zip(boxes, regions)
                ]
                check(torch.equal(labels, torch.cat(expected)), "labels")
            check(labels.shape == (locations,), "shape", labels.shape)

        return location_targets, arguments, verify
    if random.random() < 0.5:
        arguments["shapes"] = torch.rand(len(sizes), 3, 2, dtype=dtype) * 40
    elif random.random() < 0.5:
        low = torch.rand(len(sizes), 1, dtype=dtype) * 20
        arguments["size_range"] = torch.cat([low, low * 3], 1)
    arguments |= {"min_iou": random.choice([0.0, 0.3]), "cell_offset": 0.5}

    def verify(match):
        check_match(match, locations, count)
        centers = torch.cat([reference.level_centers(size, s) for size, s in zip(sizes, strides)]).to(dtype)
        expected = [reference.inside_any(centers, r) & bool(ignoring) for r in regions]
        check(torch.equal(match.ignored, torch.cat(expected)), "ignored")

    return viou_match, arguments, verify


OPS = torch.ops.ga_scope


def raw_call():
    """An operator's own entry point with settings that the Python side would not let through."""
    integers = lambda: random.choice([1, 1, 1, 2, *BAD_INTEGERS])  # noqa: E731
    pair = lambda: [integers() for _ in range(random.choice([2, 2, 2, 1, 3]))]  # noqa: E731
    x, weight = torch.randn(1, 4, 6, 7), torch.randn(2, 4, 3, 3)
    rows, locations = torch.randn(3, 36), torch.tensor([0, 5, 3])
    several = lambda: random.choice([1, 1, 1, 2, 3, 5])  # noqa: E731
    levels = [several()] * 3
    levels = [[integers() for _ in range(n)] for n in levels[:2]] + [[8.0] * levels[2]]
    maybe = lambda value: spoil(value) if random.random() < 0.2 else value  # noqa: E731
    settings = [pair(), pair(), pair(), integers()]
    deformed = [[x], [rows], weight]

    def some():
        """Boxes, and counts of them per image: mostly such that their sum is right, or right but for an overflow."""
        count, images = random.choice([0, 1, 3, 6]), several()
        counts = [integers() for _ in range(images)]
        if random.random() < 0.7:
            rest = count - sum(counts[1:])
            counts[0] = (rest + 2**63) % 2**64 - 2**63 if random.random() < 0.5 else max(0, min(rest, 2**63 - 1))
        random.shuffle(counts)
        return random_boxes(count, (40, 50)).float(), counts

    def suppression():
        batch, count = random.choice([0, 1, 2]), random.choice([0, 1, 7, 40])
        boxes = random_boxes(batch * count, (30, 30)).float().view(batch, count, 4)
        groups = torch.randint(-(2**63), 2**63 - 1, (batch, count)) if random.random() < 0.5 else None
        return [spoil_numbers(boxes), groups, torch.rand(batch, count) < 0.8, random.choice([0.0, 0.5, 1.0])]

    def pooled():
        count, images = random.choice([0, 1, 5]), random.choice([1, 1, 2, *BAD_INTEGERS])
        boxes = spoil_numbers(random_boxes(count, (40, 50)).float())
        of_images = torch.randint(-1 if random.random() < 0.1 else 0, 2, (count,))
        scale = random.choice([0.25, 1.0, *BAD_NUMBERS])
        bins = random.choice([0, 1, 3]), random.choice([1, 2])
        sampling = random.choice([0, 1, 2, *BAD_INTEGERS])
        return [torch.randn(count, 3, *bins), boxes, of_images, scale, sampling, images, integers(), integers()]

    calls = (
        (OPS.deform_conv2d, [*deformed, None, None, None, locations, *settings, integers(), False]),
        (
            OPS.deform_conv2d_backward,
            [[torch.randn(3, 2)], *deformed, [], None, locations, *settings, integers(), True, True, False],
        ),
        (OPS.masked_conv2d, [[x], weight, None, locations, *settings, False]),
        (OPS.masked_conv2d_backward, [torch.randn(3, 2), [x], weight, locations, *settings, True, True, False]),
        (OPS.viou_match, [*some(), *some(), *levels, None, None, 0.5, 0.0, 0.0]),
        (OPS.iou_match, [*some(), *some(), *some(), 0.5, 0.0]),
        (OPS.location_targets, [*some(), *some(), *levels, 8.0, 0.2, 0.5, 0.5, random.random() < 0.5]),
        (OPS.nms_mask, suppression()),
        (OPS.roi_align_backward, pooled()),
    )
    operator, arguments = random.choice(calls)
    return operator, [maybe(a) for a in arguments]


def one_call():
    """'right', 'accepted' (spoiled, and not an error) or 'refused'. Raises Wrong."""
    kind = random.random()
    if kind < 0.2:
        operator, arguments = raw_call()
        try:
            operator(*arguments)
        except (*REFUSALS, AttributeError) as error:  # torch hands None for a tensor on to a fake kernel
            check(str(error), "an empty message")
            return "refused"
        return "accepted"
    function, arguments, verify = convolution_call() if kind < 0.65 else matching_call()
    if random.random() < 0.5:
        tensors = [t for v in arguments.values() for t in (v if isinstance(v, list) else [v])]
        leaves = [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
        with_grad = function in (masked_conv2d, deform_conv2d) and random.random() < 0.3
        if with_grad:
            leaves = [t.requires_grad_() for t in leaves]
        out = function(**arguments)
        if with_grad:
            backward(out, leaves)
        with torch.no_grad():
            verify(out)
        return "right"
    for name in random.sample(list(arguments), random.choice([1, 1, 1, 2])):
        arguments[name] = spoil(arguments[name])
    try:
        function(**arguments)
    except REFUSALS as error:
        check(str(error), "an empty message")
        return "refused"
    return "accepted"


def run(count, seed):
    faulthandler.enable()
    torch.set_num_threads(2)
    outcomes = collections.Counter()
    for number in range(count):
        random.seed(seed * 10_000_019 + number)
        torch.manual_seed(seed * 10_000_019 + number)
        try:
            outcomes[one_call()] += 1
        except Exception as error:
            print(f"call {number} of seed {seed}: {type(error).__name__}: {error}", file=sys.stderr)
            raise
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(dict(run(args.count, args.seed)))
