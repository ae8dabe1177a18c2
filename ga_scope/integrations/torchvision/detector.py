"""What every model of the built-in engine has: a backbone, and images that it normalises and pads."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList


class Detector(nn.Module):
    """A list of dicts in, losses by name (in training) or a dict per image (in inference) out.

    Every input has ``image``, uint8 or float (3, H, W) in ``INPUT.FORMAT``, resized for the network. For
    training ``boxes`` (G, 4) and ``labels`` (G,) from 0. For inference, optionally ``height`` and ``width`` of the
    image file, to which the results are scaled back.

    An image's dict holds what the model makes: ``proposals`` (:class:`Proposals`); ``boxes`` (D, 4), ``scores`` and
    ``classes`` (D,); ``anchors``, the number that its results came from and the number of locations.
    """

    def __init__(self, backbone, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self):
        return self.pixel_mean.device

    def preprocess(self, inputs: list[dict]) -> ImageList:
        """Normalised images, padded to one size that the backbone's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in inputs]
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(i.shape[d] for i in images) // multiple) * multiple for d in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, images):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(batch, [(i.shape[1], i.shape[2]) for i in images])


class OneStageDetector(Detector):
    """A backbone and a framework-free dense detector on some of its features.

    Args:
        detector: called with the features, the images' sizes and, in training, boxes and labels per image; it
            returns :class:`ga_scope.modeling.detections.Detections` per image and losses.
    """

    def __init__(self, backbone, in_features, detector, pixel_mean, pixel_std):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.in_features = in_features
        self.detector = detector

    def forward(self, inputs: list[dict]):
        images = self.preprocess(inputs)
        features = self.backbone(images.tensors)
        targets = ()
        if self.training:
            targets = ([x[key].to(self.device) for x in inputs] for key in ("boxes", "labels"))
        found, losses = self.detector([features[name] for name in self.in_features], images.image_sizes, *targets)
        if self.training:
            return losses
        outputs = []
        for detections, x, size in zip(found, inputs, images.image_sizes):
            boxes = rescale(detections.boxes, x, size)
            outputs.append({"boxes": boxes, "scores": detections.scores, "classes": detections.classes})
        # A detector on anchors says how many its results came from.
        locations = getattr(self.detector, "locations_per_image", 0)
        for output, count in zip(outputs, getattr(self.detector, "anchors_per_image", ())):
            output["anchors"] = (count, locations)
        return outputs


def rescale(boxes: Tensor, x: dict, size) -> Tensor:
    """Boxes of the network's image, of ``size`` (height, width), in pixels of the image file, clipped to it."""
    height, width = x.get("height", size[0]), x.get("width", size[1])
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    limit = boxes.new_tensor([width, height] * 2)
    return (boxes * scale).clamp(min=0).minimum(limit)
