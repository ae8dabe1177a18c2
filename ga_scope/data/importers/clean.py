"""Boxes of labels to boxes of upright images: what cannot be used is dropped, what can be mended is."""

import math

import numpy as np

from .pictures import Picture

# Pixels by which a box may leave its image as rounding of its numbers; more is clipped with a count.
ROUNDING = 0.01
SMALLEST_SIDE = 1e-3
DIGITS = 4  # of a pixel that are written
NEAR_DUPLICATE = 0.8  # IoU
SAME_SHAPE = 0.01  # of two frames: their sides' ratios differ by less


def clean_boxes(image, picture: Picture, classes, report, options) -> list[dict]:
    """The annotations of an image, without ids: ``label``, ``bbox`` (x, y, w, h) and what the source has beside."""
    move = _frame_to_upright(image, picture, report)
    kept, seen = [], {}
    for box in image.boxes:
        if box.label not in classes:
            report.add("unlisted_class", f"{box.where}: {box.label}")
            continue
        if box.keys.get("difficult"):
            report.add("difficult_dropped" if options.difficult == "drop" else "difficult", box.where)
            if options.difficult == "drop":
                continue
        corners = _corners(box, move, picture, report)
        if corners is None:
            continue
        annotation = {"label": box.label, "bbox": _written(corners)} | _further_keys(box, corners, move, report)
        if options.difficult == "ignore" and annotation.get("difficult"):
            annotation["ignore"] = 1
        key = (box.label, tuple(annotation["bbox"]), annotation.get("iscrowd", 0))
        if key in seen:
            report.add("duplicate_box", f"{box.where} repeats {seen[key]}")
            continue
        seen[key] = box.where
        kept.append((corners, annotation, box))
    _near_duplicates(kept, report)
    if not kept:
        report.add("emptied_image" if image.boxes else "image_without_boxes", image.where)
    return [annotation for _, annotation, _ in kept]


def _frame_to_upright(image, picture, report):
    """The function that takes a point of the label's frame to the upright image; None where nothing moves."""
    if image.frame is None or not image.boxes:
        return None
    width, height = image.frame
    if image.frame == (1.0, 1.0):  # fractions
        return lambda x, y: (x * picture.size[0], y * picture.size[1])
    if (width, height) == picture.size:
        return None
    got = f"{image.where}: {width:g} x {height:g}, the image has {picture.size[0]} x {picture.size[1]}"
    if (width, height) == picture.stored:
        report.add("turned_frame", got)
        return picture.upright
    inside = all(0 <= c <= side + 1 for box in image.boxes for c, side in zip(box.corners, (width, height) * 2))
    for size, turn in ((picture.size, None), (picture.stored, picture.upright)):
        x_scale, y_scale = size[0] / width, size[1] / height
        if inside and abs(x_scale / y_scale - 1) < SAME_SHAPE:
            report.add("scaled_frame", got)
            if turn:
                return lambda x, y, x_scale=x_scale, y_scale=y_scale: picture.upright(x * x_scale, y * y_scale)
            return lambda x, y, x_scale=x_scale, y_scale=y_scale: (x * x_scale, y * y_scale)
    report.add("other_size", got)
    return None


def _corners(box, move, picture, report):
    """x1, y1, x2, y2 inside the upright image; None if nothing is left."""
    if not all(map(math.isfinite, box.corners)):
        report.add("not_finite_box", box.where)
        return None
    x1, y1, x2, y2 = box.corners
    if x2 < x1 or y2 < y1:
        report.add("swapped_corners", box.where)
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if move:
        (ax, ay), (bx, by) = move(x1, y1), move(x2, y2)
        x1, y1, x2, y2 = min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)
    if x2 - x1 < SMALLEST_SIDE or y2 - y1 < SMALLEST_SIDE:
        report.add("zero_size_box", box.where)
        return None
    width, height = picture.size
    clipped = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if clipped[2] - clipped[0] < SMALLEST_SIDE or clipped[3] - clipped[1] < SMALLEST_SIDE:
        report.add("box_outside", box.where)
        return None
    beyond = max(-x1, -y1, x2 - width, y2 - height)
    if beyond > ROUNDING:
        report.add("box_leaves_image", f"{box.where}: by {beyond:.3g} px")
    return clipped


def _written(corners):
    x1, y1, x2, y2 = corners
    return [_number(value) for value in (x1, y1, x2 - x1, y2 - y1)]


def _number(value):
    value = round(value, DIGITS)
    return int(value) if value == int(value) else value


def _further_keys(box, corners, move, report):
    """iscrowd, area, segmentation and whatever else the source has."""
    keys = dict(box.keys)
    segmentation = keys.pop("segmentation", None)
    if segmentation:
        segmentation = _segmentation(segmentation, move)
        if segmentation:
            keys["segmentation"] = segmentation
        else:
            report.add("removed_mask", box.where)
    area = keys.get("area")
    good = isinstance(area, (int, float)) and not isinstance(area, bool) and math.isfinite(area) and area > 0
    if area is not None and not good:
        report.add("wrong_area", box.where)
    if not good or move:
        keys["area"] = _number((corners[2] - corners[0]) * (corners[3] - corners[1]))
    if move:
        for name in ("keypoints", "num_keypoints"):
            keys.pop(name, None)
    return {"iscrowd": 0} | keys


def _segmentation(value, move):
    """A segmentation as COCO has it, moved with its box; None for what is none."""
    if isinstance(value, dict):  # run lengths are of pixels, which cannot be moved
        return value if not move and {"counts", "size"} <= value.keys() else None
    if not isinstance(value, list):
        return None
    if value and not isinstance(value[0], list):
        value = [value]  # one polygon as a flat list
    polygons = []
    for polygon in value:
        numbers = isinstance(polygon, list) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in polygon
        )
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            continue
        if move:
            points = [move(x, y) for x, y in zip(polygon[::2], polygon[1::2])]
            polygon = [_number(value) for point in points for value in point]
        polygons.append(polygon)
    return polygons or None


def _near_duplicates(kept, report):
    """Pairs of boxes of one class that are almost the same: seldom two objects."""
    by_class = {}
    for corners, annotation, box in kept:
        if not annotation["iscrowd"]:
            by_class.setdefault(annotation["label"], []).append((corners, box))
    for boxes in by_class.values():
        x1, y1, x2, y2 = np.array([corners for corners, _ in boxes]).T
        width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
        height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
        overlap = width.clip(0) * height.clip(0)
        area = (x2 - x1) * (y2 - y1)
        iou = overlap / (np.add.outer(area, area) - overlap)
        for i, j in zip(*np.triu(iou > NEAR_DUPLICATE, 1).nonzero()):
            first, second = boxes[i][1].where, boxes[j][1].where.rpartition(":")[2].strip()
            report.add("near_duplicate_box", f"{first} and {second}: {iou[i, j]:.2f}")
