"""ROI heads for high-quality proposals (section 3.5): fewer proposals, a higher IoU threshold, streamed matching."""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage

from ...modeling.sampling import IGNORED, NEGATIVE
from ...ops import iou_match
from .results import ignore_boxes_of


class _HighQualityProposals:
    """What both kinds of heads below do differently from their detectron2 parents.

    At most ``proposals_per_image`` proposals are used, best first, in training and in inference (Table 7);
    proposals and boxes are matched without the matrix of their overlaps, so a crowded image costs no more
    memory than another.
    """

    @classmethod
    def from_config(cls, cfg, *args):
        return super().from_config(cfg, *args) | {"proposals_per_image": cfg.MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE}

    def forward(self, images, features, proposals, targets=None):
        if self.proposals_per_image:
            # They come sorted by objectness.
            proposals = [p[: self.proposals_per_image] for p in proposals]
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals, targets):
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        indices, labels = self._match(proposals, targets, self.proposal_matcher)
        sampled, foreground = [], []
        for item, target, index, label in zip(proposals, targets, indices, labels):
            kept, classes = self._sample_proposals(index, label, target.gt_classes)
            item = item[kept]
            item.gt_classes = classes
            if len(target):
                for name, value in target.get_fields().items():
                    if name.startswith("gt_") and not item.has(name):
                        item.set(name, value[index[kept]])
            sampled.append(item)
            foreground.append(int((classes != self.num_classes).sum()))
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", np.mean(foreground))
        storage.put_scalar("roi_head/num_bg_samples", np.mean([len(s) - f for s, f in zip(sampled, foreground)]))
        return sampled

    @staticmethod
    def _match(proposals, targets, matcher):
        """Per image: the box index of every proposal (0 where none overlaps) and the matcher's label.

        What would be background is labelled -1, as what is neither, inside an ignore region.
        """
        boxes = [p.proposal_boxes.tensor for p in proposals]
        ignore = ignore_boxes_of(targets)
        match = iou_match(boxes, [t.gt_boxes.tensor for t in targets], low_quality_from=None, ignore_boxes=ignore)
        # The matcher's thresholds are padded with infinities: between them lies one label each.
        thresholds = match.iou.new_tensor(matcher.thresholds[1:-1])
        labels = torch.tensor(matcher.labels, device=match.iou.device)[
            torch.bucketize(match.iou, thresholds, right=True)
        ]
        labels = labels.masked_fill((labels == NEGATIVE) & match.ignored, IGNORED)
        counts = [len(b) for b in boxes]
        starts = np.cumsum([0, *(len(t) for t in targets)])
        indices = [(i - int(s)).clamp(min=0) for i, s in zip(match.index.split(counts), starts)]
        return indices, list(labels.to(torch.int8).split(counts))


@ROI_HEADS_REGISTRY.register()
class GuidedAnchoringROIHeads(_HighQualityProposals, StandardROIHeads):
    """``StandardROIHeads`` (Fast, Faster and Mask R-CNN) for GA-RPN proposals."""

    @configurable
    def __init__(self, *, proposals_per_image: int = 300, **kwargs):
        super().__init__(**kwargs)
        self.proposals_per_image = proposals_per_image


@ROI_HEADS_REGISTRY.register()
class GuidedAnchoringCascadeROIHeads(_HighQualityProposals, CascadeROIHeads):
    """``CascadeROIHeads`` for GA-RPN proposals."""

    @configurable
    def __init__(self, *, proposals_per_image: int = 300, **kwargs):
        super().__init__(**kwargs)
        self.proposals_per_image = proposals_per_image

    @torch.no_grad()
    def _match_and_label_boxes(self, proposals, stage, targets):
        """As the parent's, for the later stages: every proposal is labelled, none sampled. Ignored ones are dropped."""
        indices, labels = self._match(proposals, targets, self.proposal_matchers[stage])
        foreground, labelled = [], []
        for item, target, index, label in zip(proposals, targets, indices, labels):
            counted = label != IGNORED
            item, index, label = item[counted], index[counted], label[counted]
            if len(target):
                item.gt_classes = torch.where(label == 1, target.gt_classes[index], self.num_classes)
                item.gt_boxes = target.gt_boxes[index]
            else:
                item.gt_classes = torch.full_like(index, self.num_classes)
                item.gt_boxes = Boxes(item.proposal_boxes.tensor.new_zeros(len(item), 4))
            foreground.append(int((label == 1).sum()))
            labelled.append(item)
        storage = get_event_storage()
        storage.put_scalar(f"stage{stage}/roi_head/num_fg_samples", np.mean(foreground))
        storage.put_scalar(
            f"stage{stage}/roi_head/num_bg_samples", np.mean([len(p) - f for p, f in zip(labelled, foreground)])
        )
        return labelled
