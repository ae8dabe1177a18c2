"""A dataset: its images, classes and annotations, parsed once and kept in arrays."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import DatasetError

# detectron2's BoxMode.XYWH_ABS, without importing it.
XYWH_ABS = 1

logger = logging.getLogger(__name__)


class Texts(Sequence):
    """Many short texts in one piece of memory, which processes share: a list of str is copied bit by bit as soon as a
    worker counts references to its items.
    """

    def __init__(self, texts):
        encoded = [text.encode() for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode()


class Annotations:
    """The annotations of a dataset, image by image, as columns of length A.

    Attributes:
        boxes: (A, 4) float64 x, y, width, height as the file has them.
        clipped: (A, 4) the same within the image.
        labels: int32, the position in the dataset's classes.
        areas: float64, the file's, or that of the box.
        crowd, ignore: bool. Such annotations are no objects to learn.
        usable: bool, whether the box is one to learn: of positive size, and not wholly outside its image.
        extras: JSON of ``segmentation`` and ``keypoints``, where they were asked for.
    """

    def __init__(self, boxes, clipped, labels, areas, crowd, ignore, usable, extras: Texts | None = None):
        self.boxes, self.clipped, self.labels, self.areas = boxes, clipped, labels, areas
        self.crowd, self.ignore, self.usable, self.extras = crowd, ignore, usable, extras

    def __len__(self):
        return len(self.labels)


class Dataset(Sequence):
    """Images in the order of the file; item i is detectron2's standard dict of image i.

    Its ``annotations`` are the objects to learn, and its ``ignore_boxes`` (K, 4), x1, y1, x2, y2, the regions under
    crowd and ignore annotations.

    Attributes:
        name: of the dataset, for messages.
        classes: names, in the order of the labels.
        category_ids: the file's numbers of the classes.
        image_ids: as the file has them.
        heights, widths: (N,) int32.
        starts: (N + 1,) int64: image i has the annotations ``starts[i]`` to ``starts[i + 1]``.
        annotated: False for a file of images alone, as COCO's test-dev: there is nothing to score against.
        source: the file, if there is one.
        given: how many annotations the source has.
        problems: how many of them had to be left out or mended, by what is wrong with them.
    """

    def __init__(
        self,
        name,
        classes,
        category_ids,
        image_ids,
        file_names,
        heights,
        widths,
        starts,
        annotations,
        annotated,
        source,
        given,
        problems,
    ):
        self.name, self.source = name, source
        self.classes, self.category_ids = tuple(classes), tuple(category_ids)
        self.image_ids, self.file_names = image_ids, file_names
        self.heights, self.widths = heights, widths
        self.starts, self.annotations, self.annotated = starts, annotations, annotated
        self.given, self.problems = given, problems

    def __len__(self):
        return len(self.file_names)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self.image(index)
        rows = slice(self.starts[index], self.starts[index + 1])
        table = self.annotations
        objects = table.usable[rows] & ~table.crowd[rows] & ~table.ignore[rows]
        record["annotations"] = [self._annotation(self.starts[index] + i) for i in np.flatnonzero(objects)]
        regions = table.usable[rows] & ~objects
        x, y, width, height = table.clipped[rows][regions].T
        record["ignore_boxes"] = np.stack([x, y, x + width, y + height], 1)
        return record

    def image(self, index: int) -> dict:
        """The dict without its annotations."""
        image_id = self.image_ids[index]
        return {
            "file_name": self.file_names[index],
            "height": int(self.heights[index]),
            "width": int(self.widths[index]),
            "image_id": image_id.item() if hasattr(image_id, "item") else image_id,
        }

    def _annotation(self, row):
        table = self.annotations
        annotation = {
            "bbox": table.clipped[row].tolist(),
            "bbox_mode": XYWH_ABS,
            "category_id": int(table.labels[row]),
            "iscrowd": 0,
        }
        if table.extras is not None:
            image = int(np.searchsorted(self.starts, row, "right")) - 1
            annotation |= usable_extras(json.loads(table.extras[row]), self.heights[image], self.widths[image])
        return annotation

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (G, 4) as x1, y1, x2, y2 and labels (G,) of the objects of an image."""
        rows = slice(self.starts[index], self.starts[index + 1])
        table = self.annotations
        chosen = table.usable[rows] & ~table.crowd[rows] & ~table.ignore[rows]
        x, y, width, height = table.clipped[rows][chosen].T
        return np.stack([x, y, x + width, y + height], 1), table.labels[rows][chosen]

    def with_objects(self) -> np.ndarray:
        """The indices of the images that have an object to learn."""
        table = self.annotations
        chosen = table.usable & ~table.crowd & ~table.ignore
        before = np.concatenate([[0], np.cumsum(chosen)])
        return np.flatnonzero(before[self.starts[1:]] > before[self.starts[:-1]])

    def first(self, count: int | None) -> "Dataset":
        """The first images, as a dataset of their own."""
        if count is None or count >= len(self):
            return self
        table, end = self.annotations, self.starts[count]
        columns = (table.boxes, table.clipped, table.labels, table.areas, table.crowd, table.ignore, table.usable)
        extras = None if table.extras is None else Texts(table.extras[i] for i in range(end))
        return self._replaced(
            image_ids=self.image_ids[:count],
            file_names=Texts(self.file_names[i] for i in range(count)),
            heights=self.heights[:count],
            widths=self.widths[:count],
            starts=self.starts[: count + 1],
            annotations=Annotations(*(column[:end] for column in columns), extras),
        )

    def outlined(self) -> "Dataset":
        """Without the objects that have a box but no outline: a mask head cannot learn them."""
        table = self.annotations
        sizes = np.repeat(np.stack([self.heights, self.widths], 1), np.diff(self.starts), 0)
        found = (usable_extras(json.loads(text), *size) for text, size in zip(table.extras, sizes))
        outlined = np.array(["segmentation" in extras for extras in found], dtype=bool)
        missing = int((table.usable & ~table.crowd & ~table.ignore & ~outlined).sum())
        if missing:
            logger.warning("%s: %d annotations without an outline (left out, MODEL.MASK_ON)", self.name, missing)
        columns = (table.boxes, table.clipped, table.labels, table.areas, table.crowd, table.ignore)
        return self._replaced(annotations=Annotations(*columns, table.usable & outlined, table.extras))

    def _replaced(self, **changes) -> "Dataset":
        names = ("name", "classes", "category_ids", "image_ids", "file_names", "heights", "widths", "starts",
                 "annotations", "annotated", "source", "given", "problems")  # fmt: skip
        return Dataset(**({name: getattr(self, name) for name in names} | changes))


