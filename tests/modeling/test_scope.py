"""ScopeNet's bins, targets, losses, scores and detections against definitions written out in loops."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets
from ga_scope.modeling.scope.head import temper
from ga_scope.modeling.scope.losses import bin_loss, box_loss
from ga_scope.modeling.scope.quality import mean_of_maxima
from ga_scope.modeling.targets import Targets

from .scenes import scene

STRIDES = (8, 16, 32, 64, 128)
COUNTS, SIZES = (1, 3, 5, 7), (0.75, 1.0, 1.25)


def pyramid_of(height, width, images=1):
    sizes = []
    for stride in STRIDES:
        sizes.append((math.ceil(height / stride), math.ceil(width / stride)))
    return Pyramid(images, tuple(sizes), STRIDES)


def locations(pyramid):
    """(level, stride, x, y) of every location, in order."""
    for level, ((rows, columns), stride) in enumerate(zip(pyramid.sizes, pyramid.strides)):
        for row in range(rows):
            for column in range(columns):
                yield level, stride, (column + 0.5) * stride, (row + 0.5) * stride


# ---- bins ------------------------------------------------------------------------------------------


def oracle_bin(distance, count, size):
    """The interval [b_n, b_{n+1}) that holds a distance, by looking at each."""
    edges = [0.0] + [8 * 2 ** (-size * (count + 1 - n)) for n in range(2, count + 1)] + [math.inf]
    (found,) = [n for n in range(count) if edges[n] <= distance < edges[n + 1]]
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_bins(count, size):
    bins = ScopeBins(count, size)
    distances = (torch.rand(300, dtype=torch.float64) * 14 - 7).exp2()
    on_limits = torch.tensor([8.0, 64.0, 1e4, *bins.boundaries], dtype=torch.float64)
    distances = torch.cat([distances, on_limits, on_limits * (1 - 1e-12)])
    expected = [oracle_bin(d, count, size) for d in distances.tolist()]
    assert bins.index(distances).tolist() == expected
    one_hot = bins.one_hot(distances)
    assert one_hot.argmax(-1).tolist() == expected and (one_hot.sum(-1) == 1).all()


def test_the_papers_bins():
    """N = 5, size 1: limits 1/2, 1, 2, 4 strides, each belonging to the bin above."""
    bins = ScopeBins(5, 1.0)
    assert bins.boundaries == [0.5, 1.0, 2.0, 4.0]
    assert bins.index(torch.tensor([0.5, 1.0, 2.0, 4.0, 7.99, 8.0])).tolist() == [1, 2, 3, 4, 4, 4]
    edges = [1 / 4, 1 / 2, 1, 2, 4, 8]
    assert [2**c for c in bins.log_centers] == pytest.approx([(a * b) ** 0.5 for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_soft_targets(count, size):
    """The expected log distance under the two neighbours' weights is the distance's own, between the outer centres."""
    bins = ScopeBins(count, size)
    distances = (torch.rand(200, dtype=torch.float64) * 16 - 9).exp2()
    for d, weights in zip(distances.tolist(), bins.soft(distances)):
        assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()
        used = weights.nonzero()[:, 0].tolist()
        assert len(used) <= 2 and used[-1] - used[0] <= 1
        mean = sum(w * c for w, c in zip(weights.tolist(), bins.log_centers))
        clamped = min(max(math.log2(d), bins.log_centers[0]), bins.log_centers[-1])
        assert mean == pytest.approx(clamped, abs=1e-9)


@pytest.mark.parametrize("arguments", [(0, 1.0), (3, 0.0)])
def test_bad_bins(arguments):
    with pytest.raises(ValueError, match=r"count, size: expected at least 1 bin of a size above 0, got"):
        ScopeBins(*arguments)


# ---- targets ---------------------------------------------------------------------------------------


def oracle_targets(pyramid, boxes, radius):
    """Every location against every box, in Python's numbers."""
    limits = [0, 64, 128, 256, 512, math.inf]
    found = []
    for level, stride, x, y in locations(pyramid):
        best, smallest = -1, math.inf
        for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            distances = (x - x1, y - y1, x2 - x, y2 - y)
            inside = min(distances) > 0
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) <= radius * stride
            of_level = limits[level] <= max(distances) < limits[level + 1]
            area = (x2 - x1) * (y2 - y1)
            if inside and near and of_level and area < smallest:
                best, smallest = index, area
        found.append(best)
    return found


