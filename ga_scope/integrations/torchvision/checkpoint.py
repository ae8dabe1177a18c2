"""Checkpoints in detectron2's format: either engine loads what the other wrote.

On disk the names, and the order of the classes, are detectron2's. In memory they are torchvision's. This
module translates between the two.
"""

import re

import torch
from fvcore.common.checkpoint import Checkpointer

from ...checkpoint import CheckedLoading, renamed
from . import zoo

# (torchvision's name, detectron2's name): a regular expression, and what becomes of it, with sums in braces.
_NAMES = [
    (r"backbone\.body\.conv1\.(.+)", r"backbone.bottom_up.stem.conv1.\1"),
    (r"backbone\.body\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.conv\3.\4"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.conv\3.norm.\4"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.\3"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.norm.\3"),
    (r"backbone\.fpn(\d)\.inner_blocks\.(\d)\.0\.(.+)", r"backbone.fpn_lateral{\1+\2}.\3"),
    (r"backbone\.fpn(\d)\.inner_blocks\.(\d)\.1\.(.+)", r"backbone.fpn_lateral{\1+\2}.norm.\3"),
    (r"backbone\.fpn(\d)\.layer_blocks\.(\d)\.0\.(.+)", r"backbone.fpn_output{\1+\2}.\3"),
    (r"backbone\.fpn(\d)\.layer_blocks\.(\d)\.1\.(.+)", r"backbone.fpn_output{\1+\2}.norm.\3"),
    (r"backbone\.fpn(\d)\.extra_blocks\.(.+)", r"backbone.top_block.\2"),
    (r"proposal_generator\.head\.conv\.0\.0\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"proposal_generator\.head\.cls_logits\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"proposal_generator\.head\.bbox_pred\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"detector\.head\.(cls_subnet|bbox_subnet|cls_score|bbox_pred)\.(.+)", r"head.\1.\2"),
    (r"roi_heads\.box_head\.fc6\.(.+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"roi_heads.box_head.fc2.\1"),
]


def detectron2_name(name: str) -> str:
    """detectron2's name of a parameter of the built-in engine's model."""
    return renamed(name, _NAMES) or name


def _reordered(name, value, background_first):
    """The background class is torchvision's first and detectron2's last; detectron2 has no box for it."""
    if re.fullmatch(r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", name):
        return value.roll(1 if background_first else -1, 0)
    if re.fullmatch(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", name):
        return torch.cat([value.new_zeros(4, *value.shape[1:]), value]) if background_first else value[4:]
    return value


def to_detectron2(state: dict) -> dict:
    """A state dict of the built-in engine's model under detectron2's names. Counters of batches are dropped."""
    return {
        detectron2_name(name): _reordered(name, value, background_first=False)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def from_detectron2(state: dict, model: torch.nn.Module) -> dict:
    """A state dict of detectron2 under the names of the built-in engine's ``model``. Unknown names stay."""
    ours = {detectron2_name(name): name for name in model.state_dict()}
    return {
        ours.get(name, name): _reordered(ours.get(name, name), torch.as_tensor(value), background_first=True)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


class BuiltinCheckpointer(CheckedLoading, Checkpointer):
    """fvcore's checkpointer over :func:`to_detectron2` and :func:`from_detectron2`; reads the model zoo's files."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.path_manager = zoo.paths

    def _load_file(self, path):
        return zoo.read_pickle(path) if path.endswith(".pkl") else super()._load_file(path)

    def save(self, name, **kwargs):
        model = self.model
        self.model = _StateDict(to_detectron2(model.state_dict()))
        try:
            super().save(name, **kwargs)
        finally:
            self.model = model

    def _load_model(self, checkpoint):
        checkpoint["model"] = from_detectron2(checkpoint["model"], self.model)
        incompatible = super()._load_model(checkpoint)
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if not k.endswith("num_batches_tracked")]
        return incompatible


class _StateDict:
    """What fvcore's save() asks of a model."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state
