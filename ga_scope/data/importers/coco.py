"""COCO json: annotation files of the splits, their images wherever they lie."""

import json
import re
import reprlib
from collections import Counter
from pathlib import PurePosixPath

from .labels import Box, Category, DatasetError, Labelled, Source, nearest, split_of

# Names of annotation files that say what is annotated, not which split it is.
PREFIXES = ("instances_", "instances-", "annotations_")
ROBOFLOW = "_annotations.coco.json"
WITHOUT_SPLIT = ("annotations", "instances", "instances_default", "labels", "result")
# Of an annotation what is written anew.
WRITTEN = ("id", "image_id", "category_id", "bbox")


def read_coco(tree, report, options) -> Source:
    """Reads the annotation files whose names begin with instances, else all that there are; or ``options.splits``."""
    contents = _contents(tree, options)
    categories = _categories(tree, report, options, contents)
    splits, licenses = {}, []
    for split, (path, content) in contents.items():
        splits[split] = _images(tree, report, split, path, content)
        licenses = licenses or content.get("licenses")
    if not any(splits.values()):
        example = report.found.get("label_without_image", ["no image at all"])[0]
        raise DatasetError(
            f"{tree.root}: expected the images of the annotation files, found none, for example {example}"
        )
    return Source(categories, splits, licenses if isinstance(licenses, list) else [])


def _contents(tree, options) -> dict:
    """Path and content of the annotation file of every split."""
    if options.splits:
        return {split: (tree.root / file, _read(tree.root / file)) for split, file in options.splits.items()}
    if options.description:
        return {_split_name(tree, options.description): (options.description, _read(options.description))}
    files = tree.within(None, {".json"})
    files = [path for path in files if path.name.startswith("instances")] or files
    contents = {}
    for path in files:
        content = _parsed(path)
        if not isinstance(content, dict) or "images" not in content:
            continue  # many another json file lies beside data sets
        split = _split_name(tree, path)
        if split in contents:
            raise DatasetError(
                f"{tree.root}: expected one annotation file for each split, found {tree.name(contents[split][0])} and "
                f"{tree.name(path)} for {split!r}; --split NAME=FILE chooses"
            )
        contents[split] = (path, _checked(path, content))
    if not contents:
        raise DatasetError(f"{tree.root}: expected COCO annotation files (json), found none")
    return contents


def _split_name(tree, path):
    if path.name == ROBOFLOW or path.stem.lower() in WITHOUT_SPLIT:
        return split_of(reversed(path.relative_to(tree.root).parent.parts)) or "train"
    stem = path.stem
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    return re.sub(r"[^\w.-]", "_", stem)


def _parsed(path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a JSON file: {error}") from None


def _read(path):
    return _checked(path, _parsed(path))


def _checked(path, content):
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path}: expected COCO annotations with a list {key!r}")
        for entry in content[key]:
            if not isinstance(entry, dict):
                raise DatasetError(f"{path}: {key}: expected objects, got {reprlib.repr(entry)}")
    return content


def _is_id(value):
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _class_names(path, content) -> dict:
    """Names by id."""
    names = {}
    for entry in content["categories"]:
        number, name = entry.get("id"), entry.get("name")
        if not _is_id(number) or not isinstance(name, str) or not name:
            raise DatasetError(f"{path}: categories: expected an id and a name, got {reprlib.repr(entry)}")
        if names.get(number, name) != name:
            raise DatasetError(f"{path}: categories: id {number} is both {names[number]!r} and {name!r}")
        names[number] = name
    return names


def _categories(tree, report, options, contents) -> list[Category]:
    """Those of the first file, and what the others have beside: a class is its name, in every split the same."""
    kept, supercategories = {}, {}
    for path, content in contents.values():
        moved = False
        for number, name in _class_names(path, content).items():
            if name not in kept:
                free = isinstance(number, int) and number not in kept.values()
                kept[name] = number if free else max(kept.values(), default=0) + 1
            moved |= kept[name] != number
        if moved:
            report.add("renumbered_categories", tree.name(path))
        for entry in content["categories"]:
            if isinstance(entry.get("supercategory"), str):
                supercategories.setdefault(entry["name"], entry["supercategory"])
    if options.classes:
        kept = {name: number for number, name in enumerate(dict.fromkeys(options.classes), 1)}
    ordered = sorted(kept.items(), key=lambda item: item[1])
    return [Category(number, name, supercategories.get(name, "object")) for name, number in ordered]


