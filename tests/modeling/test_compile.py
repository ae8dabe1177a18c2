"""The heads under torch.compile: one graph for maps of any size, outputs and gradients as without."""

import pytest
import torch

from ga_scope.modeling.guided_anchoring import GuidedAnchorHead, GuidedAnchorRetinaHead
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.scope.bins import ScopeBins
from ga_scope.modeling.scope.head import ScopeHead

STRIDES = (8, 16)
CHANNELS = 8


def anchors(head, features, locations):
    """Guided Anchoring's two phases: everywhere, then at listed locations."""
    pyramid = Pyramid.of(features, STRIDES)
    hidden, location, shape = head.generate(pyramid, features)
    return location, shape, *head.predict(hidden, shape.flatten(0, 1)[locations], locations)


def retina(head, features, locations):
    """Towers and anchors everywhere, then classes and boxes at listed locations and what those read."""
    pyramid = Pyramid.of(features, STRIDES)
    towers, location, shape = head.generate(pyramid, features)
    grown = pyramid.around(locations, 1).flatten()
    rows = [f(pyramid, towers, shape, locations, grown) for f in (head.classify, head.regress)]
    return location, shape, *rows


def scope(head, features, locations):
    predictions = head(Pyramid.of(features, STRIDES), features)
    return *predictions, head.distances(predictions.borders, predictions.bin_logits.argmax(-1))


HEADS = {
    "anchors": (anchors, lambda: GuidedAnchorHead(CHANNELS, conv=True)),
    "anchors, offsets of features": (anchors, lambda: GuidedAnchorHead(CHANNELS, offsets="features")),
    "retina": (retina, lambda: GuidedAnchorRetinaHead(CHANNELS, 3, num_convs=1)),
    "scope": (scope, lambda: ScopeHead(CHANNELS, 3, ScopeBins(3), convs=1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_one_graph_for_any_size(name):
    function, make = HEADS[name]
    head = make()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for number, (height, width) in enumerate(((32, 48), (64, 48), (48, 80))):
        maps = [torch.randn(2, CHANNELS, height // s, width // s, requires_grad=True) for s in STRIDES]
        locations = torch.randint(2 * height * width * 5 // 256, (20 + number,))
        leaves = [*head.parameters(), *maps]
        found = []
        for run in (function, compiled):
            outputs = run(head, maps, locations)
            torch.manual_seed(number)
            total = sum((out * torch.randn_like(out)).sum() for out in outputs)
            found.append((*outputs, *torch.autograd.grad(total, leaves, allow_unused=True)))
        for expected, ours in zip(*found):
            assert (expected is None) == (ours is None)
            if expected is not None:
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
