"""Whole detectors on one image of 800 x 1344, ResNet-50 FPN, random weights: this project's, as they are and optimized,
in float32 and in bfloat16; and torchvision's as they come, in bfloat16, and as ONNX in ONNX Runtime and OpenVINO.
"""

import tempfile
from pathlib import Path

import torch
from torchvision.models import detection

from ga_scope import optimize_for_inference
from ga_scope.engines import get_engine
from ga_scope.modeling.guided_anchoring import LocationSelection

from . import harness, runtimes

CONFIGS = Path(__file__).parent.parent / "configs" / "COCO-Detection"
BUDGET = 2000  # locations per level: with random weights it stands for the 10 % that a trained model selects


def build(name):
    engine = get_engine("torchvision")
    return engine.build(engine.setup(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])).eval()


def of_torchvision(make, **more):
    """For images of this size, which it does not resize; its other settings are its own."""
    sides = {"min_size": min(harness.IMAGE), "max_size": max(harness.IMAGE)}
    return make(weights=None, weights_backbone=None, **sides, **more).eval()


def compare(benchmark, name, model, unguided, peer_name, peer, image):
    """A detector of this project, another that is its baseline or none, and torchvision's."""
    inputs, unit = [{"image": image}], [image / 255]
    optimized = optimize_for_inference(model)

    def in_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            return peer(unit)

    functions = {
        name: lambda: model(inputs),
        f"{name}, optimized": lambda: optimized(inputs),
        **{other: lambda function=function: function(inputs) for other, function in unguided.items()},
        peer_name: lambda: peer(unit),
    }
    # Elsewhere it takes minutes, except on the tests' tiny images.
    if harness.TINY or any("bf16" in name for name in harness.instruction_sets()):
        optimized_bfloat16 = optimize_for_inference(model, dtype=torch.bfloat16)
        functions[f"{name}, optimized, bfloat16"] = lambda: optimized_bfloat16(inputs)
        functions[f"{peer_name}, bfloat16"] = in_bfloat16
    else:
        print(f"{name}, bfloat16: left out, as the processor does not multiply in it")
    with tempfile.TemporaryDirectory() as folder:
        for runtime, function in runtimes.of_torchvision(peer, unit[0], folder).items():
            functions[f"{peer_name}, {runtime}"] = function
        benchmark.compare("R-50 FPN, one image", functions, peers=(*unguided, peer_name))


def run(benchmark):
    image = torch.randint(256, (3, *harness.IMAGE)).float()
    guided, faster = build("ga_faster_rcnn_R_50_FPN_1x.yaml"), build("faster_rcnn_R_50_FPN_1x.yaml")
    guided.proposal_generator.rpn.selection = LocationSelection(0.0, BUDGET)
    peer = of_torchvision(
        detection.fasterrcnn_resnet50_fpn, **({"rpn_post_nms_top_n_test": 20} if harness.TINY else {})
    )
    unguided = {"Faster R-CNN": faster}
    compare(benchmark, "GA-Faster R-CNN", guided, unguided, "torchvision Faster R-CNN", peer, image)
    results = guided([{"image": image}])
    print(f"active: {100 * results.anchors.item() / results.locations:.1f} %")

    # The scores of random weights are alike: none, or all, of the locations are candidates. All: no tower is left out.
    scope = build("scopenet_R_50_FPN_1x.yaml")
    scope.detector.score_thresh = 0.0
    peer = of_torchvision(detection.fcos_resnet50_fpn)
    compare(benchmark, "ScopeNet", scope, {}, "torchvision FCOS", peer, image)


if __name__ == "__main__":
    harness.main(run, __doc__, "inference")
