"""Pascal VOC: an xml file for each image; splits as lists of names in ``ImageSets/Main``, or as folders."""

import re
import xml.etree.ElementTree as ElementTree

from .labels import Box, Category, DatasetError, Labelled, Source, nearest, split_of

# In PASCAL's own files pixels count from 1 and the last one is part of the box; other tools' have edges.
DEVKIT = re.compile(r"The VOC\d{4} Database")


def read_voc(tree, report, options) -> Source:
    """Reads a folder of xml files and images.

    Splits are the lists of ``ImageSets/Main``; without them the folders whose names speak of a split (one of another
    name is ``train``), or those that ``options.splits`` gives.
    """
    labels = tree.labels(".xml")
    if not labels:
        raise DatasetError(f"{tree.root}: expected Pascal VOC's xml files, found none")
    lists = sorted({path.parent for path in tree.labels(".txt") if path.parent.parts[-2:] == ("ImageSets", "Main")})
    if options.splits:
        members = {split: _of_folder(tree, folder) for split, folder in options.splits.items()}
    elif len(lists) > 1:
        raise DatasetError(
            f"{tree.root}: expected one data set, found {len(lists)}: "
            f"{', '.join(tree.name(folder.parent.parent) for folder in lists)}; import each by itself"
        )
    elif lists:
        labels = _beside(lists[0].parent.parent, labels)
        return _finish(tree, report, options, *_from_lists(tree, report, options, lists[0], labels))
    else:
        members = {}
        for path in labels:
            split = split_of(path.relative_to(tree.root).parent.parts if path.is_relative_to(tree.root) else ())
            members.setdefault(split or "train", []).append(path)
    read = {path: _read(tree, report, options, path) for paths in members.values() for path in paths}
    splits = {split: [read[path] for path in paths if read[path]] for split, paths in members.items()}
    _unlabelled(tree, report, options, splits, {path.parent for path in read})
    return _finish(tree, report, options, splits, read)


def _of_folder(tree, folder):
    path = tree.root / folder
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    labels = tree.labels(".xml", path) if path != tree.root else tree.labels(".xml")
    if not labels:
        raise DatasetError(f"{path}: expected Pascal VOC's xml files, found none")
    return labels


def _beside(root, labels):
    """The labels of the data set whose lists are under ``root``."""
    return [path for path in labels if root in path.parents]


def _from_lists(tree, report, options, folder, labels):
    by_stem = {path.stem: path for path in labels}
    read, splits, absent = {}, {}, set()
    for path in sorted(tree.labels(".txt", folder)):
        names = _names(path, by_stem)
        if names is None:
            continue  # a class's list (aeroplane_train.txt)
        images = []
        for name in dict.fromkeys(names):
            label = by_stem.get(name)
            if label is None:
                if name not in absent:
                    absent.add(name)
                    _without_label(tree, report, options, name, f"{tree.name(path)}: {name}", read)
                image = read.get(name)
            else:
                if label not in read:
                    read[label] = _read(tree, report, options, label)
                image = read[label]
            if image is not None:
                images.append(image)
        splits[path.stem] = images
    if not splits:
        raise DatasetError(f"{folder}: expected lists of image names (train.txt, ...), found none")
    for label in labels:
        if label not in read:
            report.add("image_in_no_split", tree.name(label))
    return splits, read


