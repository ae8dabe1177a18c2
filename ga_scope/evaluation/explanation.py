"""Where a detector loses the objects of a dataset: by the stages of its GA-RPN, by classes and boxes."""

import torch

from ..config import class_key
from ..data import Dataset
from ..data.images import resized_shape
from ..errors import ConfigError
from ..modeling.guided_anchoring import GuidedAnchorRPN
from .diagnosis import Diagnosis
from .mended import MendedEvaluation


def diagnosis_of(detector) -> Diagnosis | None:
    """For the objects that a detector's GA-RPN sees; None for a model without one."""
    rpn = next((m for m in detector.model.modules() if isinstance(m, GuidedAnchorRPN)), None)
    if rpn is None:
        return None
    sigma = getattr(rpn.shapes, "sigma", rpn.location_targets.sigma)
    return Diagnosis([sigma * s for s in rpn.strides], rpn.selection.threshold, rpn.post_nms_topk[1])


def diagnose(diagnosis: Diagnosis, cfg, dataset: Dataset, index: int, found):
    """Adds the image of that index and what was found in it, with its maps."""
    height, width = found.record["height"], found.record["width"]
    rows, _ = resized_shape(height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    diagnosis.add(found, torch.from_numpy(dataset.objects(index)[0]), height / rows)


def explain(detector, dataset: Dataset, iou: float = 0.5) -> tuple[str, dict]:
    """For a person, and as plain data.

    Args:
        detector: a :class:`ga_scope.Detector`.
        iou: from which an object counts as found by a stage.

    Raises:
        ConfigError: the model has neither a GA-RPN nor classes.
    """
    cfg = detector.cfg
    diagnosis = diagnosis_of(detector)
    mended = MendedEvaluation(dataset) if class_key(cfg) else None
    if diagnosis is None and mended is None:
        raise ConfigError(
            "MODEL.PROPOSAL_GENERATOR.NAME: expected GuidedAnchoringRPN, or a detector: other proposals have no stages "
            "to explain"
        )
    for index, found in enumerate(detector.stream(dataset, maps=diagnosis is not None)):
        if diagnosis is not None:
            diagnose(diagnosis, cfg, dataset, index, found)
        if mended is not None:
            mended.add(index, found)
    texts, numbers = [], {}
    if diagnosis is not None:
        texts.append(diagnosis.text(iou))
        numbers |= diagnosis.as_dict(iou)
    if mended is not None:
        texts.append(mended.text())
        numbers |= mended.metrics()
    return "\n\n".join(texts), numbers
