"""COCO annotation files to datasets, with a counted clean-up of what training could not use.

Entries are read one by one from the file's bytes: what nobody asks for, as outlines, is never turned into objects.
"""

import json
import math
import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ..errors import DatasetError, InputError
from ..untrusted import check_file
from .dataset import Annotations, Dataset, Texts, clean_boxes, warn_of, without_repeats

KEYS = ("images", "annotations", "categories")


class _File(msgspec.Struct):
    """The three lists, their entries as they stand in the file."""

    images: list[msgspec.Raw] | None = None
    annotations: list[msgspec.Raw] | None = None
    categories: list[msgspec.Raw] | None = None


class _Annotation(msgspec.Struct):
    """An annotation that is as it should be. Others are looked at more closely (:func:`_loose`)."""

    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] | bool | None = None
    ignore: Literal[0, 1] | bool | None = None


class _Outlined(_Annotation):
    """The same with the text of its outline and keypoints."""

    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    keypoints: msgspec.Raw = msgspec.Raw(b"null")


class _Image(msgspec.Struct):
    """An image that is as it should be."""

    id: int | str
    file_name: str
    height: int
    width: int


_READ_ANNOTATION = msgspec.json.Decoder(_Annotation).decode
_READ_OUTLINED = msgspec.json.Decoder(_Outlined).decode
_READ_IMAGE = msgspec.json.Decoder(_Image).decode
_parsed: dict[tuple, Dataset] = {}


def load_coco_json(json_file, image_root, name: str | None = None, extras: bool = False) -> Dataset:
    """Reads ``instances_*.json``, once per process for the same file.

    Annotations that cannot be trained on are mended or left out of training, counted, and logged once per file: boxes
    that are not four finite numbers, of zero or negative size, or outside the image (left out); boxes that cross its
    border (clipped); objects that are there twice, unknown category ids and image ids (left out). Images without
    annotations stay. Scores are of the file's own boxes all the same.

    Args:
        json_file: annotations.
        image_root: folder of the images.
        name: of the dataset, for messages.
        extras: outlines and keypoints are kept, too.

    Raises:
        DatasetError: the file is missing or not COCO annotations, two entries contradict each other, or image files are
            missing.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    try:
        status = os.stat(json_file)
    except (OSError, ValueError) as error:  # of a name with a zero byte
        why = getattr(error, "strerror", None) or str(error)
        why = "no such annotation file" if isinstance(error, FileNotFoundError) else why
        raise DatasetError(f"{json_file}: {why}") from None
    key = (json_file.resolve(), image_root.resolve(), status.st_mtime_ns, status.st_size, extras)
    if key not in _parsed:
        _parsed[key] = _load(json_file, image_root, name or str(json_file), extras)
    return _parsed[key]


def _load(json_file, image_root, name, extras):
    content = _read(json_file)
    classes, category_ids = _categories(json_file, content.categories)
    image_ids, names, heights, widths = _images(json_file, content.images)
    file_names = [os.fspath(image_root / file) for file in names]
    _check_files(json_file, image_root, file_names)
    problems = Counter()
    heights, widths = np.array(heights, dtype=np.int32), np.array(widths, dtype=np.int32)
    columns = _annotations(content.annotations or [], image_ids, category_ids, problems, extras)
    count, annotated = len(content.annotations or []), content.annotations is not None
    del content  # the text of the whole file
    annotations, starts = _arranged(columns, heights, widths, problems, extras)
    warn_of(name, count, problems)
    whole = all(type(i) is int and abs(i) < 2**63 for i in image_ids)
    return Dataset(
        name,
        classes,
        category_ids,
        np.array(image_ids, dtype=np.int64) if whole else tuple(image_ids),
        Texts(file_names),
        heights,
        widths,
        starts,
        annotations,
        annotated,
        json_file,
        count,
        problems,
    )


# ---- the file --------------------------------------------------------------------------------------


def _read(json_file) -> _File:
    try:
        check_file(json_file)
        text = json_file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read: {error.strerror}") from None
    except InputError as error:
        raise DatasetError(f"{json_file}: {error}") from None
    try:
        content = msgspec.json.decode(text, type=_File)
    except (msgspec.DecodeError, RecursionError):
        content = _read_slowly(json_file, text)
    for key in KEYS:
        if getattr(content, key) is None and key != "annotations":
            raise DatasetError(f"{json_file}: expected COCO annotations with a list {key!r}")
    return content


def _read_slowly(json_file, text) -> _File:
    """JSON as Python writes it, with NaN and Infinity; and what is wrong where it is none."""
    try:
        content = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{json_file}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: expected COCO annotations with a list 'images'")
    for key in KEYS:
        if key in content and not isinstance(content[key], list):
            raise DatasetError(f"{json_file}: expected COCO annotations with a list {key!r}")
    return _File(*([json.dumps(entry).encode() for entry in content[k]] if k in content else None for k in KEYS))


def _entry(json_file, key, index, raw) -> dict:
    entry = _loaded(raw)
    if not isinstance(entry, dict):
        raise DatasetError(f"{json_file}: {key}[{index}]: expected an object, got {_short(entry)}")
    return entry


def _loaded(raw):
    """An entry as Python's json reads it; None for one that is no JSON, or too deep."""
    try:
        return json.loads(bytes(raw), parse_int=_whole)
    except (ValueError, RecursionError):
        return None


