"""The built-in engine: the project's models on torchvision's backbones, FPN, RPN and ROI heads.

It reads the same configurations as detectron2 and writes the same checkpoints, on one device. What it
cannot honour is an error that names the key.
"""

from .config import get_cfg
from .models import build_model

__all__ = ["build_model", "get_cfg"]
