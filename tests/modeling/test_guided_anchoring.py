"""The two-phase head against the dense computation, targets, losses, selection, proposals."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.modeling.box_coding import BoxCoder
from ga_scope.modeling.guided_anchoring import (
    AnchorShapes,
    GuidedAnchorHead,
    GuidedAnchorRPN,
    LocationSelection,
    LocationTargets,
    ShapeTargets,
)
from ga_scope.modeling.guided_anchoring.losses import location_loss, shape_loss
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.targets import Targets

STRIDES = (8, 16, 32)


def features(images=2, channels=16, dtype=torch.float64, grad=True, size=(64, 96)):
    maps = [torch.randn(images, channels, size[0] // s, size[1] // s, dtype=dtype) for s in STRIDES]
    return [m.requires_grad_(grad) for m in maps]


def boxes(count, size=(64, 96), dtype=torch.float64):
    height, width = size
    corner = torch.rand(count, 2, dtype=dtype) * torch.tensor([width - 12, height - 12])
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, dtype=dtype) * 40], 1).clamp(max=width)


class DenseHead(torch.nn.Module):
    """The same parameters evaluated everywhere, with torchvision's operator: nothing is shared with the sparse head."""

    def __init__(self, head: GuidedAnchorHead):
        super().__init__()
        self.head = head

    def forward(self, maps):
        logits, deltas = [], []
        for m in maps:
            if self.head.conv is not None:
                m = F.relu(self.head.conv(m))
            shape = self.head.shape(m)
            offset = F.conv2d(shape.detach(), self.head.adaption.conv_offset.weight)
            adapted = torchvision.ops.deform_conv2d(
                m, offset, self.head.adaption.conv_adaption.weight, padding=1
            ).relu()
            for layer, out in ((self.head.objectness, logits), (self.head.deltas, deltas)):
                out.append(F.conv2d(adapted, layer.weight[..., None, None], layer.bias).flatten(2))
        return torch.cat(logits, 2).transpose(1, 2).flatten(0, 1).squeeze(1), torch.cat(deltas, 2).transpose(
            1, 2
        ).flatten(0, 1)


def make_head(conv, channels=16):
    head = GuidedAnchorHead(channels, conv=conv).double()
    for parameter in head.parameters():  # the initial values are too small to show a difference
        torch.nn.init.normal_(parameter, std=0.2)
    return head


@pytest.mark.parametrize("conv", [False, True])
def test_sparse_head_equals_dense(conv):
    """Outputs at listed locations, and every parameter's and feature's gradient of a loss over them."""
    head, maps = make_head(conv), features()
    pyramid = Pyramid.of(maps, STRIDES)
    locations = torch.randint(pyramid.images * pyramid.locations, (60,))
    hidden, _, shape = head.generate(pyramid, maps)
    sparse = head.predict(hidden, shape.flatten(0, 1)[locations], locations)
    dense = [out[locations] for out in DenseHead(head)(maps)]
    leaves = [p for n, p in head.named_parameters() if "location" not in n and "shape" not in n] + maps
    for a, b in zip(sparse, dense):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(out) for out in dense]
    results = [
        torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights)), leaves) for outs in (sparse, dense)
    ]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))


@pytest.mark.parametrize("conv", [False, True])
def test_sparse_losses_equal_dense(conv, monkeypatch):
    """All four losses and every gradient of a training step, float32, to 1e-5 relative."""
    head = make_head(conv).float()
    maps, gt = features(dtype=torch.float32), [boxes(5).float(), boxes(3).float()]
    rpn = GuidedAnchorRPN(head, STRIDES, proposals_in_training=False, per_image=64)
    dense = DenseHead(head)
    predict = GuidedAnchorHead.predict

    def dense_predict(self, hidden, deltas, locations):
        return tuple(out[locations] for out in dense(maps))

    found = []
    for method in (predict, dense_predict):
        monkeypatch.setattr(GuidedAnchorHead, "predict", method)
        torch.manual_seed(0)
        losses = rpn(maps, [(64, 96)] * 2, Targets(gt)).losses
        leaves = [*head.parameters(), *maps]
        found.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    (sparse_losses, sparse_grads), (dense_losses, dense_grads) = found
    for name in sparse_losses:
        torch.testing.assert_close(sparse_losses[name], dense_losses[name], rtol=1e-5, atol=0)
    for a, b in zip(sparse_grads, dense_grads):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_every_branch_learns():
    head = GuidedAnchorHead(16, conv=True)
    rpn = GuidedAnchorRPN(head, STRIDES)
    maps, gt = features(dtype=torch.float32), Targets([boxes(5).float(), boxes(2).float()])
    losses = rpn(maps, [(64, 96)] * 2, gt).losses
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_shape_deltas_get_no_gradient_from_the_adaption():
    """Section 3.3: the offsets are made from the detached shapes; only L_shape trains the shape branch."""
    head, maps = make_head(False), features()
    pyramid = Pyramid.of(maps, STRIDES)
    hidden, _, shape = head.generate(pyramid, maps)
    locations = torch.arange(40)
    logits, deltas = head.predict(hidden, shape.flatten(0, 1)[locations], locations)
    grads = torch.autograd.grad(logits.sum() + deltas.sum(), head.shape.weight, allow_unused=True)
    assert grads == (None,)