class Records(Sequence):
    """Images of one or more datasets as dicts, with the proposals of a file where there is one for each.

    Args:
        datasets: one after the other.
        proposals: None or one table (:func:`ga_scope.data.load_proposals`) per dataset.
        with_objects: only images that have an object to learn.
    """

    def __init__(self, datasets: list[Dataset], proposals=None, with_objects: bool = False):
        self.datasets, self.proposals = datasets, proposals
        chosen = [d.with_objects() if with_objects else np.arange(len(d)) for d in datasets]
        self._indices = np.concatenate(chosen)
        self._which = np.repeat(np.arange(len(datasets)), [len(indices) for indices in chosen])

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        which = int(self._which[index])
        record = self.datasets[which][int(self._indices[index])]
        return record if self.proposals is None else self.proposals[which].add_to(record)

    def wide(self) -> np.ndarray:
        """(N,) whether each image is wider than high."""
        wide = [dataset.widths > dataset.heights for dataset in self.datasets]
        ends = np.cumsum([0, *map(len, wide)])
        return np.concatenate(wide)[ends[self._which] + self._indices]


def dataset_of_records(name: str, records: list[dict], classes, extras: bool = False) -> Dataset:
    """A dataset of detectron2's standard dicts, as a registered function gives them.

    They are cleaned as a file is, but a function of somebody's own has to give what the dicts are made of.

    Args:
        records: whose boxes are x, y, width, height; ``category_id`` is the position in the classes.
        classes: names, or None: numbers then.
        extras: outlines and keypoints are kept.

    Raises:
        DatasetError: naming the first image and key that is missing or of another kind.
    """
    boxes, labels, areas, crowd, ignore, texts, counts, ids = [], [], [], [], [], [], [], {}
    most = None if classes is None else len(classes)
    for i, record in enumerate(records):
        ids[_image_id(f"{name}: image {i}", record, ids)] = i
        items = record.get("annotations", [])
        if not isinstance(items, (list, tuple)):
            raise DatasetError(f"{name}: image {i}: annotations: expected a list, got {items!r}")
        counts.append(len(items))
        for k, item in enumerate(items):
            box, label = _box_and_label(f"{name}: image {i}: annotations[{k}]", item, most)
            boxes.append(box)
            labels.append(label)
            areas.append(item.get("area", box[2] * box[3]))
            crowd.append(bool(item.get("iscrowd", 0)))
            ignore.append(bool(item.get("ignore", 0)))
            more = {key: item[key] for key in ("segmentation", "keypoints") if key in item}
            texts.append(json.dumps(more, default=_plain) if extras else "")
    if classes is None:
        classes = [str(label) for label in range(max(labels, default=-1) + 1)]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    heights, widths = (np.array([r[key] for r in records], dtype=np.int32) for key in ("height", "width"))
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    labels, crowd, ignore = np.array(labels, dtype=np.int32), np.array(crowd, dtype=bool), np.array(ignore, dtype=bool)
    of_images = np.repeat(np.arange(len(records)), counts)
    problems: Counter = Counter()
    clipped, usable = clean_boxes(boxes, heights[of_images], widths[of_images], problems)
    usable = without_repeats(of_images, labels, boxes, usable, crowd, problems)
    warn_of(name, len(boxes), problems)
    columns = (labels, np.array(areas, dtype=np.float64), crowd, ignore, usable)
    annotations = Annotations(boxes, clipped, *columns, Texts(texts) if extras else None)
    files = Texts(os.fspath(r["file_name"]) for r in records)
    return Dataset(
        name, classes, range(len(classes)), list(ids), files, heights, widths, starts, annotations, True, None,
        len(boxes), problems,
    )  # fmt: skip


