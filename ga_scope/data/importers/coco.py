"""COCO json: annotation files of the splits, their images wherever they lie."""

import json
import math
from pathlib import PurePosixPath

from .labels import Box, Category, DatasetError, Labelled, Source, nearest, split_of

# Names of annotation files that say what is annotated, not which split it is.
PREFIXES = ("instances_", "instances-", "annotations_")
ROBOFLOW = "_annotations.coco.json"
DATASET_KEYS = ("images", "annotations", "categories")
# Of an annotation what is written anew.
WRITTEN = ("id", "image_id", "category_id", "bbox")


def read_coco(tree, report, options) -> Source:
    """Reads the annotation files under ``annotations/``, or all that there are; or those of ``options.splits``."""
    contents = {split: (path, _read(path)) for split, path in _files(tree, options).items()}
    categories = _categories(tree, report, options, contents)
    splits, licenses = {}, []
    for split, (path, content) in contents.items():
        splits[split] = _images(tree, report, options, path, content)
        licenses = licenses or content.get("licenses") or []
    if not any(splits.values()):
        first = next((found for name in ("label_without_image",) for found in report.found.get(name, ())), "no image")
        raise DatasetError(f"{tree.root}: expected images of the annotation files, found none, for example {first}")
    return Source(categories, splits, licenses if isinstance(licenses, list) else [])


def _files(tree, options):
    if options.splits:
        return {split: tree.root / file for split, file in options.splits.items()}
    if options.description:
        return {_split_name(options.description, tree): options.description}
    found = [path for path in tree.labels(".json") if _looks_like_coco(path)]
    instances = [path for path in found if path.name.startswith("instances")]
    found = instances or found
    if not found:
        raise DatasetError(f"{tree.root}: expected COCO annotation files (json), found none")
    files = {}
    for path in found:
        split = _split_name(path, tree)
        if split in files:
            raise DatasetError(
                f"{tree.root}: expected one annotation file for each split, found {tree.name(files[split])} and "
                f"{tree.name(path)} for {split!r}; --split NAME=FILE chooses"
            )
        files[split] = path
    return files


def _split_name(path, tree):
    if path.name == ROBOFLOW or path.stem.lower() in ("annotations", "instances", "instances_default", "labels"):
        return split_of(reversed(path.relative_to(tree.root).parent.parts)) or "train"
    stem = path.stem
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    return stem


def _looks_like_coco(path):
    """Whether a json file is worth reading: many lie beside data sets. A broken one is, so that it is named."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(content, dict) and "images" in content


def _read(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a JSON file: {error}") from None
    for key in DATASET_KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path}: expected COCO annotations with a list {key!r}")
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise DatasetError(f"{path}: {key}: expected objects, got something else among them")
    return content


def _is_id(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _named_categories(path, content):
    """Names by number."""
    named = {}
    for entry in content["categories"]:
        number, name = entry.get("id"), entry.get("name")
        if not _is_id(number) or not isinstance(name, str) or not name:
            raise DatasetError(f"{path}: categories: expected an id and a name, got {entry}")
        if named.get(number, name) != name:
            raise DatasetError(f"{path}: categories: id {number} is both {named[number]!r} and {name!r}")
        named[number] = name
    return named


def _categories(tree, report, options, contents) -> list[Category]:
    """Those of the first file, and what the others have beside: a class is its name, in every split the same."""
    kept, numbers = {}, {}
    for path, content in contents.values():
        _named_categories(path, content)
        moved = False
        for entry in content["categories"]:
            number, name = entry["id"], entry["name"]
            if name in kept:
                moved |= kept[name].id != number
                continue
            if number in numbers:
                moved = True
                number = max(numbers) + 1
            numbers[number] = name
            supercategory = entry.get("supercategory")
            kept[name] = Category(number, name, supercategory if isinstance(supercategory, str) else "object")
        if moved:
            report.add("renumbered_categories", tree.name(path))
    if options.classes:
        return [Category(i, name, kept[name].supercategory if name in kept else "object")
                for i, name in enumerate(dict.fromkeys(options.classes), 1)]  # fmt: skip
    return sorted(kept.values(), key=lambda category: category.id)


def _images(tree, report, options, path, content) -> list[Labelled]:
    where = tree.name(path)
    images, names, by_file = {}, {}, {}
    for entry in content["images"]:
        number, name = entry.get("id"), entry.get("file_name")
        if not _is_id(number) or not isinstance(name, str) or not name:
            raise DatasetError(f"{path}: images: expected an id and a file_name, got {entry}")
        if number in names:
            if names[number] != name:
                raise DatasetError(f"{path}: images: id {number} is both {names[number]!r} and {name!r}")
            report.add("repeated_image_entry", f"{where}: image {number}")
            continue
        names[number] = name
        file = _image_file(tree, path, name)
        if file is None:
            report.add("label_without_image", f"{where}: image {number}: {name}")
            continue
        if file in by_file:  # under another number
            report.add("repeated_image_entry", f"{where}: image {number}: {name}")
            images[number] = by_file[file]
            continue
        keys = {key: value for key, value in entry.items() if key not in ("id", "file_name", "width", "height")}
        at = f"{where}: image {number}"
        images[number] = by_file[file] = Labelled(file, [], at, _frame(entry), number, keys)
    classes = _named_categories(path, content)
    for i, entry in enumerate(content["annotations"]):
        at = f"{where}: annotation {entry.get('id', f'number {i}')}"
        number, category = entry.get("image_id"), entry.get("category_id")
        report.read["boxes"] += 1
        if not _is_id(number) or number not in names:
            report.add("unknown_image_id", at)
        elif not _is_id(category) or category not in classes:
            report.add("unknown_category_id", at)
        elif number in images:
            box = _box(report, entry, classes[category], at)
            if box is not None:
                images[number].boxes.append(box)
    return list(by_file.values())


def _frame(entry):
    size = (entry.get("width"), entry.get("height"))
    return size if all(isinstance(side, (int, float)) and 0 < side < math.inf for side in size) else None


def _box(report, entry, label, at) -> Box | None:
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in box
    )):  # fmt: skip
        report.add("malformed_entry", f"{at}: expected a bbox of four numbers, got {str(box)[:60]}")
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0:
        report.add("zero_size_box", at)
        return None
    keys = {key: value for key, value in entry.items() if key not in WRITTEN}
    keys["iscrowd"] = 1 if entry.get("iscrowd") in (1, True) else 0
    return Box(label, (x, y, x + w, y + h), at, keys)


def _image_file(tree, path, name):
    """The file of an image: by its path from the annotation file or the source, else by its name alone."""
    name = name.replace("\\", "/")
    listed = tree.image_named(PurePosixPath(name).name)
    tail = PurePosixPath(name).parts
    exact = [file for file in listed if file.parts[-len(tail) :] == tail] or listed
    if len(exact) < 2:
        return exact[0] if exact else None
    split = _split_name(path, tree)
    of_split = [file for file in exact if split in file.parts or split_of(file.parent.parts[-1:]) == split_of([split])]
    return nearest(of_split or exact, path)[0]
