"""One image at a time through the built-in engine."""

import torch

from ...prediction import FeatureTap, Prediction, guided_anchoring, inspect_anchors
from .data import Mapper
from .run import load_model


class Predictor:
    """A configuration with MODEL.WEIGHTS as a function from a dataset dict to a :class:`Prediction`."""

    def __init__(self, cfg):
        self.model = load_model(cfg)
        self.mapper = Mapper(cfg, training=False)
        rpn = guided_anchoring(self.model)
        self.tap = FeatureTap(rpn) if rpn else None

    @torch.no_grad()
    def __call__(self, record: dict) -> Prediction:
        inputs = self.mapper(record)
        (output,) = self.model([inputs])
        found = Prediction()
        if "proposals" in output:
            found.proposals, found.proposal_logits = (values.cpu() for values in output["proposals"])
        if "boxes" in output:
            found.boxes, found.scores, found.classes = (output[k].cpu() for k in ("boxes", "scores", "classes"))
        if self.tap:
            found.anchors = inspect_anchors(
                self.tap.rpn, self.tap.features, record["height"] / inputs["image"].shape[1]
            )
        return found
