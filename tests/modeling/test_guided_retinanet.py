"""GA-RetinaNet: the sparse second phase against the dense computation, losses, inference."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.modeling.guided_anchoring import (
    AnchorShapes,
    GuidedAnchorRetinaHead,
    GuidedAnchorRetinaNet,
    LocationSelection,
)
from ga_scope.modeling.inference import best_classes
from ga_scope.modeling.locations import LocationList
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.targets import Targets

STRIDES, SIZE, CLASSES = (8, 16, 32), (64, 96), 3


def features(images=2, channels=16, dtype=torch.float64, grad=True):
    maps = [torch.randn(images, channels, SIZE[0] // s, SIZE[1] // s, dtype=dtype) for s in STRIDES]
    return [m.requires_grad_(grad) for m in maps]


def make_head(dtype=torch.float64, std=0.15):
    head = GuidedAnchorRetinaHead(16, CLASSES, num_convs=2).to(dtype)
    for parameter in head.parameters():  # the initial values are too small to show a difference
        torch.nn.init.normal_(parameter, std=std)
    return head


def make_model(head=None, **options):
    return GuidedAnchorRetinaNet(head or make_head(torch.float32), STRIDES, shapes=AnchorShapes(4.0), **options)


def boxes(count, dtype=torch.float32):
    corner = torch.rand(count, 2, dtype=dtype) * torch.tensor([SIZE[1] - 30, SIZE[0] - 30])
    return torch.cat([corner, corner + 8 + torch.rand(count, 2, dtype=dtype) * 22], 1)


def dense_outputs(head, maps):
    """Class logits and deltas everywhere, with torch's and torchvision's convolutions only: (N * P, ...)."""
    outputs = {"classification": [], "regression": []}
    for m in maps:
        towers = {"classification": head.classification_tower(m), "regression": head.regression_tower(m)}
        shape = F.conv2d(towers["regression"], head.shape.weight, head.shape.bias).detach()
        for name, tower in towers.items():
            branch = getattr(head, name)
            offset = F.conv2d(shape, branch.adaption.conv_offset.weight)
            adapted = torchvision.ops.deform_conv2d(
                tower, offset, branch.adaption.conv_adaption.weight, padding=1
            ).relu()
            out = F.conv2d(adapted, branch.predict.weight, branch.predict.bias, padding=1)
            outputs[name].append(out.flatten(2).transpose(1, 2))
    return [torch.cat(outputs[name], 1).flatten(0, 1) for name in ("classification", "regression")]


@pytest.mark.parametrize("count", [1, 40, 400])
def test_sparse_prediction_equals_dense(count):
    """Outputs at any locations (corners of maps among them), and all gradients of a loss over them, to 1e-5."""
    head, maps = make_head(), features()
    pyramid = Pyramid.of(maps, STRIDES)
    locations = torch.randperm(2 * pyramid.locations)[:count]
    locations[0] = pyramid.counts[0] - 1  # the last cell of a map
    locations = locations.unique()
    towers, _, shape = head.generate(pyramid, maps)
    grown = pyramid.grow(locations, 1)
    sparse = [f(pyramid, towers, shape, locations, grown) for f in (head.classify, head.regress)]
    dense = [out[locations] for out in dense_outputs(head, maps)]
    leaves = [p for n, p in head.named_parameters() if not n.startswith(("location.", "shape."))] + maps
    weights = [torch.randn_like(out) for out in dense]
    gradients = [
        torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights)), leaves) for outs in (sparse, dense)
    ]
    for a, b in [*zip(sparse, dense), *zip(*gradients)]:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))


def test_grow_is_a_dilation():
    pyramid = Pyramid(2, ((5, 7), (3, 4), (1, 1)), (8, 16, 32))
    for count in (0, 1, 12):
        locations = torch.randperm(2 * pyramid.locations)[:count]
        mask = torch.zeros(2 * pyramid.locations)
        mask[locations] = 1
        parts = pyramid.split(mask.view(2, -1))
        grown = [F.max_pool2d(part[:, None], 3, 1, 1)[:, 0].flatten(1) for part in parts]
        assert torch.equal(pyramid.grow(locations, 1), torch.cat(grown, 1).flatten().nonzero()[:, 0])


def test_scatter_is_the_inverse_of_flatten():
    maps = features(dtype=torch.float32)
    pyramid = Pyramid.of(maps, STRIDES)
    order = torch.randperm(2 * pyramid.locations)
    for a, b in zip(pyramid.scatter(pyramid.flatten(maps).flatten(0, 1)[order], order), maps):
        assert torch.equal(a, b)
    zero = pyramid.scatter(torch.ones(1, 4), torch.tensor([3]))
    assert [float(m.sum()) for m in zero] == [4.0, 0.0, 0.0]


def test_losses_follow_their_definitions():
    """L_cls over all counted locations and classes and L_reg over the positives, recomputed from dense outputs."""
    head = make_head(torch.float32)
    model = make_model(head)
    maps, gt = features(dtype=torch.float32), [boxes(4), boxes(2)]
    classes = [torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0])]
    losses = model(maps, [SIZE] * 2, Targets(gt, classes)).losses
    assert set(losses) == {"loss_anchor_location", "loss_anchor_shape", "loss_cls", "loss_box_reg"}
    pyramid = Pyramid.of(maps, STRIDES)
    logits, deltas = dense_outputs(head, maps)
    anchors = model.shapes.decode(pyramid, head.generate(pyramid, maps)[2].detach())
    total, box, positives = 0.0, 0.0, 0
    for image in range(2):
        iou = torchvision.ops.box_iou(anchors[image], gt[image])
        best, index = iou.max(1)
        label = best >= 0.5
        owner = {}
        for g in range(len(gt[image])):  # a box's best anchor is its own
            owner[int(iou[:, g].argmax())] = g
        for i in range(pyramid.locations):
            positive = bool(label[i]) or i in owner
            g = owner.get(i, int(index[i]))
            for c in range(CLASSES):
                p = torch.sigmoid(logits[image * pyramid.locations + i, c]).item()
                hit = positive and c == int(classes[image][g])
                total += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
            if positive:
                positives += 1
                x1, y1, x2, y2 = anchors[image, i].tolist()
                u1, v1, u2, v2 = gt[image][g].tolist()
                target = [
                    ((u1 + u2) - (x1 + x2)) / 2 / (x2 - x1), ((v1 + v2) - (y1 + y2)) / 2 / (y2 - y1),
                    math.log((u2 - u1) / (x2 - x1)), math.log((v2 - v1) / (y2 - y1)),
                ]  # fmt: skip
                for d, t in zip(deltas[image * pyramid.locations + i].tolist(), target):
                    e = abs(d - t)
                    box += 0.5 * e * e / 0.04 if e < 0.04 else e - 0.02
    assert losses["loss_cls"].item() == pytest.approx(total / positives, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(box / positives, rel=1e-4)


def test_every_branch_learns():
    model = make_model(make_head(torch.float32, 0.05))
    maps, gt = features(dtype=torch.float32), Targets([boxes(5), boxes(2)], [torch.zeros(5).long()] * 2)
    losses = model(maps, [SIZE] * 2, gt).losses
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_images_without_boxes():
    model = make_model()
    maps = features(dtype=torch.float32)
    empty = torch.zeros(0, dtype=torch.int64)
    losses = model(maps, [SIZE] * 2, Targets([torch.zeros(0, 4)] * 2, [empty] * 2)).losses
    assert losses["loss_box_reg"] == 0 and losses["loss_anchor_shape"] == 0
    sum(losses.values()).backward()
    assert all(m.grad.isfinite().all() for m in maps)
    with pytest.raises(ValueError, match="targets: expected the boxes and classes of every image"):
        model(maps, [SIZE] * 2)


def test_inference_equals_dense():
    """Detections from the active set equal those of brute-force selection over the dense outputs."""
    head = make_head(torch.float32)
    model = make_model(head, selection=LocationSelection(0.5), score_thresh=0.55, topk_candidates=20).eval()
    maps = features(dtype=torch.float32, grad=False)
    sizes = [SIZE, (60, 90)]
    found = model(maps, sizes)
    assert not found.losses
    pyramid = Pyramid.of(maps, STRIDES)
    with torch.no_grad():
        logits, deltas = dense_outputs(head, maps)
        _, location, shape = head.generate(pyramid, maps)
    anchors = model.shapes.decode(pyramid, shape).flatten(0, 1)
    active = location.flatten().sigmoid() >= 0.5
    assert found.anchors.tolist() == active.view(2, -1).sum(1).tolist()
    levels = pyramid.per_level(range(3), "cpu").repeat(2)
    decoded = model.box_coder.decode(anchors, deltas)
    for image, (found_boxes, scores, classes, origins) in enumerate(found.detections.unpad()):
        candidates = []
        for level in range(3):
            of_level = [
                (float(p), int(i), c)
                for i in (active & (levels == level)).nonzero()[:, 0]
                if int(i) // pyramid.locations == image
                for c, p in enumerate(logits[i].sigmoid())
                if p > 0.55
            ]
            candidates += sorted(of_level, reverse=True)[:20]
        kept = []
        for score, i, c in sorted(candidates, reverse=True):
            box = decoded[i : i + 1]
            if all(other != c or torchvision.ops.box_iou(box, decoded[j : j + 1]) <= 0.5 for _, j, other in kept):
                kept.append((score, i, c))
        limit = torch.tensor([sizes[image][1], sizes[image][0]] * 2)
        boxes = {k[1]: decoded[k[1]].clamp(min=0).minimum(limit) for k in kept}
        kept = [k for k in kept[:100] if (boxes[k[1]][2:] > boxes[k[1]][:2]).all()]  # not outside the image
        assert len(kept) > 5
        torch.testing.assert_close(scores, torch.tensor([k[0] for k in kept]), rtol=1e-4, atol=1e-5)
        assert classes.tolist() == [k[2] for k in kept]
        assert origins.tolist() == [k[1] % pyramid.locations for k in kept]
        expected = torch.stack([boxes[k[1]] for k in kept])
        torch.testing.assert_close(found_boxes, expected, rtol=1e-3, atol=1e-2)


def test_no_active_location_gives_no_detections():
    model = make_model(GuidedAnchorRetinaHead(16, CLASSES, 1), selection=LocationSelection(0.9999)).eval()
    found = model(features(3, dtype=torch.float32), [SIZE] * 3)
    assert found.detections.count.tolist() == [0, 0, 0] == found.anchors.tolist()


@pytest.mark.parametrize("quality", [False, True])
def test_candidates(quality):
    """The best (row, class) pairs of every image and level, of listed locations of which an image may have none."""
    pyramid = Pyramid(3, ((5, 4), (3, 3), (1, 1)), (8, 16, 32))
    indices = torch.randperm(2 * pyramid.locations)[:50].sort().values  # none of the third image
    logits, weight = torch.randn(50, 4), torch.rand(50) if quality else torch.ones(50)
    found = best_classes(LocationList.listed(pyramid, indices), logits, 7, 0.4, weight if quality else None)
    levels = pyramid.per_level(range(3), "cpu").long()
    for image in range(3):
        expected = set()
        for level in range(3):
            rows = [
                r
                for r, i in enumerate(indices.tolist())
                if i // pyramid.locations == image and levels[i % pyramid.locations] == level
            ]
            pairs = [(float(p * weight[r]), r, c) for r in rows for c, p in enumerate(logits[r].sigmoid()) if p > 0.4]
            expected |= {(r, c) for s, r, c in sorted(pairs, reverse=True)[:7]}
        counted = found.scores[image] > 0
        assert set(zip(found.rows[image][counted].tolist(), found.classes[image][counted].tolist())) == expected
    assert (found.scores[2] == 0).all()
