"""What people do with torchvision's deformable convolution works here by changing an import, or is refused by name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ga_scope import ops

OPS = torch.ops.ga_scope

# A modulated layer as user code writes it, whichever package its operator comes from.
USERS_PACK = """
import torch
from torch import nn
from {package} import DeformConv2d


class Pack(DeformConv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv_offset = nn.Conv2d(
            self.in_channels, 3 * self.kernel_size[0] * self.kernel_size[1], self.kernel_size, self.stride,
            self.padding, self.dilation, bias=True,
        )

    def forward(self, x):
        first, second, mask = torch.chunk(self.conv_offset(x), 3, dim=1)
        return super().forward(x, torch.cat((first, second), dim=1), torch.sigmoid(mask))
"""

# A functional layer: torchvision's function by position and by keyword.
USERS_FUNCTION = """
import torch
from {package} import deform_conv2d


def layer(x, offset, weight, bias, mask):
    first = deform_conv2d(x, offset, weight, bias, (1, 1), 1, 1, mask)
    return first + deform_conv2d(input=x, offset=offset, weight=weight, stride=1, padding=(1, 1), mask=None)
"""


def from_source(source, package, name):
    namespace = {}
    exec(source.format(package=package), namespace)
    return namespace[name]


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision")


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 1), "stride": 2, "padding": (1, 0), "dilation": 2, "groups": 2, "bias": False},
    ],
)
def test_attributes_are_torchvisions(torchvision, settings):
    ours, theirs = ops.DeformConv2d(4, 6, **settings), torchvision.ops.DeformConv2d(4, 6, **settings)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    for name in names:
        mine, expected = getattr(ours, name), getattr(theirs, name)
        assert type(mine) is type(expected) and mine == expected, name
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert (ours.bias is None) == (theirs.bias is None)
    assert "4, 6, kernel_size=" in repr(ours)


def test_a_users_layer_runs_with_the_import_changed(torchvision):
    ours, theirs = (
        from_source(USERS_PACK, p, "Pack")(4, 6, 3, stride=2, padding=1) for p in ("ga_scope.ops", "torchvision.ops")
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    arguments = x, torch.randn(2, 18, 9, 8), torch.randn(6, 4, 3, 3), torch.randn(6), torch.rand(2, 9, 9, 8)
    mine, expected = (from_source(USERS_FUNCTION, p, "layer")(*arguments) for p in ("ga_scope.ops", "torchvision.ops"))
    torch.testing.assert_close(mine, expected)


class Block(nn.Module):
    """A residual block's middle, as detection backbones have it."""

    def __init__(self, layer):
        super().__init__()
        self.conv2 = layer

    def forward(self, x):
        return self.conv2(x).relu()


def mmcv_checkpoint(columns_per_tap, groups=2, bias=False):
    """A block's weights by the names that mmcv gives them."""
    columns = columns_per_tap * groups * 9
    state = {
        "conv2.weight": torch.randn(6, 4, 3, 3),
        "conv2.conv_offset.weight": torch.randn(columns, 4, 3, 3) * 0.3,
        "conv2.conv_offset.bias": torch.randn(columns),
    }
    return state | {"conv2.bias": torch.randn(6)} if bias else state


def expected_of_pack(torchvision, state, x, modulated):
    """By torchvision's operator, from the checkpoint's numbers."""
    columns = nn.functional.conv2d(x, state["conv2.conv_offset.weight"], state["conv2.conv_offset.bias"], padding=1)
    mask = None
    if modulated:  # mmcv: o1, o2, mask = chunk(out, 3); offset = cat(o1, o2)
        first, second, mask = columns.chunk(3, 1)
        columns, mask = torch.cat([first, second], 1), mask.sigmoid()
    weight, bias = state["conv2.weight"], state.get("conv2.bias")
    return torchvision.ops.deform_conv2d(x, columns, weight, bias, padding=1, mask=mask).relu()


@pytest.mark.parametrize("modulated", [False, True])
def test_packs_load_mmcvs_checkpoints(torchvision, modulated):
    layer = ops.ModulatedDeformConv2dPack if modulated else ops.DeformConv2dPack
    state = mmcv_checkpoint(3 if modulated else 2, bias=modulated)
    block = Block(layer(4, 6, 3, padding=1, deform_groups=2))
    block.load_state_dict(state)
    x = torch.randn(2, 4, 7, 9)
    torch.testing.assert_close(block(x), expected_of_pack(torchvision, state, x, modulated))


@pytest.mark.parametrize("layer, factor", [(ops.DeformConv2dPack, 1.0), (ops.ModulatedDeformConv2dPack, 0.5)])
def test_packs_start_as_a_convolution(layer, factor):
    pack, x = layer(4, 6, 3, stride=2, padding=1, bias=False), torch.randn(1, 4, 8, 9)
    expected = factor * nn.functional.conv2d(x, pack.weight, stride=2, padding=1)
    torch.testing.assert_close(pack(x), expected)
    with pytest.raises(ValueError, match="deform_groups: expected a divisor of in_channels = 4, got 3"):
        layer(4, 6, 3, deform_groups=3)


def test_numpys_integers():
    x, offset, weight = torch.randn(1, 4, 6, 6), torch.randn(1, 18, 3, 3), torch.randn(6, 4, 3, 3)
    one, two = np.int64(1), np.int32(2)
    expected = ops.deform_conv2d(x, offset, weight, stride=2, padding=1)
    assert torch.equal(ops.deform_conv2d(x, offset, weight, stride=two, padding=(one, one)), expected)
    at, half = torch.tensor([3, 1]), torch.randn(6, 2, 3, 3)
    expected = ops.masked_conv2d(x, half, stride=2, padding=1, groups=2, locations=at)
    assert torch.equal(ops.masked_conv2d(x, half, stride=two, padding=one, groups=two, locations=at), expected)
    layer = ops.DeformConv2d(np.int64(4), np.int64(6), np.int64(3), padding=one)
    assert layer.weight.shape == (6, 4, 3, 3) and type(layer.padding[0]) is int
    for wrong in (1.0, "1", (1, 2, 3), (1, 1.0), None):
        with pytest.raises(ValueError, match="stride: expected an int or two ints, got"):
            ops.deform_conv2d(x, offset, weight, stride=wrong)
    with pytest.raises(ValueError, match="groups: expected an int, got 1.5"):
        ops.masked_conv2d(x, weight, groups=1.5, locations=at)


def deformed(x, offset, weight, mask):
    return ops.deform_conv2d(x, offset, weight, padding=1, mask=mask)


def deformed_at(x, rows, weight, locations):
    return ops.deform_conv2d([x, x], rows, weight, padding=1, locations=locations)


def masked_at(x, weight, bias, locations):
    return ops.masked_conv2d(x, weight, bias, padding=1, locations=locations)


def suppressed(boxes, groups):
    return ops.nms_mask(boxes, 0.3, groups=groups)


def vmap_calls():
    x, offset, mask = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 18, 5, 6), torch.rand(3, 2, 9, 5, 6)
    weight, weights = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3, 3)
    rows, locations = torch.randn(3, 7, 18), torch.randint(120, (3, 7))
    corner = torch.rand(3, 1, 9, 2) * 4
    boxes = torch.cat([corner, corner + 5], -1)
    return [
        (deformed, (x, offset, weight, mask), (0, 0, None, 0)),
        (deformed, (x[0], offset[0], weights, mask[0]), (None, None, 4, None)),
        (deformed_at, (x, rows, weight, locations), (0, 0, None, 0)),
        (masked_at, (x, weights, None, locations[0] % 60), (0, 4, None, None)),
        (suppressed, (boxes, torch.randint(2, (1, 9))), (0, None)),
    ]


