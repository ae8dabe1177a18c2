"""Trained models made faster for inference, with the same results."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .modeling.guided_anchoring import GuidedAnchorRetinaNet
from .modeling.scope import ScopeDetector
from .ops import DeformConv2d

DTYPES = (torch.float32, torch.bfloat16)


def optimize_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32, compile: bool = False) -> nn.Module:
    """A copy of a model of either engine, in evaluation, that gives the same detections in less time.

    Normalisation with fixed numbers is folded into the convolution before it (:func:`fold_norms`); weights are
    channels_last; ScopeNet's localization tower and GA-RetinaNet's regression tower run only where something reads them
    (:class:`ga_scope.modeling.layers.SparseTower`), if they have no normalisation.

    Args:
        dtype: of the convolutions and linear layers. With ``torch.bfloat16`` features are rounded to 8 bits of
            mantissa; probabilities, boxes and scores are computed in float32. It pays on processors that multiply in
            bfloat16 (AMX, AVX512-BF16; GPUs), and on others costs time.
        compile: the backbone goes through ``torch.compile``, for images of any size.

    Raises:
        ValueError: for another dtype, or a model without ``backbone``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {' or '.join(map(str, DTYPES))}, got {dtype}")
    model = fold_norms(model)
    for part in model.modules():
        if isinstance(part, (ScopeDetector, GuidedAnchorRetinaNet)):
            part.sparse_tower = part.head.towers_are_local
    if dtype != torch.float32:
        _lower(model, dtype)
    model.to(memory_format=torch.channels_last)
    if compile:
        model.backbone.compile(dynamic=True)
    return model


def _lower(model: nn.Module, dtype: torch.dtype):
    """Convolutions, linear layers and their norms in ``dtype``; what reads probabilities stays as it is."""
    kept = {
        id(part) for m in model.modules() if isinstance(m, ScopeDetector) and m.quality for part in m.quality.modules()
    }
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, DeformConv2d, nn.Linear, nn.GroupNorm)) and id(part) not in kept:
            part.to(dtype)
    model.backbone.register_forward_pre_hook(lambda module, inputs: tuple(x.to(dtype) for x in inputs))


# ---- normalisation -----------------------------------------------------------------------------------


def fold_norms(model: nn.Module) -> nn.Module:
    """A copy of the model, in evaluation, without the normalisation of its backbone that is a fixed scale and shift.

    It goes into the weights and bias of the convolution whose output it, and nothing else, reads: what reads what is
    seen on an image.
    """
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ValueError(f"model: expected one of this project, with a backbone, got {type(model).__name__}")
    model = copy.deepcopy(model).eval()
    # detectron2's convolutions have their norm inside.
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and _is_fixed(getattr(conv, "norm", None)):
            _fold(conv, conv.norm)
            conv.norm = None
    names = {module: name for name, module in model.backbone.named_modules()}
    for conv, norm in _pairs(model.backbone):
        _fold(conv, norm)
        parent, _, name = names[norm].rpartition(".")
        # timm's norms have an activation inside.
        setattr(model.backbone.get_submodule(parent), name, getattr(norm, "act", None) or nn.Identity())
    return model


def _is_fixed(module) -> bool:
    """BatchNorm2d in evaluation, or torchvision's, detectron2's or timm's FrozenBatchNorm2d."""
    return isinstance(getattr(module, "running_mean", None), Tensor) and isinstance(
        getattr(module, "running_var", None), Tensor
    )


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module):
    """In double precision: gamma (W x + b - mean) / sqrt(var + eps) + beta."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])


class _Readers(TorchDispatchMode):
    """How often each tensor is read, by its id; all are kept, so that an id means one of them."""

    def __init__(self):
        super().__init__()
        self.times, self.kept = {}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.times[id(tensor)] = self.times.get(id(tensor), 0) + 1
                self.kept.append(tensor)
        return out


@torch.no_grad()
def _pairs(backbone: nn.Module) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions and the fixed norms that alone read them, both run once for an image."""
    made, read, calls, hooks = {}, [], {}, []

    def after(module, inputs, output):
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output
        else:
            read.append((id(inputs[0]), module))

    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) or _is_fixed(module):
            hooks.append(module.register_forward_hook(after))
    readers = _Readers()
    parameter = next(backbone.parameters())
    try:
        with readers:
            backbone(torch.zeros(1, 3, 128, 128, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(made[value][0], norm) for value, norm in read if value in made and readers.times[value] == 1]
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]
