"""YOLO: a text file for each image, a line for each box; classes and splits in ``data.yaml`` or Darknet's files."""

import math
import re
import reprlib
from pathlib import Path, PurePosixPath

import yaml

from .labels import SPLIT_WORDS, Box, Category, DatasetError, Labelled, Source, split_of

SPLITS = ("train", "val", "valid", "test")
NAME_FILES = ("obj.names", "classes.txt", "_darknet.labels", "classes.names")
# Of a path these name no data set and no split.
GENERIC = ("images", "labels", "data")
# Coordinates are fractions of the image, which a box may leave somewhat.
LARGEST_FRACTION = 2.0


def read_yolo(tree, report, options) -> Source:
    """Reads a folder of images and text files.

    Names and splits are those of a yaml file with ``names`` (Ultralytics, Roboflow), of ``obj.data`` (Darknet,
    CVAT), else of ``classes.txt`` and of the folders' names.
    """
    description = _description(tree, options)
    names = _class_names(tree, report, description, options)
    if options.splits:
        files = {split: tree.images(tree.folder(folder)) for split, folder in options.splits.items()}
    elif any(description.get(key) for key in SPLITS):
        files = _described_splits(tree, report, description)
    else:
        files = {}
        for path in tree.images():
            files.setdefault(tree.split(path) or "train", []).append(path)
    reader = _Reader(tree, report, options, names, _keypoint_numbers(description))
    read = {path: reader.image(path) for path in dict.fromkeys(path for paths in files.values() for path in paths)}
    reader.look_for_labels_without_images()
    if not any(read.values()):
        kinds = ("unreadable_label", "unlabelled_image", "unreadable_image")
        example = next((report.found[kind][0] for kind in kinds if kind in report.found), "no image at all")
        raise DatasetError(f"{tree.root}: expected images with YOLO labels, found none, for example {example}")
    if report.count("malformed_entry") and report.count("malformed_entry") == report.read["boxes"]:
        raise DatasetError(f"{tree.root}: no line of any label can be read: {report.found['malformed_entry'][0]}")
    splits = {split: [read[path] for path in paths if read[path]] for split, paths in files.items()}
    return Source(_categories(report, names | reader.unnamed), splits)


# ---- classes --------------------------------------------------------------------------------------------------------


def _description(tree, options) -> dict:
    """What ``data.yaml`` or ``obj.data`` says, with the file itself under ``"file"``. Everything else is a string."""
    found = [options.description] if options.description else tree.within(None, {".yaml", ".yml"})
    described = [content for path in found if (content := _read_yaml(path, asked=bool(options.description)))]
    usual = [content for content in described if content["file"].stem == "data"]
    described = usual if len(usual) == 1 else described
    if len(described) > 1:
        raise DatasetError(
            f"{tree.root}: expected one yaml file with names, found {len(described)}: "
            f"{', '.join(tree.name(content['file']) for content in described)}; give the right one as the source"
        )
    if described:
        return described[0]
    darknet = tree.within(None, {".data"})
    if len(darknet) != 1:
        return {}
    pairs = (line.partition("=") for line in _text(darknet[0]).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs}
    return {key: content[key] for key in SPLITS if content.get(key)} | {"file": darknet[0]}