def test_targets_equal_the_oracle():
    """500 scenes: overlapping, tiny, concentric, huge and empty, and boxes exactly on limits."""
    targets, positives, empty = ScopeTargets(), [0, 0], 0
    for index in range(500):
        height, width = ((96, 160), (128, 128), (200, 72))[index % 3]
        pyramid, boxes = pyramid_of(height, width), scene(height, width)
        empty += len(boxes) == 0
        assigned = targets(pyramid, [boxes])
        for branch, (got, radius) in enumerate(zip(assigned, (1.5, 2.0))):
            assert got[0].tolist() == oracle_targets(pyramid, boxes, radius)
            positives[branch] += int((got >= 0).sum())
    assert empty > 10 and positives[1] > positives[0] > 2000


def test_targets_of_a_batch():
    """Indices run over the boxes of all images; an image without boxes has none."""
    pyramid = pyramid_of(128, 160, images=4)
    boxes = [scene(128, 160), torch.zeros(0, 4, dtype=torch.float64), scene(128, 160), scene(128, 160)]
    first, assigned = 0, ScopeTargets()(pyramid, boxes)
    for image, of_image in enumerate(boxes):
        for got, radius in zip(assigned, (1.5, 2.0)):
            expected = oracle_targets(pyramid, of_image, radius)
            assert got[image].tolist() == [e + first if e >= 0 else -1 for e in expected]
        first += len(of_image)
    assert (assigned.localization[1] == -1).all()


def test_ranges_must_fit_the_levels():
    with pytest.raises(ValueError, match="ranges: expected 4 limits between 5 levels, got 3"):
        ScopeTargets((64, 128, 256))(pyramid_of(64, 64), [torch.zeros(0, 4)])


# ---- encoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_encoding_and_decoding_return_the_box(count, size):
    """From every positive location of many scenes, in float32, to 1e-4 px."""
    head = ScopeHead(8, 3, ScopeBins(count, size), convs=1)
    with torch.no_grad():
        head.log_anchors += torch.randn(count) * 0.3  # learned anchors are not the initial ones
    checked = 0
    for _ in range(60):
        pyramid, boxes = pyramid_of(128, 160), scene(128, 160).float()
        assigned = ScopeTargets()(pyramid, [boxes]).localization[0]
        for place, (_, stride, x, y) in enumerate(locations(pyramid)):
            if assigned[place] < 0:
                continue
            box = boxes[assigned[place]]
            point = torch.tensor([x, y])
            distances = torch.cat([point - box[:2], box[2:] - point]) / stride
            chosen, t = head.encode(distances)
            borders = torch.full((4, count), 99.0).scatter(1, chosen[:, None], t[:, None])
            back = head.distances(borders, chosen) * stride
            again = torch.cat([point - back[:2], point + back[2:]])
            # Boxes of the scenes reach to 900 px, where float32 itself has steps of 6e-5.
            assert (again - box).abs().max() <= 1e-4 * max(1.0, float(box.abs().max()) / 256)
            checked += 1
    assert checked > 500


def test_one_bin_is_direct_regression():
    """N = 1: d = A e^t and the class score alone, no bin branch and no bin loss; and 8 strides are no limit."""
    detector = make_detector(bins=ScopeBins(1), rescore=True).double()
    head = detector.head
    assert head.bin_logits is None and not detector.rescore
    assert head.borders.out_channels == 4 and head.log_anchors.numel() == 1
    borders = torch.randn(50, 4, 1, dtype=torch.float64)
    expected = math.e ** (borders[..., 0] + math.log(2) * head.log_anchors[0])
    torch.testing.assert_close(head.distances(borders, torch.zeros(50, 4, dtype=torch.int64)), expected)
    losses = detector(maps(dtype=torch.float64), [(64, 96)] * 2, truth(torch.float64)).losses
    assert set(losses) == {"loss_cls", "loss_box"}


