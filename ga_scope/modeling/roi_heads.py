"""Fast R-CNN (Girshick 2015) on proposals of a feature pyramid, under detectron2's settings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import iou_match
from .box_coding import BoxCoder, clip_to_sizes
from .inference import select_detections
from .layers import full
from .losses import positives_per_process, smooth_l1_loss
from .results import Detections, Proposals, size_tensor
from .roi_align import roi_align
from .sampling import IGNORED, NEGATIVE, POSITIVE, sample_labels
from .targets import Targets, needed

# Shapes: N images, K room for the proposals of an image, R boxes that are looked at, C classes (the background is the
# last, C). Parameters have the names that detectron2 gives them.


class Pooler(nn.Module):
    """ROIAlign without the half-pixel shift (detectron2's ROIAlignV2), each box on the level of its size (Lin et al.
    2017a, Eq. 1).

    Args:
        strides: of the features' levels, each twice the one before: a box of a level that is missing would have to be
            pooled from another's.
        resolution: of the pooled maps.
        sampling_ratio: of ROIAlign; 0: as many samples as there are pixels.
    """

    def __init__(self, strides, resolution: int, sampling_ratio: int):
        super().__init__()
        self.strides = tuple(strides)
        if any(b != 2 * a for a, b in zip(self.strides, self.strides[1:])):
            raise ValueError(f"strides: expected each level's twice the one before it, got {list(self.strides)}")
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def forward(self, features: list[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """(R, channels, resolution, resolution) of boxes (R, 4) of images (R,)."""
        levels = self._levels(boxes)
        # In float32: bfloat16 would round a box's corners to one, two or four pixels.
        pooled = boxes.new_zeros(boxes.shape[0], features[0].shape[1], self.resolution, self.resolution)
        for level, (feature, stride) in enumerate(zip(features, self.strides)):
            chosen = (levels == level).nonzero()[:, 0]
            feature = feature.to(boxes.dtype)
            part = roi_align(feature, boxes[chosen], images[chosen], self.resolution, 1 / stride, self.sampling_ratio)
            pooled = pooled.index_put_((chosen,), part)
        return pooled.to(features[0].dtype)

    def _levels(self, boxes):
        """A box of 224 px, the size of ImageNet's pictures, belongs to the level of stride 16."""
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        level = (torch.log2(sides / 224 + 1e-8) + 4 - torch.tensor(float(self.strides[0])).log2()).floor()
        return level.clamp(0, len(self.strides) - 1).long()


class BoxHead(nn.Module):
    """Fully connected layers with ReLU on what was pooled."""

    def __init__(self, inputs: int, width: int, layers: int):
        super().__init__()
        self.layers = layers
        for i in range(layers):
            layer = nn.Linear(width if i else inputs, width)
            nn.init.kaiming_uniform_(layer.weight, a=1)  # Xavier, as detectron2
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{i + 1}", layer)

    def forward(self, pooled: Tensor) -> Tensor:
        x = pooled.flatten(1)
        for i in range(self.layers):
            x = F.relu(getattr(self, f"fc{i + 1}")(x))
        return x


