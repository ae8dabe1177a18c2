"""ScopeNet's dense detector: the head, its targets and losses, and boxes from its predictions."""

import torch
from torch import Tensor, nn

from ..inference import best_classes, select_detections
from ..locations import LocationList
from ..losses import positives_per_process, sigmoid_focal_loss
from ..pyramid import Pyramid
from ..results import Results, ScopeMaps, size_tensor
from ..targets import Targets, needed
from .head import ScopeHead, ScopePredictions
from .losses import bin_loss, box_loss, distance_iou
from .quality import DistributionQuality, mean_of_maxima
from .targets import ScopeTargets, ignored_locations

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

    Attributes:
        sparse_tower: in inference the localization tower is computed only where candidates need it, with the same
            results (:func:`ga_scope.optimize_for_inference`); for a head with :attr:`ScopeHead.towers_are_local`.
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
        self.sparse_tower = False

    def forward(
        self, features: list[Tensor], image_sizes, targets: Targets | None = None, *, maps: bool = False
    ) -> Results:
        """Detections of every image in inference; the losses in training.

        Args:
            features: (N, channels, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes and classes of every image, in training.
            maps: the results have their :class:`ScopeMaps`, in inference.
        """
        pyramid = Pyramid.of(features, self.strides)
        if self.training:
            predictions = self.head(pyramid, features)
            return Results(self.losses(pyramid, predictions, needed(targets, classes=True)))
        with torch.no_grad():
            sizes = size_tensor(image_sizes, features[0].device)
            if self.sparse_tower and not maps:
                return self._sparse_inference(pyramid, features, sizes)
            return self._inference(pyramid, self.head(pyramid, features), sizes, maps)

    # ---- inference ------------------------------------------------------------------------------

    def localization_score(self, bin_logits: Tensor) -> Tensor:
        """p_loc (...) from bin logits (..., 4, B)."""
        probabilities = bin_logits.softmax(-1)
        return mean_of_maxima(probabilities) if self.quality is None else self.quality(probabilities).sigmoid()

    def _sparse_inference(self, pyramid, features, sizes):
        """Sides are predicted only where a class is above the threshold: no other location can be a candidate."""
        class_logits = self.head.classify(pyramid, features)
        wanted = class_logits.amax(2).sigmoid() > self.score_thresh
        predictions = ScopePredictions(class_logits, *self.head.localize(pyramid, features, wanted))
        return self._inference(pyramid, predictions, sizes, False)

    def _inference(self, pyramid, predictions, sizes, maps):
        localization = self.localization_score(predictions.bin_logits) if self.rescore else None
        rows, scores, classes = best_classes(
            LocationList.all(pyramid, sizes.device),
            predictions.class_logits.flatten(0, 1),
            self.topk,
            self.score_thresh,
            None if localization is None else localization.flatten(),
        )
        places = rows % pyramid.locations
        detections = select_detections(
            self._boxes(pyramid, predictions, rows, places),
            scores,
            classes,
            places,
            sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
            clip_first=True,
        )
        found = Results(detections=detections, locations=pyramid.locations)
        if maps:
            if localization is None:
                localization = torch.ones_like(predictions.class_logits[..., 0])
            probabilities = predictions.bin_logits.softmax(-1)
            found.maps = ScopeMaps(pyramid, predictions.class_logits, localization, probabilities)
        return found

    def _boxes(self, pyramid, predictions, rows, places):
        """Boxes (N, M, 4) of locations, by their rows (N, M) of the batch and places (N, M) in their images."""
        bins = predictions.bin_logits.flatten(0, 1)[rows].argmax(-1)
        distances = self.head.distances(predictions.borders.flatten(0, 1)[rows], bins)
        distances = distances * pyramid.per_level(self.strides, rows.device)[places][..., None]
        centers = pyramid.centers(rows.device)[places]
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)

    # ---- losses ---------------------------------------------------------------------------------

    def losses(self, pyramid: Pyramid, predictions: ScopePredictions, targets: Targets) -> dict[str, Tensor]:
        """Eq. 4. Each part is divided by the number of its positive locations (:func:`positives_per_process`)."""
        boxes, classes = torch.cat(targets.boxes), torch.cat(targets.classes)
        assigned = self.targets(pyramid, targets.boxes)
        losses = {
            "loss_cls": self.loss_weights["classification"]
            * self._classification_loss(
                pyramid, predictions.class_logits, assigned.classification, classes, targets.ignore
            )
        }
        positive = (assigned.localization.flatten() >= 0).nonzero()[:, 0]
        gt = self._gt_distances(pyramid, positive, boxes[assigned.localization.flatten()[positive]])
        borders = predictions.borders.flatten(0, 1)[positive]
        logits = predictions.bin_logits.flatten(0, 1)[positive]
        divisor = positives_per_process(len(positive), positive.device)

        # The bin of the target is decoded, whatever the bin logits say.
        pred = self.head.distances(borders, self.head.bins.index(gt))
        losses["loss_box"] = self.loss_weights["boxes"] * box_loss(pred, gt, self.box_loss).sum() / divisor
        if self.head.bins.count > 1:
            wanted = self.head.bins.soft(gt) if self.soft_bins else self.head.bins.one_hot(gt)
            losses["loss_bin"] = self.loss_weights["bins"] * bin_loss(logits, wanted).sum() / divisor
        if self.quality is not None:
            losses["loss_quality"] = self.loss_weights["quality"] * self._quality_loss(logits, borders, gt) / divisor
        return losses

    def _classification_loss(self, pyramid, logits, assigned, gt_classes, ignore_boxes):
        wanted = torch.zeros_like(logits)
        image, place = (assigned >= 0).nonzero(as_tuple=True)
        wanted[image, place, gt_classes[assigned[image, place]]] = 1
        loss = sigmoid_focal_loss(logits, wanted, self.focal_alpha, self.focal_gamma)
        if ignore_boxes is not None:
            loss = loss.masked_fill(ignored_locations(pyramid, assigned, ignore_boxes)[..., None], 0)
        loss = loss.sum()
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