@pytest.mark.parametrize("gt", [[torch.zeros(0, 4)] * 2, [torch.zeros(0, 4), torch.tensor([[3.0, 3, 40, 50]])]])
def test_images_without_boxes(gt):
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES)
    maps = features(dtype=torch.float32)
    found = rpn(maps, [(64, 96)] * 2, Targets(gt))
    losses = found.losses
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(m.grad.isfinite().all() for m in maps)
    assert found.proposals.boxes.shape[0] == 2


def test_crowded_image():
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES)
    losses = rpn(features(1, dtype=torch.float32), [(64, 96)], Targets([boxes(500).float()])).losses
    assert all(loss.isfinite() for loss in losses.values())


def test_no_negatives_in_ignore_boxes():
    """Neither a location nor an anchor in a crowd region pulls towards the background; objects there still count."""
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES, per_image=10**6, positive_fraction=0.5)
    gt, crowd, nothing = torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([[0.0, 0, 96, 64]]), torch.zeros(0, 4)
    pyramid = Pyramid(1, ((8, 12), (4, 6), (2, 3)), STRIDES)
    labels = rpn.location_targets(pyramid, [gt])
    in_crowd = rpn.location_targets(pyramid, [gt], [crowd])
    assert (labels == 0).any() and not (in_crowd == 0).any() and torch.equal(labels == 1, in_crowd == 1)
    anchors = rpn.shapes.decode(pyramid, torch.zeros(1, pyramid.locations, 2))
    positives, negatives, _ = rpn._sample_anchors(anchors, Targets([gt], ignore=[nothing]))
    kept, outside, _ = rpn._sample_anchors(anchors, Targets([gt], ignore=[crowd]))
    assert torch.equal(positives.sort().values, kept.sort().values) and len(outside) < len(negatives)
    x1, y1, x2, y2 = anchors[0, outside].unbind(1)
    inside = (x2.clamp(max=96) - x1.clamp(min=0)) * (y2.clamp(max=64) - y1.clamp(min=0))
    assert (inside < 0.5 * (x2 - x1) * (y2 - y1)).all()
    maps = features(1, dtype=torch.float32)
    found = [rpn(maps, [(64, 96)], Targets([gt], ignore=ignore)).losses for ignore in ([crowd.double()], None)]
    assert found[0]["loss_anchor_location"] != found[1]["loss_anchor_location"]


def test_no_active_location_gives_no_proposals():
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES, selection=LocationSelection(0.9999)).eval()
    found = rpn(features(3, dtype=torch.float32), [(64, 96)] * 3)
    assert [boxes.shape for boxes, _ in found.proposals.unpad()] == [(0, 4)] * 3 and not found.losses
    assert found.anchors.tolist() == [0, 0, 0] and found.locations == 12 * 8 + 6 * 4 + 3 * 2


