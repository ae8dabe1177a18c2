"""Whole detectors on one image of 800 x 1344, ResNet-50 FPN, random weights: this project's, as they are and optimized,
and torchvision's as they come.
"""

from pathlib import Path

import torch
from torchvision.models import detection

from ga_scope import optimize_for_inference
from ga_scope.engines import get_engine
from ga_scope.modeling.guided_anchoring import LocationSelection

from . import harness

CONFIGS = Path(__file__).parent.parent / "configs" / "COCO-Detection"
BUDGET = 2000  # locations per level: with random weights it stands for the 10 % that a trained model selects


def build(name):
    engine = get_engine("torchvision")
    return engine.build(engine.setup(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])).eval()


def of_torchvision(make):
    """For images of this size, which it does not resize; its other settings are its own."""
    sides = {"min_size": min(harness.IMAGE), "max_size": max(harness.IMAGE)}
    return make(weights=None, weights_backbone=None, **sides).eval()


def run(benchmark):
    image = torch.randint(256, (3, *harness.IMAGE)).float()
    inputs, unit = [{"image": image}], [image / 255]
    faster = build("faster_rcnn_R_50_FPN_1x.yaml")
    guided = build("ga_faster_rcnn_R_50_FPN_1x.yaml")
    guided.proposal_generator.rpn.selection = LocationSelection(0.0, BUDGET)
    optimized, peer = optimize_for_inference(guided), of_torchvision(detection.fasterrcnn_resnet50_fpn)
    functions = {
        "GA-Faster R-CNN": lambda: guided(inputs),
        "GA-Faster R-CNN, optimized": lambda: optimized(inputs),
        "Faster R-CNN": lambda: faster(inputs),
        "torchvision Faster R-CNN": lambda: peer(unit),
    }
    benchmark.compare("R-50 FPN, one image", functions, peers=("Faster R-CNN", "torchvision Faster R-CNN"))
    results = guided(inputs)
    print(f"active: {100 * results.anchors.item() / results.locations:.1f} %")

    # The scores of random weights are alike: none, or all, of the locations are candidates. All: no tower is left out.
    scope = build("scopenet_R_50_FPN_1x.yaml")
    scope.detector.score_thresh = 0.0
    scope_optimized, fcos = optimize_for_inference(scope), of_torchvision(detection.fcos_resnet50_fpn)
    functions = {
        "ScopeNet": lambda: scope(inputs),
        "ScopeNet, optimized": lambda: scope_optimized(inputs),
        "torchvision FCOS": lambda: fcos(unit),
    }
    benchmark.compare("R-50 FPN, one image", functions, peers=("torchvision FCOS",))


if __name__ == "__main__":
    harness.main(run, __doc__, "inference")