# ---- losses ----------------------------------------------------------------------------------------


def oracle_boxes(distances):
    left, top, right, bottom = distances.unbind(1)
    return torch.stack([-left, -top, right, bottom], 1)


def test_box_losses_equal_torchvisions():
    pred, gt = (torch.rand(200, 4, dtype=torch.float64) * 8 + 0.01 for _ in range(2))
    a, b = oracle_boxes(pred), oracle_boxes(gt)
    iou = torchvision.ops.box_iou(a, b).diagonal()
    torch.testing.assert_close(box_loss(pred, gt, "iou"), -iou.log())
    torch.testing.assert_close(box_loss(pred, gt, "giou"), torchvision.ops.generalized_box_iou_loss(a, b))
    torch.testing.assert_close(box_loss(pred, gt, "diou"), torchvision.ops.distance_box_iou_loss(a, b))
    with pytest.raises(ValueError, match="kind: expected 'iou', 'giou' or 'diou', got 'ciou'"):
        box_loss(pred, gt, "ciou")


def test_bin_loss_is_the_mean_cross_entropy_of_four_sides():
    logits, chosen = torch.randn(30, 4, 5), torch.randint(5, (30, 4))
    expected = sum(F.cross_entropy(logits[:, side], chosen[:, side], reduction="none") for side in range(4)) / 4
    torch.testing.assert_close(bin_loss(logits, F.one_hot(chosen, 5).float()), expected)


def test_equation_2_and_3():
    raw = torch.randn(20, 4, 6, dtype=torch.float64)
    probabilities = temper(raw).softmax(-1)
    for location in range(20):
        total = 0
        for side in range(4):
            *scores, log_variance = raw[location, side].tolist()
            powers = [math.exp(s / math.exp(log_variance)) for s in scores]
            expected = [p / sum(powers) for p in powers]
            assert probabilities[location, side].tolist() == pytest.approx(expected)
            total += max(expected)
        assert mean_of_maxima(probabilities[location]).item() == pytest.approx(total / 4)


def make_detector(bins=None, classes=3, channels=8, seed=0, head_options=None, **options):
    torch.manual_seed(seed)
    head = ScopeHead(channels, classes, bins or ScopeBins(5), convs=1, **(head_options or {}))
    for module in head.modules():  # the initial values are too small to show a difference
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    nn.init.zeros_(head.classes.bias)
    return ScopeDetector(head, STRIDES, **options)


def maps(images=2, size=(64, 96), channels=8, dtype=torch.float32):
    sizes = pyramid_of(*size).sizes
    return [torch.randn(images, channels, *s, dtype=dtype) for s in sizes]


def truth(dtype=torch.float32):
    boxes = [
        torch.tensor([[5.0, 6, 40, 50], [30, 20, 95, 63], [60, 4, 75, 16]], dtype=dtype),
        torch.zeros(0, 4, dtype=dtype),
    ]
    return Targets(boxes, [torch.tensor([0, 2, 1]), torch.zeros(0, dtype=torch.int64)])


VARIANTS = {
    "paper": {},
    "without sigma": {"head_options": {"uncertainty": False}},
    "soft bins": {"soft_bins": True},
    "giou": {"box_loss": "giou"},
    "diou": {"box_loss": "diou"},
    "one bin": {"bins": ScopeBins(1)},
    "quality": {"quality": lambda: DistributionQuality(5)},
}


def variant(name, **more):
    options = {k: v() if callable(v) else v for k, v in VARIANTS[name].items()}
    return make_detector(**options, **more)