@pytest.mark.parametrize("images", [1, 3])
def test_a_batch_is_its_images(images):
    """Inference of a batch gives what its images give alone."""
    head = make_head(True).float()
    rpn = GuidedAnchorRPN(head, STRIDES, selection=LocationSelection(0.3)).eval()
    maps = features(images, dtype=torch.float32, grad=False)
    sizes = [(64 - 3 * i, 96 - 5 * i) for i in range(images)]
    together = rpn(maps, sizes).proposals.unpad()
    for i in range(images):
        ((boxes_alone, logits_alone),) = rpn([m[i : i + 1] for m in maps], sizes[i : i + 1]).proposals.unpad()
        torch.testing.assert_close(together[i][0], boxes_alone, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together[i][1], logits_alone, rtol=1e-4, atol=1e-4)
        assert (boxes_alone[:, 2] <= sizes[i][1]).all() and (boxes_alone[:, 3] <= sizes[i][0]).all()


def test_training_proposals_include_the_sampled_locations():
    """Before any location is active, proposals come from the sampled ones, which hold the positives."""
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES, selection=LocationSelection(0.9))
    found = rpn(features(dtype=torch.float32), [(64, 96)] * 2, Targets([boxes(4).float()] * 2))
    assert found.anchors.tolist() == [0, 0]
    assert (found.proposals.count > 0).all()


def test_selection():
    pyramid = Pyramid(2, ((4, 5), (2, 3)), (8, 16))
    probability = torch.rand(2, 26)
    chosen = LocationSelection(0.4).active(pyramid, probability)
    assert torch.equal(chosen, (probability.flatten() >= 0.4).nonzero()[:, 0])
    for threshold in (0.0, 0.4):
        chosen = LocationSelection(threshold, topk=4).active(pyramid, probability)
        for image in range(2):
            for first, count in ((0, 20), (20, 6)):
                part = probability[image, first : first + count]
                expected = sorted(i for i in part.topk(4).indices.tolist() if part[i] >= threshold)
                start = image * 26 + first
                of_level = chosen[(chosen >= start) & (chosen < start + count)] - start
                assert of_level.tolist() == expected
    with pytest.raises(ValueError, match="threshold: expected a probability, got 2"):
        LocationSelection(2)
    with pytest.raises(ValueError, match="topk: expected 0"):
        LocationSelection(0.1, -1)


def test_anchors_follow_equation_2():
    shapes = AnchorShapes(sigma=8.0, std=0.14)
    pyramid = Pyramid(2, ((2, 3), (1, 1)), (8, 16), cell_offset=0.5)
    deltas = torch.randn(2, 7, 2)
    anchors = shapes.decode(pyramid, deltas)
    # Image 1, level 0, cell (1, 2): index 5.
    dw, dh = deltas[1, 5].tolist()
    w, h = 8 * 8 * math.exp(0.14 * dw), 8 * 8 * math.exp(0.14 * dh)
    expected = [2.5 * 8 - w / 2, 1.5 * 8 - h / 2, 2.5 * 8 + w / 2, 1.5 * 8 + h / 2]
    assert anchors[1, 5].tolist() == pytest.approx(expected, rel=1e-5)
    locations = torch.tensor([6, 12])
    torch.testing.assert_close(
        shapes.decode(pyramid, deltas.flatten(0, 1)[locations], locations), anchors.flatten(0, 1)[locations]
    )
    wild = shapes.decode(pyramid, torch.full((2, 7, 2), 1e6))
    assert wild.isfinite().all()


def test_shape_loss_follows_equation_6():
    sides = torch.tensor([[10.0, 20.0], [30.0, 5.0]], dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([[20.0, 20.0], [28.0, 50.0]], dtype=torch.float64)

    def smooth(x, beta=0.2):
        return 0.5 * x * x / beta if x < beta else x - 0.5 * beta

    expected = (
        sum(smooth(1 - min(a / b, b / a)) for a, b in zip(sides.flatten().tolist(), truth.flatten().tolist())) / 2
    )
    assert shape_loss(sides, truth).mean().item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: shape_loss(s, truth), (sides,))
    assert shape_loss(sides[:0], truth[:0]).shape == (0,)


def test_location_loss():
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, -1, 0, 0, 1, 0, -1, 0], [0] * 9], dtype=torch.int8)
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist()):
        p = 1 / (1 + math.exp(-x))
        total += {1: -0.25 * (1 - p) ** 2 * math.log(p), 0: -0.1 * 0.75 * p**2 * math.log(1 - p), -1: 0.0}[y]
    assert location_loss(logits, labels).item() == pytest.approx(total / (18 / 200), rel=1e-6)
    assert location_loss(logits, labels * 0).isfinite()


