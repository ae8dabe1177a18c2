"""A trained detector in every format of its export: how far results are from the detector's own, and its time.

    python -m benchmarks.exported --run output/bccd --photos datasets/bccd/images --limit 20

At three sizes, in batches of one and of four: boxes in pixels of the input and scores, the largest difference of any
detection from its like; detections without one are counted.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from ga_scope import Detector
from ga_scope.data import image_record, read_image
from ga_scope.data.images import resized_shape, to_network
from ga_scope.errors import ConfigError
from ga_scope.export import FORMATS, export

from . import harness

SHORT_SIDES, BATCHES = (224, 320, 448), (1, 4)
PIXELS, SCORES = 0.05, 1e-4  # what the same detection may differ in


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


def difference(found, expected):
    """The largest difference of boxes and of scores between detections that are alike, and how many have no like."""
    boxes, scores, alone = 0.0, 0.0, 0
    for image, (have, want) in enumerate(zip(found[3].tolist(), expected[3].tolist())):
        apart = (found[0][image, :have, None] - expected[0][image, None, :want]).abs().amax(2)
        apart_scores = (found[1][image, :have, None] - expected[1][image, None, :want]).abs()
        other = found[2][image, :have, None] != expected[2][image, None, :want]
        cost = (apart / PIXELS).maximum(apart_scores / SCORES).masked_fill(other, float("inf"))
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


def in_onnx_runtime(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images, sizes):
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return [torch.from_numpy(part) for part in found]

    return run


def programs(detector, folder):
    """A function of (images, sizes) for each format, and the stride; a refusal is printed."""
    functions = {}
    for format in FORMATS:
        path = Path(folder) / f"model.{format}"
        try:
            stride = export(detector, format, path)["stride"]
        except ConfigError as error:
            print(f"{format}: {error}")
            continue
        functions[format] = in_onnx_runtime(path) if format == "onnx" else torch.export.load(path).module()
    return functions, stride


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="OUTPUT_DIR of a training")
    parser.add_argument("--photos", type=Path, required=True, help="folder")
    parser.add_argument("--limit", type=int, default=20, help="photos (default: 20)")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds to spend on each variant (default: 2)")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    detector = Detector.of_run(args.run, [*args.opts, "MODEL.DEVICE", "cpu"], "torchvision")
    benchmark = harness.Benchmark("exported", args.budget)
    paths = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp"))
    if not paths:
        parser.error(f"--photos: expected a folder with JPEG, PNG or BMP images, got {args.photos}")
    print(harness.describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        functions, stride = programs(
            Detector.of_run(args.run, [*args.opts, "MODEL.DEVICE", "cpu"], "torchvision"), folder
        )
        torch.set_grad_enabled(False)
        for short_side, count in itertools.product(SHORT_SIDES, BATCHES):
            images = list(networks_inputs(paths[: args.limit], short_side, detector.cfg.INPUT.FORMAT))
            batches = [images[i : i + count] for i in range(0, len(images), count)]
            figures, detections = {name: [0.0, 0.0, 0] for name in functions}, 0
            for batch in batches:
                found = detector.model([{"image": image} for image in batch]).detections
                expected = [found.boxes, found.scores, found.classes, found.count]
                detections += int(found.count.sum())
                for name, function in functions.items():
                    new = difference(function(*padded(batch, stride)), expected)
                    boxes, scores, alone = figures[name]
                    figures[name] = [max(boxes, new[0]), max(scores, new[1]), alone + new[2]]
            columns = ("boxes px", "scores", "without like")
            rows = {name: dict(zip(columns, values)) | {"detections": detections} for name, values in figures.items()}
            first = batches[0]
            inputs, given = padded(first, stride), [{"image": image} for image in first]
            timed = {"eager": lambda given=given: detector.model(given)}
            timed |= {name: lambda f=function, i=inputs: f(*i) for name, function in functions.items()}
            case = f"{short_side} px, {count} of {len(images)} photos at a time"
            benchmark.compare(case, timed, peers=("eager",), figures=rows, memory=False)
    if args.csv:
        harness.write_csv(args.csv, benchmark.rows)


if __name__ == "__main__":
    main()
