"""One training step of the proposal head: targets, forward and backward; 2 images with 30 boxes each."""

import torch

from ga_scope.modeling.targets import Targets

from . import harness, heads


def step(module, losses_of, features):
    """Losses, then gradients of the parameters and of the features."""

    def run():
        for parameter in module.parameters():
            parameter.grad = None
        for feature in features:
            feature.grad = None
        sum(losses_of().values()).backward()

    return run


def run(benchmark):
    images, boxes = 2, 30
    gt_boxes = [harness.random_boxes(boxes) for _ in range(images)]
    features = [f.requires_grad_() for f in harness.pyramid(images)]
    sizes = [harness.IMAGE] * images
    functions = {}
    for conv in (True, False):
        rpn = heads.guided_rpn(conv).train()
        name = "GA-RPN" if conv else "GA-RPN without conv"
        functions[name] = step(rpn, lambda r=rpn: r(features, sizes, Targets(gt_boxes)).losses, features)
    rpns = heads.peers(training=True)
    for name, peer in rpns.items():
        functions[name] = step(peer.module, lambda p=peer: p(features, gt_boxes)[1], features)
    with torch.enable_grad():
        benchmark.compare(f"{images} images, {boxes} boxes each", functions, peers=tuple(rpns))


if __name__ == "__main__":
    harness.main(run, __doc__, "training_step")