class BoxPredictor(nn.Module):
    """Class logits (R, C + 1) and, per class, box deltas (R, C, 4)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return full(self.cls_score(x)), full(self.bbox_pred(x)).unflatten(1, (-1, 4))


class FastRCNNHeads(nn.Module):
    """Classes and boxes of proposals.

    Args:
        pooler, box_head, box_predictor: the network.
        num_classes: C.
        box_coder: of the deltas from proposal to box.
        positive_from: IoU with a box from which a proposal is that box's; below it is background.
        per_image, positive_fraction: sample of the proposals for the losses.
        proposals_per_image: at most so many are used, best first, in training and in inference (Table 7); 0: all.
        smooth_l1_beta, box_weight: of the box loss.
        score_thresh, nms_thresh, detections_per_image: of the inference.
    """

    def __init__(
        self,
        pooler: Pooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        *,
        num_classes: int,
        box_coder: BoxCoder,
        positive_from: float = 0.5,
        per_image: int = 512,
        positive_fraction: float = 0.25,
        proposals_per_image: int = 0,
        smooth_l1_beta: float = 0.0,
        box_weight: float = 1.0,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
    ):
        super().__init__()
        self.pooler, self.box_head, self.box_predictor = pooler, box_head, box_predictor
        self.num_classes = num_classes
        self.box_coder = box_coder
        self.positive_from = positive_from
        self.per_image, self.positive_fraction = per_image, positive_fraction
        self.proposals_per_image = proposals_per_image
        self.smooth_l1_beta, self.box_weight = smooth_l1_beta, box_weight
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_image = detections_per_image

    def forward(
        self,
        features: list[Tensor],
        proposals: Proposals,
        image_sizes,
        targets: Targets | None = None,
        *,
        fixed_size: bool = False,
    ) -> Detections | dict[str, Tensor]:
        """Detections in inference, the losses in training.

        Args:
            features: (N, channels, H_l, W_l) per level of the pooler.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes and classes of every image, in training.
            fixed_size: in inference every size of the results follows from the proposals' room; all of it is looked at.
        """
        if self.proposals_per_image:
            proposals = proposals.best(self.proposals_per_image)
        if self.training:
            return self._losses(features, proposals, needed(targets, classes=True))
        with torch.no_grad():
            return self._inference(features, proposals, size_tensor(image_sizes, proposals.boxes.device), fixed_size)

    def _predict(self, features, boxes, images):
        return self.box_predictor(self.box_head(self.pooler(features, boxes, images)))

    def _inference(self, features, proposals: Proposals, sizes, fixed_size):
        most = proposals.boxes.shape[1] if fixed_size else int(proposals.count.max())
        boxes = proposals.boxes[:, :most].flatten(0, 1)
        images = torch.arange(sizes.shape[0], device=boxes.device)[:, None].expand(-1, most).flatten()
        logits, deltas = self._predict(features, boxes, images)
        decoded = self.box_coder.decode(boxes[:, None], deltas)  # (N * K, C, 4)
        probabilities = logits.softmax(1)
        present = torch.arange(most, device=boxes.device) < proposals.count[:, None]
        # Predictions that are not finite are dropped before NMS.
        finite = decoded.flatten(1).isfinite().all(1) & probabilities.isfinite().all(1)
        counted = (probabilities[:, :-1] > self.score_thresh) & (present.flatten() & finite)[:, None]
        scores = probabilities[:, :-1].masked_fill(~counted, 0).view(sizes.shape[0], -1)  # (N, K * C)
        if fixed_size:
            room = most * self._classes_above_threshold
        else:
            room = int((scores > 0).sum(1).max()) if scores.numel() else 0
        top = scores.topk(room, 1)
        origins, classes = top.indices // self.num_classes, top.indices % self.num_classes
        decoded = decoded.view(sizes.shape[0], -1, 4)
        return select_detections(
            clip_to_sizes(decoded.gather(1, top.indices[..., None].expand(-1, -1, 4)), sizes),
            top.values,
            classes,
            origins,
            sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
            clip_first=False,
        )

    @property
    def _classes_above_threshold(self):
        """How many classes of a proposal can be above the threshold: their probabilities add up to one at most."""
        if self.score_thresh * self.num_classes < 1:
            return self.num_classes
        return min(self.num_classes, math.floor(1 / self.score_thresh))

    def _losses(self, features, proposals: Proposals, targets: Targets):
        boxes, labels, index = self._label(proposals, targets)
        positives, negatives = sample_labels(labels, self.per_image, self.positive_fraction)
        sampled = torch.cat([positives, negatives])
        logits, deltas = self._predict(features, boxes.flatten(0, 1)[sampled], sampled // boxes.shape[1])
        classes = torch.full_like(sampled, self.num_classes)
        matched = index.flatten()[positives]
        classes[: len(positives)] = torch.cat(targets.classes)[matched]
        encoded = self.box_coder.encode(boxes.flatten(0, 1)[positives], torch.cat(targets.boxes)[matched])
        chosen = deltas[: len(positives)].gather(1, classes[: len(positives), None, None].expand(-1, 1, 4)).squeeze(1)
        box = smooth_l1_loss(chosen - encoded, self.smooth_l1_beta).sum()
        divisor = positives_per_process(len(sampled), logits.device)
        return {
            "loss_cls": F.cross_entropy(logits.float(), classes, reduction="sum") / divisor,
            "loss_box_reg": self.box_weight * box / divisor,
        }

    @torch.no_grad()
    def _label(self, proposals: Proposals, targets: Targets):
        """The proposals with the objects themselves among them, (N, K + G, 4); labels and matched boxes, (N, K + G)."""
        of_images = [torch.cat([boxes, gt]) for (boxes, _), gt in zip(proposals.unpad(), targets.boxes)]
        match = iou_match(of_images, targets.boxes, low_quality_from=None, ignore_boxes=targets.ignore)
        label = torch.where(match.iou >= self.positive_from, POSITIVE, NEGATIVE)
        label = label.masked_fill((label == NEGATIVE) & match.ignored, IGNORED)
        counts, pad = [len(boxes) for boxes in of_images], torch.nn.utils.rnn.pad_sequence
        return (
            pad(of_images, batch_first=True),
            pad(label.split(counts), batch_first=True, padding_value=IGNORED),
            pad(match.index.split(counts), batch_first=True),
        )
