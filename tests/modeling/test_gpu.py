"""What only a GPU can show of the detectors: CUDA graphs, and agreement with the CPU."""

import pytest
import torch

from ga_scope.modeling.cuda_graph import Replay
from ga_scope.modeling.targets import Targets

from .test_padded import MODELS, SIZES, features, padded, rpn, scopenet
from .test_scope import truth

pytestmark = pytest.mark.gpu


def on_gpu(maps):
    return [m.cuda().contiguous(memory_format=torch.channels_last) for m in maps]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, maps, sizes = MODELS[name](), features(), torch.tensor(SIZES)
    expected = padded(model)(maps, sizes)
    found = padded(model.cuda())(on_gpu(maps), sizes.cuda())
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_equals_the_call(name, dtype):
    """Captured once; every replay gives what the call gives for its inputs, also under autocast."""
    model = MODELS[name]().cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        replay = Replay(padded(model), on_gpu(features()), torch.tensor(SIZES).cuda())
        counts = set()
        for size in (SIZES[0], (40, 50), (64, 33)):
            maps, sizes = on_gpu(features()), torch.tensor([size, SIZES[1]]).cuda()
            expected = padded(model)(maps, sizes)
            found = replay(maps, sizes)
            for ours, theirs in zip(found, expected):
                torch.testing.assert_close(ours, theirs)
            counts.add(tuple(found.count.tolist()))
    assert max(max(count) for count in counts) > 0


def test_replay_reads_the_parameters_where_they_lie():
    model = rpn().cuda()
    maps, sizes = on_gpu(features()), torch.tensor(SIZES).cuda()
    replay = Replay(padded(model), maps, sizes)
    with torch.no_grad():
        model.head.objectness.bias += 1
    torch.testing.assert_close(replay(maps, sizes).logits, padded(model)(maps, sizes).logits)


def test_inputs_that_do_not_fit_are_named():
    maps, sizes = on_gpu(features()), torch.tensor(SIZES).cuda()
    replay = Replay(padded(rpn().cuda()), maps, sizes)
    with pytest.raises(ValueError, match=r"inputs: expected shape \[2, 16, 8, 12\] at 0, got \[1, 16, 8, 12\]"):
        replay([m[:1] for m in maps], sizes)
    with pytest.raises(ValueError, match="inputs: expected"):
        replay(maps[:2], sizes)


@pytest.mark.parametrize("model", [rpn, scopenet])
def test_compiled_by_inductor(model):
    model = model().cuda()
    maps, sizes = on_gpu(features()), torch.tensor(SIZES).cuda()
    torch.compiler.reset()
    compiled = torch.compile(padded(model), fullgraph=True)
    for ours, theirs in zip(compiled(maps, sizes), padded(model)(maps, sizes)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [rpn, scopenet])
def test_mixed_precision_training_step(model, dtype):
    """A loss near float32's (samples may differ); gradients are float32 and finite. float16 with a loss scale."""
    model = model().cuda().train()
    maps = on_gpu(features())
    gt = Targets(*([value.cuda() for value in part] for part in truth()[:2]))
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cuda", dtype=dtype, enabled=enabled):
            losses.append(sum(model(maps, SIZES, gt).losses.values()))
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=0.3, atol=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled=dtype == torch.float16)
    scaler.scale(losses[1]).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
