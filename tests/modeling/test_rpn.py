"""RPN's variants of Table 1: stages, losses, features before the FPN."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.modeling.guided_anchoring import FixedShapes
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.rpn import RPN, RPNHead
from ga_scope.modeling.targets import Targets

STRIDES, SIZE, C = (8, 16), (48, 64), 8
SIZES, RATIOS = [[16], [32]], [[0.5, 1.0, 2.0]] * 2


def features(grad=True):
    return [torch.randn(2, C, SIZE[0] // s, SIZE[1] // s, requires_grad=grad) for s in STRIDES]


def boxes():
    return [torch.tensor([[10.0, 8, 40, 44], [30, 20, 60, 40]]), torch.zeros(0, 4)]


def make(stages=1, before_fpn=(), **options):
    torch.manual_seed(0)
    rpn = RPN(RPNHead(C, 3, stages, before_fpn), STRIDES, FixedShapes.of(SIZES, RATIOS), per_image=10**6, **options)
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return rpn


def test_one_stage_is_an_rpn():
    """Losses of torchvision's anchors, with every anchor sampled; proposals."""
    rpn, maps, gt = make(), features(), boxes()
    found = rpn(maps, [SIZE] * 2, Targets(gt))
    losses = found.losses
    assert len(found.proposals.count) == 2 and found.anchors.tolist() == [found.locations * 3] * 2
    anchors = rpn.shapes.decode(Pyramid.of(maps, STRIDES, 0.0), torch.zeros(2, 60, 0))
    logits, deltas = [], []
    for m in maps:
        head = rpn.rpn_head
        hidden = F.relu(F.conv2d(m, head.conv.weight, head.conv.bias, padding=1))
        for layer, out, width in ((head.objectness_logits, logits, 1), (head.anchor_deltas, deltas, 4)):
            out.append(layer(hidden).permute(0, 2, 3, 1).reshape(2, -1, width))
    logits, deltas = torch.cat(logits, 1).squeeze(2), torch.cat(deltas, 1)
    coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    objectness = box = 0.0
    for image in range(2):
        if not len(gt[image]):
            objectness += F.softplus(logits[image]).sum()
            continue
        iou = torchvision.ops.box_iou(anchors[image], gt[image])
        best, index = iou.max(1)
        positive = best >= 0.7
        positive[iou.argmax(0)] = True
        index[iou.argmax(0)] = torch.arange(len(gt[image]))
        negative = (best < 0.3) & ~positive
        objectness += F.softplus(-logits[image][positive]).sum() + F.softplus(logits[image][negative]).sum()
        (targets,) = coder.encode([gt[image][index[positive]]], [anchors[image][positive]])
        box += (deltas[image][positive] - targets).abs().sum()
    normalizer = 2 * rpn.per_image * 1.0
    # Half of the sample may be positive: there are fewer here, and negatives fill it up.
    torch.testing.assert_close(losses["loss_rpn_cls"], objectness / normalizer, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(losses["loss_rpn_loc"], box / normalizer, rtol=1e-4, atol=1e-9)


def positives_of(rpn, maps, gt):
    """How many anchors are positive: from 0.7 on, and the best of each box."""
    anchors = rpn.shapes.decode(Pyramid.of(maps, STRIDES, 0.0), torch.zeros(2, 60, 0))
    count = 0
    for image in range(2):
        if len(gt[image]):
            iou = torchvision.ops.box_iou(anchors[image], gt[image])
            count += ((iou.amax(1) >= 0.7) | (iou == iou.amax(0)).any(1)).sum().item()
    return count


def test_bounded_iou_replaces_the_box_loss():
    """The other loss is the same; the divisor, too: twice the sample is half of either."""
    maps, gt = features(), boxes()
    reference, changed = (make(**o)(maps, [SIZE] * 2, Targets(gt)).losses for o in ({}, {"box_loss": "bounded_iou"}))
    assert changed["loss_rpn_cls"].item() == reference["loss_rpn_cls"].item()
    assert changed["loss_rpn_loc"].item() != pytest.approx(reference["loss_rpn_loc"].item(), rel=1e-2)
    rpn = make(box_loss="bounded_iou")
    rpn.per_image *= 2
    halves = rpn(maps, [SIZE] * 2, Targets(gt)).losses
    for name, value in changed.items():
        assert halves[name].item() == pytest.approx(value.item() / 2, rel=1e-5)


def test_focal_replaces_the_objectness_loss():
    """The box loss is the same sum, divided by the number of positives as the focal loss is, not by the sample's."""
    maps, gt = features(), boxes()
    rpn = make(objectness_loss="focal")
    reference, changed = make()(maps, [SIZE] * 2, Targets(gt)).losses, rpn(maps, [SIZE] * 2, Targets(gt)).losses
    assert changed["loss_rpn_cls"].item() != pytest.approx(reference["loss_rpn_cls"].item(), rel=1e-2)
    scale = 2 * rpn.per_image / positives_of(rpn, maps, gt)
    assert changed["loss_rpn_loc"].item() == pytest.approx(scale * reference["loss_rpn_loc"].item(), rel=1e-5)


def test_perfect_boxes_have_no_bounded_iou_loss():
    rpn = make(box_loss="bounded_iou")
    torch.nn.init.zeros_(rpn.rpn_head.anchor_deltas.weight)
    torch.nn.init.zeros_(rpn.rpn_head.anchor_deltas.bias)
    maps = features()
    anchors = rpn.shapes.decode(Pyramid.of(maps, STRIDES, 0.0), torch.zeros(2, 60, 0))
    losses = rpn(maps, [SIZE] * 2, Targets([anchors[0, [100]], anchors[0, [61]]])).losses
    assert losses["loss_rpn_loc"].item() == pytest.approx(0, abs=1e-6)


def test_the_second_stage_refines_the_first():
    """Iterative: the second head reads a convolution of the first one's hidden features, and starts from its boxes."""
    rpn, maps = make(stages=2).eval(), features(False)
    seen = []
    decode = rpn.box_coder.decode
    rpn.box_coder.decode = lambda references, deltas: seen.append(references) or decode(references, deltas)
    rpn(maps, [SIZE] * 2)
    pyramid = Pyramid.of(maps, STRIDES, 0.0)
    outputs = rpn.rpn_head(pyramid, maps)
    expected = decode(seen[0], outputs[0][1]).flatten(0, 1)  # of these the best are decoded again
    assert all((row == expected).all(1).any() for row in seen[1].flatten(0, 1)[:5])
    hidden = [F.relu(rpn.rpn_head.between(F.relu(rpn.rpn_head.conv(m)))) for m in maps]
    second = rpn.rpn_head.second
    again = [F.relu(second.conv(m)) for m in hidden]
    torch.testing.assert_close(outputs[1][0], pyramid.flatten([second.objectness_logits(m) for m in again]).flatten(1))
    losses = make(stages=2)(features(), [SIZE] * 2, Targets(boxes())).losses
    assert set(losses) == {"loss_rpn_cls_1", "loss_rpn_loc_1", "loss_rpn_cls_2", "loss_rpn_loc_2"}


def test_refine_reads_features_before_and_after_the_fpn():
    rpn, maps = make(stages=2, before_fpn=[5]), features(False)
    before = [torch.randn(2, 5, 6, 8)]  # the second level is pooled from the first
    pyramid = Pyramid.of(maps, STRIDES, 0.0)
    first, second = rpn.rpn_head(pyramid, maps, before)
    changed = rpn.rpn_head(pyramid, maps, [before[0] + 1])
    assert not torch.equal(first[0], changed[0][0]) and torch.equal(second[0], changed[1][0])
    changed = rpn.rpn_head(pyramid, [m + 1 for m in maps], before)
    assert torch.equal(first[0], changed[0][0]) and not torch.equal(second[0], changed[1][0])
    losses = rpn(maps, [SIZE] * 2, Targets(boxes()), before).losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="box_loss: expected 'smooth_l1' or 'bounded_iou', got 'giou'"):
        make(box_loss="giou")
    with pytest.raises(ValueError, match="targets: expected the boxes of every image"):
        make()(features(), [SIZE] * 2)
