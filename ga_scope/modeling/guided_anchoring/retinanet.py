"""GA-RetinaNet: one stage, from guided anchors to classes and boxes.

The location branch sits on the classification tower and the shape branch on the regression tower, each
tower has its own feature adaption, and 3x3 convolutions predict (the paper's release; the paper says only
that the sliding window is replaced). So a prediction at an active location needs the adapted features of
its eight neighbours as well: the adaption runs on the active set grown by the convolution's reach, the
convolution on the active set alone.
"""

import torch
from torch import Tensor, nn

from ...ops import MaskedConv2d, iou_match, masked_conv2d
from ..box_coding import BoxCoder
from ..inference import ClassCandidates, best_classes, select_detections
from ..layers import SparseTower, initialise, tower
from ..locations import LocationList
from ..losses import positives_per_process, sigmoid_focal_loss, smooth_l1_loss
from ..pyramid import Pyramid
from ..results import Results, size_tensor
from ..sampling import IGNORED, POSITIVE, label_matches
from ..targets import Targets, needed
from .adaption import FeatureAdaption
from .generation import AnchorGeneration
from .head import location_branch, shape_branch

# Shapes: N images, C channels, P locations of an image, L listed locations, A active ones over the batch.

REACH = 1  # of a 3x3 convolution, in cells


class Towers:
    """The two feature lists that the head's second phase reads."""

    def __init__(self, classification: list[Tensor], regression: list[Tensor]):
        self.classification = classification
        self.regression = regression


class Branch(nn.Module):
    """A tower's second phase: feature adaption, then a 3x3 prediction, at listed locations."""

    def __init__(self, channels: int, outputs: int, offset_groups: int, offsets: str):
        super().__init__()
        self.adaption = FeatureAdaption(channels, offset_groups, offsets)
        self.predict = MaskedConv2d(channels, outputs, 3, padding=REACH)
        initialise(self.predict)

    def forward(
        self, pyramid: Pyramid, features: list[Tensor], shape_deltas: Tensor, locations: Tensor, grown: Tensor
    ) -> Tensor:
        """(L, outputs); ``shape_deltas`` (N, P, columns) detached, of all locations.

        ``grown`` lists at least the locations within reach of the listed ones, repeats allowed.
        """
        adapted = self.adaption(features, shape_deltas.flatten(0, 1)[grown], grown)
        # Zero where it was not computed: never within reach of a listed location.
        return self.predict(pyramid.scatter(adapted, grown), locations=locations)


