"""COCO annotation files to dataset dicts, with a counted clean-up of what training could not use."""

import json
import logging
import math
import os
from collections import Counter
from pathlib import Path

logger = logging.getLogger(__name__)

# detectron2's BoxMode.XYWH_ABS, without importing it.
XYWH_ABS = 1


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file."""


def load_coco_json(json_file, image_root, name: str | None = None) -> tuple[list[dict], list[dict]]:
    """Reads ``instances_*.json`` into detectron2's standard dataset dicts.

    Annotations that cannot be trained on are dropped or mended, counted, and logged once per file: boxes
    that are not four finite numbers, of zero or negative size, or outside the image (dropped); boxes that
    cross its border (clipped); unknown category ids and image ids (dropped). Images without annotations
    stay.

    Args:
        json_file: annotations.
        image_root: folder of the images.
        name: of the dataset, for messages.

    Returns:
        dicts with ``file_name``, ``height``, ``width``, ``image_id`` and ``annotations``; and the categories,
        sorted by id. An annotation's ``category_id`` is the position in this list.

    Raises:
        DatasetError: the file is missing or not COCO annotations, or image files are missing.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    content = _read(json_file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    position = {category["id"]: i for i, category in enumerate(categories)}
    dicts = {}
    for image in content["images"]:
        missing = [key for key in ("id", "file_name", "height", "width") if key not in image]
        if missing:
            raise DatasetError(f"{json_file}: images: expected {missing[0]!r} in every image, got {image}")
        dicts[image["id"]] = {
            "file_name": os.fspath(image_root / image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
    _check_files(json_file, image_root, [record["file_name"] for record in dicts.values()])
    problems = Counter()
    for annotation in content["annotations"]:
        record = dicts.get(annotation.get("image_id"))
        if record is None:
            problems["unknown image id (dropped)"] += 1
            continue
        cleaned = _clean(annotation, record, position, problems)
        if cleaned is not None:
            record["annotations"].append(cleaned)
    if problems:
        listed = "; ".join(f"{count} with {problem}" for problem, count in sorted(problems.items()))
        logger.warning("%s: of %d annotations: %s", name or json_file, len(content["annotations"]), listed)
    return list(dicts.values()), categories


def _read(json_file):
    try:
        content = json.loads(json_file.read_text())
    except FileNotFoundError:
        raise DatasetError(f"{json_file}: no such annotation file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{json_file}: not a JSON file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{json_file}: expected COCO annotations with a list {key!r}")
    return content


def _check_files(json_file, image_root, names):
    """Missing images are found now, not hours into training. One listing per folder, not one look-up per file."""
    listed = {}
    missing = []
    for name in names:
        folder, base = os.path.split(name)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listed[folder]:
            missing.append(name)
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such image ({len(missing)} of {len(names)} images of {json_file} are missing under "
            f"{image_root})"
        )


def _clean(annotation, record, position, problems):
    """A dataset dict's annotation, or None if it cannot be used."""
    category = annotation.get("category_id")
    if category not in position:
        problems[f"unknown category id {category} (dropped)"] += 1
        return None
    box = clean_box(annotation.get("bbox"), record["height"], record["width"], problems)
    if box is None:
        return None
    cleaned = {
        "bbox": box,
        "bbox_mode": XYWH_ABS,
        "category_id": position[category],
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }
    area = annotation.get("area")
    if isinstance(area, (int, float)) and math.isfinite(area) and area > 0:
        cleaned["area"] = area
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = [part for part in segmentation if len(part) % 2 == 0 and len(part) >= 6]
    if segmentation:
        cleaned["segmentation"] = segmentation
    if annotation.get("keypoints"):
        cleaned["keypoints"] = annotation["keypoints"]
    return cleaned


def clean_box(box, height, width, problems: Counter):
    """``box`` (x, y, w, h) within the image, or None; what was wrong is counted in ``problems``."""
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if not numbers or not all(math.isfinite(v) for v in box):
        problems["a box that is not four finite numbers (dropped)"] += 1
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0:
        problems["a box of zero or negative size (dropped)"] += 1
        return None
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        problems["a box outside the image (dropped)"] += 1
        return None
    # COCO's own boxes overshoot by fractions of a pixel: mended, but not worth a warning.
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        problems["a box across the border (clipped)"] += 1
    return [x1, y1, x2 - x1, y2 - y1]