def _read_yaml(path, asked) -> dict | None:
    """A yaml file with names, as strings alone (a class may be called no or 007); others are passed by."""
    try:
        content = yaml.load(_text(path), yaml.BaseLoader)  # strings, lists, mappings: nothing is executed
    except yaml.YAMLError as error:
        if not asked and path.stem != "data":
            return None
        raise DatasetError(f"{path}: not a yaml file: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and ("names" in content or "nc" in content):
        return {key: value for key, value in content.items() if value not in ("", "~", "null")} | {"file": path}
    if asked or path.stem == "data":
        raise DatasetError(f"{path}: expected a mapping with names, train and val, got {reprlib.repr(content)}")
    return None


def _text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a text file: {error}") from None


def _class_names(tree, report, description, options) -> dict[int, str]:
    """Names by index."""
    if options.classes:
        return dict(enumerate(options.classes))
    names = description.get("names")
    if names is None:
        return _listed_names(tree)
    where = description["file"]
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        got = reprlib.repr(names)
        raise DatasetError(f"{where}: names: expected a list of names or a mapping from index to name, got {got}")
    for index, name in names.items():
        if not index.isdecimal() or not isinstance(name, str) or not name.strip():
            got = f"{reprlib.repr(index)}: {reprlib.repr(name)}"
            raise DatasetError(f"{where}: names: expected an index and a name, got {got}")
    count = description.get("nc")
    if count is not None and count != str(len(names)):
        report.add("class_count", f"{tree.name(where)}: nc is {reprlib.repr(count)}, names has {len(names)}")
    return {int(index): name.strip() for index, name in names.items()}


def _listed_names(tree):
    """Of a file with a name a line; none without one."""
    files = [path for path in tree.files if path.name in NAME_FILES]
    lists = {tuple(line.strip() for line in _text(path).splitlines() if line.strip()) for path in files}
    if len(lists) > 1:
        raise DatasetError(
            f"{tree.root}: expected one list of classes, found {len(lists)} that differ: "
            f"{', '.join(map(tree.name, files))}; --classes gives the right one"
        )
    return dict(enumerate(lists.pop())) if lists else {}


def _categories(report, names) -> list[Category]:
    """In the order of the indices; equal names are one class."""
    categories = {}
    for index, name in sorted(names.items()):
        if name in categories:
            report.add("merged_class", f"{name}: {categories[name].id - 1} and {index}")
        else:
            categories[name] = Category(index + 1, name)
    return list(categories.values())


# ---- splits ---------------------------------------------------------------------------------------------------------


def _described_splits(tree, report, description) -> dict[str, list[Path]]:
    where = tree.name(description["file"])
    files = {}
    for key in SPLITS:
        split = "val" if key == "valid" else key
        if not description.get(key) or split in files:
            continue
        images = []
        values = description[key] if isinstance(description[key], list) else [description[key]]
        for value in values:
            if not isinstance(value, str):
                raise DatasetError(f"{description['file']}: {key}: expected a path, got {reprlib.repr(value)}")
            target = _resolve(tree, description, value)
            if target is None:
                report.add("missing_split", f"{where}: {key}: {value}")
                continue
            if target.resolve() not in {(base / value).resolve() for base in _bases(tree, description)}:
                report.add("split_folder", f"{where}: {key}: {value} is {tree.name(target)}")
            if target.is_file():
                images += _listed_images(tree, report, description, target)
                continue
            tree.include(target)
            found = tree.images(None if target == tree.root else target)
            images += found
            if not found:
                report.add("missing_split", f"{where}: {key}: {value} holds no image")
        if images:
            files[split] = list(dict.fromkeys(images))
    if not files:
        named = "; ".join(report.found["missing_split"])
        raise DatasetError(f"{tree.root}: expected the images of the splits, found none: {named}")
    listed = {path for paths in files.values() for path in paths}
    others = {split for path in tree.images() if path not in listed and (split := tree.split(path))}
    for split in sorted(others - files.keys()):
        report.add("unlisted_split", split)
    return files


def _bases(tree, description) -> list[Path]:
    """Folders that a path of a description may start from."""
    home, path = description["file"].parent, description.get("path")
    return [*([home / path] if isinstance(path, str) else []), home, tree.root]


def _resolve(tree, description, value) -> Path | None:
    """The folder or file that a path of a description means, None for nothing.

    Data sets travel: a path may be absolute on another machine, or lead out of the folder (Roboflow writes ../train).
    It is taken as written where that lies in the source; else of ``a/b/c`` what exists of a/b/c, b/c, c below the
    source, the longest, then the same under another word for the split (valid, validate, ...); else as written
    outside. A tail that is only ``images`` means nothing.
    """
    as_written = [base / value for base in _bases(tree, description) if (base / value).exists()]
    root = tree.root.resolve()
    for path in as_written:
        if path.resolve().is_relative_to(root):
            return tree.root / path.resolve().relative_to(root)
    parts = [part for part in PurePosixPath(value.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    for spelled in [parts, *_respelled(parts)]:
        for first in range(len(spelled)):
            tail = spelled[first:]
            if first and all(part.lower() in GENERIC for part in tail):
                break
            for base in (description["file"].parent, tree.root):
                if base.joinpath(*tail).exists():
                    return base.joinpath(*tail)
    return as_written[0] if as_written else None


def _respelled(parts):
    """A path with its folder of a split under the other names that it may have."""
    for i, part in enumerate(parts):
        for word in SPLIT_WORDS.get(split_of([part]), ()):
            if word != part:
                yield [*parts[:i], word, *parts[i + 1 :]]


def _listed_images(tree, report, description, path) -> list[Path]:
    """The images of a list of paths."""
    images = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        beside = path.parent / line
        found = beside if beside.is_file() else _resolve(tree, description, line)
        if found is not None and found.is_file():
            images.append(found)
        else:
            report.add("unreadable_image", f"{tree.name(path)}:{number}: {line}: no such image")
    return images


# ---- labels ---------------------------------------------------------------------------------------------------------


def _keypoint_numbers(description) -> int:
    """Numbers that follow the four of a box, in a data set of keypoints."""
    shape = description.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, str) and v.isdecimal() for v in shape)):
        raise DatasetError(f"{description['file']}: kpt_shape: expected [points, 2 or 3], got {reprlib.repr(shape)}")
    return int(shape[0]) * int(shape[1])