class GuidedAnchorRetinaHead(nn.Module):
    """Two towers; location and shape of the anchors; class logits and box deltas at chosen ones.

    Args:
        in_channels: C.
        num_classes: of the objects.
        num_convs, norm: of each :func:`tower <ga_scope.modeling.layers.tower>`.
        offset_groups, offsets: of both :class:`FeatureAdaption`.
        shape_columns: :attr:`AnchorShapes.columns`.
        prior: probability of every class at the start, as the focal loss wants it (Lin et al. 2017, 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_convs: int = 4,
        offset_groups: int = 4,
        *,
        norm: str = "",
        offsets: str = "shape",
        shape_columns: int = 2,
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.classification_tower = tower(in_channels, num_convs, norm)
        self.regression_tower = tower(in_channels, num_convs, norm)
        initialise(self.classification_tower, self.regression_tower)
        self.location = location_branch(in_channels)
        self.shape = shape_branch(in_channels, shape_columns)
        self.classification = Branch(in_channels, num_classes, offset_groups, offsets)
        self.regression = Branch(in_channels, 4, offset_groups, offsets)
        nn.init.constant_(self.classification.predict.bias, torch.tensor(prior).logit().item())

    def generate(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[Towers, Tensor, Tensor]:
        """Phase one, at every location: the towers, location logits (N, P), shape deltas (N, P, columns)."""
        towers = Towers([self.classification_tower(f) for f in features], [self.regression_tower(f) for f in features])
        location = pyramid.flatten([self.location(f) for f in towers.classification]).squeeze(2)
        return towers, location, pyramid.flatten([self.shape(f) for f in towers.regression])

    @property
    def towers_are_local(self) -> bool:
        """Whether the regression tower can be computed in part (:meth:`SparseRegression`)."""
        return SparseTower.possible(self.regression_tower) and self.regression.adaption.offsets != "features"

    def classify(self, pyramid: Pyramid, towers: Towers, shape_deltas: Tensor, locations: Tensor, grown: Tensor):
        """Class logits (L, classes) at the locations; no gradient flows into the shapes (section 3.3).

        ``grown`` as :class:`Branch` takes it.
        """
        return self.classification(pyramid, towers.classification, shape_deltas.detach(), locations, grown)

    def regress(self, pyramid: Pyramid, towers: Towers, shape_deltas: Tensor, locations: Tensor, grown: Tensor):
        """Box deltas (L, 4) at the locations."""
        return self.regression(pyramid, towers.regression, shape_deltas.detach(), locations, grown)


class SparseRegression:
    """The regression tower of a batch where it is read: at the shapes of active locations and their neighbours, and
    where the adaption of candidates samples it.
    """

    def __init__(self, head: GuidedAnchorRetinaHead, pyramid: Pyramid, features: list[Tensor]):
        self.head, self.pyramid = head, pyramid
        self.tower = SparseTower(head.regression_tower, pyramid, features)

    def shape_deltas(self, locations: Tensor) -> Tensor:
        """(N, P, columns) at the locations (L,), zero elsewhere."""
        pyramid, shape = self.pyramid, self.head.shape
        maps = self.tower(pyramid.mask(locations))
        rows = masked_conv2d(maps, shape.weight, shape.bias, locations=locations)
        flat = rows.new_zeros(pyramid.images * pyramid.locations, rows.shape[1]).index_copy(0, locations, rows)
        return flat.view(pyramid.images, pyramid.locations, -1)

    def maps(self, shape_deltas: Tensor, grown: Tensor) -> list[Tensor]:
        """The tower's maps, right where the adaption at the locations ``grown`` (L,) samples them."""
        reads = self.head.regression.adaption.reads(self.pyramid, shape_deltas.flatten(0, 1)[grown], grown)
        return self.tower(reads)


