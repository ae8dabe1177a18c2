"""ScopeNet's dense detector: the head, its targets and losses, and boxes from its predictions."""

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ..box_coding import clip_boxes
from ..detections import Detections
from ..losses import positives_per_process, sigmoid_focal_loss
from ..padded import PaddedDetections, pad_detections
from ..pyramid import Pyramid
from .head import ScopeHead, ScopePredictions
from .losses import bin_loss, box_loss, distance_iou
from .quality import DistributionQuality, mean_of_maxima
from .targets import ScopeTargets

# Shapes: N images, P locations of an image, C classes, B bins, L positive locations, K candidates.


class ScopeDetector(nn.Module):
    """Features of a pyramid to detections, and the losses of Eq. 4 in training.

    Args:
        head: the network.
        strides: of the features' levels.
        targets: what every location learns.
        rescore: a box's score is p_cls * p_loc (Eq. 3), not p_cls alone (Table 1). A head with one bin has no p_loc.
        quality: a network for p_loc; None for the mean of the bins' maxima (Eq. 3).
        soft_bins: two neighbouring bins share the target, instead of one-hot (:meth:`ScopeBins.soft`). The box loss
            is that of the bin that holds the distance in either case.
        box_loss: ``"iou"``, ``"giou"`` or ``"diou"`` (:func:`ga_scope.modeling.scope.losses.box_loss`).
        loss_weights: of ``classification``, ``bins`` (lambda_bin), ``boxes`` (lambda_loc) and ``quality``.
        score_thresh: a class of a location is a candidate from this p_cls on.
        topk: candidates of each level and image before NMS, by score.
        nms_thresh: of the NMS within each class.
        detections_per_image: at most.
    """

    def __init__(
        self,
        head: ScopeHead,
        strides,
        *,
        targets: ScopeTargets | None = None,
        rescore: bool = True,
        quality: DistributionQuality | None = None,
        soft_bins: bool = False,
        box_loss: str = "iou",
        loss_weights=None,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        score_thresh: float = 0.05,
        topk: int = 1000,
        nms_thresh: float = 0.6,
        detections_per_image: int = 100,
    ):
        super().__init__()
        if box_loss not in ("iou", "giou", "diou"):
            raise ValueError(f"box_loss: expected 'iou', 'giou' or 'diou', got {box_loss!r}")
        self.head = head
        self.strides = tuple(strides)
        self.targets = targets or ScopeTargets()
        self.rescore = rescore and head.bins.count > 1
        self.quality = quality if head.bins.count > 1 else None
        self.soft_bins = soft_bins
        self.box_loss = box_loss
        self.loss_weights = {"classification": 1.0, "bins": 0.5, "boxes": 1.0, "quality": 1.0} | (loss_weights or {})
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.score_thresh = score_thresh
        self.topk = topk
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image

    def forward(
        self,
        features: list[Tensor],
        image_sizes: list[tuple[int, int]],
        gt_boxes: list[Tensor] | None = None,
        gt_classes: list[Tensor] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Detections of every image in inference; the losses in training.

        Args:
            features: (N, channels, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding.
            gt_boxes, gt_classes: (G, 4) and (G,) per image.
        """
        pyramid = Pyramid.of(features, self.strides)
        predictions = self.head(pyramid, features)
        if self.training:
            if gt_boxes is None or gt_classes is None:
                raise ValueError("gt_boxes, gt_classes: expected those of every image in training, got None")
            gt_boxes = [boxes.to(predictions.borders.dtype) for boxes in gt_boxes]
            return [], self.losses(pyramid, predictions, gt_boxes, gt_classes)
        return [found for found, _ in self.detections(pyramid, predictions, image_sizes)], {}

    # ---- inference ------------------------------------------------------------------------------

    def localization_score(self, bin_logits: Tensor) -> Tensor:
        """p_loc (...) from bin logits (..., 4, B)."""
        probabilities = bin_logits.softmax(-1)
        return mean_of_maxima(probabilities) if self.quality is None else self.quality(probabilities).sigmoid()

    @torch.no_grad()
    def detections(
        self, pyramid: Pyramid, predictions: ScopePredictions, image_sizes
    ) -> list[tuple[Detections, Tensor]]:
        """The detections of every image, and the locations (D,) of the image that they come from."""
        boxes, scores, rows, classes = self._candidates(pyramid, predictions)
        results = []
        for image, size in enumerate(image_sizes):
            clipped = clip_boxes(boxes[image], size)
            kept = self._suppress(clipped, scores[image], classes[image], size)
            found = Detections(clipped[kept], scores[image][kept], classes[image][kept])
            results.append((found, rows[image][kept]))
        return results

    @torch.no_grad()
    def padded_detections(self, features: list[Tensor], image_sizes: Tensor) -> PaddedDetections:
        """The detections of inference in tensors whose sizes follow from the features' alone; the device is not waited
        for (:mod:`ga_scope.modeling.padded`).

        Args:
            features: (N, channels, H_l, W_l) per level.
            image_sizes: (N, 2), height and width of every image without its padding, on the features' device.
        """
        pyramid = Pyramid.of(features, self.strides)
        boxes, scores, _, classes = self._candidates(pyramid, self.head(pyramid, features))
        return pad_detections(
            boxes,
            scores,
            classes,
            image_sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
            clip_first=True,
        )

    def _candidates(self, pyramid, predictions):
        """The ``topk`` best of every level: boxes (N, K, 4) not clipped, scores (N, K), locations of the image (N, K),
        classes (N, K). Where no more classes are above ``score_thresh`` the score is 0.
        """
        centers = pyramid.centers(predictions.borders.device)
        strides = pyramid.per_level(self.strides, centers.device)
        # The best class of a location decides whether any of its classes is among the best K of the level, so the
        # other classes' probabilities are computed at K locations only, and boxes too.
        best = predictions.class_logits.amax(-1).sigmoid()
        localization = self.localization_score(predictions.bin_logits) if self.rescore else torch.ones_like(best)
        best = best * localization
        image = torch.arange(pyramid.images, device=centers.device)[:, None]
        candidates, first = [], 0
        for count in pyramid.counts:
            rows = best[:, first : first + count].topk(min(self.topk, count), 1).indices + first
            scores = predictions.class_logits[image, rows].sigmoid()
            ranking = torch.where(scores > self.score_thresh, scores * localization[image, rows][..., None], 0)
            classes = ranking.shape[2]
            top = ranking.flatten(1).topk(min(self.topk, ranking.shape[1] * classes), 1)
            candidates.append((top.values, rows.gather(1, top.indices // classes), top.indices % classes))
            first += count
        scores, rows, classes = (torch.cat(parts, 1) for parts in zip(*candidates))
        bins = predictions.bin_logits[image, rows].argmax(-1)
        distances = self.head.distances(predictions.borders[image, rows], bins) * strides[rows][..., None]
        boxes = torch.cat([centers[rows] - distances[..., :2], centers[rows] + distances[..., 2:]], -1)
        return boxes, scores, rows, classes

    def _suppress(self, boxes, scores, classes, size):
        """Indices of what NMS within each class leaves, best first. Boxes wholly in the padding are empty: left out."""
        # Those below the threshold have score 0.
        candidates = ((scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)).nonzero()[:, 0]
        boxes, scores, classes = boxes[candidates], scores[candidates], classes[candidates]
        # Classes side by side on one wide image: boxes of different classes do not overlap there.
        boxes = boxes + (classes.to(boxes.dtype) * (max(size) + 1))[:, None]
        # torch.export takes it that torchvision's nms always leaves two boxes. So it does: these, the last.
        boxes = torch.cat([boxes, boxes.new_tensor([[-2.0, -2, -1, -1], [-4, -4, -3, -3]])])
        scores = torch.cat([scores, scores.new_full((2,), -1)])
        return candidates[nms(boxes, scores, self.nms_thresh)[:-2][: self.detections_per_image]]

    # ---- losses ---------------------------------------------------------------------------------

    def losses(self, pyramid: Pyramid, predictions: ScopePredictions, gt_boxes, gt_classes) -> dict[str, Tensor]:
        """Eq. 4. Each part is divided by the number of its positive locations (:func:`positives_per_process`)."""
        assigned = self.targets(pyramid, gt_boxes)
        losses = {
            "loss_cls": self.loss_weights["classification"]
            * self._classification_loss(predictions.class_logits, assigned.classification, torch.cat(gt_classes))
        }
        positive = (assigned.localization.flatten() >= 0).nonzero()[:, 0]
        gt = self._gt_distances(pyramid, positive, torch.cat(gt_boxes)[assigned.localization.flatten()[positive]])
        borders = predictions.borders.flatten(0, 1)[positive]
        logits = predictions.bin_logits.flatten(0, 1)[positive]
        divisor = positives_per_process(len(positive), positive.device)

        # The bin of the target is decoded, whatever the bin logits say.
        pred = self.head.distances(borders, self.head.bins.index(gt))
        losses["loss_box"] = self.loss_weights["boxes"] * box_loss(pred, gt, self.box_loss).sum() / divisor
        if self.head.bins.count > 1:
            targets = self.head.bins.soft(gt) if self.soft_bins else self.head.bins.one_hot(gt)
            losses["loss_bin"] = self.loss_weights["bins"] * bin_loss(logits, targets).sum() / divisor
        if self.quality is not None:
            losses["loss_quality"] = self.loss_weights["quality"] * self._quality_loss(logits, borders, gt) / divisor
        return losses

    def _classification_loss(self, logits, assigned, gt_classes):
        targets = torch.zeros_like(logits)
        image, place = (assigned >= 0).nonzero(as_tuple=True)
        targets[image, place, gt_classes[assigned[image, place]]] = 1
        loss = sigmoid_focal_loss(logits, targets, self.focal_alpha, self.focal_gamma).sum()
        return loss / positives_per_process(len(place), loss.device)

    def _gt_distances(self, pyramid, locations, boxes):
        """Distances (L, 4), in strides, from locations to the sides of their boxes."""
        place = locations % pyramid.locations
        center = pyramid.centers(boxes.device)[place]
        stride = pyramid.per_level(self.strides, boxes.device)[place, None]
        return torch.cat([center - boxes[:, :2], boxes[:, 2:] - center], 1) / stride

    def _quality_loss(self, logits, borders, gt):
        """Cross entropy of the predicted quality with the IoU of the box that inference would decode."""
        with torch.no_grad():
            iou = distance_iou(self.head.distances(borders, logits.argmax(-1)), gt)
        quality = self.quality(logits.softmax(-1))
        return nn.functional.binary_cross_entropy_with_logits(quality, iou, reduction="sum")
