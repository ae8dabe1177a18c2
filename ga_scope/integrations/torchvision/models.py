"""The models of the built-in engine by their MODEL.META_ARCHITECTURE."""

import torch

from .config import check_cfg
from .detector import Detector
from .rcnn import build_rcnn
from .retinanet import build_guided_anchoring_retinanet, build_retinanet
from .scopenet import build_scopenet

# Every name here has its entry in config.PARTS, which says what keys it reads.
META_ARCHITECTURES = {
    "GeneralizedRCNN": build_rcnn,
    "GuidedAnchoringRetinaNet": build_guided_anchoring_retinanet,
    "ProposalNetwork": build_rcnn,
    "RetinaNet": build_retinanet,
    "ScopeNet": build_scopenet,
}


def build_model(cfg) -> Detector:
    """The model of a configuration, on its device.

    Raises:
        ConfigError: naming a key that the engine cannot honour.
    """
    check_cfg(cfg)
    model = META_ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE](cfg)
    # channels_last is what convolutions and the project's gathers want, on CPU and GPU alike.
    return model.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)