def oracle_losses(detector, predictions, pyramid, boxes, classes, regions=([], [])):
    """Eq. 4 location by location; in a region no location is a negative."""
    head, bins = detector.head, detector.head.bins
    found = {"loss_cls": 0.0, "loss_box": 0.0, "loss_bin": 0.0}
    positives = [0, 0]
    for image, (of_image, labels) in enumerate(zip(boxes, classes)):
        for_class, for_box = (oracle_targets(pyramid, of_image, r) for r in (1.5, 2.0))
        for place, (_, stride, x, y) in enumerate(locations(pyramid)):
            ignored = any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in regions[image]) and for_class[place] < 0
            for c, logit in enumerate([] if ignored else predictions.class_logits[image, place].tolist()):
                target = for_class[place] >= 0 and int(labels[for_class[place]]) == c
                p = 1 / (1 + math.exp(-logit))
                found["loss_cls"] -= 0.25 * (1 - p) ** 2 * math.log(p) if target else 0.75 * p**2 * math.log(1 - p)
            positives[0] += for_class[place] >= 0
            if for_box[place] < 0:
                continue
            positives[1] += 1
            x1, y1, x2, y2 = of_image[for_box[place]].tolist()
            pred = []
            for side, d in enumerate(((x - x1) / stride, (y - y1) / stride, (x2 - x) / stride, (y2 - y) / stride)):
                n = oracle_bin(d, bins.count, bins.size)
                t = predictions.borders[image, place, side, n].item()
                pred.append(2 ** head.log_anchors[n].item() * math.exp(t) * stride)
                logits = predictions.bin_logits[image, place, side].tolist()
                weights = bins.soft(torch.tensor(d, dtype=torch.float64)).tolist() if detector.soft_bins else None
                log_sum = math.log(sum(math.exp(v) for v in logits))
                for m, v in enumerate(logits):
                    weight = weights[m] if weights else float(m == n)
                    found["loss_bin"] += 0.5 * 0.25 * weight * (log_sum - v)
            a = torch.tensor([[x - pred[0], y - pred[1], x + pred[2], y + pred[3]]], dtype=torch.float64)
            b = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64)
            if detector.box_loss == "iou":
                found["loss_box"] -= torchvision.ops.box_iou(a, b).log().item()
            else:
                name = {"giou": "generalized_box_iou_loss", "diou": "distance_box_iou_loss"}[detector.box_loss]
                found["loss_box"] += getattr(torchvision.ops, name)(a, b).sum().item()
    found["loss_cls"] /= positives[0]
    found["loss_box"] /= positives[1]
    found["loss_bin"] /= positives[1]
    return found


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "quality"])
def test_losses_equal_the_oracle(name):
    detector, features = variant(name).double(), maps(dtype=torch.float64)
    pyramid = Pyramid.of(features, STRIDES)
    with torch.no_grad():
        predictions = detector.head(pyramid, features)
        losses = detector.losses(pyramid, predictions, truth(torch.float64))
    gt = truth(torch.float64)
    expected = oracle_losses(detector, predictions, pyramid, gt.boxes, gt.classes)
    for key, value in losses.items():
        assert value.item() == pytest.approx(expected[key], rel=1e-6), key


