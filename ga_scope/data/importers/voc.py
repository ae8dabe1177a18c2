"""Pascal VOC: an xml file for each image; splits as lists of names in ``ImageSets/Main``, or as folders."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .labels import Box, Category, DatasetError, Labelled, Source, nearest

# In PASCAL's own files pixels count from 1 and the last one is part of the box; other tools write edges.
DEVKIT = re.compile(r"The VOC\d{4} Database")


def read_voc(tree, report, options) -> Source:
    """Reads a folder of xml files and images.

    Splits are the lists of ``ImageSets/Main``; without them the folders whose names speak of a split (one of another
    name is ``train``), or those that ``options.splits`` gives.
    """
    reader = _Reader(tree, report, options)
    folders = {
        path.parent for path in tree.files if path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Main")
    }
    if not reader.labels:
        raise DatasetError(f"{tree.root}: expected Pascal VOC's xml files, found none")
    if options.splits:
        splits = {split: _in_folder(tree, folder) for split, folder in options.splits.items()}
        splits = {split: reader.images(paths) for split, paths in splits.items()}
        reader.look_for_unlabelled(splits)
    elif len(folders) > 1:
        raise DatasetError(
            f"{tree.root}: expected one data set, found {len(folders)}: "
            f"{', '.join(sorted(tree.name(folder.parent.parent) for folder in folders))}; import each by itself"
        )
    elif folders:
        splits = _of_lists(tree, report, reader, *folders)
    else:
        paths = {}
        for path in reader.labels:
            paths.setdefault(tree.split(path) or "train", []).append(path)
        splits = {split: reader.images(of_split) for split, of_split in paths.items()}
        reader.look_for_unlabelled(splits)
    if not any(splits.values()):
        kinds = ("unreadable_label", "label_without_image", "unlabelled_image")
        example = next((report.found[kind][0] for kind in kinds if kind in report.found), "empty lists")
        raise DatasetError(f"{tree.root}: no xml file could be read together with its image, for example {example}")
    names = options.classes or sorted(
        {box.label for images in splits.values() for image in images for box in image.boxes}
    )
    return Source([Category(i, name) for i, name in enumerate(dict.fromkeys(names), 1)], splits)


def _in_folder(tree, folder):
    path = tree.folder(folder)
    labels = tree.within(path, {".xml"})
    if not labels:
        raise DatasetError(f"{path}: expected Pascal VOC's xml files, found none")
    return labels


def _of_lists(tree, report, reader, folder):
    root = folder.parent.parent
    by_stem = {path.stem: path for path in reader.labels if root in path.parents}
    splits, absent = {}, {}
    for path in sorted(folder.glob("*.txt")):
        names = _names(path, by_stem)
        if names is None:
            continue
        images = []
        for name in dict.fromkeys(names):
            if name in by_stem:
                images.append(reader.image(by_stem[name]))
            else:
                if name not in absent:
                    absent[name] = reader.without_label(name, root, f"{tree.name(path)}: {name}")
                images.append(absent[name])
        splits[path.stem] = [image for image in images if image]
    if not splits:
        raise DatasetError(f"{folder}: expected lists of image names (train.txt, ...), found none")
    for path in by_stem.values():
        if path not in reader.read:
            report.add("image_in_no_split", tree.name(path))
    return splits


def _names(path, known):
    """The names that a list holds; None for a list of one class (aeroplane_train.txt: 1 or -1 after each name)."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a list of image names: {error}") from None
    lines = [line for line in lines if line]
    if lines and all(re.fullmatch(r"\S+\s+(-1|0|1)", line) for line in lines) and known.keys().isdisjoint(lines):
        return None
    return [line if line in known else line.split()[0] for line in lines]  # a name may hold blanks