@pytest.mark.parametrize("mode", ["sampled", "exact"])
def test_shape_targets_are_the_best_covered_boxes(mode):
    pyramid = Pyramid(2, ((16, 16), (8, 8)), (8, 16))
    gt = [boxes(4, (128, 128)).float() * 1.3, boxes(2, (128, 128)).float()]
    targets = ShapeTargets(mode, sigma=4.0, per_image=32)
    labels, index = targets.labels(pyramid, gt)
    samples = targets(pyramid, gt)
    all_boxes = torch.cat(gt)
    assert (labels.flatten()[samples.locations] == 1).all()
    torch.testing.assert_close(
        samples.gt_sides, (all_boxes[:, 2:] - all_boxes[:, :2])[index.flatten()[samples.locations]]
    )
    assert (index[0][labels[0] == 1] < 4).all() and (index[1][labels[1] == 1] >= 4).all()
    for image in range(2):
        assert ((samples.locations // pyramid.locations) == image).sum() <= 16
    with pytest.raises(ValueError, match="mode: expected 'sampled' or 'exact', got 'best'"):
        ShapeTargets("best")


def test_location_targets_know_the_levels():
    pyramid = Pyramid(1, ((16, 16), (8, 8)), (8, 16))
    box = torch.tensor([[32.0, 32, 96, 96]])  # 64 px: level 0 with sigma 8 (base 64), level 1 with sigma 4 (base 32)
    for sigma, level in ((8.0, 0), (4.0, 1)):
        per_level = pyramid.split(LocationTargets(sigma=sigma)(pyramid, [box]))
        assert [(labels == 1).any().item() for labels in per_level] == [level == 0, level == 1]


@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_positive_locations_are_where_their_anchors_are(offset):
    """CELL_OFFSET moves the points that the cells stand for: those of the anchors, and of the location targets."""
    pyramid = Pyramid(1, ((32, 32),), (8,), offset)
    box = boxes(1)[0]
    labels = LocationTargets()(pyramid, [box[None]])[0]
    distance = (pyramid.centers("cpu") - (box[:2] + box[2:]) / 2).abs().amax(1)
    assert labels[distance.argmin()] == 1
    assert (distance[labels == 1] <= (0.1 * (box[2:] - box[:2]).max()).clamp(min=4)).all()


def test_box_coder_round_trip():
    coder = BoxCoder((14.0, 14.0, 9.0, 9.0))
    a, b = boxes(50), boxes(50)
    torch.testing.assert_close(coder.decode(a, coder.encode(a, b)), b)
    assert coder.decode(a, torch.full((50, 4), 1e4, dtype=torch.float64)).isfinite().all()


def test_pyramid_index_space():
    maps = [torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5), torch.arange(2 * 3 * 2 * 3.0).view(2, 3, 2, 3)]
    pyramid = Pyramid.of(maps, (8, 16))
    flat = pyramid.flatten(maps)
    image, level_first, y, x = 1, 20, 1, 2
    assert torch.equal(flat[image, level_first + y * 3 + x], maps[1][image, :, y, x])
    assert torch.equal(pyramid.split(flat)[1][image, y, x], maps[1][image, :, y, x])
    assert pyramid.centers("cpu")[level_first + y * 3 + x].tolist() == [2.5 * 16, 1.5 * 16]
    with pytest.raises(ValueError, match="features: expected 3 levels, one per stride, got 2"):
        Pyramid.of(maps, (8, 16, 32))


def test_training_needs_boxes():
    rpn = GuidedAnchorRPN(GuidedAnchorHead(16), STRIDES)
    with pytest.raises(ValueError, match="targets: expected the boxes of every image"):
        rpn(features(dtype=torch.float32), [(64, 96)] * 2)


def test_same_proposals_whatever_the_layout():
    head = make_head(True).float()
    rpn = GuidedAnchorRPN(head, STRIDES, selection=LocationSelection(0.3)).eval()
    maps = features(random.randint(1, 2), dtype=torch.float32, grad=False)
    sizes = [(64, 96)] * maps[0].shape[0]
    a = rpn(maps, sizes).proposals
    b = rpn([m.contiguous(memory_format=torch.channels_last) for m in maps], sizes).proposals
    assert torch.equal(a.count, b.count)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
