"""Two processes with half of the batch each: the mean of their gradients is that of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ga_scope.modeling.guided_anchoring import AnchorShapes, GuidedAnchorRetinaHead, GuidedAnchorRetinaNet
from ga_scope.modeling.scope import ScopeBins, ScopeDetector, ScopeHead, ScopeTargets
from ga_scope.modeling.targets import Targets

STRIDES = (8, 16)
SIZE = (64, 64)
# One process has a single object, the other many: each by itself would weigh its negatives differently.
BOXES = [[], [[5.0, 8, 40, 44]], [[0.0, 0, 30, 30], [20, 10, 60, 50], [33, 33, 60, 62]], [[4.0, 4, 20, 60]]]


def scopenet():
    return ScopeDetector(ScopeHead(8, 3, ScopeBins(3), convs=1), STRIDES, targets=ScopeTargets([40], [1.5, 1.5]))


def ga_retinanet():
    return GuidedAnchorRetinaNet(GuidedAnchorRetinaHead(8, 3, 1), STRIDES, shapes=AnchorShapes(3.0))


MODELS = {"scopenet": scopenet, "ga_retinanet": ga_retinanet}


def gradients(name, images):
    """{parameter: gradient} of the sum of the losses of some of the images."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    maps = [torch.randn(len(BOXES), 8, SIZE[0] // s, SIZE[1] // s)[images] for s in STRIDES]
    boxes = [torch.tensor(BOXES[i]).view(-1, 4) for i in images]
    gt = Targets(boxes, [torch.arange(len(b)) % 3 for b in boxes])
    losses = model(maps, [SIZE] * len(images), gt).losses
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def half(rank, name, store, output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = gradients(name, [2 * rank, 2 * rank + 1])
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= 2
    if rank == 0:
        torch.save(found, output)
    dist.destroy_process_group()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_two_processes_are_those_of_the_batch(name, tmp_path):
    torch.multiprocessing.spawn(half, (name, tmp_path / "store", tmp_path / "gradients.pth"), nprocs=2)
    found, expected = torch.load(tmp_path / "gradients.pth"), gradients(name, [0, 1, 2, 3])
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