def test_no_negatives_in_ignore_regions():
    """A location inside is none, unless it is an object's; other losses stay as they are."""
    detector, features, gt = variant("paper").double(), maps(dtype=torch.float64), truth(torch.float64)
    pyramid, regions = Pyramid.of(features, STRIDES), [[[0, 0, 47, 65], [70, 1, 97, 30]], [[9, 9, 50, 41]]]
    with torch.no_grad():
        predictions = detector.head(pyramid, features)
        without = detector.losses(pyramid, predictions, gt)
        ignore = [torch.tensor(of_image, dtype=torch.float64) for of_image in regions]
        losses = detector.losses(pyramid, predictions, gt._replace(ignore=ignore))
        nowhere = detector.losses(pyramid, predictions, gt._replace(ignore=[box[:0] for box in ignore]))
    expected = oracle_losses(detector, predictions, pyramid, gt.boxes, gt.classes, regions)
    for key, value in losses.items():
        assert value.item() == pytest.approx(expected[key], rel=1e-6), key
        assert (value == without[key]) == (key != "loss_cls") and nowhere[key] == without[key]


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_equal_finite_differences(name):
    """Of each loss by every parameter, in float64, along random directions; sigma^2 and the anchors included."""
    detector, features = variant(name).double(), maps(dtype=torch.float64)
    pyramid = Pyramid.of(features, STRIDES)
    gt = truth(torch.float64)
    parameters = dict(detector.named_parameters())

    def losses():
        return detector.losses(pyramid, detector.head(pyramid, features), gt)

    for key in losses():
        gradients = torch.autograd.grad(losses()[key], parameters.values(), allow_unused=True)
        received = {n: g for n, g in zip(parameters, gradients) if g is not None}
        if key == "loss_box":
            assert received["head.log_anchors"].abs().sum() > 0
        if key == "loss_bin" and detector.head.uncertainty:
            assert all(received["head.bin_logits.bias"].view(4, -1)[:, -1] != 0)  # sigma^2 of each side
        assert received, key
        for parameter, gradient in received.items():
            value = parameters[parameter].data
            direction = torch.randn_like(value)
            step, origin = 1e-6, value.clone()
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    value.copy_(origin + sign * step * direction)
                    ends.append(losses()[key].item())
                value.copy_(origin)
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=2e-4, abs=1e-6), (key, parameter)


def test_anchors_move_in_training():
    detector, features = make_detector(), maps()
    before = detector.head.log_anchors.detach().clone()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.05)
    for _ in range(5):
        losses = detector(features, [(64, 96)] * 2, truth()).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert (detector.head.log_anchors - before).abs().max() > 1e-4


def test_the_quality_network_leaves_the_rest_alone():
    """Its loss reaches its own parameters only, so its weights serve every way of scoring."""
    detector, features = variant("quality"), maps()
    loss = detector(features, [(64, 96)] * 2, truth()).losses["loss_quality"]
    loss.backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == name.startswith("quality."), name


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", ["empty", "500 boxes", "huge boxes"])
def test_losses_stay_finite(name, case):
    detector = variant(name)
    features = maps(size=(128, 160))
    boxes = truth().boxes
    if case == "empty":
        boxes = [torch.zeros(0, 4)] * 2
    elif case == "500 boxes":
        corner = torch.rand(500, 2) * 120
        boxes = [torch.cat([corner, corner + 0.5 + torch.rand(500, 2) * 60], 1), boxes[1]]
    else:
        boxes = [torch.tensor([[-4000.0, -4000, 5000, 5000], [-1e4, 0, 1e4, 128]]), boxes[1]]
    classes = [torch.randint(3, (len(b),)) for b in boxes]
    losses = detector(features, [(128, 160)] * 2, Targets(boxes, classes)).losses
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert losses["loss_cls"] > 0
    assert (losses["loss_box"] > 0) == (case != "empty")


def test_training_needs_boxes():
    with pytest.raises(ValueError, match="targets: expected the boxes and classes of every image in training"):
        make_detector()(maps(), [(64, 96)] * 2)


# ---- inference -------------------------------------------------------------------------------------