class _Reader:
    """Reads xml files, each once, and finds their images."""

    def __init__(self, tree, report, options):
        self.tree, self.report, self.options = tree, report, options
        self.labels = tree.within(None, {".xml"})
        self.read: dict[Path, Labelled | None] = {}
        self.used: set[Path] = set()  # images that a label belongs to, usable or not
        self._labels_of_stem = {}
        for path in self.labels:
            self._labels_of_stem.setdefault(path.stem, []).append(path)

    def images(self, paths) -> list[Labelled]:
        return [image for path in paths if (image := self.image(path))]

    def image(self, path) -> Labelled | None:
        """An xml file and its image; None if either cannot be used."""
        if path not in self.read:
            self.read[path] = self._read(path)
        return self.read[path]

    def without_label(self, name, root, where) -> Labelled | None:
        """An image that a list names and that has no xml."""
        image = self._file(root / "Annotations" / f"{name}.xml", "")
        if image is None:
            self.report.add("label_without_image", f"{where}: neither image nor xml")
            return None
        return self._unlabelled(image, where)

    def _unlabelled(self, image, where):
        if self.options.unlabelled == "background":
            self.report.add("background_image", self.tree.name(image))
            return Labelled(image, [], where)
        self.report.add("unlabelled_image", self.tree.name(image))
        return None

    def look_for_unlabelled(self, splits):
        """Images that no xml belongs to, in the folders of the others and of the xml files."""
        homes = {path.parent for path in self.read}
        split_of_folder = {}
        for split, images in splits.items():
            for image in images:
                split_of_folder.setdefault(image.file.parent, split)
        for path in self.tree.images():
            if path in self.used or path.parent not in homes | split_of_folder.keys():
                continue
            image = self._unlabelled(path, self.tree.name(path))
            if image:
                splits[split_of_folder.get(path.parent, next(iter(splits)))].append(image)

    def _read(self, path):
        where = self.tree.name(path)
        try:
            root = ElementTree.parse(path).getroot()
            if root.tag != "annotation":
                raise ValueError(f"expected <annotation>, got <{root.tag}>")
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            self.report.add("unreadable_label", f"{where}: {error}")
            self._file(path, "")
            return None
        named = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
        image = self._file(path, named)
        if image is None:
            self.report.add("label_without_image", where)
            return None
        if named and named != image.name:
            self.report.add("other_file_name", f"{where}: {named}")
        return Labelled(image, self._boxes(root, where), where, _frame(root))

    def _file(self, path, named) -> Path | None:
        """The image of an xml file: of its stem, or of the name that it holds. No image of another split or label."""
        beside = path.parent.parent / "JPEGImages"  # in a devkit, not its masks
        candidates = self.tree.image_of_stem(path.stem) or self.tree.image_named(named)
        candidates = [file for file in candidates if file.parent == beside] or candidates
        split = self.tree.split(path)
        candidates = nearest([file for file in candidates if self.tree.split(file) in (split, None) or not split], path)
        if path.stem in self._labels_of_stem:  # an image whose label lies nearer is not this one's
            of_stem = self._labels_of_stem[path.stem]
            candidates = [file for file in candidates if file.stem != path.stem or path in nearest(of_stem, file)]
        if len(candidates) > 1:
            exact = [file for file in candidates if file.name == named]
            if not exact:
                self.report.add(
                    "several_images", f"{self.tree.name(path)}: {', '.join(map(self.tree.name, candidates))}"
                )
            candidates = exact or candidates
        self.used.update(candidates[:1])
        return candidates[0] if candidates else None

    def _boxes(self, root, where) -> list[Box]:
        database = (root.findtext("source/database") or "").strip()
        pixels = self.options.pixels
        one_based = pixels == "one-based" or (pixels == "auto" and DEVKIT.fullmatch(database) is not None)
        boxes = []
        for number, item in enumerate(root.findall("object"), 1):
            self.report.read["boxes"] += 1
            at = f"{where}: object {number}"
            try:
                label, corners = _object(item)
            except ValueError as error:
                self.report.add("malformed_entry", f"{at}: {error}")
                continue
            keys = {"difficult": 1} if (item.findtext("difficult") or "0").strip() not in ("0", "") else {}
            boxes.append(Box(label, corners, at, keys))
        if any(value % 1 > 0 for box in boxes for value in box.corners):
            self.report.add("fractional_coordinates", where)
        if boxes and one_based:
            self.report.add("one_based", where)
            for box in boxes:
                x1, y1, x2, y2 = box.corners
                box.corners = (x1 - 1, y1 - 1, x2, y2)
        return boxes


def _object(item):
    """Class and corners of an <object>; ValueError says what is wrong with it."""
    label = " ".join((item.findtext("name") or "").split())
    if not label:
        raise ValueError("no <name>")
    box = item.find("bndbox")
    if box is None:
        raise ValueError("no <bndbox>")
    values = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = box.findtext(name)
        try:
            values.append(float(text))
        except (TypeError, ValueError):
            raise ValueError(f"expected a number as <{name}>, got {text!r}") from None
    return label, tuple(values)


def _frame(root):
    """Width and height that the file gives, None for none: many tools write 0."""
    try:
        size = (float(root.findtext("size/width")), float(root.findtext("size/height")))
    except (TypeError, ValueError):
        return None
    return size if all(0 < side < 1e6 for side in size) else None
