"""RPN (Ren et al. 2015) and the variants of it that Guided Anchoring's Table 1 compares with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import iou_match
from .box_coding import BoxCoder, center_size
from .guided_anchoring.anchors import FixedShapes
from .guided_anchoring.head import PRIOR_BIAS
from .guided_anchoring.losses import center_loss, shape_loss
from .inference import best_rows, select_proposals
from .layers import initialise
from .locations import LocationList
from .losses import positives_per_process, sigmoid_focal_loss, smooth_l1_loss
from .pyramid import Pyramid
from .results import Results, size_tensor
from .sampling import IGNORED, POSITIVE, label_matches, sample_labels
from .targets import Targets, needed

# Shapes: N images, C channels, P locations of an image, K anchors per location.

OBJECTNESS_LOSSES = ("cross_entropy", "focal")
BOX_LOSSES = ("smooth_l1", "bounded_iou")


class RPNHead(nn.Module):
    """A 3x3 convolution, ReLU, and 1x1 convolutions for objectness and box deltas; perhaps a second of the same.

    The parameters of the first have the names that detectron2 gives them.

    Args:
        channels: C.
        anchors_per_location: K.
        stages: 2: another head reads the hidden features of the first through a 3x3 convolution (RPN + iterative:
            "two RPN heads consecutively, with an additional 3 x 3 convolution between them", section 4.2).
        before_fpn: widths of the backbone's features: the first stage then reads these (through 1x1
            convolutions to C), the second the pyramid's (RefineRPN).
    """

    def __init__(self, channels: int, anchors_per_location: int, stages: int = 1, before_fpn=()):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in before_fpn)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors_per_location, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors_per_location, 1)
        initialise(self)
        self.second = self.between = None
        if stages > 1:
            if not self.lateral:
                self.between = nn.Conv2d(channels, channels, 3, padding=1)
                initialise(self.between)
            self.second = RPNHead(channels, anchors_per_location, stages - 1)

    def forward(self, pyramid: Pyramid, features: list[Tensor], before_fpn: list[Tensor] = ()):
        """Per stage logits (N, P * K) and deltas (N, P * K, 4)."""
        read = self._before_fpn(before_fpn, features) if self.lateral else features
        hidden = [F.relu(self.conv(f)) for f in read]
        logits = pyramid.flatten([self.objectness_logits(f) for f in hidden]).flatten(1)
        deltas = pyramid.flatten([self.anchor_deltas(f) for f in hidden]).reshape(*logits.shape, 4)
        if self.second is None:
            return [(logits, deltas)]
        if self.between is not None:
            features = [F.relu(self.between(h)) for h in hidden]
        return [(logits, deltas), *self.second(pyramid, features)]

    def _before_fpn(self, before_fpn, features):
        maps = [lateral(f) for lateral, f in zip(self.lateral, before_fpn)]
        # The levels above the backbone's last are pooled, as the pyramid's are.
        for _ in range(len(maps), len(features)):
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return maps


class RPN(nn.Module):
    """Sliding-window anchors, regressed and classified once, or again from where they got to.

    Args:
        head: the network; it has the stages.
        strides: of the features' levels.
        shapes: of the anchors.
        objectness_loss: ``"cross_entropy"`` over the sample, or ``"focal"`` over all anchors (RPN + focal loss).
        box_loss: ``"smooth_l1"`` of the deltas, or ``"bounded_iou"`` of the boxes (RPN + bounded IoU loss).
        box_coder, iou_thresholds, per_image, positive_fraction, smooth_l1_beta, pre_nms_topk, post_nms_topk,
            nms_thresh, min_size: as :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRPN`.
        objectness_weight, box_weight: of the losses.
    """

    def __init__(
        self,
        head: RPNHead,
        strides,
        shapes: FixedShapes,
        *,
        objectness_loss: str = "cross_entropy",
        box_loss: str = "smooth_l1",
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.3, 0.7),
        per_image: int = 256,
        positive_fraction: float = 0.5,
        smooth_l1_beta: float = 0.0,
        objectness_weight: float = 1.0,
        box_weight: float = 1.0,
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh: float = 0.7,
        min_size: float = 0.0,
    ):
        super().__init__()
        for name, value, known in (
            ("objectness_loss", objectness_loss, OBJECTNESS_LOSSES),
            ("box_loss", box_loss, BOX_LOSSES),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {value!r}")
        self.rpn_head = head
        self.strides = tuple(strides)
        self.shapes = shapes
        self.objectness_loss, self.box_loss = objectness_loss, box_loss
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds = tuple(iou_thresholds)
        self.per_image, self.positive_fraction = per_image, positive_fraction
        self.smooth_l1_beta = smooth_l1_beta
        self.objectness_weight, self.box_weight = objectness_weight, box_weight
        self.pre_nms_topk, self.post_nms_topk = tuple(pre_nms_topk), tuple(post_nms_topk)
        self.nms_thresh, self.min_size = nms_thresh, min_size
        if objectness_loss == "focal":
            for stage in (head, head.second):
                if stage is not None:
                    nn.init.constant_(stage.objectness_logits.bias, PRIOR_BIAS)

    def forward(
        self,
        features: list[Tensor],
        image_sizes,
        targets: Targets | None = None,
        before_fpn: list[Tensor] = (),
        *,
        maps: bool = False,
    ) -> Results:
        """Proposals of every image (detached), and in training the losses of every stage.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes of every image, in training.
            before_fpn: the backbone's features, if the head reads them.
            maps: of which a sliding-window RPN has none.
        """
        pyramid = Pyramid.of(features, self.strides, cell_offset=0.0)  # anchors on the cells' corners, as detectron2
        references = self.shapes.decode(pyramid, features[0].new_zeros(pyramid.images, pyramid.locations, 0))
        outputs = [(s.float(), d.float()) for s, d in self.rpn_head(pyramid, features, before_fpn)]
        losses = {}
        for stage, (logits, deltas) in enumerate(outputs):
            if self.training:
                suffix = f"_{stage + 1}" if len(outputs) > 1 else ""
                of_stage = self._losses(references, logits, deltas, needed(targets))
                losses |= {name + suffix: loss for name, loss in of_stage.items()}
            if stage + 1 < len(outputs):
                references = self.box_coder.decode(references, deltas.detach())
        return Results(
            losses,
            proposals=self._proposals(pyramid, references, logits, deltas, size_tensor(image_sizes, logits.device)),
            anchors=torch.full((pyramid.images,), references.shape[1], device=logits.device),
            locations=pyramid.locations,
        )

    @torch.no_grad()
    def _proposals(self, pyramid, references, logits, deltas, sizes):
        mode = 0 if self.training else 1
        anchors = LocationList.all(pyramid, logits.device).repeat(self.shapes.per_location)
        candidates = best_rows(anchors, logits.flatten(), self.pre_nms_topk[mode])
        references, deltas = references.flatten(0, 1)[candidates.rows], deltas.flatten(0, 1)[candidates.rows]
        return select_proposals(
            candidates,
            self.box_coder.decode(references, deltas),
            sizes,
            post_nms_topk=self.post_nms_topk[mode],
            nms_thresh=self.nms_thresh,
            min_size=self.min_size,
        )

    def _losses(self, references, logits, deltas, targets):
        """Both parts of a stage have one divisor, or one of them would drown the other in the shared convolution: the
        size of the sample; with the focal loss, which does not sample, the number of positives (Lin et al. 2017b).
        """
        focal = self.objectness_loss == "focal"
        with torch.no_grad():
            match = iou_match(list(references), targets.boxes, low_quality_from=0.0, ignore_boxes=targets.ignore)
            labels, index = label_matches(match, *self.iou_thresholds, low_quality_from=0.0, keep_best_box=True)
            if focal:
                positives, counted = (labels == POSITIVE).nonzero()[:, 0], (labels != IGNORED).nonzero()[:, 0]
                divisor = positives_per_process(len(positives), labels.device)
            else:
                positives, negatives = sample_labels(
                    labels.view(references.shape[:2]), self.per_image, self.positive_fraction
                )
                counted = torch.cat([positives, negatives])
                divisor = self.per_image * len(targets.boxes)
        references, logits, deltas = references.flatten(0, 1), logits.flatten(), deltas.flatten(0, 1)
        objects = (labels[counted] == POSITIVE).to(logits.dtype)
        if focal:
            objectness = sigmoid_focal_loss(logits[counted], objects).sum()
        else:
            objectness = F.binary_cross_entropy_with_logits(logits[counted], objects, reduction="sum")
        boxes = torch.cat(targets.boxes)[index[positives]]
        if self.box_loss == "bounded_iou":
            centers, sides = center_size(self.box_coder.decode(references[positives], deltas[positives]))
            box = (center_loss(centers, boxes) + shape_loss(sides, boxes[:, 2:] - boxes[:, :2])).sum()
        else:
            encoded = self.box_coder.encode(references[positives], boxes)
            box = smooth_l1_loss(deltas[positives] - encoded, self.smooth_l1_beta).sum()
        return {
            "loss_rpn_cls": self.objectness_weight * objectness / divisor,
            "loss_rpn_loc": self.box_weight * box / divisor,
        }
