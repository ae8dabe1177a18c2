"""Matching of anchors and boxes by overlap, streamed: O(anchors + boxes) memory, never their product."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _arguments

# Shapes: N images, A anchors (or locations) and G ground-truth boxes over all images. Boxes are
# (x1, y1, x2, y2) in pixels, float32 or float64; one without area, or with a NaN, matches nothing.

LOCATION_RULES = ("paper", "release")


class Match(NamedTuple):
    """The best box of every anchor and the best anchors of every box. -1 (and IoU 0) where there is none.

    Ties go to the lower index in ``index`` and ``gt_index``. Indices run over the whole batch: ``index`` and
    ``best_for`` into the boxes of all images one after the other, ``gt_index`` into all anchors.

    ``best_for`` has *every* anchor that no other beats for a box ("the anchor/anchors with the highest IoU", Ren et
    al. 2015, 3.1.2), where ``gt_index`` has one: IoUs tie if they are equal, each operation of their formula rounded
    once, as torch computes it. Where an anchor is best for several boxes it has the last of them.

    ``ignored`` stands beside the match: an anchor that is positive for a box is so in an ignore box, too; what would
    be negative there is neither.
    """

    iou: Tensor  # (A,)
    index: Tensor  # (A,) int64
    gt_iou: Tensor  # (G,)
    gt_index: Tensor  # (G,) int64
    best_for: Tensor  # (A,) int64
    ignored: Tensor  # (A,) bool: lies in an ignore box


def viou_match(
    gt_boxes,
    level_sizes,
    strides,
    *,
    shapes=None,
    size_range=None,
    cell_offset=0.5,
    min_iou=0.0,
    low_quality_from=0.0,
    ignore_boxes=None,
) -> Match:
    """Which box an anchor of free width and height at each location can cover best (Eq. 5), and how well.

    Args:
        gt_boxes: ``(G, 4)``, or the list of them per image.
        level_sizes: ``(H, W)`` of every level.
        strides: of every level, in pixels. Location (y, x) stands for
            ``((x + cell_offset) * stride, (y + cell_offset) * stride)``.
        shapes: *sampled* mode: ``(levels, S, 2)`` widths and heights in pixels; the maximum of Eq. 5 runs
            over them, as in the paper. Without it, *exact* mode: the maximum over all sizes.
        size_range: exact mode only: ``(levels, 2)``, the least and greatest width and height of a level.
        min_iou: below it a location counts as unmatched. Larger is faster: boxes out of reach are skipped.
        low_quality_from: a box's best anchors are in ``best_for`` if their IoU is at least that. None: nobody asks, and
            ``best_for`` is -1 everywhere.
        ignore_boxes: crowd regions, in the form of ``gt_boxes``: locations inside are ``ignored``. (More than
            half of an anchor of some size lies in a box if, and only if, its centre does.)

    Returns:
        :class:`Match` over the ``N * P`` locations of the batch (see :mod:`ga_scope.ops`).
    """
    boxes, counts = _concatenate(gt_boxes, "gt_boxes")
    heights, widths = _split_sizes(level_sizes)
    strides = [float(s) for s in strides]
    ignored = _ignore_boxes(ignore_boxes, boxes, counts)
    return Match(
        *torch.ops.ga_scope.viou_match(
            boxes,
            counts,
            *ignored,
            heights,
            widths,
            strides,
            shapes,
            size_range,
            cell_offset,
            min_iou,
            low_quality_from,
        )
    )


def iou_match(boxes, gt_boxes, *, low_quality_from=0.0, ignore_boxes=None, ignore_from=0.5) -> Match:
    """The best ground truth of every box and the best boxes of every ground truth, per image.

    Args:
        boxes: ``(A, 4)``, or the list of them per image.
        gt_boxes: ``(G, 4)``, or the list of them per image.
        low_quality_from: a ground truth's best boxes are in ``best_for`` if their IoU is at least that. None: nobody
            asks, and ``best_for`` is -1 everywhere.
        ignore_boxes: crowd regions, in the form of ``gt_boxes``: a box is ``ignored`` if at least
            ``ignore_from`` of its area lies in one of them.
    """
    all_boxes, counts = _concatenate(boxes, "boxes")
    all_gt, gt_counts = _concatenate(gt_boxes, "gt_boxes")
    ignored = _ignore_boxes(ignore_boxes, all_gt, gt_counts)
    return Match(
        *torch.ops.ga_scope.iou_match(all_boxes, counts, all_gt, gt_counts, *ignored, ignore_from, low_quality_from)
    )


def location_targets(
    gt_boxes,
    level_sizes,
    strides,
    center_ratio=0.2,
    ignore_ratio=0.5,
    sigma=8.0,
    *,
    cell_offset=0.5,
    rule="paper",
    ignore_boxes=None,
) -> Tensor:
    """Where anchors should be (section 3.4): 1 in centre regions, -1 in ignore regions, 0 outside.

    A box of width w and height h belongs to level ``floor(log2(sqrt(w h) / (sigma strides[0])) + 1/2)``,
    clamped: the one whose anchors (Eq. 2) are about its size; exactly, half a level goes up. There the cells of the
    box scaled by ``center_ratio`` about its centre are positive; those of the box scaled by ``ignore_ratio`` are
    ignored, there and on the adjacent levels.

    Args:
        gt_boxes: ``(G, 4)``, or the list of them per image.
        level_sizes: ``(H, W)`` of every level.
        strides: of every level, in pixels.
        cell_offset: cell (y, x) stands for the point ``((x + cell_offset) s, (y + cell_offset) s)``.
        rule: ``"paper"``: the cells whose points lie in the scaled box, for the centre at least the nearest; positive
            wins over ignored, ignored over negative, whatever the order of the boxes. ``"release"``: the borders of
            the scaled box are rounded to the nearest cells' points, half to even, and include them; on a box's own
            level its ignore region, then its centre replace what earlier boxes wrote, and what is ignored on an
            adjacent level replaces neither. (The release has ``cell_offset`` 0.)
        ignore_boxes: crowd regions, in the form of ``gt_boxes``: cells whose points lie in one are ignored on
            every level, unless they are positive.

    Returns:
        ``(N * P,)`` int8 over the locations of the batch (see :mod:`ga_scope.ops`).
    """
    if rule not in LOCATION_RULES:
        raise ValueError(f"rule: expected {' or '.join(map(repr, LOCATION_RULES))}, got {rule!r}")
    boxes, counts = _concatenate(gt_boxes, "gt_boxes")
    heights, widths = _split_sizes(level_sizes)
    strides = [float(s) for s in strides]
    ignored = _ignore_boxes(ignore_boxes, boxes, counts)
    return torch.ops.ga_scope.location_targets(
        boxes,
        counts,
        *ignored,
        heights,
        widths,
        strides,
        sigma,
        center_ratio,
        ignore_ratio,
        cell_offset,
        rule == "release",
    )


def _concatenate(boxes, name):
    items, _ = _arguments.as_list(boxes, name)
    if not items:
        raise ValueError(f"{name}: expected at least one image, got an empty list")
    for item in items:
        if item.dim() != 2 or item.shape[1] != 4:
            raise ValueError(f"{name}: expected tensors of shape (G, 4), got {tuple(item.shape)}")
    return torch.cat(items).detach(), [item.shape[0] for item in items]


def _ignore_boxes(ignore_boxes, gt_boxes, gt_counts):
    if ignore_boxes is None:
        return gt_boxes[:0], [0] * len(gt_counts)
    return _concatenate(ignore_boxes, "ignore_boxes")


def _split_sizes(level_sizes):
    if not all(isinstance(size, (tuple, list)) and len(size) == 2 for size in level_sizes):
        raise ValueError(f"level_sizes: expected (height, width) of every level, got {level_sizes!r}")
    return [size[0] for size in level_sizes], [size[1] for size in level_sizes]


def _fake_match(boxes, anchors):
    count = boxes.shape[0]
    return (
        boxes.new_empty(anchors),
        boxes.new_empty(anchors, dtype=torch.int64),
        boxes.new_empty(count),
        boxes.new_empty(count, dtype=torch.int64),
        boxes.new_empty(anchors, dtype=torch.int64),
        boxes.new_empty(anchors, dtype=torch.bool),
    )


@torch.library.register_fake("ga_scope::viou_match")
def _(
    gt_boxes,
    gt_counts,
    ignore_boxes,
    ignore_counts,
    heights,
    widths,
    strides,
    shapes,
    size_range,
    cell_offset,
    min_iou,
    low_quality_from,
):
    locations = sum(h * w for h, w in zip(heights, widths, strict=True))
    return _fake_match(gt_boxes, len(gt_counts) * locations)


@torch.library.register_fake("ga_scope::iou_match")
def _(boxes, counts, gt_boxes, gt_counts, ignore_boxes, ignore_counts, ignore_from, low_quality_from):
    return _fake_match(gt_boxes, boxes.shape[0])


@torch.library.register_fake("ga_scope::location_targets")
def _(
    gt_boxes,
    gt_counts,
    ignore_boxes,
    ignore_counts,
    heights,
    widths,
    strides,
    sigma,
    center_ratio,
    ignore_ratio,
    cell_offset,
    rounded,
):
    locations = sum(h * w for h, w in zip(heights, widths, strict=True))
    return gt_boxes.new_empty(len(gt_counts) * locations, dtype=torch.int8)