def _whole(text: str) -> int | float:
    """Python refuses to read a whole number of thousands of digits; here it is merely none of an image."""
    return int(text) if len(text) < 400 else math.inf


def _short(value) -> str:
    text = json.dumps(value) if not isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _categories(json_file, entries):
    """Names and numbers, sorted by number."""
    found = {}
    for i, raw in enumerate(entries):
        entry = _entry(json_file, "categories", i, raw)
        number, name = _id(entry.get("id")), entry.get("name")
        where = f"{json_file}: categories[{i}]"
        if type(number) is not int:
            raise DatasetError(f"{where}: id: expected a whole number, got {_short(number)}")
        if not isinstance(name, str) or not _is_text(name):
            raise DatasetError(f"{where}: name: expected text, got {_short(name)}")
        if number in found:
            raise DatasetError(f"{where}: id: expected another than {found[number]!r} has, got {number}")
        if name in found.values():
            raise DatasetError(f"{where}: name: expected another than id {_key_of(found, name)} has, got {name!r}")
        found[number] = name
    numbers = sorted(found)
    return [found[number] for number in numbers], numbers


def _is_text(value: str) -> bool:
    """Halves of a character (surrogates), which JSON can spell, cannot be written to anywhere."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_of(mapping, value):
    return next(key for key, other in mapping.items() if other == value)


def _images(json_file, entries):
    """Ids, file names, heights and widths."""
    ids, names, heights, widths = {}, [], array("i"), array("i")
    for i, raw in enumerate(entries):
        try:
            image = _READ_IMAGE(raw)
        except (msgspec.DecodeError, RecursionError):
            image = _loose_image(json_file, i, _entry(json_file, "images", i, raw))
        if image.id in ids:
            raise DatasetError(
                f"{json_file}: images[{i}]: id: expected another than images[{ids[image.id]}] has, got "
                f"{_short(image.id)}"
            )
        if not image.file_name or "\0" in image.file_name or not _is_text(image.file_name):
            raise DatasetError(
                f"{json_file}: images[{i}]: file_name: expected the name of a file, got {_short(image.file_name)}"
            )
        for key, sizes in (("height", heights), ("width", widths)):
            size = getattr(image, key)
            if not 1 <= size < 2**31:
                raise DatasetError(
                    f"{json_file}: images[{i}]: {key}: expected a positive number of pixels, got {_short(size)}"
                )
            sizes.append(size)
        ids[image.id] = i
        names.append(image.file_name)
    return list(ids), names, heights, widths


def _loose_image(json_file, index, entry) -> _Image:
    """An image with entries of another kind than COCO's, or an error that names the first that cannot be used."""
    kinds = {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)}
    found = []
    for key, wanted in kinds.items():
        if key not in entry:
            raise DatasetError(f"{json_file}: images[{index}]: expected {key!r} in every image, got {_short(entry)}")
        value = _id(entry[key])
        if type(value) not in wanted:
            names = " or ".join({int: "a whole number", str: "text"}[kind] for kind in wanted)
            raise DatasetError(f"{json_file}: images[{index}]: {key}: expected {names}, got {_short(entry[key])}")
        found.append(value)
    return _Image(*found)


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


# ---- annotations -----------------------------------------------------------------------------------


class _Columns:
    """The annotations whose image, category and box are known, in the order of the file."""

    def __init__(self):
        self.images, self.labels = array("q"), array("i")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.ignore = array("b"), array("b")
        self.extras: list[str] = []


