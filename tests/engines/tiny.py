"""A model of a thousand parameters in place of the configuration's, so that what surrounds it can be tested often."""

import importlib.util
import random

import numpy as np
import torch
from torch import nn

from ga_scope.engines.torchvision.engine import BuiltinEngine
from ga_scope.modeling.results import Results


class Tiny(nn.Module):
    """Losses of the images and their boxes, with BatchNorm, and with numbers of every generator.

    Args:
        wrapped: the losses as the built-in engine's models give them.
    """

    def __init__(self, wrapped: bool):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1))
        self.head = nn.Linear(8, 4)
        self.wrapped = wrapped
        self.positives = 100.0  # as RetinaNet's

    def forward(self, inputs):
        there = {"device": self.head.weight.device, "non_blocking": True}
        boxes = [x["boxes"] if "boxes" in x else x["instances"].gt_boxes.tensor for x in inputs]
        boxes = [b.to(**there) for b in boxes]
        height, width = (max(x["image"].shape[d] for x in inputs) for d in (1, 2))
        batch = torch.zeros(len(inputs), 3, height, width, device=there["device"])
        for slot, x in zip(batch, inputs):
            slot[:, : x["image"].shape[1], : x["image"].shape[2]] = x["image"].to(**there) / 255
        pooled = self.backbone(batch).mean((2, 3))
        pooled = pooled + 0.1 * torch.rand_like(pooled) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        target = torch.stack([b.mean(0) if len(b) else b.new_zeros(4) for b in boxes]) / 64
        self.positives = 0.9 * self.positives + 0.1 * sum(map(len, boxes))
        difference = self.head(pooled) - target
        losses = {"loss_a": difference.abs().mean(), "loss_b": difference.square().mean() * 10 / self.positives}
        return Results(losses) if self.wrapped else losses


def use_tiny_model(put, engine="detectron2"):
    """``put(class, name, value)`` replaces what the engines build; ``engine`` torchvision: of that one alone."""
    put(BuiltinEngine, "build", lambda self, cfg: Tiny(True).to(cfg.MODEL.DEVICE))
    if engine == "detectron2" and importlib.util.find_spec("detectron2"):
        from ga_scope.engines.detectron2.engine import Detectron2Engine

        put(Detectron2Engine, "build", lambda self, cfg: Tiny(False).to(cfg.MODEL.DEVICE))
