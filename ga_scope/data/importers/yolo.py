"""YOLO: a text file for each image, a line for each box; classes and splits in ``data.yaml`` or Darknet's files."""

import math
import re
from pathlib import Path, PurePosixPath

import yaml

from .labels import SPLIT_WORDS, Box, Category, DatasetError, Labelled, Source, split_of

SPLITS = ("train", "val", "valid", "test")
NAME_FILES = ("obj.names", "classes.txt", "_darknet.labels", "classes.names")
# Coordinates are fractions of the image; a label may leave it somewhat.
LARGEST_FRACTION = 2.0


def read_yolo(tree, report, options) -> Source:
    """Reads a folder of images and text files.

    Names and splits are those of a yaml file with ``names`` (Ultralytics, Roboflow), of ``obj.data`` (Darknet,
    CVAT), else of ``classes.txt`` and of the folders' names.
    """
    description = _description(tree, options)
    names = _class_names(tree, report, description, options)
    reader = _Reader(tree, report, options, names, description)
    if options.splits:
        files = {split: tree.images(_folder(tree, folder)) for split, folder in options.splits.items()}
    elif any(description.get(key) for key in SPLITS):
        files = _described_splits(tree, report, description)
    else:
        files = {}
        for path in tree.images():
            files.setdefault(split_of(path.relative_to(tree.root).parent.parts) or "train", []).append(path)
    read = {path: reader.image(path) for paths in files.values() for path in paths}
    reader.look_for_labels_without_images()
    if not any(read.values()):
        first = next((found[0] for name in ("malformed_entry", "unreadable_image", "unlabelled_image")
                      if (found := report.found.get(name))), "no image")  # fmt: skip
        raise DatasetError(f"{tree.root}: no image with a YOLO label was found, for example {first}")
    boxes = sum(len(image.boxes) for image in read.values() if image)
    if not boxes and report.count("malformed_entry"):
        raise DatasetError(f"{tree.root}: no line of any label could be read: {report.found['malformed_entry'][0]}")
    splits = {split: [read[path] for path in paths if read[path]] for split, paths in files.items()}
    return Source(_categories(report, names, reader.unnamed), splits)


def _folder(tree, folder):
    path = tree.root if folder == "." else tree.root / folder
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    return path


# ---- classes --------------------------------------------------------------------------------------------------------


def _description(tree, options) -> dict:
    """What ``data.yaml`` or ``obj.data`` says, with the file itself under ``"file"``."""
    found = [options.description] if options.description else tree.labels(".yaml") + tree.labels(".yml")
    described = [content for path in found if (content := _yaml(path, bool(options.description)))]
    usual = [content for content in described if content["file"].name in ("data.yaml", "data.yml")]
    described = usual if len(usual) == 1 else described
    if len(described) > 1:
        raise DatasetError(
            f"{tree.root}: expected one yaml file with names, found {len(described)}: "
            f"{', '.join(tree.name(content['file']) for content in described)}; give the right one as the source"
        )
    if described:
        return described[0]
    darknet = [path for path in tree.labels(".data")]
    if len(darknet) != 1:
        return {}
    pairs = (line.partition("=") for line in _text(darknet[0]).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    if "valid" in content:
        content["val"] = content.pop("valid")
    content.pop("names", None)  # it is among NAME_FILES
    return content | {"file": darknet[0]}


def _yaml(path, asked) -> dict | None:
    """A yaml file with names; others are passed by unless they were asked for."""
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path}: not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not ("names" in content or "nc" in content):
        if asked or path.name in ("data.yaml", "data.yml"):
            raise DatasetError(f"{path}: expected a mapping with names, train and val, got {_short(content)}")
        return None
    return content | {"file": path}


def _text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a text file: {error}") from None


