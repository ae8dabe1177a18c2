"""Each ablation switch changes what it says and nothing else: parameters, targets, losses, anchors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from fvcore.common.config import CfgNode

from ga_scope.config import load_config
from ga_scope.config.build import build_guided_anchor_rpn
from ga_scope.errors import ConfigError
from ga_scope.modeling.guided_anchoring.losses import center_loss
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.targets import Targets

CONFIG = Path(__file__).parents[2] / "configs" / "COCO-Detection" / "ga_faster_rcnn_R_50_FPN_1x_paper.yaml"

STRIDES, SIZE, C = (4, 8, 16, 32, 64), (64, 96), 16
GA = "MODEL.GUIDED_ANCHORING."


def build(**switches):
    """A GA-RPN from keys (below MODEL.GUIDED_ANCHORING, ``__`` for a dot)."""
    settings = {"MODEL.DEVICE": "cpu", "MODEL.META_ARCHITECTURE": "GeneralizedRCNN"}
    settings |= {GA + key.replace("__", "."): value for key, value in switches.items()}
    cfg = load_config(CfgNode(), CONFIG, [part for pair in settings.items() for part in pair], builtin=True)
    torch.manual_seed(0)
    return build_guided_anchor_rpn(cfg, C, STRIDES)


def features(images=2):
    torch.manual_seed(1)
    return [torch.randn(images, C, max(SIZE[0] // s, 1), max(SIZE[1] // s, 1)) for s in STRIDES]


def boxes():
    return [torch.tensor([[10.0, 8, 40, 50], [50, 20, 90, 40]]), torch.tensor([[5.0, 5, 30, 25]])]


def losses(rpn):
    torch.manual_seed(2)
    return rpn(features(), [SIZE] * 2, Targets(boxes())).losses


def shapes_of(rpn):
    return {name: tuple(p.shape) for name, p in rpn.named_parameters()}


ALL = {"loss_anchor_location", "loss_anchor_shape", "loss_rpn_cls", "loss_rpn_loc"}
FREE = {"ADAPTION__OFFSETS": "none"}
# switches: losses that are gone, parameters that are gone, parameters that come, parameters of another shape
CASES = {
    "location off": (
        {"LOCATION__ENABLED": False}, {"loss_anchor_location"}, {"head.location.weight", "head.location.bias"}, {}, {}
    ),
    "shape off": (
        {"SHAPE__ENABLED": False, **FREE}, {"loss_anchor_shape"},
        {"head.shape.weight", "head.shape.bias", "head.adaption.conv_offset.weight"}, {},
        {"head.objectness.weight": (3, C), "head.objectness.bias": (3,),
         "head.deltas.weight": (12, C), "head.deltas.bias": (12,)},
    ),
    "adaption off": (FREE, set(), {"head.adaption.conv_offset.weight"}, {}, {}),
    "unguided": (
        {"ADAPTION__OFFSETS": "features"}, set(), set(), {"head.adaption.conv_offset.bias": (72,)},
        {"head.adaption.conv_offset.weight": (72, C, 3, 3)},
    ),
    "centre predicted": (
        {"SHAPE__PREDICT_CENTER": True}, set(), set(), {},
        {"head.shape.weight": (4, C, 1, 1), "head.shape.bias": (4,)},
    ),
    "threshold": ({"LOCATION__THRESHOLD": 0.1}, set(), set(), {}, {}),
    "15 shapes": ({"SHAPE__SCALES": [1.0, 1.15, 1.32, 1.5, 1.75]}, set(), set(), {}, {}),
    "exact": ({"SHAPE__MODE": "exact"}, set(), set(), {}, {}),
    "lambda 2": ({"SHAPE__LOSS_WEIGHT": 0.2}, set(), set(), {}, {}),
    "sigma 1 and 2": ({"LOCATION__CENTER_RATIO": 0.5, "LOCATION__IGNORE_RATIO": 0.9}, set(), set(), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_losses(name):
    switches, losses_gone, gone, come, reshaped = CASES[name]
    full, rpn = build(), build(**switches)
    expected = {k: v for k, v in shapes_of(full).items() if k not in gone} | come | reshaped
    assert shapes_of(rpn) == expected
    assert set(losses(rpn)) == ALL - losses_gone
    sum(losses(rpn).values()).backward()
    assert all(p.grad is not None for p in rpn.parameters())
    assert len(rpn.eval()(features(), [SIZE] * 2).proposals.count) == 2


def with_weights_of(rpn, full):
    """The switch's model with the full model's parameters wherever they have the same shape."""
    theirs = full.state_dict()
    rpn.load_state_dict({k: v for k, v in theirs.items() if k in rpn.state_dict()}, strict=False)
    return rpn


@pytest.mark.parametrize(
    "switches, changed",
    [
        ({"LOCATION__ENABLED": False}, set()),
        ({"SHAPE__LOSS_WEIGHT": 0.2}, {"loss_anchor_shape"}),
        ({"LOCATION__CENTER_RATIO": 0.5, "LOCATION__IGNORE_RATIO": 0.9}, {"loss_anchor_location"}),
        ({"ADAPTION__OFFSETS": "none"}, {"loss_rpn_cls", "loss_rpn_loc"}),
        ({"LOCATION__THRESHOLD": 0.1}, set()),
    ],
)
def test_other_losses_stay(switches, changed):
    """With the same weights and samples, only the loss that a switch is about has another value."""
    full = build(CONV=False)
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    reference = losses(full)
    for key, value in losses(with_weights_of(build(**switches), full)).items():
        assert (value.item() != pytest.approx(reference[key].item(), rel=1e-6)) == (key in changed), key


def test_without_locations_every_location_is_active():
    rpn = build(LOCATION__ENABLED=False).eval()
    found = rpn(features(), [SIZE] * 2)
    assert found.anchors.tolist() == [found.locations] * 2


def test_without_everything_it_is_an_rpn():
    """No location, no shape, no offsets: an ordinary 3x3 convolution, ReLU, 1x1s, over three anchors everywhere."""
    rpn = build(LOCATION__ENABLED=False, SHAPE__ENABLED=False, ADAPTION__OFFSETS="none").eval()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    maps = features(1)
    logits, deltas = rpn.head.predict(maps, torch.zeros(0), torch.arange(rpn_locations(maps)))
    first = 0
    for m in maps:
        hidden = F.conv2d(m, rpn.head.adaption.conv_adaption.weight, padding=1).relu()
        count = m.shape[2] * m.shape[3] * 3
        for layer, out, width in ((rpn.head.objectness, logits[:, None], 1), (rpn.head.deltas, deltas, 4)):
            dense = F.conv2d(hidden, layer.weight[..., None, None], layer.bias)
            expected = dense.permute(0, 2, 3, 1).reshape(-1, width)  # (y, x, anchor): width numbers each
            torch.testing.assert_close(out[first : first + count], expected, rtol=1e-4, atol=1e-4)
        first += count
    found = rpn(maps, [SIZE])
    assert found.anchors.tolist() == [3 * found.locations]
    # The anchors are torchvision's, up to its rounding of sides and this project's half-cell centres.
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
    )
    images = torchvision.models.detection.image_list.ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    pyramid = Pyramid.of(maps, STRIDES, cell_offset=0.0)
    ours = rpn.shapes.decode(pyramid, torch.zeros(1, pyramid.locations, 0))[0]
    (theirs,) = generator(images, maps)
    strides = torch.cat([torch.full((n * 3,), s) for n, s in zip(pyramid.counts, STRIDES)])
    exact = strides < 64  # torchvision derives the last level's stride from the image: 64 px / 1 row
    torch.testing.assert_close(ours[exact], theirs[exact], rtol=0, atol=0.5)


def rpn_locations(maps):
    return sum(m.shape[2] * m.shape[3] for m in maps)


def test_fixed_shapes_at_listed_locations():
    rpn = build(SHAPE__ENABLED=False, ADAPTION__OFFSETS="none")
    pyramid = Pyramid.of(features(), STRIDES)
    everywhere = rpn.shapes.decode(pyramid, torch.zeros(2, pyramid.locations, 0)).flatten(0, 1).view(-1, 3, 4)
    locations = torch.randint(2 * pyramid.locations, (30,))
    listed = rpn.shapes.decode(pyramid, torch.zeros(30, 0), locations).view(-1, 3, 4)
    assert torch.equal(listed, everywhere[locations])
    sides = listed[..., 2:] - listed[..., :2]
    torch.testing.assert_close(sides[..., 1] / sides[..., 0], torch.tensor([0.5, 1.0, 2.0]).expand(30, 3))


def test_unguided_adaption_is_a_deformable_convolution_of_the_features():
    """Section 4.3: whatever the shapes, the offsets come from the features."""
    rpn = build(ADAPTION__OFFSETS="features")
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    maps, locations = features(), torch.tensor([0, 17, 300])
    results = [rpn.head.predict(maps, torch.randn(3, 2), locations) for _ in range(2)]
    torch.testing.assert_close(results[0], results[1])
    adaption = rpn.head.adaption
    m = maps[0]
    offset = 0.1 * F.conv2d(m, adaption.conv_offset.weight, adaption.conv_offset.bias, padding=1)
    adapted = torchvision.ops.deform_conv2d(m, offset, adaption.conv_adaption.weight, padding=1).relu()
    dense = adapted.flatten(2)[0].T[locations]  # all three lie on the first level of image 0
    torch.testing.assert_close(results[0][0], rpn.head.objectness(dense)[:, 0], rtol=1e-4, atol=1e-5)


def test_predicted_centres_move_anchors():
    rpn = build(SHAPE__PREDICT_CENTER=True)
    pyramid = Pyramid.of(features(), STRIDES)
    deltas = torch.tensor([[0.0, 0.0, 0.5, -0.25]])
    (box,) = rpn.shapes.decode(pyramid, deltas, torch.tensor([0])).tolist()  # stride 4, base 8 * 4
    assert box == pytest.approx([2 + 16 - 16, 2 - 8 - 16, 2 + 16 + 16, 2 - 8 + 16])
    maps = features()
    a, b = (rpn.head.predict(maps, torch.tensor([[0.3, 0.1, x, x]]), torch.tensor([40])) for x in (0.0, 3.0))
    torch.testing.assert_close(a, b)  # the adaption reads the shape alone (Eq. 3)


def test_centre_loss():
    centers = torch.tensor([[10.0, 10.0], [0.0, 50.0]], dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([[0.0, 0.0, 24.0, 16.0], [0.0, 0.0, 10.0, 20.0]], dtype=torch.float64)

    def term(shift, side, beta=0.2):
        x = 1 - max((side - 2 * shift) / (side + 2 * shift), 0)
        return 0.5 * x * x / beta if x < beta else x - 0.5 * beta

    expected = (term(2, 24) + term(2, 16) + term(5, 10) + term(40, 20)) / 2
    assert center_loss(centers, truth).mean().item() == pytest.approx(expected, rel=1e-12)
    assert center_loss(centers[:0], truth[:0]).shape == (0,)


def test_switches_that_contradict():
    with pytest.raises(ConfigError, match="ADAPTION.OFFSETS: expected 'features' or 'none' where SHAPE.ENABLED is F"):
        build(SHAPE__ENABLED=False)
    with pytest.raises(ConfigError, match="ADAPTION.OFFSETS: expected 'shape', 'features', 'none', got 'some'"):
        build(ADAPTION__OFFSETS="some")
