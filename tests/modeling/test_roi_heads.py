"""Fast R-CNN's heads: boxes pooled from the level of their size, and what they learn."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.modeling.box_coding import BoxCoder
from ga_scope.modeling.results import Proposals
from ga_scope.modeling.roi_heads import BoxHead, BoxPredictor, FastRCNNHeads, Pooler
from ga_scope.modeling.targets import Targets

STRIDES = (4, 8, 16, 32)


def level_of(side):
    """Lin et al. 2017a, Eq. 1, among the levels of STRIDES."""
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5) - 2


def random_boxes(count, size=1024):
    side = (torch.rand(count, 2) * 5.5 + 3).exp2()
    corner = torch.rand(count, 2) * (size - side).clamp(min=0)
    return torch.cat([corner, corner + side], 1)


# ---- case_14 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0, 1, 2, 3), (0, 1), (2, 3), (1, 2, 3), (2,)])
def test_boxes_are_pooled_from_the_level_of_their_size(levels):
    """Every map holds its level's number. Of fewer levels the nearest of those there are."""
    strides = [STRIDES[i] for i in levels]
    maps = [torch.full((2, 1, 1024 // s, 1024 // s), float(i)) for i, s in zip(levels, strides)]
    boxes = torch.cat([random_boxes(200), torch.tensor([[0.0, 0, s, s] for s in (40, 111, 113, 130, 250, 500, 900)])])
    images = torch.randint(2, (len(boxes),))
    found = Pooler(strides, 7, 2)(maps, boxes, images).mean((1, 2, 3))
    expected = [
        min(max(level_of(math.sqrt((x2 - x1) * (y2 - y1))), levels[0]), levels[-1]) for x1, y1, x2, y2 in boxes.tolist()
    ]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("strides", [(4, 16), (8, 32), (32, 16, 8, 4), (4, 4), (4, 8, 32), (4, 12)])
def test_levels_with_a_gap_or_in_another_order_are_refused(strides):
    """Boxes of the missing level were pooled from another's map, or from none: zeros."""
    with pytest.raises(ValueError, match="strides: expected each level's twice the one before it, got"):
        Pooler(strides, 7, 2)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooling_is_roi_align_without_the_half_pixel(sampling_ratio):
    maps = [torch.randn(2, 3, 256 // s, 256 // s) for s in STRIDES]
    boxes, images = random_boxes(60, 256), torch.randint(2, (60,))
    found = Pooler(STRIDES, 5, sampling_ratio)(maps, boxes, images)
    for row, box, image in zip(found, boxes, images.tolist()):
        level = level_of(float((box[2:] - box[:2]).prod().sqrt()))
        expected = torchvision.ops.roi_align(
            maps[level][image, None], [box[None]], 5, 1 / STRIDES[level], sampling_ratio, aligned=True
        )
        torch.testing.assert_close(row, expected[0])


@pytest.mark.detectron2
@pytest.mark.parametrize("first", [0, 1])
def test_pooling_is_detectron2s(first):
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    strides = STRIDES[first:]
    maps = [torch.randn(2, 3, 512 // s, 512 // s) for s in strides]
    boxes = [random_boxes(80, 512), random_boxes(50, 512)]
    theirs = ROIPooler(7, [1 / s for s in strides], 0, "ROIAlignV2")(maps, [Boxes(b) for b in boxes])
    ours = Pooler(strides, 7, 0)(maps, torch.cat(boxes), torch.tensor([0] * 80 + [1] * 50))
    torch.testing.assert_close(ours, theirs)


def test_no_boxes_and_gradients():
    maps = [torch.randn(1, 3, 64 // s, 64 // s, requires_grad=True) for s in STRIDES]
    pooler = Pooler(STRIDES, 7, 2)
    none = pooler(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0, 3, 7, 7)
    pooler(maps, torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0])).sum().backward()
    assert maps[0].grad.abs().sum() > 0


# ---- what is learned ---------------------------------------------------------------------------------

CLASSES = 3


def heads(**options):
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "box_coder": BoxCoder((10.0, 10.0, 5.0, 5.0)), "per_image": 1000} | options
    found = FastRCNNHeads(Pooler(STRIDES, 3, 2), BoxHead(4 * 9, 16, 2), BoxPredictor(16, CLASSES), **options)
    for layer in (found.box_predictor.cls_score, found.box_predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return found


def scene(images=2):
    maps = [torch.randn(images, 4, 256 // s, 256 // s) for s in STRIDES]
    gt = [torch.tensor([[20.0, 30, 90, 100], [120, 40, 200, 220]]), torch.zeros(0, 4)][:images]
    near = (gt[0].repeat(6, 1) + torch.randn(12, 4) * 12).clamp(0, 256)
    proposals = Proposals.pad([near, random_boxes(7, 256)], [torch.randn(12), torch.randn(7)])
    return maps, proposals, Targets(gt, [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)][:images])


def oracle(model, maps, proposals, targets, regions=((), ())):
    """Ren et al. 2015 and Girshick 2015, box by box; the objects are among the proposals."""
    cross_entropy, boxes_loss, count = 0.0, 0.0, 0
    for image, ((boxes, _), gt, labels) in enumerate(zip(proposals.unpad(), targets.boxes, targets.classes)):
        for box in torch.cat([boxes, gt]):
            overlaps = torchvision.ops.box_iou(box[None], gt)[0] if len(gt) else torch.zeros(1)
            best, iou = int(overlaps.argmax()), float(overlaps.max())
            covered = [
                float(
                    (box[2:].minimum(r[2:]) - box[:2].maximum(r[:2])).clamp(min=0).prod() / (box[2:] - box[:2]).prod()
                )
                for r in regions[image]
            ]
            if iou < model.positive_from and any(share >= 0.5 for share in covered):
                continue
            count += 1
            pooled = model.pooler(maps, box[None], torch.tensor([image]))
            logits, deltas = model.box_predictor(model.box_head(pooled))
            label = int(labels[best]) if iou >= model.positive_from else CLASSES
            cross_entropy += float(F.cross_entropy(logits, torch.tensor([label])))
            if label < CLASSES:
                wanted = model.box_coder.encode(box[None], gt[best][None])
                boxes_loss += float((deltas[0, label] - wanted[0]).abs().sum())
    return cross_entropy / count, boxes_loss / count


@pytest.mark.parametrize("positive_from", [0.5, 0.6])
def test_losses_equal_the_oracle(positive_from):
    model, (maps, proposals, targets) = heads(positive_from=positive_from), scene()
    with torch.no_grad():
        losses = model.train()(maps, proposals, [(256, 256)] * 2, targets)
        cls, box = oracle(model, maps, proposals, targets)
    assert losses["loss_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(box, rel=1e-5) and box > 0


def test_no_background_in_ignore_regions():
    model, (maps, proposals, targets) = heads(), scene()
    regions = [torch.tensor([[0.0, 0, 256, 90]]), torch.tensor([[50.0, 50, 250, 250], [0, 0, 30, 30]])]
    with torch.no_grad():
        plain = model.train()(maps, proposals, [(256, 256)] * 2, targets)
        losses = model(maps, proposals, [(256, 256)] * 2, targets._replace(ignore=regions))
        cls, box = oracle(model, maps, proposals, targets, regions)
    assert losses["loss_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(box, rel=1e-5)
    assert losses["loss_cls"] != plain["loss_cls"]


def test_only_the_best_proposals_are_used():
    """Table 7, in training and in inference."""
    model, (maps, proposals, targets) = heads(proposals_per_image=5), scene()
    few = proposals.best(5)
    everything = heads()
    with torch.no_grad():
        for mode in (True, False):
            a = model.train(mode)(maps, proposals, [(256, 256)] * 2, targets if mode else None)
            b = everything.train(mode)(maps, few, [(256, 256)] * 2, targets if mode else None)
            for x, y in zip(*((v.values() if mode else v) for v in (a, b))):
                torch.testing.assert_close(x, y)


def test_detections_equal_the_oracle():
    """Every class of every proposal above the threshold, NMS within each class, the best of all."""
    model, (maps, proposals, _) = heads(score_thresh=0.2, nms_thresh=0.4, detections_per_image=9).eval(), scene()
    found = model(maps, proposals, [(256, 256), (200, 210)])
    for image, (size, (boxes, _)) in enumerate(zip([(256, 256), (200, 210)], proposals.unpad())):
        logits, deltas = model.box_predictor(
            model.box_head(model.pooler(maps, boxes, torch.full((len(boxes),), image)))
        )
        candidates = []
        for k, (row, delta) in enumerate(zip(logits.softmax(1), deltas)):
            for label in range(CLASSES):
                if row[label] > 0.2:
                    box = model.box_coder.decode(boxes[k][None], delta[label][None])[0]
                    limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
                    candidates.append((float(row[label].detach()), label, k, box.clamp(min=0).minimum(limit).detach()))
        kept = []
        for score, label, k, box in sorted(candidates, key=lambda c: -c[0]):
            same = [other for _, other_label, _, other in kept if other_label == label]
            # Of two boxes without area the IoU is nan, and not above the threshold.
            if not same or not (torchvision.ops.box_iou(box[None], torch.stack(same)) > 0.4).any():
                kept.append((score, label, k, box))
        # Those outside count among the best, and are then dropped (detectron2's postprocessing).
        kept = [item for item in kept[:9] if (item[3][2:] > item[3][:2]).all()]
        b, s, c, o = (values[image] for values in (found.boxes, found.scores, found.classes, found.origins))
        count = int(found.count[image])
        assert count == len(kept) > 2
        assert s[:count].tolist() == pytest.approx([score for score, *_ in kept], rel=1e-5)
        assert c[:count].tolist() == [label for _, label, *_ in kept]
        assert o[:count].tolist() == [k for _, _, k, _ in kept]
        torch.testing.assert_close(b[:count], torch.stack([box for *_, box in kept]), rtol=1e-4, atol=1e-3)
        assert not b[count:].any() and not s[count:].any()


def test_without_proposals():
    """No error, no detections; in training the objects are proposals themselves."""
    model, (maps, _, targets) = heads(), scene()
    none = Proposals(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64))
    found = model.eval()(maps, none, [(256, 256)] * 2)
    assert found.count.tolist() == [0, 0] and found.boxes.shape[2] == 4
    losses = model.train()(maps, none, [(256, 256)] * 2, targets)
    assert all(loss.isfinite() for loss in losses.values())
    nothing = Targets([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    losses = model(maps, none, [(256, 256)] * 2, nothing)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    with pytest.raises(
        ValueError, match="targets: expected the boxes and classes of every image in training, got None"
    ):
        model(maps, none, [(256, 256)] * 2)