def oracle_detections(detector, predictions, pyramid, image, size):
    """Every location and class: score, box, top-k of the level, greedy NMS of each class. No empty boxes."""
    candidates = []
    by_level = {}
    for place, (level, stride, x, y) in enumerate(locations(pyramid)):
        bins = predictions.bin_logits[image, place].softmax(-1)
        p_loc = sum(max(side) for side in bins.tolist()) / 4 if detector.rescore else 1.0
        sides = []
        for side in range(4):
            n = int(bins[side].argmax())
            t = predictions.borders[image, place, side, n].item()
            sides.append(2 ** detector.head.log_anchors[n].item() * math.exp(t) * stride)
        box = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]
        box = [min(max(v, 0.0), float(size[1 - i % 2])) for i, v in enumerate(box)]
        for c, logit in enumerate(predictions.class_logits[image, place].tolist()):
            p_cls = 1 / (1 + math.exp(-logit))
            if p_cls > detector.score_thresh:
                by_level.setdefault(level, []).append((p_cls * p_loc, c, box))
    for found in by_level.values():
        best = sorted(found, reverse=True)[: detector.topk]
        candidates += [item for item in best if item[2][0] < item[2][2] and item[2][1] < item[2][3]]
    kept = []
    for score, c, box in sorted(candidates, reverse=True):
        same = torch.tensor([k[2] for k in kept if k[1] == c], dtype=torch.float64).view(-1, 4)
        iou = torchvision.ops.box_iou(torch.tensor([box], dtype=torch.float64), same)
        if not len(same) or iou.max() <= detector.nms_thresh:
            kept.append((score, c, box))
    return kept[: detector.detections_per_image]


@pytest.mark.parametrize("topk, threshold", [(1000, 0.05), (7, 0.3), (40, 0.0)])
@pytest.mark.parametrize("rescore", [True, False])
def test_detections_equal_the_oracle(topk, threshold, rescore):
    detector = (
        make_detector(rescore=rescore, topk=topk, score_thresh=threshold, detections_per_image=60).double().eval()
    )
    features, sizes = maps(dtype=torch.float64), [(64, 96), (50, 90)]
    pyramid = Pyramid.of(features, STRIDES)
    with torch.no_grad():
        predictions = detector.head(pyramid, features)
    found = detector(features, sizes)
    assert found.losses == {}
    for image, (boxes, scores, classes, _) in enumerate(found.detections.unpad()):
        expected = oracle_detections(detector, predictions, pyramid, image, sizes[image])
        assert len(scores) == len(expected) > 5
        torch.testing.assert_close(scores.tolist(), [e[0] for e in expected], rtol=1e-6, atol=1e-6)
        assert classes.tolist() == [e[1] for e in expected]
        torch.testing.assert_close(boxes.tolist(), [e[2] for e in expected], rtol=1e-5, atol=1e-4)


def test_nothing_above_the_threshold():
    detector = make_detector(score_thresh=0.99999).eval()
    boxes, scores, classes, _ = detector(maps(), [(64, 96)] * 2).detections.unpad()[0]
    assert boxes.shape == (0, 4) and scores.shape == (0,) and classes.dtype == torch.int64


def test_wild_predictions_stay_finite():
    """Regressions and log sigma^2 of +-1e4: finite losses, gradients and boxes."""
    for sign in (1, -1):
        detector = make_detector()
        with torch.no_grad():
            detector.head.borders.bias.fill_(1e4)
            detector.head.bin_logits.bias.view(4, -1)[:, -1] = sign * 1e4
        losses = detector(maps(), [(64, 96)] * 2, truth()).losses
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
        found = detector.eval()(maps(), [(64, 96)] * 2).detections
        assert found.boxes.isfinite().all() and found.scores.isfinite().all()


# ---- compilation -----------------------------------------------------------------------------------


def test_the_dense_part_compiles():
    """aot_eager, one graph: head forward and backward equal eager."""
    detector, features = make_detector(), maps()
    pyramid = Pyramid.of(features, STRIDES)

    def dense(*features):
        predictions = detector.head(pyramid, list(features))
        distances = detector.head.distances(predictions.borders, predictions.bin_logits.argmax(-1))
        return predictions.class_logits, distances, detector.localization_score(predictions.bin_logits)

    compiled = torch.compile(dense, backend="aot_eager", fullgraph=True)
    weights = [torch.randn_like(out) for out in dense(*features)]
    gradients = []
    for function in (dense, compiled):
        outputs = function(*features)
        gradients.append(
            [
                *outputs,
                *torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights)), detector.parameters()),
            ]
        )
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)
