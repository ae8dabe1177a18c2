"""A trained model in every format of its export: how far results are from the model's own, and the time beside what
torchvision has in its place, with the same backbone, as it comes and as ONNX.

    python -m benchmarks.exported --run output/bccd --photos datasets/bccd/images --limit 20

At three sizes, in batches of one and of four: boxes in pixels of the input and scores, the largest difference of any
detection from its like; detections without one are counted.
"""

import argparse
import copy
import itertools
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from ga_scope import Detector
from ga_scope.cli import end_well
from ga_scope.data import image_record, read_image
from ga_scope.data.images import resized_shape, to_network
from ga_scope.engines.torchvision.model import OneStage
from ga_scope.errors import ConfigError
from ga_scope.export import FORMATS, export
from ga_scope.export.program import DETECTIONS, PROPOSALS
from ga_scope.modeling.scope import ScopeDetector

from . import harness, runtimes

SUFFIXES = {"pt2": "pt2", "aoti": "aoti.pt2", "onnx": "onnx"}

SHORT_SIDES, BATCHES = (224, 320, 448), (1, 4)
PIXELS, SCORES = 0.05, 1e-4  # what the same detection may differ in


def photos_of(folder, limit):
    """The first of its images, by name.

    Raises:
        ConfigError: it has none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp"))
    if not paths:
        raise ConfigError(f"--photos: expected a folder with JPEG, PNG or BMP images, got {folder}")
    return paths[:limit]


def networks_inputs(paths, short_side, channel_order):
    """(3, H, W) of every photo."""
    for path in paths:
        image = read_image(image_record(path))
        height, width = resized_shape(image.height, image.width, short_side, 2 * short_side)
        yield torch.from_numpy(to_network(image, height, width, channel_order)).float()


def padded(images, stride):
    """A batch of them with their sizes, as a program takes it."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-int(side) // stride) * stride for side in sizes.max(0).values)
    batch = torch.zeros(len(images), 3, height, width)
    for canvas, image in zip(batch, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def results_of(found):
    """A model's results as a program gives them."""
    part = found.proposals if found.detections is None else found.detections
    return [getattr(part, name) for name in (PROPOSALS if found.detections is None else DETECTIONS)]


def difference(found, expected):
    """The largest difference of boxes and of scores between what is alike, and how many have no like."""
    boxes, scores, alone = 0.0, 0.0, 0
    for image, (have, want) in enumerate(zip(found[-1].tolist(), expected[-1].tolist())):
        apart = (found[0][image, :have, None] - expected[0][image, None, :want]).abs().amax(2)
        apart_scores = (found[1][image, :have, None] - expected[1][image, None, :want]).abs()
        cost = (apart / PIXELS).maximum(apart_scores / SCORES)
        for label, wanted in zip(found[2:-1], expected[2:-1]):  # proposals have no classes
            cost.masked_fill_(label[image, :have, None] != wanted[image, None, :want], float("inf"))
        alone += abs(have - want)
        if have and want:
            worst, like = cost.min(1)
            alike = worst <= 1
            alone += int((~alike).sum())
            rows = torch.arange(have)[alike]
            if len(rows):
                boxes = max(boxes, apart[rows, like[alike]].max().item())
                scores = max(scores, apart_scores[rows, like[alike]].max().item())
    return boxes, scores, alone


def in_runtime(opened, path):
    """A file's function of tensors."""
    run = opened(path)
    return lambda images, sizes: [torch.from_numpy(part) for part in run(images.numpy(), sizes.numpy())]


def programs(detector, formats, folder):
    """A function of (images, sizes) for each format, and for ONNX each runtime, and the stride."""
    functions, paths = {}, {format: Path(folder) / f"{format}.{SUFFIXES[format]}" for format in formats}
    for format, path in paths.items():
        start = time.perf_counter()
        stride = export(detector, format, path)["stride"]
        took = time.perf_counter() - start
        print(f"{format}: written in {took:.0f} s, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        if format == "pt2":
            functions[format] = torch.export.load(path).module()
        elif format == "aoti":
            functions[format] = torch._inductor.aoti_load_package(str(path))
        else:
            for name, opened in runtimes.installed().items():
                try:
                    functions[f"onnx, {name}"] = in_runtime(opened, path)
                except ConfigError as error:
                    print(f"{error}: left out")
    return functions, stride


class Levels(nn.Module):
    """A copy of a backbone, with the pyramid's levels alone."""

    def __init__(self, backbone, names):
        super().__init__()
        self.backbone, self.names, self.out_channels = copy.deepcopy(backbone), names, backbone.out_channels

    def forward(self, images):
        features = self.backbone(images)
        return {name: features[name] for name in self.names}


def peer_of(model, classes, short_side):
    """What torchvision has in the model's place, on its backbone, for one size; or None.

    Only its time is of interest: its heads are random, and keep few detections (two-stage ones those above 0.5).
    """
    sides = {"min_size": short_side, "max_size": 2 * short_side}
    if isinstance(model, OneStage):
        backbone = Levels(model.backbone, model.in_features)
        kind = detection.FCOS if isinstance(model.detector, ScopeDetector) else detection.RetinaNet
        return kind(backbone, classes + 1, **sides).eval()
    if model.roi_heads is None:
        return None
    names = model.proposal_generator.in_features
    backbone = Levels(model.backbone, names)
    sizes = tuple((8 * 2 ** int(name.removeprefix("p")),) for name in names)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    pool = MultiScaleRoIAlign(list(model.roi_features), 7, 2)
    more = {"rpn_anchor_generator": anchors, "box_roi_pool": pool, "box_score_thresh": 0.5}
    return detection.FasterRCNN(backbone, classes + 1, **more, **sides).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="OUTPUT_DIR of a training")
    parser.add_argument("--photos", type=Path, required=True, help="folder")
    parser.add_argument("--limit", type=int, default=20, help="photos (default: 20)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds to spend on each variant (default: 2)")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    detector = Detector.of_run(args.run, opts, "torchvision")
    benchmark = harness.Benchmark("exported", args.budget)
    paths = photos_of(args.photos, args.limit)
    print(harness.describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        functions, stride = programs(Detector.of_run(args.run, opts, "torchvision"), args.formats, folder)
        torch.set_grad_enabled(False)
        for short_side, count in itertools.product(SHORT_SIDES, BATCHES):
            images = list(networks_inputs(paths, short_side, detector.cfg.INPUT.FORMAT))
            batches = [images[i : i + count] for i in range(0, len(images), count)]
            figures, detections = {name: [0.0, 0.0, 0] for name in functions}, 0
            for batch in batches:
                found = results_of(detector.model([{"image": image} for image in batch]))
                detections += int(found[-1].sum())
                for name, function in functions.items():
                    new = difference(function(*padded(batch, stride)), found)
                    boxes, scores, alone = figures[name]
                    figures[name] = [max(boxes, new[0]), max(scores, new[1]), alone + new[2]]
            columns = ("boxes px", "scores", "without like")
            rows = {name: dict(zip(columns, values)) | {"detections": detections} for name, values in figures.items()}
            first = batches[0]
            inputs, given = padded(first, stride), [{"image": image} for image in first]
            timed = {"eager": lambda given=given: detector.model(given)}
            timed |= {name: lambda f=function, i=inputs: f(*i) for name, function in functions.items()}
            peer = peer_of(detector.model, len(detector.classes), short_side) if count == 1 else None
            if peer is not None:
                unit = first[0] / 255
                timed["torchvision"] = lambda peer=peer, unit=unit: peer([unit])
                written = runtimes.of_torchvision(peer, unit, folder)
                timed |= {f"torchvision, {name}": function for name, function in written.items()}
            case = f"{short_side} px, {count} of {len(images)} photos at a time"
            benchmark.compare(case, timed, peers=("eager",), figures=rows, memory=False)
    if args.csv:
        harness.write_csv(args.csv, benchmark.rows)


if __name__ == "__main__":
    end_well(main)
