"""The head of a trained ScopeNet or GA-RetinaNet with its sparse tower, beside the dense one.

    python -m benchmarks.sparse_tower --run output/scopenet --photos datasets/shapes_4000/val --limit 20

The model needs NORM "" in its towers. Timed is all that follows the features, NMS included, of all photos in
turns; the detections must be the same.
"""

import argparse
from pathlib import Path

import torch

from ga_scope import Detector, optimize_for_inference
from ga_scope.cli import end_well
from ga_scope.errors import ConfigError

from . import harness
from .exported import difference, networks_inputs, photos_of, results_of


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
    sparse = optimize_for_inference(detector.model)
    if not getattr(getattr(sparse, "detector", None), "sparse_tower", False):
        raise ConfigError(f"--run: expected a ScopeNet or GA-RetinaNet with NORM '' in its towers, got {args.run}")
    dense = optimize_for_inference(detector.model)
    dense.detector.sparse_tower = False

    torch.set_grad_enabled(False)
    inputs = detector.cfg.INPUT
    features = []
    for image in networks_inputs(photos_of(args.photos, args.limit), inputs.MIN_SIZE_TEST, inputs.FORMAT):
        images = dense.preprocess([{"image": image}])
        features.append((dense.backbone(images.tensor), images.sizes))

    def head(model):
        return [results_of(model.detect(maps, sizes, None, None, False)) for maps, sizes in features]

    apart = [difference(found, expected) for found, expected in zip(head(sparse), head(dense))]
    boxes, scores, alone = (list(column) for column in zip(*apart))
    figures = {"sparse": {"boxes px": max(boxes), "scores": max(scores), "without like": sum(alone)}}
    figures["sparse"]["detections"] = sum(int(found[-1].sum()) for found in head(dense))
    print(harness.describe_machine())
    benchmark = harness.Benchmark("sparse_tower", args.budget)
    functions = {"dense": lambda: head(dense), "sparse": lambda: head(sparse)}
    benchmark.compare(f"{len(features)} photos", functions, peers=("dense",), figures=figures)
    if args.csv:
        harness.write_csv(args.csv, benchmark.rows)


if __name__ == "__main__":
    end_well(main)
