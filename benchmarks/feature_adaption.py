"""Guided Anchoring's feature adaption over five levels: where it is used, against torchvision's everywhere."""

import torch
import torchvision

from ga_scope.ops import deform_conv2d

from . import harness

CHANNELS, GROUPS = harness.CHANNELS, 4


def run(benchmark):
    maps = harness.pyramid()
    last = harness.channels_last(maps)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3) / 48
    matrix = 0.1 * torch.randn(GROUPS * 18, 2)
    shapes = [torch.randn(1, 2, *size) for size in harness.LEVELS]
    rows = torch.cat([s.flatten(2) for s in shapes], 2).squeeze(0).T.contiguous()

    def everywhere():
        offsets = [torch.nn.functional.conv2d(s, matrix[..., None, None]) for s in shapes]
        return [torchvision.ops.deform_conv2d(m, o, weight, padding=1) for m, o in zip(maps, offsets)]

    def at(maps, locations):
        return deform_conv2d(maps, rows[locations], weight, padding=1, locations=locations, offset_weight=matrix)

    functions = {}
    for fraction in harness.FRACTIONS:
        locations = harness.random_locations(len(rows), fraction)
        percent = f"{100 * fraction:g} %"
        functions[f"ga_scope at {percent}"] = lambda at_=locations: at(maps, at_)
        functions[f"ga_scope, channels_last at {percent}"] = lambda at_=locations: at(last, at_)
    functions["torchvision everywhere"] = everywhere
    benchmark.compare(f"five levels, {len(rows)} locations", functions, peers=("torchvision everywhere",))


if __name__ == "__main__":
    harness.main(run, __doc__, "feature_adaption")
