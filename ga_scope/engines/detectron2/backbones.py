"""Feature pyramids beside detectron2's own, registered as its backbones."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from ...config.build import build_timm_stages
from ...modeling.timm_stages import STAGES, TimmStages


class FPNWithStages(FPN):
    """An FPN whose output holds the backbone's own features as well, before the FPN."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bottom_up.register_forward_hook(self._take_stages)

    def _take_stages(self, module, inputs, output):
        self._stages = output

    def forward(self, x):
        return super().forward(x) | self._stages

    def output_shape(self):
        return super().output_shape() | self.bottom_up.output_shape()


def _pyramid(kind: type[FPN], cfg, bottom_up: Backbone, top_block) -> FPN:
    fpn = cfg.MODEL.FPN
    return kind(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_with_stages(cfg, input_shape: ShapeSpec) -> FPN:
    """detectron2's ``build_resnet_fpn_backbone`` with the stages among its features."""
    return _pyramid(FPNWithStages, cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_scopenet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """As detectron2's ``build_retinanet_resnet_fpn_backbone``, but P6 is made from P5 (FCOS; Table 4)."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _pyramid(FPN, cfg, build_resnet_backbone(cfg, input_shape), LastLevelP6P7(channels, channels, "p5"))


class TimmBackbone(TimmStages, Backbone):
    """:class:`ga_scope.modeling.timm_stages.TimmStages` with detectron2's description of its features."""

    def output_shape(self):
        strides = {stage: stride for stride, stage in STAGES.items()}
        return {stage: ShapeSpec(channels=width, stride=strides[stage]) for stage, width in self.channels.items()}


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A network of timm under an FPN, with its stages among the features. Keys: ``MODEL.TIMM``."""
    bottom_up, channels = build_timm_stages(cfg, TimmBackbone), cfg.MODEL.FPN.OUT_CHANNELS
    top = {
        "pool": LastLevelMaxPool,
        "res5": lambda: LastLevelP6P7(bottom_up.channels["res5"], channels, "res5"),
        "p5": lambda: LastLevelP6P7(channels, channels, "p5"),
    }[cfg.MODEL.TIMM.TOP_BLOCK]
    return _pyramid(FPNWithStages, cfg, bottom_up, top())
