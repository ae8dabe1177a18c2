"""Features of timm's models as a feature pyramid wants them."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}  # a pyramid's name of the features, by their stride


class TimmStages(nn.Module):
    """Images (N, 3, H, W), normalised, H and W multiples of 32, to ``{"res2": (N, C, H / 4, W / 4), ..., "res5"}``.

    Args:
        name: of a timm model with features of strides 4, 8, 16 and 32: most convolutional networks, Swin, PVT.
        first: the first stage that is handed on, 2 or 3. Layers behind the last one are dropped.
        norm: ``"BN"``, or ``"FrozenBN"``: batch normalisation has the numbers that it was trained with. Other
            norms are not touched.
        freeze_at: as detectron2's: 1 freezes the stem, 2 everything that ``res2`` depends on, too, and so on; 0 none.

    Attributes:
        channels: ``{"res2": C, ...}``.
        model: timm's, with timm's names of its parameters.

    Raises:
        ValueError: timm has no such model, or it has no such features.
        ImportError: timm is not installed.
    """

    size_divisibility = 32

    # Whatever surrounds it: gradients say what a stage depends on.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(self, name: str, first: int = 2, norm: str = "BN", freeze_at: int = 0):
        super().__init__()
        self.model = _create(name)
        for module in self.model.modules():
            if type(module).__name__ == "Conv2dSame":
                module.__class__ = _SameConv2d
        self.indices = _indices(name, self.model)
        self.model.prune_intermediate_layers(list(self.indices.values()), prune_norm=True, prune_head=True)
        self.channels = {stage: self.model.feature_info[i]["num_chs"] for stage, i in self.indices.items()}
        self._freeze(name, freeze_at, norm == "FrozenBN")
        for stage in [stage for stage in self.indices if int(stage[-1]) < first]:
            del self.indices[stage], self.channels[stage]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.model.forward_intermediates(
            images, indices=list(self.indices.values()), intermediates_only=True, output_fmt="NCHW"
        )
        return dict(zip(self.indices, features))

    def _freeze(self, name, stages, all_norms):
        """Parameters that do not train, and batch normalisation that is not updated."""
        # Any model is asked which of its parameters a stage depends on: its features' gradient says so. An image of
        # another shape than timm's, so that a model that takes no other one is found here and not in training.
        training, parameters = self.training, dict(self.model.named_parameters())
        self.eval()
        try:
            features = self(torch.zeros(1, 3, 64, 96))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"{name} takes no images of 64 x 96 pixels: {' '.join(str(error).split())}") from None
        sizes = {stage: (64 // stride, 96 // stride) for stride, stage in STAGES.items()}
        for stage, feature in features.items():
            if tuple(feature.shape[1:]) != (self.channels[stage], *sizes[stage]):
                raise ValueError(
                    f"{name}: expected features of {(self.channels[stage], *sizes[stage])} for an image of 64 x 96, "
                    f"got {tuple(feature.shape[1:])}"
                )
        frozen = set()
        if stages >= 1:
            stem = self.model.group_matcher(coarse=True)["stem"]
            frozen |= {key for key in parameters if re.match(stem, key)}
        used = [feature for stage, feature in features.items() if int(stage[-1]) <= stages]
        if used:
            gradients = torch.autograd.grad(
                sum(feature.sum() for feature in used), list(parameters.values()), allow_unused=True
            )
            frozen |= {key for key, gradient in zip(parameters, gradients) if gradient is not None}
        for key in frozen:
            parameters[key].requires_grad = False
        for module in self._batch_norms():
            if all_norms:
                module.requires_grad_(False)
        self.train(training)

    def _batch_norms(self):
        return (m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine)

    def train(self, mode: bool = True):
        """Batch normalisation that does not train is not updated either: it stays in evaluation."""
        super().train(mode)
        for module in self._batch_norms():
            if not module.weight.requires_grad:
                module.eval()
        return self


class _SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding, of inputs whose sides are multiples of the stride. timm works it out from the sizes,
    and where these are symbols, as in an export, every further size becomes an expression that takes minutes."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for kernel, stride, dilation in zip(self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1]):
            both = max((kernel - 1) * dilation + 1 - stride, 0)
            pads += [both // 2, both - both // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _timm():
    try:
        import timm
    except ImportError:
        raise ImportError("timm is not installed: pip install timm") from None
    return timm


def _create(name: str) -> nn.Module:
    timm = _timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}" + (f"; it has {', '.join(near)}" if near else "")
        )
    try:
        # Transformers with windows take images of one size only, unless asked; other models do not know the question.
        return timm.create_model(name, strict_img_size=False)
    except TypeError:
        return timm.create_model(name)


def _indices(name: str, model: nn.Module) -> dict[str, int]:
    """Which of timm's features is a stage: the last one of its stride."""
    info = getattr(model, "feature_info", None)
    strides = [entry["reduction"] for entry in info] if info and hasattr(model, "forward_intermediates") else []
    missing = [stride for stride in STAGES if stride not in strides]
    if missing:
        got = f"strides {', '.join(map(str, strides))}" if strides else "none"
        raise ValueError(f"{name}: expected features of strides 4, 8, 16 and 32, got {got}")
    return {stage: len(strides) - 1 - strides[::-1].index(stride) for stride, stage in STAGES.items()}


def timm_pixels(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels (0 to 255, RGB) that a timm model was trained with.

    Raises:
        ValueError, ImportError: see :class:`TimmStages`.
    """
    timm = _timm()
    if not timm.is_model(name):
        _create(name)  # says so
    described = timm.get_pretrained_cfg(name)
    return [255 * value for value in described.mean], [255 * value for value in described.std]