def _short(value):
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _class_names(tree, report, description, options) -> dict[int, str]:
    """Names by index."""
    if options.classes:
        return dict(enumerate(options.classes))
    where, names = description.get("file"), description.get("names")
    if names is None:
        files = [path for path in tree.files if path.name in NAME_FILES]
        if files:
            lists = {tuple(line.strip() for line in _text(path).splitlines() if line.strip()) for path in files}
            if len(lists) > 1:
                raise DatasetError(
                    f"{tree.root}: expected one list of classes, found {len(lists)} that differ: "
                    f"{', '.join(map(tree.name, files))}; --classes gives the right one"
                )
            return dict(enumerate(lists.pop()))
        return {}
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DatasetError(f"{where}: names: expected a list of names or a mapping from index to name, got {_short(names)}")
    mapped = {}
    for key, name in names.items():
        if not str(key).isdigit() or not isinstance(name, (str, int, float)) or not str(name).strip():
            raise DatasetError(f"{where}: names: expected an index and a name, got {_short(key)}: {_short(name)}")
        mapped[int(key)] = str(name).strip()
    count = description.get("nc")
    if count is not None and count != len(mapped):
        report.add("class_count", f"{tree.name(where)}: nc is {_short(count)}, names has {len(mapped)}")
    return mapped


def _categories(report, names, unnamed) -> list[Category]:
    """In the order of the indices; equal names are one class."""
    categories = {}
    for index, name in sorted((names | unnamed).items()):
        if name in categories:
            report.add("merged_class", f"{name}: {categories[name].id - 1} and {index}")
        else:
            categories[name] = Category(index + 1, name)
    return list(categories.values())


# ---- splits ---------------------------------------------------------------------------------------------------------


def _described_splits(tree, report, description) -> dict[str, list[Path]]:
    where = tree.name(description["file"])
    files, folders = {}, []
    for key in SPLITS:
        values = description.get(key)
        if not values:
            continue
        split = "val" if key == "valid" else key
        if split in files:
            continue
        values = values if isinstance(values, list) else [values]
        images = []
        for value in values:
            if not isinstance(value, str):
                raise DatasetError(f"{description['file']}: {key}: expected a path, got {_short(value)}")
            target = _resolve(tree, description, value)
            if target is None:
                report.add("missing_split", f"{where}: {key}: {value}")
                continue
            if not _as_written(tree, description, value, target):
                report.add("split_folder", f"{where}: {key}: {value} is {tree.name(target)}")
            if target.is_dir():
                folders.append(target)
                images += tree.images() if target.resolve() == tree.root.resolve() else tree.images(target)
            else:
                images += _listed(tree, report, description, target)
        if images:
            files[split] = list(dict.fromkeys(images))
        elif not report.count("missing_split"):
            report.add("missing_split", f"{where}: {key}: {', '.join(values)} holds no image")
    for path in tree.images():
        split = split_of(path.relative_to(tree.root).parent.parts) if path.is_relative_to(tree.root) else None
        if split and split not in files and split not in report.found.get("unlisted_split", ()):
            report.add("unlisted_split", split)
    if not files:
        named = "; ".join(report.found.get("missing_split", [f"{where}: no split"]))
        raise DatasetError(f"{tree.root}: expected the images of the splits, found none: {named}")
    return files


def _bases(tree, description):
    """Folders that a path of a description may start from."""
    home = description["file"].parent
    base = description.get("path")
    bases = [home / base] if isinstance(base, str) and base else []
    return [*bases, home, tree.root]


def _as_written(tree, description, value, target):
    places = {(base / value).resolve() for base in _bases(tree, description)}
    return target.resolve() in places


