"""The operators as citizens of torch: opcheck, torch.compile, torch.export, and the library itself."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ga_scope
from ga_scope.ops import _library, deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match

OPS = torch.ops.ga_scope
PAIRS = [1, 1], [1, 1], [1, 1]  # stride, padding, dilation


def convolution_arguments(layout=torch.contiguous_format):
    maps = [torch.randn(2, 4, *size).contiguous(memory_format=layout).requires_grad_() for size in ((5, 6), (3, 3))]
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    return maps, weight, bias, torch.tensor([0, 7, 7, 77])


def sample_calls():
    for layout in (torch.contiguous_format, torch.channels_last):
        maps, weight, bias, locations = convolution_arguments(layout)
        dense_offset = [torch.randn(2, 36, *m.shape[2:], requires_grad=True) for m in maps]
        dense_mask = [torch.rand(2, 18, *m.shape[2:], requires_grad=True) for m in maps]
        rows, mask = torch.randn(4, 36, requires_grad=True), torch.rand(4, 18, requires_grad=True)
        shape, matrix = torch.randn(4, 2, requires_grad=True), torch.randn(36, 2, requires_grad=True)
        tail = (*PAIRS, 1, 2, False)
        yield OPS.deform_conv2d, (maps, dense_offset, weight, bias, dense_mask, None, None, *tail)
        yield OPS.deform_conv2d, (maps, [rows], weight, None, [mask], None, locations, *tail)
        yield OPS.deform_conv2d, (maps, [shape], weight, bias, [], matrix, locations, *tail)
        yield OPS.deform_conv2d, (maps, [shape], weight, bias, None, matrix, locations, *tail)
        yield OPS.masked_conv2d, (maps, weight, bias, locations, *PAIRS, 1, False)
    boxes = torch.tensor([[1.0, 2, 20, 30], [4, 4, 9, 9], [0, 0, 31, 31]])
    levels = [4, 2], [5, 3], [8.0, 16.0]
    crowds = boxes[1:], [0, 2]
    yield OPS.viou_match, (boxes, [2, 1], *crowds, *levels, None, None, 0.5, 0.0, 0.0)
    yield OPS.viou_match, (boxes, [2, 1], *crowds, *levels, torch.rand(2, 5, 2) * 64, None, 0.5, 0.3, None)
    yield OPS.iou_match, (boxes, [3], boxes[:2], [2], boxes[:0], [0], 0.5, 0.3)
    for rounded in (False, True):
        yield OPS.location_targets, (boxes, [0, 3], *crowds, *levels, 8.0, 0.2, 0.5, 0.5, rounded)
    yield OPS.nms_mask, (boxes[None], None, None, 0.5)
    yield OPS.nms_mask, (boxes[None], torch.tensor([[0, 1, 0]]), torch.tensor([[True, True, False]]), 0.1)


CALLS = list(sample_calls())


@pytest.mark.parametrize("call", range(len(CALLS)), ids=[f"{op}-{i}" for i, (op, _) in enumerate(CALLS)])
def test_opcheck(call):
    op, args = CALLS[call]
    torch.library.opcheck(
        op,
        args,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def deformed(x, offset, weight):
    return deform_conv2d(x, offset, weight, padding=1).relu()


def deformed_at(x, shape, weight, matrix, locations):
    return deform_conv2d([x, x[..., ::2, ::2]], shape, weight, padding=1, locations=locations, offset_weight=matrix)


def masked(x, weight, mask):
    return masked_conv2d(x, weight, padding=1, mask=mask, dense=True)


def masked_at(x, weight, locations):
    return masked_conv2d(x, weight, padding=1, locations=locations)


def matched(boxes, anchors, x):
    size, strides = [x.shape[2:]], [8]
    labels = location_targets(boxes, size, strides, ignore_boxes=anchors)
    return viou_match(boxes, size, strides).iou, iou_match(anchors, boxes, ignore_boxes=boxes).ignored, labels


def suppressed(boxes):
    return nms_mask(boxes[None], 0.3)


def arguments(function, size):
    height, width = size
    x, weight = torch.randn(2, 4, height, width), torch.randn(6, 4, 3, 3)
    boxes = torch.rand(height, 4).cumsum(1) * 20
    locations = torch.arange(0, height * width, 3)
    return {
        deformed: (x, torch.randn(2, 36, height, width), weight),
        deformed_at: (x, torch.randn(len(locations), 2), weight, torch.randn(36, 2), locations),
        masked: (x, weight, torch.rand(2, height, width) < 0.5),
        masked_at: (x, weight, locations),
        suppressed: (boxes,),
        matched: (boxes, torch.rand(width, 4).cumsum(1) * 20, x),
    }[function]


FUNCTIONS = [deformed, deformed_at, masked, masked_at, matched, suppressed]


def leaves(values):
    return [v for v in values if v.is_floating_point()]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compile(function):
    """fullgraph, dynamic shapes: one compilation serves several sizes, gradients included."""
    # A mask becomes a list of locations: its length depends on the data.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((6, 8), (7, 9), (11, 10)):
            args = arguments(function, size)
            needs_grad = function in (deformed, deformed_at, masked_at)
            for value in leaves(args):
                value.requires_grad_(needs_grad)
            ours, expected = compiled(*args), function(*args)
            torch.testing.assert_close(ours, expected)
            if needs_grad:
                grad = torch.randn_like(expected)
                for a, b in zip(
                    torch.autograd.grad(ours, leaves(args), grad), torch.autograd.grad(expected, leaves(args), grad)
                ):
                    torch.testing.assert_close(a, b)


class Exported(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_export_with_dynamic_sizes(function):
    auto = torch.export.Dim.AUTO
    args = arguments(function, (12, 16))
    dynamic = tuple(dict.fromkeys(range(a.dim()), auto) for a in args)
    program = torch.export.export(Exported(function), args, dynamic_shapes=(dynamic,))
    for size in ((12, 16), (9, 14), (20, 11)):
        again = arguments(function, size)
        torch.testing.assert_close(program.module()(*again), function(*again))


@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
def test_torch_has_what_the_cuda_kernels_look_up():
    """csrc/cuda/device_grid.h finds the current stream by name, in a library that torch has loaded."""
    library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    assert library.aoti_torch_get_current_cuda_stream


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env={**os.environ, **environment}
    )


def test_ops_need_torch_alone():
    """The operators import where no other package of the project's dependencies does, from any directory."""
    allowed = "torch numpy ga_scope"
    code = f"""
import sys, ga_scope.ops
root = {str(Path(ga_scope.__file__).parent.parent)!r}
bad = [m for m in ("torchvision", "fvcore", "pycocotools", "PIL", "detectron2", "matplotlib") if m in sys.modules]
assert not bad, bad
print("imported with {allowed}")
"""
    result = run_python(code, PYTHONPATH=str(Path(ga_scope.__file__).parent.parent))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("contents", [None, b"not a library"])
