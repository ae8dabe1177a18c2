"""Proposals and boxes under the project's metrics, as a detectron2 evaluator."""

from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from detectron2.utils import comm

from ...evaluation import CocoEvaluation
from ...modeling.guided_anchoring import AnchorGeneration
from ...modeling.staged_rpn import StagedRPN
from .data import ground_truth


class GuidedAnchoringEvaluator(DatasetEvaluator):
    """AR of the proposals inside the model, AP of its boxes, and the number of anchors (:class:`CocoEvaluation`).

    The proposals of a two-stage model are not among its outputs: a forward hook takes them from the proposal
    generator, and another counts the anchors where they are made. A one-stage model has no proposals.
    """

    def __init__(self, dataset_name: str, model):
        self.name = dataset_name
        self.evaluation = CocoEvaluation(*ground_truth(dataset_name))
        self._proposals, self._anchors = [], []
        self._hooks = []
        model = getattr(model, "module", model)
        generator = getattr(model, "proposal_generator", None)
        if generator is not None:
            self._hooks.append(generator.register_forward_hook(self._take_proposals))
        for module in model.modules():
            if isinstance(module, (AnchorGeneration, StagedRPN)):
                self._hooks.append(module.register_forward_hook(self._count_anchors))
            elif isinstance(module, DefaultAnchorGenerator):
                self._hooks.append(module.register_forward_hook(self._count_sliding_anchors))

    def _take_proposals(self, module, inputs, output):
        self._proposals = copied(output[0])

    def _count_anchors(self, module, inputs, output):
        self._anchors = [(count, module.locations_per_image) for count in module.anchors_per_image]

    def _count_sliding_anchors(self, module, inputs, output):
        anchors = sum(len(boxes) for boxes in output)
        locations = sum(f.shape[-2] * f.shape[-1] for f in inputs[0])
        self._anchors = [(anchors, locations)] * len(inputs[0][0])

    def reset(self):
        self.evaluation.merge([])

    def process(self, inputs, outputs):
        for anchors in self._anchors:
            self.evaluation.add_anchors(*anchors)
        for x, proposals in zip(inputs, self._proposals):
            scaled = detector_postprocess(proposals, x["height"], x["width"])
            boxes, logits = scaled.proposal_boxes.tensor.cpu(), scaled.objectness_logits.cpu()
            self.evaluation.add_proposals(x["image_id"], boxes, logits)
        for x, output in zip(inputs, outputs):
            if "instances" in output:
                found = output["instances"].to("cpu")
                self.evaluation.add_detections(x["image_id"], found.pred_boxes.tensor, found.scores, found.pred_classes)

    def evaluate(self):
        for hook in self._hooks:
            hook.remove()
        parts = comm.gather(self.evaluation.results(), dst=0)
        if not comm.is_main_process():
            return {}
        self.evaluation.merge(parts)
        return {"ga_scope": self.evaluation.metrics()}


def copied(proposals: list[Instances]) -> list[Instances]:
    """Proposals of a batch that stay as they are: ``detector_postprocess`` scales what it is given in place."""
    return [
        Instances(p.image_size, proposal_boxes=p.proposal_boxes.clone(), objectness_logits=p.objectness_logits.clone())
        for p in proposals
    ]
