"""Whole detectors on one image of 800 x 1344: GA-Faster R-CNN against Faster R-CNN, both ResNet-50 FPN."""

from pathlib import Path

import torch
from ga_scope.integrations.torchvision.rcnn import build_model
from ga_scope.integrations.torchvision.run import setup

from ga_scope.modeling.guided_anchoring import LocationSelection

from . import harness

CONFIGS = Path(__file__).parent.parent / "configs" / "COCO-Detection"


def build(name):
    cfg = setup(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    return build_model(cfg).eval()


def run(benchmark):
    faster = build("faster_rcnn_R_50_FPN_1x.yaml")
    guided = build("ga_faster_rcnn_R_50_FPN_1x.yaml")
    inputs = [{"image": torch.randint(256, (3, *harness.IMAGE)).float()}]
    # Random weights: a budget per level stands for the 10 % that a trained model selects.
    guided.proposal_generator.rpn.selection = LocationSelection(0.0, 2000)
    functions = {"GA-Faster R-CNN": lambda: guided(inputs), "Faster R-CNN": lambda: faster(inputs)}
    benchmark.compare("R-50 FPN, one image", functions, peers=("Faster R-CNN",))
    rpn = guided.proposal_generator.rpn
    print(f"active: {100 * rpn.anchors_per_image[0] / rpn.locations_per_image:.1f} %")


if __name__ == "__main__":
    harness.main(run, __doc__, "inference")