def test_missing_or_broken_library_says_what_and_why(tmp_path, contents):
    package = tmp_path / "ga_scope"
    (package / "ops").mkdir(parents=True)
    source = Path(ga_scope.__file__).parent
    for name in ("__init__.py", *(f"ops/{p.name}" for p in (source / "ops").glob("*.py"))):
        (package / name).write_text((source / name).read_text())
    if contents is not None:
        (package / "_operators.so").write_bytes(contents)
        (package / "_build_record.json").write_text(json.dumps(_library.build_record()))
    result = run_python("import ga_scope.ops", PYTHONPATH=str(tmp_path))
    assert "ImportError" in result.stderr
    if contents is None:
        assert "operators are not built" in result.stderr and "pip install -e ." in result.stderr
    else:
        assert "built for: torch" in result.stderr and "found:     torch" in result.stderr


def run_tests_with(capability, *arguments):
    """Of the operators, in a process that is held to an instruction set."""
    here, environment = Path(__file__).parent, {**os.environ, "GA_SCOPE_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("capability", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_numbers(capability):
    names = "test_deform_conv.py", "test_masked_conv.py", "test_matching.py", "test_nms.py"
    run_tests_with(capability, *names, "-k", "definition or sampled_equals_the_matrix")


def test_products_of_bfloat16_keep_the_tolerance():
    """What AVX512-BF16 and AMX compute, in C++: samples are rounded before they are multiplied. Any processor."""
    without = "not viou and not iou and not location_targets and not float64"
    run_tests_with("bfloat16_reference", "test_precision.py", "-k", without)


def test_capability_that_does_not_exist_is_an_error():
    for wrong in ("mmx", "avx512_bf17"):
        result = run_python(
            "import torch; from ga_scope.ops import masked_conv2d as f;"
            "f(torch.zeros(1,1,3,3), torch.zeros(1,1,3,3), locations=torch.tensor([0]))",
            GA_SCOPE_CPU_CAPABILITY=wrong,
            PYTHONPATH=str(Path(ga_scope.__file__).parent.parent),
        )
        expected = "GA_SCOPE_CPU_CAPABILITY: expected, on this processor, one of bfloat16_reference, portable"
        assert expected in result.stderr and f"got {wrong}" in result.stderr


TF32 = """
import torch
from ga_scope.ops import _arguments
torch.backends.cuda.matmul.allow_tf32 = False  # matrix products have a switch of their own
found = [_arguments.tf32_allowed()]
for allowed in (False, True, False):
    torch.backends.cudnn.allow_tf32 = allowed
    found.append(_arguments.tf32_allowed())
torch.backends.cudnn.conv.fp32_precision = "tf32"
found.append(_arguments.tf32_allowed())
compiled = torch.compile(lambda x: x + _arguments.tf32_allowed(), fullgraph=True, backend="eager")
print(*found, compiled(torch.zeros(1)).item())
"""


def test_both_switches_of_tf32():
    """The convolutions'. torch refuses to answer the older one's question where the newer one was used."""
    result = subprocess.run([sys.executable, "-c", TF32], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "False", "True", "False", "True", "1.0"], result.stderr