def entry(values, dims, number):
    return [v if d is None else v.select(d, number) for v, d in zip(values, dims)]


@pytest.mark.parametrize("number", range(5))
def test_vmap(number):
    function, values, dims = vmap_calls()[number]
    expected = torch.stack([function(*entry(values, dims, b)) for b in range(3)])
    assert torch.equal(torch.vmap(function, dims)(*values), expected)


@pytest.mark.parametrize("number", range(4))
def test_gradients_through_vmap(number):
    function, values, dims = vmap_calls()[number]
    leaves = [v.requires_grad_() for v in values if v is not None and v.is_floating_point()]
    mapped = torch.vmap(function, dims)(*values)
    looped = torch.stack([function(*entry(values, dims, b)) for b in range(3)])
    grad = torch.randn_like(mapped)
    for ours, expected in zip(torch.autograd.grad(mapped, leaves, grad), torch.autograd.grad(looped, leaves, grad)):
        torch.testing.assert_close(ours, expected)


def test_forward_mode_is_refused():
    """A tangent would be dropped without a word."""
    x, offset, weight, mask = (v[0] if d == 0 else v for v, d in zip(*vmap_calls()[0][1:]))
    at = torch.tensor([0, 5])
    calls = {
        "deform_conv2d": [lambda x: deformed(x, offset, weight, mask), lambda o: deformed(x, o, weight, mask)],
        "masked_conv2d": [lambda x: masked_at(x, weight, None, at)],
    }
    for name, functions in calls.items():
        for function, value in zip(functions, (x, offset)):
            message = f"ga_scope::{name}: forward-mode automatic differentiation is not supported"
            with pytest.raises(RuntimeError, match=message):
                torch.func.jvp(function, (value,), (torch.ones_like(value),))
            with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
                function(forward_ad.make_dual(value, torch.ones_like(value)))
            with forward_ad.dual_level():
                function(value)  # no tangent: nothing to drop


