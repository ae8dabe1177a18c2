"""detectron2's Instances and the project's Targets and Results, each from the other."""

import torch
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ...modeling.results import Detections, Proposals, Results
from ...modeling.targets import Targets


class InstancesWithRegions(Instances):
    """The objects of an image, and beside them its ignore regions (B, 4), of which there may be another number.

    detectron2's models move Instances to their device, and a plain attribute would stay behind.
    """

    def __init__(self, instances: Instances, ignore_boxes: Tensor):
        super().__init__(instances.image_size, **instances.get_fields())
        self._ignore_boxes = ignore_boxes

    def to(self, *args, **kwargs) -> "InstancesWithRegions":
        return InstancesWithRegions(super().to(*args, **kwargs), self._ignore_boxes.to(*args, **kwargs))


def ignore_boxes_of(instances: list[Instances]) -> list[Tensor] | None:
    """Where the data mapper gave some."""
    if all(isinstance(x, InstancesWithRegions) for x in instances):
        return [x._ignore_boxes for x in instances]
    return None


def targets_of(instances: list[Instances] | None) -> Targets | None:
    """Objects and ignore regions."""
    if instances is None:
        return None
    return Targets(
        [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances], ignore_boxes_of(instances)
    )


def as_proposals(proposals: Proposals, image_sizes) -> list[Instances]:
    return [
        Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=logits)
        for (boxes, logits), size in zip(proposals.unpad(), image_sizes)
    ]


def as_detections(detections: Detections, image_sizes, file_sizes) -> list[dict]:
    """Per image ``{"instances": Instances}``, in pixels of its file."""
    outputs = []
    for (boxes, scores, classes, _), size, file_size in zip(detections.unpad(), image_sizes, file_sizes):
        found = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        outputs.append({"instances": detector_postprocess(found, *file_size)})
    return outputs


def _pad(values: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


def as_batch(instances: list[Instances]) -> Detections:
    """Of detectron2's own models, which do not say where a detection comes from: origins are -1."""
    classes = _pad([x.pred_classes for x in instances])
    return Detections(
        _pad([x.pred_boxes.tensor for x in instances]),
        _pad([x.scores for x in instances]),
        classes,
        torch.full_like(classes, -1),
        torch.tensor([len(x) for x in instances]),
    )


def preprocessed(model, inputs: list[dict]) -> ImageList:
    """Normalised images, padded to one size."""
    if hasattr(model, "preprocess_image"):
        return model.preprocess_image(inputs)
    images = [(x["image"].to(model.device) - model.pixel_mean) / model.pixel_std for x in inputs]  # ProposalNetwork
    return ImageList.from_tensors(
        images, model.backbone.size_divisibility, padding_constraints=model.backbone.padding_constraints
    )


def rcnn_results(model: GeneralizedRCNN | ProposalNetwork, images, proposals, maps: bool):
    """What detectron2's ``inference`` does, with everything that it computes; and the heads' Instances, if any.

    Args:
        images: ImageList, preprocessed.
        proposals: Instances per image where the model has no proposal generator.
    """
    features = model.backbone(images.tensor)
    generator, results = model.proposal_generator, Results()
    if generator is not None:
        if hasattr(generator, "results"):  # this project's
            results = generator.results(features, images.image_sizes, maps=maps)
            proposals = as_proposals(results.proposals, images.image_sizes)
        else:
            proposals, _ = generator(images, features, None)
            boxes, logits = zip(*((x.proposal_boxes.tensor, x.objectness_logits) for x in proposals))
            results.proposals = Proposals.pad(list(boxes), list(logits))
            if isinstance(generator, RPN):
                locations = [features[name].shape[2:].numel() for name in generator.in_features]
                anchors = sum(n * k for n, k in zip(locations, generator.anchor_generator.num_anchors))
                results.locations, results.anchors = sum(locations), torch.full((len(images),), anchors)
    if isinstance(model, ProposalNetwork):
        return results, None
    found, _ = model.roi_heads(images, features, proposals, None)
    results.detections = as_batch(found)
    return results, found


def retinanet_results(model, images) -> Results:
    """Of detectron2's RetinaNet."""
    features = model.backbone(images.tensor)
    features = [features[name] for name in model.head_in_features]
    anchors = model.anchor_generator(features)
    found = model.forward_inference(images, features, model.head(features))
    count = sum(len(boxes) for boxes in anchors)
    return Results(
        detections=as_batch(found),
        anchors=torch.full((len(images),), count),
        locations=sum(f.shape[2] * f.shape[3] for f in features),
    )