class GuidedAnchorRetinaNet(AnchorGeneration):
    """Features of a pyramid to detections, and the losses in training.

    In training every location that is not ignored is classified, as in RetinaNet; boxes are regressed at the
    positive ones alone, which is all that the box loss reads.

    Args:
        head, strides, **generation: see :class:`AnchorGeneration`.
        box_coder: of the deltas from anchor to box.
        iou_thresholds: (negative below, positive from) of the anchors' IoU with a box. A box's best anchors
            are positive from ``low_quality_iou`` on.
        class_alpha, class_gamma: of the classes' focal loss.
        smooth_l1_beta: of the box loss.
        score_thresh, topk_candidates, nms_thresh, detections_per_image: of the inference, as RetinaNet's.

    Attributes:
        sparse_tower: as :attr:`ScopeDetector.sparse_tower`, of the regression tower.
    """

    def __init__(
        self,
        head: GuidedAnchorRetinaHead,
        strides,
        *,
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.5, 0.5),
        low_quality_iou: float = 0.0,
        class_alpha: float = 0.25,
        class_gamma: float = 2.0,
        smooth_l1_beta: float = 0.04,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
        **generation,
    ):
        super().__init__(head, strides, **generation)
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds, self.low_quality_iou = tuple(iou_thresholds), low_quality_iou
        self.class_alpha, self.class_gamma = class_alpha, class_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.score_thresh, self.topk_candidates = score_thresh, topk_candidates
        self.nms_thresh, self.detections_per_image = nms_thresh, detections_per_image
        self.sparse_tower = False

    def forward(
        self,
        features: list[Tensor],
        image_sizes,
        targets: Targets | None = None,
        *,
        fixed_size: bool = False,
        maps: bool = False,
    ) -> Results:
        """In inference the detections of every image, in training the losses.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes and classes of every image, in training.
            fixed_size, maps: as :meth:`GuidedAnchorRPN.forward`.
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        if self.sparse_tower and not (self.training or fixed_size or maps):
            with torch.no_grad():
                return self._sparse_inference(pyramid, features, size_tensor(image_sizes, features[0].device))
        towers, location_logits, shape_deltas = self.head.generate(pyramid, features)
        if self.training:
            losses = self._losses(pyramid, towers, location_logits, shape_deltas, needed(targets, classes=True))
            return Results(losses, locations=pyramid.locations)
        sizes = size_tensor(image_sizes, shape_deltas.device)
        with torch.no_grad():
            return self._inference(pyramid, towers, location_logits, shape_deltas, sizes, fixed_size, maps)

    def _inference(self, pyramid, towers, location_logits, shape_deltas, sizes, fixed_size, maps):
        locations = self.choose(pyramid, location_logits, fixed_size, self.selection)
        logits = self.head.classify(pyramid, towers, shape_deltas, locations.indices, locations.grown(REACH))
        # Candidates are chosen first, so that boxes are regressed only for them.
        candidates = best_classes(locations, logits, self.topk_candidates, self.score_thresh)
        chosen, place = locations.those(candidates.rows, candidates.scores > 0)
        boxes = self._boxes(pyramid, towers, shape_deltas, chosen)[place]
        found = self._detections(pyramid, locations, candidates, boxes, sizes)
        if maps:
            boxes = self._boxes(pyramid, towers, shape_deltas, locations)
            found.maps = self._maps(pyramid, location_logits, shape_deltas, locations.indices, boxes)
        return found

    def _sparse_inference(self, pyramid, features, sizes):
        """Without the regression tower where nothing reads it."""
        classification = [self.head.classification_tower(f) for f in features]
        location_logits = pyramid.flatten([self.head.location(f) for f in classification]).squeeze(2)
        locations = self.choose(pyramid, location_logits, False, self.selection)
        grown = locations.grown(REACH)
        regression = SparseRegression(self.head, pyramid, features)
        shape_deltas = regression.shape_deltas(grown)
        logits = self.head.classify(pyramid, Towers(classification, []), shape_deltas, locations.indices, grown)
        candidates = best_classes(locations, logits, self.topk_candidates, self.score_thresh)
        chosen, place = locations.those(candidates.rows, candidates.scores > 0)
        towers = Towers(classification, regression.maps(shape_deltas, chosen.grown(REACH)))
        boxes = self._boxes(pyramid, towers, shape_deltas, chosen)[place]
        return self._detections(pyramid, locations, candidates, boxes, sizes)

    def _detections(self, pyramid, locations: LocationList, candidates: ClassCandidates, boxes, sizes):
        detections = select_detections(
            boxes,
            candidates.scores,
            candidates.classes,
            locations.places[candidates.rows],
            sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
            clip_first=False,
        )
        return Results(detections=detections, anchors=locations.count(), locations=pyramid.locations)

    def _boxes(self, pyramid, towers, shape_deltas, locations: LocationList):
        """Boxes (L, 4) of the anchors at the locations."""
        indices = locations.indices
        deltas = self.head.regress(pyramid, towers, shape_deltas, indices, locations.grown(REACH)).float()
        anchors = self.shapes.decode(pyramid, shape_deltas.flatten(0, 1)[indices], indices)
        return self.box_coder.decode(anchors, deltas)

    def _losses(self, pyramid, towers, location_logits, shape_deltas, targets):
        losses = self._anchor_losses(pyramid, location_logits, shape_deltas, targets)
        anchors = self.shapes.decode(pyramid, shape_deltas.detach())
        least = self.low_quality_iou
        match = iou_match(list(anchors), targets.boxes, low_quality_from=least, ignore_boxes=targets.ignore)
        labels, index = label_matches(match, *self.iou_thresholds, least)
        positives, counted = (labels == POSITIVE).nonzero()[:, 0], (labels != IGNORED).nonzero()[:, 0]
        normalizer = positives_per_process(len(positives), labels.device)

        everywhere = torch.arange(len(labels), device=labels.device)
        logits = self.head.classify(pyramid, towers, shape_deltas, everywhere, everywhere).float()
        classes = torch.zeros_like(logits)
        classes[positives, torch.cat(targets.classes)[index[positives]]] = 1
        loss = sigmoid_focal_loss(logits[counted], classes[counted], self.class_alpha, self.class_gamma)
        losses["loss_cls"] = loss.sum() / normalizer

        grown = pyramid.grow(positives, REACH)
        deltas = self.head.regress(pyramid, towers, shape_deltas, positives, grown).float()
        boxes = torch.cat(targets.boxes)[index[positives]]
        encoded = self.box_coder.encode(anchors.flatten(0, 1)[positives], boxes)
        losses["loss_box_reg"] = smooth_l1_loss(deltas - encoded, self.smooth_l1_beta).sum() / normalizer
        return losses
