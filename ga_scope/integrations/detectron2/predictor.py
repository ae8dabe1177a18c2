"""One image at a time through detectron2."""

import torch
from detectron2.data import DatasetMapper
from detectron2.modeling.postprocessing import detector_postprocess

from ...prediction import FeatureTap, Prediction, guided_anchoring, inspect_anchors
from .data import NamedErrorMapper
from .evaluation import copied
from .run import load_model


class Predictor:
    """A configuration with MODEL.WEIGHTS as a function from a dataset dict to a :class:`Prediction`."""

    def __init__(self, cfg):
        self.model = load_model(cfg).eval()
        self.mapper = NamedErrorMapper(DatasetMapper(cfg, is_train=False))
        rpn = guided_anchoring(self.model)
        self.tap = FeatureTap(rpn) if rpn else None
        self._proposals = None
        if getattr(self.model, "proposal_generator", None) is not None:
            self.model.proposal_generator.register_forward_hook(self._take_proposals)

    def _take_proposals(self, module, inputs, output):
        (self._proposals,) = copied(output[0])

    @torch.no_grad()
    def __call__(self, record: dict) -> Prediction:
        inputs = self.mapper(record)
        (output,) = self.model([inputs])
        found = Prediction()
        if self._proposals is not None:
            proposals = detector_postprocess(self._proposals, record["height"], record["width"])
            found.proposals, found.proposal_logits = (
                proposals.proposal_boxes.tensor.cpu(),
                proposals.objectness_logits.cpu(),
            )
        if "instances" in output:
            instances = output["instances"].to("cpu")
            found.boxes, found.scores, found.classes = (
                instances.pred_boxes.tensor,
                instances.scores,
                instances.pred_classes,
            )
        if self.tap:
            found.anchors = inspect_anchors(
                self.tap.rpn, self.tap.features, record["height"] / inputs["image"].shape[1]
            )
        return found
