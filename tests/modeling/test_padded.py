"""Inference of fixed sizes: the same results as without, and nothing in it that a CUDA graph could not hold."""

import contextlib
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ga_scope.modeling.box_coding import BoxCoder
from ga_scope.modeling.cuda_graph import Replay
from ga_scope.modeling.guided_anchoring import (
    AnchorGeneration,
    AnchorShapes,
    FixedShapes,
    GuidedAnchorHead,
    GuidedAnchorRetinaHead,
    GuidedAnchorRetinaNet,
    GuidedAnchorRPN,
    LocationSelection,
)
from ga_scope.modeling.scope.bins import ScopeBins
from ga_scope.modeling.scope.detector import ScopeDetector
from ga_scope.modeling.scope.head import ScopeHead
from ga_scope.modeling.scope.quality import DistributionQuality
from ga_scope.modeling.scope.targets import ScopeTargets

STRIDES = (8, 16, 32)
SIZES = [(64, 96), (50, 70)]  # of the images in the batch
CLASSES = 3


def features(size=SIZES[0], images=2):
    return [torch.randn(images, 16, size[0] // s, size[1] // s) for s in STRIDES]


def spread(model, std):
    """The initial weights are too small for anything to be found."""
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def rpn(threshold=0.0, topk=20, **options):
    options = {"shapes": AnchorShapes(2.0, std=0.3)} | options
    head = GuidedAnchorHead(16, conv=True, shape_columns=options["shapes"].columns, **options.pop("head", {}))
    return spread(
        GuidedAnchorRPN(head, STRIDES, selection=LocationSelection(threshold, topk), nms_thresh=0.5, **options), 0.1
    )


def retinanet(threshold=0.0, topk=20, **options):
    head = GuidedAnchorRetinaHead(16, CLASSES, num_convs=2)
    selection = LocationSelection(threshold, topk)
    return spread(GuidedAnchorRetinaNet(head, STRIDES, shapes=AnchorShapes(3.0), selection=selection, **options), 0.1)


def scopenet(**options):
    bins = ScopeBins(5)
    head = ScopeHead(16, CLASSES, bins, convs=2)
    quality = DistributionQuality(5) if options.pop("quality", False) else None
    detector = ScopeDetector(head, STRIDES, targets=ScopeTargets((64, 128)), quality=quality, **options)
    return spread(detector, 0.1)


MODELS = {
    "rpn": rpn,
    "rpn, few per level and in all": lambda: rpn(pre_nms_topk=(9, 9), post_nms_topk=(12, 12), min_size=4.0),
    "rpn, threshold": lambda: rpn(threshold=0.5, topk=60),
    "rpn, all": lambda: rpn(topk=10**6),
    "rpn, other coding": lambda: rpn(box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), cell_offset=0.0),
    "rpn, fixed shapes": lambda: rpn(
        shapes=FixedShapes.of([(16,), (32,), (64,)], [(0.5, 1.0)] * 3),
        head={"offsets": "none", "anchors_per_location": 2},
    ),
    "rpn, no location branch": lambda: rpn(topk=0, head={"location": False}),
    "retinanet": retinanet,
    "retinanet, few": lambda: retinanet(topk=10, topk_candidates=7, detections_per_image=12, score_thresh=0.0),
    "retinanet, threshold": lambda: retinanet(threshold=0.5, topk=60, score_thresh=0.4),
    "scopenet": scopenet,
    "scopenet, few": lambda: scopenet(topk=9, detections_per_image=5, score_thresh=0.4),
    "scopenet, quality": lambda: scopenet(quality=True),
}


def padded(model):
    """The model's inference of fixed sizes, as a function of tensors."""
    more = {"fixed_size": True} if isinstance(model, AnchorGeneration) else {}  # the others' always is

    def infer(features, sizes):
        found = model(features, sizes, **more)
        return found.detections if found.proposals is None else found.proposals

    return infer


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_ordinary_inference(name):
    model, found_any = MODELS[name](), 0
    for size in ((64, 96), (96, 64), (128, 160)):
        sizes = [size, (size[0] - 14, size[1] - 26)]
        maps = features(size)
        expected = model(maps, sizes)
        expected = expected.detections if expected.proposals is None else expected.proposals
        found = padded(model)(maps, torch.tensor(sizes))
        assert len({len(part) for part in found}) == 1
        for ours, theirs in zip(found.unpad(), expected.unpad()):
            found_any += len(theirs[0])
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        room = torch.arange(found.boxes.shape[1])
        for part in found[:-1]:
            assert not part[room >= found.count[:, None]].any()
    assert found_any > 6


def test_nothing_found():
    for model in (rpn(threshold=1.0), retinanet(threshold=1.0), scopenet(score_thresh=1.0)):
        found = padded(model)(features(), torch.tensor(SIZES))
        assert found.count.tolist() == [0, 0] and not found.boxes.any()
        assert [len(image[0]) for image in found.unpad()] == [0, 0]


def test_a_budget_is_needed():
    for model in (rpn(threshold=0.01, topk=0), retinanet(threshold=0.01, topk=0)):
        with pytest.raises(ValueError, match="selection: expected a budget"):
            padded(model)(features(), torch.tensor(SIZES))


def test_a_replay_needs_cuda():
    with pytest.raises(RuntimeError, match="inputs: expected CUDA tensors"):
        Replay(padded(rpn()), features(), torch.tensor(SIZES))


def test_replay_copies_inputs_and_rereads_results(monkeypatch):
    """With a stand-in for torch.cuda whose graph runs the function again, into the same results."""
    calls = []

    def function(a, more):
        calls.append(torch.is_grad_enabled())
        return {"sum": a + more["b"]}

    class Graph:
        def replay(self):
            results = function(*replay._structure.unflatten(replay._inputs))
            replay._results["sum"].copy_(results["sum"])

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    a, b = torch.ones(2, requires_grad=True), torch.ones(2)
    replay = Replay(function, a, {"b": b})
    assert len(calls) == 4 and not any(calls)  # three to warm up, one captured, no gradients
    first = replay(torch.tensor([1.0, 2.0]), {"b": torch.tensor([10.0, 20.0])})["sum"]
    assert first.tolist() == [11, 22]
    assert replay(torch.zeros(2), {"b": b})["sum"] is first and first.tolist() == [1, 1]
    replay(a, {"b": b})
    assert not any(value.requires_grad for value in replay._inputs)
    assert a.tolist() == [1, 1], "the examples are not written to"
    with pytest.raises(ValueError, match=r"inputs: expected shape \[2\] at 1, got \[3\]"):
        replay(a, {"b": torch.ones(3)})
    with pytest.raises(ValueError, match="inputs: expected "):
        replay(a, b)


# ---- what a CUDA graph could not hold --------------------------------------------------------------

# Operators whose result has a size that the data decides, or that hand a number to the host.
WAITING = {
    *("nonzero", "argwhere", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "nms"),
    *("_local_scalar_dense", "is_nonzero", "equal", "bincount", "histc", "repeat_interleave", "multinomial"),
}


class NoWaiting(TorchDispatchMode):
    """Refuses, among operators on (fake) CUDA tensors, those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{function} waits for the device, or has a result of a size that the data decides"
        out = function(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        masks = [
            t for t in tree_leaves(args[1:2]) if isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8)
        ]
        assert not (name.startswith("index") and masks), f"{function} with a mask has a result of unknown size"
        # Numbers that the host knows may take part: they travel with the launch.
        copies = name in ("_to_copy", "copy_")
        devices = {t.device.type for t in (*given, *made) if t.dim() > 0 or copies}
        assert len(devices) < 2, f"{function} copies between {sorted(devices)}"
        if devices:
            assert devices == {"cuda"}, f"{function} works on the host: its result would have to be copied"
        self.count += 1
        return out


def on_fake_gpu(model):
    """The model's parameters, and inputs, as fake CUDA tensors of the mode: shapes and devices, no numbers."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
    if isinstance(getattr(model, "shapes", None), FixedShapes):
        model.shapes.level_sides = torch.empty(model.shapes.level_sides.shape)
    maps = [torch.empty(2, 16, SIZES[0][0] // s, SIZES[0][1] // s, device="cuda") for s in STRIDES]
    return maps, torch.empty(2, 2, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_for_the_device(name):
    """Every operator of the inference, on tensors that believe to be on a GPU."""
    model = MODELS[name]()
    with FakeTensorMode():
        maps, sizes = on_fake_gpu(model)
        padded(model)(maps, sizes)  # a graph is captured after a first call
        watch = NoWaiting()
        with watch:
            found = padded(model)(maps, sizes)
    assert watch.count > 50 and all(part.is_cuda for part in found)


@pytest.mark.parametrize("model", [lambda: rpn(0.01, 0), lambda: retinanet(0.01, 0)])
def test_the_ordinary_inference_waits(model):
    """That the check above can fail."""
    model = model()
    with FakeTensorMode():
        maps, _ = on_fake_gpu(model)
        with pytest.raises(AssertionError, match="waits for the device|copies between|works on the host"), NoWaiting():
            model(maps, SIZES)


class Module(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, sizes):
        return tuple(padded(self.model)(features, sizes))


@pytest.mark.parametrize("model", [rpn, retinanet, scopenet])
def test_exports_without_unknown_sizes(model):
    """One program for a batch; no size in it that only the data would tell."""
    module = Module(model())
    program = torch.export.export(module, (features(), torch.tensor(SIZES)))
    for node in program.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor):
                assert all(isinstance(n, int) for n in value.shape), f"{node} has a size of {list(value.shape)}"
    maps, sizes = features(), torch.tensor([(40, 96), (64, 60)])
    for ours, expected in zip(program.module()(maps, sizes), module(maps, sizes)):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "model", [rpn, *(pytest.param(model, marks=pytest.mark.long) for model in (retinanet, scopenet))]
)
def test_compiles_for_any_size(model):
    model = model()
    torch.compiler.reset()
    compiled = torch.compile(padded(model), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((64, 96), (96, 128), (160, 128)):
        maps, sizes = features(size), torch.tensor([size, size])
        for ours, expected in zip(compiled(maps, sizes), padded(model)(maps, sizes)):
            torch.testing.assert_close(ours, expected)
