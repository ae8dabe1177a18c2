"""The way of an import: read the labels, look at the images, clean the boxes, write."""

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from .clean import clean_boxes
from .coco import read_coco
from .labels import DatasetError, Labelled, Tree
from .pictures import Picture, has_format_of_name, read_picture
from .report import Report
from .voc import read_voc
from .write import check_output, write_dataset
from .yolo import read_yolo

FORMATS = {"voc": read_voc, "yolo": read_yolo, "coco": read_coco}
ORDINARY_NAME = re.compile(r"[\w.() -]+")
# The share of images whose names begin with a class, in data sets that name them so.
MOST_NAMES = 0.9


@dataclass(frozen=True)
class ImportOptions:
    """What may be chosen of an import.

    Attributes:
        classes: VOC and COCO: the classes and their order; others are dropped. YOLO: names by index; equal names are
            one class.
        splits: instead of the source's own: name to folder of labels (VOC), folder of images (YOLO) or annotation
            file (COCO), from the source.
        hold_out: (name, fraction): a new split of that fraction of the images of the only one. Which ones follows
            from the files' contents, so that equal images stay together.
        images: further folders that hold images.
        unlabelled: images without a label are dropped (``"drop"``) or images of nothing (``"background"``).
        difficult: VOC's mark: boxes with it are kept as any other (``"keep"``), kept with COCO's ``ignore``
            (``"ignore"``), or dropped (``"drop"``).
        pixels: VOC's: ``"one-based"`` and inclusive, ``"edges"`` as written, or ``"auto"``: one-based in PASCAL's own
            files.
        copy: copy the images; otherwise they are symbolic links.

    Raises:
        DatasetError: a value that is not allowed.
    """

    classes: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    hold_out: tuple[str, float] | None = None
    images: tuple[str, ...] = ()
    unlabelled: str = "drop"
    difficult: str = "keep"
    pixels: str = "auto"
    copy: bool = False
    description: Path | None = None  # set by import_dataset: the source's own yaml or json file

    def __post_init__(self):
        for name, allowed in (
            ("unlabelled", ("drop", "background")),
            ("difficult", ("keep", "ignore", "drop")),
            ("pixels", ("auto", "one-based", "edges")),
        ):
            if getattr(self, name) not in allowed:
                raise DatasetError(f"{name}: expected {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.hold_out and not 0 < self.hold_out[1] < 1:
            raise DatasetError(f"hold_out: expected a fraction between 0 and 1, got {self.hold_out[1]}")
        for split in (*self.splits, *(self.hold_out or ())[:1]):
            if not re.fullmatch(r"[\w.-]+", split):
                raise DatasetError(f"splits: expected a name of letters, digits, '_', '-' and '.', got {split!r}")


def import_dataset(format: str, source, output, options: ImportOptions | None = None) -> Report:
    """Writes a source's splits as COCO json, with links to or copies of its images, and a report of all that was found.

    ``output`` gets ``annotations/instances_SPLIT.json``, ``images/`` and ``import_report.json`` and ``.txt``. Doing it
    again replaces the files one by one, each in one step; an ``output`` of another source is refused.

    Args:
        format: ``"voc"``, ``"yolo"`` or ``"coco"``.
        source: folder; for YOLO also its yaml file, for COCO also one json file.
        output: folder, made if it is not there.

    Raises:
        DatasetError: the source cannot be read as ``format``, or the output holds something else.
    """
    options = options or ImportOptions()
    if format not in FORMATS:
        raise DatasetError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    source, output = Path(source), Path(output)
    if source.is_file() and format != "voc":
        options = replace(options, description=source)
        source = source.parent
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder")
    report = Report(format, str((options.description or source).resolve()), str(output))
    check_output(output, source, report)
    tree = Tree(source, output, [Path(folder) for folder in options.images])
    content = FORMATS[format](tree, report, options)
    pictures = _look_at_pictures(tree, report, content)
    splits = {name: [image for image in images if image.file in pictures] for name, images in content.splits.items()}
    if options.hold_out:
        splits = _held_out(splits, pictures, *options.hold_out)
    if not any(splits.values()):
        example = report.found.get("unreadable_image", ["no image"])[0]
        raise DatasetError(f"{source}: expected images, found none that can be read, for example {example}")
    _look_for_repeats(tree, report, splits, pictures)
    names = {category.name for category in content.categories}
    annotations = {
        image: clean_boxes(image, pictures[image.file], names, report, options)
        for image in dict.fromkeys(image for images in splits.values() for image in images)
    }
    _compare_with_file_names(report, annotations, names)
    report.read["images"] = len({image.file for images in content.splits.values() for image in images})
    write_dataset(output, report, content, splits, pictures, annotations, options.copy)
    return report


def _look_at_pictures(tree, report, content) -> dict[Path, Picture]:
    """Every image file that can be read, looked at once."""
    pictures = {}
    for path in sorted({image.file for images in content.splits.values() for image in images}):
        name = tree.name(path)
        try:
            picture = pictures[path] = read_picture(path)
        except ValueError as error:
            report.add("unreadable_image", f"{name}: {error}")
            continue
        if picture.orientation != 1:
            report.add("exif_orientation", f"{name}: orientation {picture.orientation}")
        if not has_format_of_name(path, picture):
            report.add("other_format", f"{name}: {picture.format}")
        if picture.mode in ("LA", "PA", "RGBA", "RGBa", "La"):
            report.add("alpha", name)
        if picture.mode in ("1", "L", "LA"):
            report.add("grey", name)
        if picture.mode[0] in "IF":
            report.add("deep_image", f"{name}: mode {picture.mode}")
        if not ORDINARY_NAME.fullmatch(path.name):
            report.add("odd_name", name)
    return pictures


def _held_out(splits, pictures, name, fraction) -> dict[str, list[Labelled]]:
    """The only split in two. Images are in the order of their contents' digests, which is as good as any."""
    if len(splits) != 1:
        raise DatasetError(f"hold_out: expected a source of one split, got {', '.join(splits)}")
    ((rest, images),) = splits.items()
    if name == rest:
        raise DatasetError(f"hold_out: expected another name than the source's split, got {name!r}")
    digests = sorted({pictures[image.file].digest for image in images})
    chosen = set(digests[: round(fraction * len(digests))])
    return {
        rest: [image for image in images if pictures[image.file].digest not in chosen],
        name: [image for image in images if pictures[image.file].digest in chosen],
    }


def _look_for_repeats(tree, report, splits, pictures):
    """Equal images, and images in two splits of which neither is the union of others (as trainval is)."""
    of_split = {name: {image.file for image in images} for name, images in splits.items()}
    by_digest = defaultdict(list)
    for path in sorted(set().union(*of_split.values())):
        by_digest[pictures[path].digest].append(path)
    for first, *others in by_digest.values():
        for path in others:
            report.add("duplicate_image", f"{tree.name(path)} is {tree.name(first)}")
    seen = set()
    for name, files in of_split.items():
        for other, theirs in of_split.items():
            if name < other and not _is_union(name, of_split) and not _is_union(other, of_split):
                for path in sorted((files & theirs) - seen):
                    seen.add(path)
                    report.add("image_in_two_splits", f"{tree.name(path)}: {name} and {other}")


def _is_union(name, of_split):
    files = of_split[name]
    parts = [theirs for other, theirs in of_split.items() if other != name and theirs and theirs < files]
    return len(parts) > 1 and set().union(*parts) == files


def _compare_with_file_names(report, annotations, classes):
    """Boxes of another class than the file's name, where files are named by their class."""
    if len(classes) < 2:
        return
    longest_first = sorted(classes, key=len, reverse=True)
    named = {}
    for image in annotations:
        stem = image.file.stem.lower()
        for name in longest_first:
            if stem.startswith(name.lower()) and not stem[len(name) : len(name) + 1].isalpha():
                named[image] = name
                break
    if len(named) < MOST_NAMES * len(annotations):
        return
    for image, name in named.items():
        for annotation in annotations[image]:
            if annotation["label"] != name:
                report.add("class_not_in_file_name", f"{image.where}: {annotation['label']}")