def _images(tree, report, split, path, content) -> list[Labelled]:
    where = tree.name(path)
    entries = {}
    for entry in content["images"]:
        number, name = entry.get("id"), entry.get("file_name")
        if not _is_id(number) or not isinstance(name, str) or not name:
            raise DatasetError(f"{path}: images: expected an id and a file_name, got {reprlib.repr(entry)}")
        former = entries.setdefault(number, entry)
        if former["file_name"] != name:
            raise DatasetError(f"{path}: images: id {number} is both {former['file_name']!r} and {name!r}")
        if former is not entry:
            report.add("repeated_image_entry", f"{where}: image {number}: {name}")
    numbered = all(isinstance(number, int) for number in entries)
    base_names = Counter(PurePosixPath(entry["file_name"].replace("\\", "/")).name for entry in entries.values())
    by_file, images = {}, {}
    for number, entry in entries.items():
        at = f"{where}: image {number}"
        file = _image_file(tree, split, path, entry["file_name"], base_names)
        if file is None:
            report.add("label_without_image", f"{at}: {entry['file_name']}")
        elif file in by_file:  # under another number
            report.add("repeated_image_entry", f"{at}: {entry['file_name']}")
            images[number] = by_file[file]
        else:
            keys = {key: value for key, value in entry.items() if key not in ("id", "file_name", "width", "height")}
            labelled = Labelled(file, [], at, _frame(entry), number if numbered else None, keys)
            images[number] = by_file[file] = labelled
    classes = _class_names(path, content)
    for i, entry in enumerate(content["annotations"]):
        at = f"{where}: annotation {entry.get('id', f'number {i}')}"
        number, category = entry.get("image_id"), entry.get("category_id")
        report.read["boxes"] += 1
        if not _is_id(number) or number not in entries:
            report.add("unknown_image_id", at)
        elif not _is_id(category) or category not in classes:
            report.add("unknown_category_id", at)
        elif number in images:
            box = _box(report, entry, classes[category], at)
            images[number].boxes += [box] if box else []
    return list(by_file.values())


def _frame(entry):
    size = (entry.get("width"), entry.get("height"))
    return size if all(isinstance(side, (int, float)) and 0 < side < 1e6 for side in size) else None


def _box(report, entry, label, at) -> Box | None:
    box = entry.get("bbox")
    try:
        if isinstance(box, str):
            raise ValueError
        x, y, w, h = map(float, box)
    except (TypeError, ValueError, OverflowError):
        report.add("malformed_entry", f"{at}: expected a bbox of four numbers, got {reprlib.repr(box)}")
        return None
    if w <= 0 or h <= 0:
        report.add("zero_size_box", at)
        return None
    keys = {key: value for key, value in entry.items() if key not in WRITTEN}
    keys["iscrowd"] = 1 if entry.get("iscrowd") == 1 else 0
    return Box(label, (x, y, x + w, y + h), at, keys)


def _image_file(tree, split, path, name, base_names):
    """The file of an image: the one that its path names from some folder, nearest the annotation file.

    A path that exists nowhere (absolute on another machine) stands for its last name, if that is one image's alone.
    """
    tail = PurePosixPath(name.replace("\\", "/")).parts
    listed = tree.image_named(tail[-1]) if tail else []
    exact = [file for file in listed if file.parts[-len(tail) :] == tail]
    if not exact and base_names[tail[-1]] == 1 and len(listed) == 1:
        exact = listed
    of_split = [file for file in exact if split in file.parts or tree.split(file) == (split_of([split]) or split)]
    files = nearest(of_split or exact, path)
    return files[0] if files else None