def _resolve(tree, description, value) -> Path | None:
    """The folder or file that a path of a description means.

    Data sets travel: the path may be absolute on another machine, or lead out of the folder (Roboflow writes ../train).
    So of ``a/b/c`` what exists of a/b/c, b/c, c below the data set is taken, longest first, then the same with another
    word for the split (valid, validate, ...). The tail must name more than ``images``.
    """
    for base in _bases(tree, description):
        if (base / value).exists():
            path = Path(*(base / value).parts)
            inside = path.resolve()
            root = tree.root.resolve()
            return tree.root / inside.relative_to(root) if inside.is_relative_to(root) else path
    parts = [part for part in PurePosixPath(value.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    for spelled in [parts, *_respelled(parts)]:
        for first in range(len(spelled)):
            tail = spelled[first:]
            if first and all(part.lower() in ("images", "labels", "data") for part in tail):
                break
            for base in (description["file"].parent, tree.root):
                if base.joinpath(*tail).exists():
                    return base.joinpath(*tail)
    return None


def _respelled(parts):
    """A path with its folder of a split under the other names that it may have."""
    for i, part in enumerate(parts):
        split = split_of([part])
        for word in SPLIT_WORDS.get(split, ()):
            if word != part.lower():
                yield [*parts[:i], word, *parts[i + 1 :]]


def _listed(tree, report, description, path) -> list[Path]:
    """The images of a list of paths."""
    images = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        found = path.parent / line if (path.parent / line).is_file() else _resolve(tree, description, line)
        if found is None or not found.is_file():
            report.add("unreadable_image", f"{tree.name(path)}:{number}: {line}: no such image")
        else:
            images.append(found)
    return images


# ---- labels ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads the labels of images, and remembers where labels lie."""

    def __init__(self, tree, report, options, names, description):
        self.tree, self.report, self.options, self.names = tree, report, options, names
        self.unnamed: dict[int, str] = {}
        self.texts = set(tree.labels(".txt"))
        self.used, self.homes = set(), set()
        self.numbers = self._keypoint_numbers(description)

    def _keypoint_numbers(self, description):
        """Numbers after a box's four, of a data set of keypoints."""
        shape = description.get("kpt_shape")
        if shape is None:
            return 0
        if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, int) and v > 0 for v in shape)):
            raise DatasetError(f"{description['file']}: kpt_shape: expected [points, 2 or 3], got {_short(shape)}")
        return shape[0] * shape[1]

    def image(self, path: Path) -> Labelled | None:
        places = _label_places(path)
        self.homes |= {place.parent for place in places}
        label = next((place for place in places if place in self.texts), None)
        name = self.tree.name(path)
        if label is None:
            if self.options.unlabelled == "background":
                self.report.add("background_image", name)
                return Labelled(path, [], name, (1.0, 1.0))
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
            if not line.strip():
                continue
            self.report.read["boxes"] += 1
            box = self._box(line.split(), f"{where}:{number}")
            if isinstance(box, Box):
                boxes.append(box)
        return Labelled(path, boxes, where, (1.0, 1.0))

    def _box(self, words, where) -> Box | None:
        try:
            index, *values = map(float, words)
        except ValueError:
            self.report.add("malformed_entry", f"{where}: expected numbers, got {_short(' '.join(words))}")
            return None
        if not math.isfinite(index) or index < 0 or index != int(index):
            self.report.add("malformed_entry", f"{where}: expected a class index, got {words[0]}")
            return None
        if self.numbers and len(values) == 4 + self.numbers:
            values = values[:4]
        elif len(values) == 5:
            self.report.add("extra_column", where)
            values = values[:4]
        elif len(values) < 4 or len(values) % 2:
            self.report.add("malformed_entry", f"{where}: expected 4 numbers or a polygon's pairs, got {len(values)}")
            return None
        if not all(map(math.isfinite, values)):
            self.report.add("not_finite_box", where)
            return None
        if max(map(abs, values)) > LARGEST_FRACTION:
            self.report.add("not_normalized_box", f"{where}: {_short(' '.join(words))}")
            return None
        if len(values) == 4:
            x, y, w, h = values
            if w <= 0 or h <= 0:
                self.report.add("zero_size_box", where)
                return None
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            self.report.add("polygon", where)
            corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        return Box(self._name(int(index), where), corners, where)

    def _name(self, index, where):
        if index in self.names:
            return self.names[index]
        name = self.unnamed.setdefault(index, f"class_{index}")
        self.report.add("unnamed_class", f"{where}: {index}")
        return name

    def look_for_labels_without_images(self):
        """Texts in the labels' folders that belong to no image: those whose first line is a box's, and empty ones."""
        for path in sorted(self.texts - self.used):
            if path.parent not in self.homes or path.name in NAME_FILES:
                continue
            try:
                first = path.read_text(encoding="utf-8-sig").strip().partition("\n")[0]
            except (OSError, UnicodeDecodeError):
                continue
            if not first or re.fullmatch(r"[\d.]+(\s+[-+.\deE]+){4,}\s*", first):
                where = self.tree.name(path)
                self.report.add("label_without_image", where)


def _label_places(path: Path) -> list[Path]:
    """Where an image's label may lie: labels/ in place of the last images/, beside it, or in a labels/ beside."""
    places = []
    parts = list(path.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].lower() == "images":
            parts[i] = "labels"
            places.append(Path(*parts).with_suffix(".txt"))
            break
    beside = path.with_suffix(".txt")
    return [*places, beside, path.parent / "labels" / beside.name, path.parent.parent / "labels" / path.parent.name / beside.name]
