"""torchvision's ResNet, or a network of timm, under torchvision's FPN, with detectron2's settings."""

import torch
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ...config.build import build_timm_stages
from ...config.keys import TIMM_BACKBONE
from ...modeling.layers import SyncBatchNorm2d

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": SyncBatchNorm2d}


class ResNetStages(resnet.ResNet):
    """torchvision's ResNet without its classifier: images (N, 3, H, W) to ``{"res2": (N, C, H / 4, W / 4), ...}``.

    Args:
        freeze_at: the stem and the stages before this one neither train nor update their statistics.
    """

    def __init__(self, depth, norm, stride_in_1x1, freeze_at, groups, width_per_group):
        block, layers = {
            18: (resnet.BasicBlock, (2, 2, 2, 2)),
            34: (resnet.BasicBlock, (3, 4, 6, 3)),
            50: (resnet.Bottleneck, (3, 4, 6, 3)),
            101: (resnet.Bottleneck, (3, 4, 23, 3)),
            152: (resnet.Bottleneck, (3, 8, 36, 3)),
        }[depth]
        super().__init__(block, list(layers), groups=groups, width_per_group=width_per_group, norm_layer=NORMS[norm])
        del self.fc, self.avgpool
        if stride_in_1x1 and block is resnet.Bottleneck:
            # The original ResNet (and detectron2's weights) stride in the first 1x1, torchvision's in the 3x3.
            for layer in (self.layer2, self.layer3, self.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        self.channels = {f"res{i + 2}": 64 * block.expansion * 2**i for i in range(4)}
        parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
        for name in (name for names in parts[:freeze_at] for name in names):
            setattr(self, name, freeze_batch_norm(getattr(self, name)).requires_grad_(False))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = {}
        for name, layer in zip(self.channels, (self.layer1, self.layer2, self.layer3, self.layer4)):
            stages[name] = x = layer(x)
        return stages


class FPN(nn.Module):
    """Images (N, 3, H, W), H and W multiples of 32, to ``{"p3": ..., ..., "p7": ...}`` of one width.

    The body's own features, ``"res3"`` and so on, are there as well.

    Args:
        body: images to ``{"res2": ..., ..., "res5": ...}``; its ``channels`` are theirs.
        first_level: 2 or 3, the finest of the levels.
        top: what stands above p5: ``"pool"``, p6 as every other pixel of p5 (Lin et al. 2017a); or p6 and p7 as
            strided convolutions of ``"res5"`` (RetinaNet, Lin et al. 2017b) or of ``"p5"`` (FCOS, Tian et al. 2019).
    """

    size_divisibility = 32

    def __init__(self, body: nn.Module, out_channels: int, norm: str = "", first_level: int = 2, top: str = "pool"):
        super().__init__()
        self.body = body
        self.levels = {f"res{i}": f"p{i}" for i in range(first_level, 6)}
        if top == "pool":
            last = LastLevelMaxPool()
        else:
            last = LastLevelP6P7(body.channels["res5"] if top == "res5" else out_channels, out_channels)
            last.use_P5 = top == "p5"  # torchvision guesses it from the channels
        fpn = FeaturePyramidNetwork(
            [body.channels[stage] for stage in self.levels],
            out_channels,
            last,
            norm_layer=(NORMS | {"": None, "GN": lambda channels: nn.GroupNorm(32, channels)})[norm],
        )
        # torchvision numbers the levels from 0: the name says which the first one is, for checkpoints' names.
        self._fpn_name = f"fpn{first_level}"
        self.add_module(self._fpn_name, fpn)
        self.out_channels = out_channels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        stages = self.body(images)
        features = getattr(self, self._fpn_name)({level: stages[stage] for stage, level in self.levels.items()})
        if "pool" in features:
            features["p6"] = features.pop("pool")
        return features | stages


def freeze_batch_norm(module):
    """The module with every BatchNorm2d replaced by a FrozenBatchNorm2d of the same numbers."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict(), strict=False)
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


# MODEL.BACKBONE.NAME, as detectron2 and this project's part of it register them, to ``top``.
TOPS = {
    "build_resnet_fpn_backbone": "pool",
    "build_resnet_fpn_backbone_with_stages": "pool",
    "build_retinanet_resnet_fpn_backbone": "res5",
    "build_scopenet_resnet_fpn_backbone": "p5",
}


def build_backbone(cfg) -> FPN:
    resnets, fpn, timm = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.TIMM
    first = int(fpn.IN_FEATURES[0].removeprefix("res"))
    if cfg.MODEL.BACKBONE.NAME == TIMM_BACKBONE:
        body, top = build_timm_stages(cfg), timm.TOP_BLOCK
    else:
        body, top = (
            ResNetStages(
                resnets.DEPTH,
                resnets.NORM,
                resnets.STRIDE_IN_1X1,
                cfg.MODEL.BACKBONE.FREEZE_AT,
                resnets.NUM_GROUPS,
                resnets.WIDTH_PER_GROUP,
            ),
            TOPS[cfg.MODEL.BACKBONE.NAME],
        )
    return FPN(body, fpn.OUT_CHANNELS, fpn.NORM, first, top)