class UsersModel(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor):
        return self.layer(x)


def uses_function(x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor):
    return ops.deform_conv2d(x, offset, weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "name, subject",
    [
        ("DeformConv2d", ops.DeformConv2d(4, 4, 3)),
        ("DeformConv2d", UsersModel(ops.DeformConv2dPack(4, 4, 3))),
        ("MaskedConv2d", UsersModel(ops.MaskedConv2d(4, 4, 3))),
        ("deform_conv2d", uses_function),
        ("masked_conv2d", ops.masked_conv2d),
        ("nms_mask", ops.nms_mask),
        ("viou_match", ops.viou_match),
    ],
)
def test_torchscript_is_refused_with_what_to_use(name, subject):
    with pytest.raises(RuntimeError, match=f"ga_scope.ops.{name}: TorchScript is not supported: use torch.export"):
        torch.jit.script(subject)


WRONG = [
    ("deform_conv2d", {"offset": [2, 36, 6, 6]}, r"offset: expected shape \[2, 36, 5, 6\], got \[2, 36, 6, 6\]"),
    ("deform_conv2d", {"offset": [2, 18, 5, 6]}, r"offset: expected shape \[2, 36, 5, 6\], got \[2, 18, 5, 6\]"),
    ("deform_conv2d", {"offset": [36, 5, 6]}, r"offset: expected .*shape \[2, 36, 5, 6\]|offset: expected a 4-D"),
    ("deform_conv2d", {"mask": [2, 17, 5, 6]}, r"mask: expected shape \[2, 18, 5, 6\], got \[2, 17, 5, 6\]"),
    ("deform_conv2d", {"bias": [5]}, r"bias: expected shape \[6\], got \[5\]"),
    ("deform_conv2d", {"weight": [6, 3, 3, 3]}, r"weight: expected shape \[C_out, 4 / groups"),
    ("deform_conv2d", {"weight": [6, 4, 3]}, "weight: expected a 4-D tensor"),
    ("deform_conv2d", {"weight": [6, 4, 9, 3]}, "input: expected maps that a .* kernel fits after padding"),
    ("masked_conv2d", {"locations": [3, 1]}, "locations: expected a 1-D tensor"),
    ("masked_conv2d", {"weight": [6, 4, 3, 3], "bias": [7]}, r"bias: expected shape \[6\], got \[7\]"),
]


@pytest.mark.parametrize("op, change, message", WRONG)
@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake kernel"])
def test_kernels_and_fake_kernels_refuse_the_same_shapes(op, change, message, fake):
    shapes = {"input": [2, 4, 5, 6], "offset": [2, 36, 5, 6], "weight": [6, 4, 3, 3], "bias": [6]}
    shapes |= {"mask": [2, 18, 5, 6], "locations": [3]} | change
    mode = FakeTensorMode() if fake else torch.no_grad()
    with mode, pytest.raises(RuntimeError, match=message):
        tensor = {name: torch.zeros(shape) for name, shape in shapes.items()}
        locations = torch.zeros(shapes["locations"], dtype=torch.int64)
        settings = [1, 1], [1, 1], [1, 1]
        maps, weight, bias = [tensor["input"]], tensor["weight"], tensor["bias"]
        if op == "masked_conv2d":
            OPS.masked_conv2d(maps, weight, bias, locations, *settings, 1, False)
        else:
            OPS.deform_conv2d(
                maps, [tensor["offset"]], weight, bias, [tensor["mask"]], None, None, *settings, 1, 2, False
            )


@pytest.mark.parametrize("sparse", [False, True])
def test_no_output_channel(sparse, device):
    """A pruned model has such a weight."""
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    weight, bias = torch.randn(0, 4, 3, 3, requires_grad=True), torch.randn(0, requires_grad=True)
    at = torch.tensor([0, 7, 7]) if sparse else None
    offset = torch.randn(*([3, 18] if sparse else [2, 18, 5, 6]), requires_grad=True)
    out = ops.deform_conv2d(x, offset, weight, bias, padding=1, locations=at)
    assert out.shape == ((3, 0) if sparse else (2, 0, 5, 6))
    leaves = (x, offset, weight, bias)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves)):
        assert torch.equal(grad, torch.zeros_like(leaf))
    if sparse:
        out = ops.masked_conv2d(x, weight, bias, padding=1, locations=at)
        assert out.shape == (3, 0)
        grad_x, grad_weight = torch.autograd.grad(out.sum(), (x, weight))
        assert not grad_x.any() and grad_weight.shape == weight.shape