def _is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _image_id(where: str, record, ids: dict):
    """Of a dict that has what it needs."""
    kinds = {
        "file_name": ("the name of a file", lambda v: isinstance(v, (str, os.PathLike)) and bool(os.fspath(v))),
        "height": ("a positive number of pixels", lambda v: _is_whole(v) and 1 <= v < 2**31),
        "width": ("a positive number of pixels", lambda v: _is_whole(v) and 1 <= v < 2**31),
        "image_id": ("a whole number or text", lambda v: _is_whole(v) or isinstance(v, str)),
    }
    for key, (expected, right) in kinds.items():
        if key not in record:
            raise DatasetError(f"{where}: expected {key!r} in every dict, got {sorted(record)}")
        if not right(record[key]):
            raise DatasetError(f"{where}: {key}: expected {expected}, got {record[key]!r}")
    image_id = record["image_id"]
    if image_id in ids:
        raise DatasetError(f"{where}: image_id: expected another than image {ids[image_id]} has, got {image_id!r}")
    return image_id if isinstance(image_id, str) else int(image_id)


def _box_and_label(where: str, item: dict, classes: int | None):
    box, label = item.get("bbox"), item.get("category_id")
    try:
        values = [float(v) for v in box]
    except (TypeError, ValueError):
        values = []
    if len(values) != 4 or not np.isfinite(values).all():
        raise DatasetError(f"{where}: bbox: expected four finite numbers, got {box!r}")
    if not _is_whole(label) or label < 0 or (classes is not None and label >= classes):
        places = "a whole number" if classes is None else f"the position of a class, 0 to {classes - 1}"
        raise DatasetError(f"{where}: category_id: expected {places}, got {label!r}")
    return values, int(label)


