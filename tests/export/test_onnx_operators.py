"""The operators in standard ONNX, against the operators: every kind of location, offsets off the map, no numbers."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from ga_scope.ops import deform_conv2d, masked_conv2d, nms_mask

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra 'export')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra 'export')")

CHANNELS, OUTPUTS, CLASSES = 8, 6, 3
SIZES = [(8, 12), (4, 6)]


class Operators(nn.Module):
    """All at once: to write one graph takes longer than to run it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUTPUTS, CHANNELS, 3, 3) * 0.2, requires_grad=False)
        self.bias = nn.Parameter(torch.randn(OUTPUTS), requires_grad=False)
        self.offset_weight = nn.Parameter(torch.randn(2 * 2 * 9, 2), requires_grad=False)

    def forward(self, high, low, locations, deltas, offsets, boxes, groups, valid):
        maps, options = [high, low], {"padding": 1, "locations": locations}
        return (
            deform_conv2d(maps, deltas, self.weight, offset_weight=self.offset_weight, **options),
            deform_conv2d(maps, offsets, self.weight, self.bias, **options),
            masked_conv2d(maps, self.weight, self.bias, **options),
            nms_mask(boxes, 0.5, groups=groups, valid=valid),
            nms_mask(boxes, 0.3, valid=valid),
            nms_mask(boxes, 0.7),
        )


def inputs(images, every):
    sizes = [(height * images, width) for height, width in SIZES]
    maps = [torch.randn(images, CHANNELS, *size) for size in sizes]
    count = images * sum(height * width for height, width in sizes)
    locations = torch.arange(count) if every else torch.randint(count, (40 + images,))
    deltas, offsets = torch.randn(len(locations), 2), 4 * torch.randn(len(locations), 2 * 2 * 9)
    offsets[::5, ::7] = offsets[::5, ::7].round()  # on the pixels themselves
    if not every:
        offsets[0], offsets[1, :5], offsets[2] = torch.nan, torch.inf, -1e30
    corner = 20 * torch.rand(images, 30, 2)
    boxes = torch.cat([corner, corner + 1 + 10 * torch.rand(images, 30, 2)], 2)
    groups, valid = torch.randint(CLASSES, (images, 30)), torch.rand(images, 30) < 0.8
    return *maps, locations, deltas, offsets, boxes, groups, valid


@pytest.mark.parametrize("sparse", [True, False])
def test_operators(sparse, tmp_path):
    from ga_scope.export.onnx_operators import translations

    module, example = Operators(), inputs(2, not sparse)
    batch, rows, listed = Dim("batch", min=1, max=9), Dim("rows", min=2, max=99), Dim("listed", min=2)
    maps = [{0: batch, 2: 2 * rows}, {0: batch, 2: rows}]
    shapes = (*maps, *[{0: listed}] * 3, *[{0: batch}] * 3)
    exported = torch.export.export(module, example, dynamic_shapes=shapes)
    written = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=19,
        custom_translation_table=translations(sparse, CLASSES),
        verbose=False,
    )
    path = tmp_path / "operators.onnx"
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for images in (1, 2, 3):
        given = inputs(images, not sparse)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, given)})
        for ours, expected in zip(found, module(*given)):
            torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-4)