def _annotations(entries, image_ids, category_ids, problems, extras) -> _Columns:
    position = {number: i for i, number in enumerate(image_ids)}
    label = {number: i for i, number in enumerate(category_ids)}
    read = _READ_OUTLINED if extras else _READ_ANNOTATION
    columns = _Columns()
    for raw in entries:
        try:
            found = read(raw)
        except (msgspec.DecodeError, RecursionError):  # another kind, or NaN, which is no JSON
            found = _loose(_loaded(raw), problems)
            if found is None:
                continue
        image, category = position.get(found.image_id), label.get(found.category_id)
        if image is None:
            problems["unknown image id (left out)"] += 1
        elif category is None:
            problems[f"unknown category id {_short(found.category_id)} (left out)"] += 1
        else:
            columns.images.append(image)
            columns.labels.append(category)
            columns.boxes.extend(found.bbox)
            columns.areas.append(math.nan if found.area is None else found.area)
            columns.crowd.append(bool(found.iscrowd))
            columns.ignore.append(bool(found.ignore))
            if extras:
                columns.extras.append(_extras(found, problems))
    return columns


def _loose(entry, problems) -> _Outlined | None:
    """An annotation with entries of another kind than COCO's: what of it can be used, or None."""
    if not isinstance(entry, dict):
        problems["something else than an object (left out)"] += 1
        return None
    image, category, box = _id(entry.get("image_id")), _id(entry.get("category_id")), entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        problems["a box that is not four finite numbers (left out)"] += 1
        return None
    if type(image) not in (int, str):
        problems["unknown image id (left out)"] += 1
        return None
    if type(category) not in (int, str):
        problems[f"unknown category id {_short(category)} (left out)"] += 1
        return None
    flags = []
    for key in ("iscrowd", "ignore"):
        value = entry.get(key)
        if value not in (None, 0, 1):
            problems[f"{key} that is neither 0 nor 1 (left out)"] += 1
            return None
        flags.append(None if value is None else int(value))
    area = entry.get("area")
    if area is not None and not _is_number(area):
        problems["an area that is no number (the box's is taken)"] += 1
        area = None
    more = (msgspec.Raw(json.dumps(entry.get(key)).encode()) for key in ("segmentation", "keypoints"))
    return _Outlined(image, category, tuple(float(v) for v in box), area, *flags, *more)


def _id(value):
    """Some exporters write 1.0 for 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # False for NaN


def _extras(found: _Outlined, problems) -> str:
    """Outline and keypoints as JSON; the texts are looked into when an image is used (:class:`Dataset`)."""
    outline, keypoints = bytes(found.segmentation).strip(), bytes(found.keypoints).strip()
    if outline.startswith(b"[") and outline[1:].lstrip()[:1] not in (b"[", b"]"):
        problems["an outline that is one flat list (taken as one polygon)"] += 1
        outline = b"[" + outline + b"]"
    kept = [(name, text) for name, text in ((b"segmentation", outline), (b"keypoints", keypoints)) if text != b"null"]
    return (b"{" + b",".join(b'"' + name + b'":' + text for name, text in kept) + b"}").decode()


def _arranged(columns, heights, widths, problems, extras: bool) -> tuple[Annotations, np.ndarray]:
    """The annotations sorted by image, with what is usable of their boxes; and where each image's begin."""
    images = np.array(columns.images, dtype=np.int64)
    order = images.argsort(kind="stable")
    images = images[order]
    boxes = np.array(columns.boxes, dtype=np.float64).reshape(-1, 4)[order]
    labels = np.array(columns.labels, dtype=np.int32)[order]
    areas = np.array(columns.areas, dtype=np.float64)[order]
    crowd, ignore = (np.array(flags, dtype=bool)[order] for flags in (columns.crowd, columns.ignore))
    clipped, usable = clean_boxes(boxes, heights[images], widths[images], problems)
    usable = without_repeats(images, labels, boxes, usable, crowd, problems)
    own = boxes[:, 2] * boxes[:, 3]
    areas = np.where(np.isfinite(areas) & (areas > 0), areas, own)
    starts = np.searchsorted(images, np.arange(len(heights) + 1))
    texts = Texts(columns.extras[i] for i in order) if extras else None
    return Annotations(boxes, clipped, labels, areas, crowd, ignore, usable, texts), starts