def _plain(value):
    """Arrays and pycocotools' bytes as JSON has them."""
    return value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()


def clean_boxes(boxes, heights, widths, problems: Counter) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (A, 4) (x, y, w, h) within their images, and which of them are usable; what was wrong is counted."""
    x, y, w, h = boxes.T
    empty = ~((w > 0) & (h > 0))
    x1, y1, x2, y2 = np.maximum(x, 0), np.maximum(y, 0), np.minimum(x + w, widths), np.minimum(y + h, heights)
    outside = ~empty & ((x2 <= x1) | (y2 <= y1))
    # COCO's own boxes overshoot by fractions of a pixel: mended, but not worth a warning.
    across = ~empty & ~outside & ((x < -1) | (y < -1) | (x + w > widths + 1) | (y + h > heights + 1))
    for found, what in (
        (empty, "a box of zero or negative size (left out)"),
        (outside, "a box outside the image (left out)"),
        (across, "a box across the border (clipped)"),
    ):
        if found.any():
            problems[what] += int(found.sum())
    return np.stack([x1, y1, x2 - x1, y2 - y1], 1), ~empty & ~outside


def without_repeats(images, labels, boxes, usable, crowd, problems: Counter) -> np.ndarray:
    """``usable`` without the objects that are an earlier one again: of the same image, class and box."""
    columns = (images, labels, *boxes.T)
    order = np.lexsort(columns[::-1])  # stable: the first of equals comes first
    order = order[(usable & ~crowd)[order]]
    same = np.all([column[order][1:] == column[order][:-1] for column in columns], 0)
    if not same.any():
        return usable
    problems["an object that is there twice (left out)"] += int(same.sum())
    found = usable.copy()
    found[order[1:][same]] = False
    return found


def warn_of(name: str, count: int, problems: Counter):
    """One line on what a clean-up found."""
    if problems:
        listed = "; ".join(f"{number} with {problem}" for problem, number in sorted(problems.items()))
        logger.warning("%s: of %d annotations: %s", name, count, listed)


def usable_extras(extras: dict, height: int, width: int) -> dict:
    """Of outline and keypoints what can be trained on: polygons of three points or more, run lengths of the image."""
    found, outline = {}, extras.get("segmentation")
    if isinstance(outline, list):
        outline = [p for p in outline if isinstance(p, list) and len(p) % 2 == 0 and len(p) >= 6 and _numbers(p)]
    elif not (isinstance(outline, dict) and _are_run_lengths(outline, height, width)):
        outline = None
    if outline:
        found["segmentation"] = outline
    keypoints = extras.get("keypoints")
    if isinstance(keypoints, list) and keypoints and len(keypoints) % 3 == 0 and _numbers(keypoints):
        found["keypoints"] = keypoints
    return found


def _are_run_lengths(outline: dict, height: int, width: int) -> bool:
    counts = outline.get("counts")
    if outline.get("size") != [height, width]:
        return False
    if isinstance(counts, list):
        return all(type(n) is int and n >= 0 for n in counts) and sum(counts) == height * width
    return isinstance(counts, str)


def _numbers(values) -> bool:
    return all(isinstance(value, (int, float)) and abs(value) < 1e300 for value in values)


def check_classes(datasets: list[Dataset], tested: list[Dataset]):
    """The classes of all must have the same names in the same order; their numbers in the files may differ.

    Raises:
        DatasetError: naming two datasets and the first class that differs.
    """
    for dataset in [*datasets, *tested]:
        first = (datasets or tested)[0]
        if dataset.classes == first.classes:
            continue
        for i in range(max(len(dataset.classes), len(first.classes))):
            names = [d.classes[i] if i < len(d.classes) else None for d in (first, dataset)]
            if names[0] != names[1]:
                break
        order = " (the same names in another order)" if sorted(dataset.classes) == sorted(first.classes) else ""
        raise DatasetError(
            f"{dataset.source or dataset.name}: classes: expected those of {first.source or first.name}, of which "
            f"number {i} is {names[0]!r}, got {names[1]!r}{order}"
        )
