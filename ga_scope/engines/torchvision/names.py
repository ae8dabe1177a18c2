"""The built-in engine's parameters under detectron2's names, which are those of checkpoints."""

from torch import Tensor, nn

from ..backbone_names import RESNET_NAMES, renamed

# (the built-in engine's name, detectron2's name): a regular expression, and what becomes of it, with sums in braces.
_NAMES = [
    (r"backbone\.body\.model\.(.+)", r"backbone.bottom_up.model.\1"),  # of timm
    *((r"backbone\.body\." + ours, "backbone.bottom_up." + theirs) for ours, theirs in RESNET_NAMES),
    (r"backbone\.fpn(\d)\.inner_blocks\.(\d)\.0\.(.+)", r"backbone.fpn_lateral{\1+\2}.\3"),
    (r"backbone\.fpn(\d)\.inner_blocks\.(\d)\.1\.(.+)", r"backbone.fpn_lateral{\1+\2}.norm.\3"),
    (r"backbone\.fpn(\d)\.layer_blocks\.(\d)\.0\.(.+)", r"backbone.fpn_output{\1+\2}.\3"),
    (r"backbone\.fpn(\d)\.layer_blocks\.(\d)\.1\.(.+)", r"backbone.fpn_output{\1+\2}.norm.\3"),
    (r"backbone\.fpn(\d)\.extra_blocks\.(.+)", r"backbone.top_block.\2"),
    (r"proposal_generator\.rpn\.rpn_head\.(.+)", r"proposal_generator.rpn_head.\1"),
    (r"detector\.head\.(cls_subnet|bbox_subnet|cls_score|bbox_pred)\.(.+)", r"head.\1.\2"),
]


def detectron2_name(name: str) -> str:
    """detectron2's name of a parameter of the built-in engine's model."""
    return renamed(name, _NAMES) or name


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors, by detectron2's names."""
    return {detectron2_name(name): value for name, value in model.state_dict(keep_vars=True).items()}
