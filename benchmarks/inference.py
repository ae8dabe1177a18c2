"""Whole detectors on one image of 800 x 1344: GA-Faster R-CNN against Faster R-CNN, both ResNet-50 FPN."""

from pathlib import Path

import torch

from ga_scope.engines import get_engine
from ga_scope.modeling.guided_anchoring import LocationSelection

from . import harness

CONFIGS = Path(__file__).parent.parent / "configs" / "COCO-Detection"
BUDGET = 2000  # locations per level: with random weights it stands for the 10 % that a trained model selects


def build(name):
    engine = get_engine("torchvision")
    return engine.build(engine.setup(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])).eval()


def run(benchmark):
    faster = build("faster_rcnn_R_50_FPN_1x.yaml")
    guided = build("ga_faster_rcnn_R_50_FPN_1x.yaml")
    inputs = [{"image": torch.randint(256, (3, *harness.IMAGE)).float()}]
    guided.proposal_generator.rpn.selection = LocationSelection(0.0, BUDGET)
    functions = {"GA-Faster R-CNN": lambda: guided(inputs), "Faster R-CNN": lambda: faster(inputs)}
    benchmark.compare("R-50 FPN, one image", functions, peers=("Faster R-CNN",))
    results = guided(inputs)
    print(f"active: {100 * results.anchors.item() / results.locations:.1f} %")


if __name__ == "__main__":
    harness.main(run, __doc__, "inference")
