"""Towers that are computed only where something reads them: what they give there, and the detections."""

import pytest
import torch

from ga_scope.modeling.guided_anchoring import (
    AnchorShapes,
    GuidedAnchorRetinaHead,
    GuidedAnchorRetinaNet,
    LocationSelection,
)
from ga_scope.modeling.layers import SparseTower, tower
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets

STRIDES = (8, 16, 32)
CHANNELS, CLASSES = 16, 3
SIZE = (192, 256)


def features(images=2, size=SIZE):
    return [torch.randn(images, CHANNELS, size[0] // s, size[1] // s) for s in STRIDES]


def spread(module, std):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.eval()


def scopenet(convs=4, bins=5, norm="", **more):
    quality = DistributionQuality(bins) if more.pop("quality", False) else None
    head = ScopeHead(CHANNELS, CLASSES, ScopeBins(bins), convs=convs, norm=norm)
    detector = ScopeDetector(head, STRIDES, targets=ScopeTargets((64, 128)), quality=quality, **more)
    return spread(detector, 0.12)


def retinanet(convs=3, **more):
    head = GuidedAnchorRetinaHead(CHANNELS, CLASSES, num_convs=convs, offsets=more.pop("offsets", "shape"))
    selection = LocationSelection(*more.pop("selection", (0.5, 0)))
    more = {"shapes": AnchorShapes(3.0, std=0.3), "selection": selection} | more
    return spread(GuidedAnchorRetinaNet(head, STRIDES, **more), 0.12)


@pytest.mark.parametrize("convs", [1, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.05, 1.0])
def test_the_tower_where_it_is_wanted(convs, share):
    """Asked twice, at locations of the borders as well; what the dense tower has, and nothing computed elsewhere."""
    layers, maps = spread(tower(CHANNELS, convs), 0.1), features()
    pyramid = Pyramid.of(maps, STRIDES)
    with torch.no_grad():
        dense = pyramid.flatten([layers(map) for map in maps])
        sparse = SparseTower(layers, pyramid, maps)
        for _ in range(2):
            wanted = torch.rand(2, pyramid.locations) < share
            wanted[:, :: pyramid.locations - 1] = share > 0
            found = pyramid.flatten(sparse(wanted))
            torch.testing.assert_close(found[wanted], dense[wanted], rtol=1e-5, atol=1e-6)
    computed = [int(done.sum()) for done in sparse.done]
    assert computed == sorted(computed, reverse=True)  # the deeper the layer, the fewer
    assert (computed[-1] < dense[..., 0].numel()) == (share < 1)


def test_a_tower_with_a_norm_is_not_local():
    assert SparseTower.possible(tower(CHANNELS, 2))
    assert not SparseTower.possible(tower(32, 2, "GN"))
    assert not ScopeHead(32, CLASSES, ScopeBins(3), norm="GN").towers_are_local
    assert not GuidedAnchorRetinaHead(32, CLASSES, norm="GN").towers_are_local
    assert not GuidedAnchorRetinaHead(CHANNELS, CLASSES, offsets="features").towers_are_local


def threshold_of(detector, share, maps):
    """The score threshold that so many locations have a class above."""
    logits = detector.head.classify(Pyramid.of(maps, STRIDES), maps).amax(2).flatten().sigmoid()
    return float(logits.quantile(1 - share))


SCOPENETS = {
    "as it is": {},
    "without re-scoring": {"rescore": False},
    "quality network": {"quality": True},
    "one bin": {"bins": 1},
    "fewer candidates than pass": {"topk": 5},
    "few detections": {"detections_per_image": 4},
}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("name", SCOPENETS)
def test_scopenet_detects_the_same(name, share, monkeypatch):
    detector, maps = scopenet(**SCOPENETS[name]), features()
    with torch.no_grad():
        detector.score_thresh = threshold_of(detector, share, maps)
        expected = detector(maps, [SIZE, (170, 230)]).detections
        detector.sparse_tower = True
        monkeypatch.setattr(ScopeHead, "forward", None)  # the dense head is not asked
        found = detector(maps, [SIZE, (170, 230)]).detections
    assert found.count.tolist() == expected.count.tolist() and (int(found.count.sum()) > 3) == (share > 0)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


RETINANETS = {
    "as it is": {},
    "no offsets": {"offsets": "none"},
    "a budget": {"selection": (0.0, 40)},
    "wide shapes": {"shapes": AnchorShapes(8.0, std=1.0)},  # taps far outside the maps
}


@pytest.mark.parametrize("score_thresh", [0.5, 0.62, 1.0])
@pytest.mark.parametrize("name", RETINANETS)
def test_guided_retinanet_detects_the_same(name, score_thresh, monkeypatch):
    detector, maps = retinanet(**RETINANETS[name]), features()
    detector.score_thresh = score_thresh
    with torch.no_grad():
        logits = detector.head.generate(Pyramid.of(maps, STRIDES), maps)[1]
        if not detector.selection.topk:
            detector.selection = LocationSelection(float(logits.flatten().sigmoid().quantile(0.97)))
        expected = detector(maps, [SIZE, (170, 230)])
        detector.sparse_tower = True
        monkeypatch.setattr(GuidedAnchorRetinaHead, "generate", None)
        found = detector(maps, [SIZE, (170, 230)])
    assert found.anchors.tolist() == expected.anchors.tolist()
    assert found.detections.count.tolist() == expected.detections.count.tolist()
    assert (int(found.detections.count.sum()) > 0) == (score_thresh < 1)
    for a, b in zip(found.detections, expected.detections):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_nothing_is_active():
    detector = retinanet(selection=(1.0, 0))
    detector.sparse_tower = True
    assert detector(features(), [SIZE] * 2).detections.count.tolist() == [0, 0]


def test_maps_and_training_have_the_whole_tower():
    for detector in (scopenet(), retinanet()):
        detector.sparse_tower = True
        assert detector(features(), [SIZE] * 2, maps=True).maps is not None