def _names(path, known):
    """The names that a list holds; None for a list that says 1 or -1 after each: of one class."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a list of image names: {error}") from None
    lines = [line for line in lines if line]
    if lines and all(re.fullmatch(r"\S+\s+(-1|0|1)", line) for line in lines) and not any(x in known for x in lines):
        return None
    # A name may hold blanks, and a list may say more than names.
    return [line if line in known else line.split()[0] for line in lines]


def _without_label(tree, report, options, name, where, read):
    found = tree.image_of_stem(name)
    if not found:
        report.add("label_without_image", f"{where}: neither image nor xml")
    elif options.unlabelled == "background":
        report.add("background_image", tree.name(found[0]))
        read[name] = Labelled(found[0], [], where)
    else:
        report.add("unlabelled_image", tree.name(found[0]))


def _unlabelled(tree, report, options, splits, folders):
    """Images without an xml, in the folders that hold labelled images or xml files."""
    used = {image.file for images in splits.values() for image in images}
    homes = {}
    for split, images in splits.items():
        for image in images:
            homes.setdefault(image.file.parent, split)
    stems = {path.stem for path in tree.labels(".xml")}
    for path in tree.images():
        if path in used or path.stem in stems or not (path.parent in homes or path.parent in folders):
            continue
        if options.unlabelled == "background" and path.parent in homes:
            report.add("background_image", tree.name(path))
            splits[homes[path.parent]].append(Labelled(path, [], tree.name(path)))
        else:
            report.add("unlabelled_image", tree.name(path))


def _read(tree, report, options, path) -> Labelled | None:
    """An xml file and its image; None if either cannot be used."""
    where = tree.name(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        report.add("unreadable_label", f"{where}: {error}")
        return None
    if root.tag != "annotation":
        report.add("unreadable_label", f"{where}: expected <annotation>, got <{root.tag}>")
        return None
    image = _image(tree, report, root, path, where)
    if image is None:
        report.add("label_without_image", where)
        return None
    one_based = options.pixels == "one-based" or (
        options.pixels == "auto" and DEVKIT.fullmatch((root.findtext("source/database") or "").strip()) is not None
    )
    boxes, fractional = [], False
    for i, item in enumerate(root.findall("object"), 1):
        at = f"{where}: object {i}"
        report.read["boxes"] += 1
        box = _box(item, at)
        if isinstance(box, str):
            report.add("malformed_entry", f"{at}: {box}")
            continue
        fractional |= any(v != int(v) for v in box.corners if abs(v) < 1e9)
        if one_based:
            x1, y1, x2, y2 = box.corners
            box.corners = (x1 - 1, y1 - 1, x2, y2)
        boxes.append(box)
    if one_based and boxes:
        report.add("one_based", where)
    if fractional:
        report.add("fractional_coordinates", where)
    return Labelled(image, boxes, where, _frame(root))


def _image(tree, report, root, path, where):
    named = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    candidates = tree.image_of_stem(path.stem)
    folder = path.parent.parent / "JPEGImages"
    if any(candidate.parent == folder for candidate in candidates):
        candidates = [candidate for candidate in candidates if candidate.parent == folder]  # not its masks
    elif not candidates:
        candidates = tree.image_named(named)
    candidates = nearest(candidates, path)
    if len(candidates) > 1:
        exact = [candidate for candidate in candidates if candidate.name == named]
        if len(exact) != 1:
            report.add("several_images", f"{where}: {', '.join(map(tree.name, candidates))}")
        candidates = exact or candidates
    if candidates and named and candidates[0].name != named:
        report.add("other_file_name", f"{where}: {named}")
    return candidates[0] if candidates else None


def _box(item, where) -> Box | str:
    """An <object>, or what is wrong with it."""
    label = " ".join((item.findtext("name") or "").split())
    if not label:
        return "no <name>"
    corners = item.find("bndbox")
    if corners is None:
        return "no <bndbox>"
    values = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = corners.findtext(name)
        try:
            values.append(float(text))
        except (TypeError, ValueError):
            return f"expected a number as <{name}>, got {text!r}"
    keys = {"difficult": 1} if (item.findtext("difficult") or "0").strip() not in ("0", "") else {}
    return Box(label, tuple(values), where, keys)


def _frame(root):
    try:
        size = (float(root.findtext("size/width")), float(root.findtext("size/height")))
    except (TypeError, ValueError):
        return None
    return size if all(0 < side < float("inf") for side in size) else None


def _finish(tree, report, options, splits, read):
    images = [image for image in read.values() if image is not None]
    if not images:
        first = next((found for name in ("unreadable_label", "label_without_image", "unlabelled_image")
                      for found in report.found.get(name, ())), "no image")  # fmt: skip
        raise DatasetError(f"{tree.root}: no xml file could be read together with its image, for example {first}")
    names = options.classes or sorted({box.label for image in images for box in image.boxes})
    categories = [Category(i, name) for i, name in enumerate(dict.fromkeys(names), 1)]
    return Source(categories, splits)
