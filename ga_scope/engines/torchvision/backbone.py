"""torchvision's ResNet and FPN under detectron2's settings."""

import torch
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d}


class ResNetFPN(nn.Module):
    """Images (N, 3, H, W), H and W multiples of 32, to ``{"p3": ..., ..., "p7": ...}`` of one width.

    The backbone's own features, ``"res3"`` and so on, are there as well.

    Args:
        first_level: 2 or 3, the finest of the levels.
        top: what stands above p5: ``"pool"``, p6 as every other pixel of p5 (Lin et al. 2017a); or p6 and p7 as
            strided convolutions of ``"res5"`` (RetinaNet, Lin et al. 2017b) or of ``"p5"`` (FCOS, Tian et al. 2019).
    """

    size_divisibility = 32

    def __init__(
        self,
        depth,
        norm,
        stride_in_1x1,
        freeze_at,
        groups,
        width_per_group,
        out_channels,
        fpn_norm,
        first_level=2,
        top="pool",
    ):
        super().__init__()
        block, layers = {
            18: (resnet.BasicBlock, (2, 2, 2, 2)),
            34: (resnet.BasicBlock, (3, 4, 6, 3)),
            50: (resnet.Bottleneck, (3, 4, 6, 3)),
            101: (resnet.Bottleneck, (3, 4, 23, 3)),
            152: (resnet.Bottleneck, (3, 8, 36, 3)),
        }[depth]
        body = resnet.ResNet(
            block, list(layers), groups=groups, width_per_group=width_per_group, norm_layer=NORMS[norm]
        )
        del body.fc, body.avgpool
        if stride_in_1x1 and block is resnet.Bottleneck:
            # The original ResNet (and detectron2's weights) stride in the first 1x1, torchvision's in the 3x3.
            for layer in (body.layer2, body.layer3, body.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        self.body = body
        channels = [64 * block.expansion * 2**i for i in range(4)]
        if top == "pool":
            last = LastLevelMaxPool()
        else:
            last = LastLevelP6P7(channels[-1] if top == "res5" else out_channels, out_channels)
            last.use_P5 = top == "p5"  # torchvision guesses it from the channels
        fpn = FeaturePyramidNetwork(
            channels[first_level - 2 :],
            out_channels,
            last,
            norm_layer={"": None, "BN": nn.BatchNorm2d, "GN": lambda channels: nn.GroupNorm(32, channels)}[fpn_norm],
        )
        # torchvision numbers the levels from 0: the name says which the first one is, for checkpoints' names.
        self._fpn_name = f"fpn{first_level}"
        self.add_module(self._fpn_name, fpn)
        self.first_level = first_level
        self.out_channels = out_channels
        self._freeze(freeze_at)

    def _freeze(self, stages):
        """The stem and the stages before ``stages`` neither train nor update their statistics."""
        body = self.body
        frozen = [(body, ("conv1", "bn1"))] if stages >= 1 else []
        frozen += [(body, (f"layer{i - 1}",)) for i in range(2, 6) if stages >= i]
        for parent, names in frozen:
            for name in names:
                module = freeze_batch_norm(getattr(parent, name))
                setattr(parent, name, module)
                for parameter in module.parameters():
                    parameter.requires_grad = False

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        stages = {}
        for i, layer in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
            x = layer(x)
            if i + 2 >= self.first_level:
                stages[f"p{i + 2}"] = x
        features = getattr(self, self._fpn_name)(stages)
        if "pool" in features:
            features["p6"] = features.pop("pool")
        return features | {name.replace("p", "res"): stage for name, stage in stages.items()}


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


def stage_channels(cfg) -> dict[str, int]:
    """The widths of the features before the FPN."""
    return {f"res{i + 2}": cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2**i for i in range(4)}


def build_backbone(cfg) -> ResNetFPN:
    resnets, fpn = cfg.MODEL.RESNETS, cfg.MODEL.FPN
    return ResNetFPN(
        resnets.DEPTH,
        resnets.NORM,
        resnets.STRIDE_IN_1X1,
        cfg.MODEL.BACKBONE.FREEZE_AT,
        resnets.NUM_GROUPS,
        resnets.WIDTH_PER_GROUP,
        fpn.OUT_CHANNELS,
        fpn.NORM,
        int(fpn.IN_FEATURES[0].removeprefix("res")),
        TOPS[cfg.MODEL.BACKBONE.NAME],
    )
