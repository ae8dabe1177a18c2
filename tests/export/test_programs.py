"""Exported programs give the eager model's results, for images of any size and number."""

import copy

import pytest
import torch

from ga_scope.errors import ConfigError
from ga_scope.export.files import write_onnx
from ga_scope.export.program import Program, export_program

from .models import CLASSES, MODELS, awake, batch, faster_rcnn
from .same import assert_same

SIZES = ((1, 160, 160), (2, 192, 288), (4, 320, 224))


def eager(model, images, sizes, outputs):
    """The model's results of a batch that it pads itself."""
    with torch.no_grad():
        results = model([{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes.tolist())])
    found = results.proposals if results.detections is None else results.detections
    assert int(found.count.sum()) > 0
    return [getattr(found, name) for name in outputs]


def onnx_session(program, exported, path):
    """ONNX Runtime's session of a program, of standard operators alone."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra 'export')")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra 'export')")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra 'export')")
    write_onnx(program, exported, {"classes": ["object"] * CLASSES}, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 19)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


EXPORTED = [
    "GA-RPN without a budget",
    "GA-Faster R-CNN",
    "GA-RetinaNet",
    "RetinaNet",
    "ScopeNet",
]
# test_files.py has a GA-Faster R-CNN in ONNX and AOTInductor.
LONG = {"GA-RPN without a budget", "GA-Faster R-CNN", "GA-RetinaNet", "RetinaNet"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in EXPORTED]
)
def test_torch_and_onnx_give_what_the_model_does(name, tmp_path):
    """The eager model lists its locations, where the programs have a budget of them or all."""
    model = awake(MODELS[name]())
    program = Program(copy.deepcopy(model))
    exported = export_program(program)
    session = onnx_session(program, exported, tmp_path / "model.onnx")
    for images, height, width in SIZES:
        pixels, sizes = batch(images, height, width)
        expected = eager(model, pixels, sizes, program.outputs)
        assert_same(exported.module()(pixels, sizes), expected)
        found = session.run(None, {"images": pixels.numpy(), "sizes": sizes.numpy()})
        assert_same([torch.from_numpy(part) for part in found], expected)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(EXPORTED)))
def test_the_function_that_is_exported(name):
    model = awake(MODELS[name]())
    program = Program(copy.deepcopy(model))
    pixels, sizes = batch(2, 192, 288)
    with torch.no_grad():
        found = program(pixels, sizes)
    assert_same(found, eager(model, pixels, sizes, program.outputs))


def test_what_lies_beyond_the_size_does_not_matter():
    program = Program(awake(faster_rcnn()))
    pixels, sizes = batch(2, 192, 288)
    other = pixels.clone()
    for image, (height, width) in zip(other, sizes.tolist()):
        image[:, height:], image[:, :, width:] = 1e6, -3.0
    with torch.no_grad():
        for a, b in zip(program(pixels, sizes), program(other, sizes)):
            assert torch.equal(a, b)


def test_fast_rcnn_is_refused():
    model = faster_rcnn()
    model.proposal_generator = None
    with pytest.raises(ConfigError, match="PROPOSAL_GENERATOR.NAME: expected a network that makes proposals"):
        Program(model)