class _Reader:
    """Reads the labels of images, and remembers where labels lie."""

    def __init__(self, tree, report, options, names, keypoint_numbers):
        self.tree, self.report, self.options, self.names = tree, report, options, names
        self.keypoint_numbers = keypoint_numbers
        self.unnamed: dict[int, str] = {}
        self.used: set[Path] = set()
        self.homes: set[Path] = set()

    def image(self, path: Path) -> Labelled | None:
        """An image and the boxes of its label; None if there is none that can be read."""
        places = _label_places(path)
        self.homes |= {place.parent for place in places}
        label = next((place for place in places if place.is_file()), None)
        if label is None:
            name = self.tree.name(path)
            if self.options.unlabelled == "background":
                self.report.add("background_image", name)
                return Labelled(path, [], name)
            self.report.add("unlabelled_image", name)
            return None
        self.used.add(label)
        where = self.tree.name(label)
        try:
            lines = label.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.report.add("unreadable_label", f"{where}: {error}")
            return None
        boxes = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                self.report.read["boxes"] += 1
                box = self._box(line.split(), f"{where}:{number}")
                boxes += [box] if box else []
        return Labelled(path, boxes, where, (1.0, 1.0))

    def _box(self, words, where) -> Box | None:
        try:
            index, *values = map(float, words)
        except ValueError:
            self.report.add("malformed_entry", f"{where}: expected numbers, got {reprlib.repr(' '.join(words))}")
            return None
        if index < 0 or index % 1 != 0:
            self.report.add("malformed_entry", f"{where}: expected a class index, got {words[0]}")
            return None
        if self.keypoint_numbers and len(values) == 4 + self.keypoint_numbers:
            values = values[:4]
        elif len(values) == 5:
            self.report.add("extra_column", where)
            values = values[:4]
        elif len(values) < 4 or len(values) % 2:
            self.report.add("malformed_entry", f"{where}: expected 4 numbers or pairs of a polygon, got {len(values)}")
            return None
        if not all(map(math.isfinite, values)):
            self.report.add("not_finite_box", where)
            return None
        if max(map(abs, values)) > LARGEST_FRACTION:
            self.report.add("not_normalized_box", f"{where}: {reprlib.repr(' '.join(words))}")
            return None
        if len(values) > 4:
            self.report.add("polygon", where)
            corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        elif values[2] <= 0 or values[3] <= 0:
            self.report.add("zero_size_box", where)
            return None
        else:
            x, y, w, h = values
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return Box(self._name(int(index), where), corners, where)

    def _name(self, index, where):
        if index in self.names:
            return self.names[index]
        self.report.add("unnamed_class", f"{where}: {index}")
        return self.unnamed.setdefault(index, f"class_{index}")

    def look_for_labels_without_images(self):
        """Texts beside the labels that belong to no image: those whose first line is a box's, and empty ones."""
        for home in sorted(home for home in self.homes if home.is_dir()):
            for path in sorted(home.glob("*.txt")):
                if path in self.used or path.name in NAME_FILES:
                    continue
                try:
                    first = path.read_text(encoding="utf-8-sig").strip().partition("\n")[0]
                except (OSError, UnicodeDecodeError):
                    continue
                if not first or re.fullmatch(r"[\d.]+(\s+[-+.\deE]+){4,}", first.strip()):
                    self.report.add("label_without_image", self.tree.name(path))


def _label_places(path: Path) -> list[Path]:
    """Where an image's label may lie: labels/ in place of the last images/; beside it; in a labels/ beside or above."""
    name = path.with_suffix(".txt").name
    places = [
        path.parent / name,
        path.parent / "labels" / name,
        path.parent.parent / "labels" / path.parent.name / name,
    ]
    for i in range(len(path.parts) - 2, -1, -1):
        if path.parts[i].lower() == "images":
            return [Path(*path.parts[:i], "labels", *path.parts[i + 1 : -1], name), *places]
    return places
